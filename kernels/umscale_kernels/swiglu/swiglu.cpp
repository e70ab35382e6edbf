// SwiGLU's gate and its gradient, one pass each, with sigma the logistic function; float32 or bfloat16, computed in float32.
//
//   y = g sigma(g) u         dg = dy u sigma(g) (1 + g (1 - sigma(g)))         du = dy g sigma(g)
#include "../vector.h"

namespace {

inline vf logistic(vf x) { return 1.0f / (1.0f + exp_of(-x)); }

// Apply `step` to whole vectors of n elements, then to the rest, padded.
template <int INPUTS, int OUTPUTS, typename T, typename Step>
inline void sweep(int64_t n, const T* const* in, T* const* out, const Step& step) {
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    vf x[INPUTS], y[OUTPUTS];
    for (int k = 0; k < INPUTS; ++k) x[k] = load(in[k] + i);
    step(x, y);
    for (int k = 0; k < OUTPUTS; ++k) store(out[k] + i, y[k]);
  }
  if (i == n) return;
  vf x[INPUTS], y[OUTPUTS];
  for (int k = 0; k < INPUTS; ++k) x[k] = load_part(in[k] + i, n - i);
  step(x, y);
  for (int k = 0; k < OUTPUTS; ++k) store_part(out[k] + i, n - i, y[k]);
}

template <typename T>
void forward(int64_t rows, int64_t width, const T* x, int threads, T* y) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* in[2] = {x + 2 * i * width, x + (2 * i + 1) * width};
    T* out[1] = {y + i * width};
    sweep<2, 1>(width, in, out, [](const vf* a, vf* b) { b[0] = a[0] * logistic(a[0]) * a[1]; });
  }
}

template <typename T>
void backward(int64_t rows, int64_t width, const T* dy, const T* x, int threads, T* dx) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* in[3] = {x + 2 * i * width, x + (2 * i + 1) * width, dy + i * width};
    T* out[2] = {dx + 2 * i * width, dx + (2 * i + 1) * width};
    sweep<3, 2>(width, in, out, [](const vf* a, vf* b) {
      const vf s = logistic(a[0]), gate = a[0] * s;
      b[0] = a[2] * a[1] * s * (1.0f + a[0] * (1.0f - s));
      b[1] = a[2] * gate;
    });
  }
}

}  // namespace

extern "C" {

int umscale_swiglu(int is_bf16, int64_t rows, int64_t width, const void* x, int threads, void* y) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    forward(rows, width, static_cast<const T*>(x), threads, static_cast<T*>(y));
  });
  return 0;
}

int umscale_swiglu_backward(int is_bf16, int64_t rows, int64_t width, const void* dy, const void* x, int threads,
                            void* dx) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    backward(rows, width, static_cast<const T*>(dy), static_cast<const T*>(x), threads, static_cast<T*>(dx));
  });
  return 0;
}
}
