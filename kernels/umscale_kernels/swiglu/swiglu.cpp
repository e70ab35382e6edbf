// SwiGLU's gate and its gradient, one pass each, with sigma the logistic function.
//
//   y = g sigma(g) u         dg = dy u sigma(g) (1 + g (1 - sigma(g)))         du = dy g sigma(g)
#include <cstdint>
#include <cstring>

namespace {

constexpr int L = 8;
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));

inline vf load(const float* p) { vf x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

// e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln(2)/2, a degree-6 polynomial in r, and n into the exponent.
inline vf exp_of(vf x) {
  const vf low = vf{} - 87.0f, high = vf{} + 87.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const vf shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest integer
  const vf n = shifted - 12582912.0f;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  return p * (vf)bits;
}

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
