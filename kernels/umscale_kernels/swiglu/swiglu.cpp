// SwiGLU's gate and its gradient, one pass each, with sigma the logistic function.
//
//   y = g sigma(g) u         dg = dy u sigma(g) (1 + g (1 - sigma(g)))         du = dy g sigma(g)
#include "../vector.h"

namespace {

inline vf logistic(vf x) { return 1.0f / (1.0f + exp_of(-x)); }

// Apply `step` to whole vectors of n elements, then to a padded copy of the rest.
template <int INPUTS, int OUTPUTS, typename Step>
inline void sweep(int64_t n, const float* const* in, float* const* out, const Step& step) {
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    vf x[INPUTS], y[OUTPUTS];
    for (int k = 0; k < INPUTS; ++k) x[k] = load(in[k] + i);
    step(x, y);
    for (int k = 0; k < OUTPUTS; ++k) store(out[k] + i, y[k]);
  }
  if (i == n) return;
  vf x[INPUTS] = {}, y[OUTPUTS];
  for (int k = 0; k < INPUTS; ++k) std::memcpy(&x[k], in[k] + i, (n - i) * sizeof(float));
  step(x, y);
  for (int k = 0; k < OUTPUTS; ++k) std::memcpy(out[k] + i, &y[k], (n - i) * sizeof(float));
}

}  // namespace

extern "C" {

int umscale_swiglu(int64_t rows, int64_t width, const float* x, int threads, float* y) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float* in[2] = {x + 2 * i * width, x + (2 * i + 1) * width};
    float* out[1] = {y + i * width};
    sweep<2, 1>(width, in, out, [](const vf* a, vf* b) { b[0] = a[0] * logistic(a[0]) * a[1]; });
  }
  return 0;
}

int umscale_swiglu_backward(int64_t rows, int64_t width, const float* dy, const float* x, int threads, float* dx) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float* in[3] = {x + 2 * i * width, x + (2 * i + 1) * width, dy + i * width};
    float* out[2] = {dx + 2 * i * width, dx + (2 * i + 1) * width};
    sweep<3, 2>(width, in, out, [](const vf* a, vf* b) {
      const vf s = logistic(a[0]), gate = a[0] * s;
      b[0] = a[2] * a[1] * s * (1.0f + a[0] * (1.0f - s));
      b[1] = a[2] * gate;
    });
  }
  return 0;
}
}
