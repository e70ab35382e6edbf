// Cross-entropy of every row of logits, and its gradient: one pass over memory each.
//
//   lse = log sum_c exp(x_c)      loss = lse - x_target      dx_c = g (exp(x_c - lse) - [c = target])
//
// Rows whose target is negative have loss 0 and gradient 0.
#include <cmath>
#include <limits>

#include "../vector.h"

namespace {

// Apply `step(first, lanes, x)` to vectors of n elements; the last is padded with `fill`.
template <typename Step>
inline void sweep(int64_t n, const float* in, float fill, const Step& step) {
  int64_t i = 0;
  for (; i + L <= n; i += L) step(i, L, load(in + i));
  if (i == n) return;
  vf x = vf{} + fill;
  std::memcpy(&x, in + i, (n - i) * sizeof(float));
  step(i, n - i, x);
}

}  // namespace

extern "C" {

int umscale_cross_entropy(int64_t rows, int64_t n, const float* logits, const int64_t* target, int threads,
                          float* loss, float* lse) {
  const float never = -std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = logits + i * n;
    vf most = vf{} + never, sum{};
    sweep(n, x, never, [&](int64_t, int64_t, vf y) { most = most > y ? most : y; });
    const float top = largest_of(most);
    sweep(n, x, never, [&](int64_t, int64_t, vf y) { sum += exp_of(y - top); });
    lse[i] = top + std::log(sum_of(sum));
    loss[i] = target[i] < 0 ? 0.0f : lse[i] - x[target[i]];
  }
  return 0;
}

// g: one for all rows when `per_row` is 0. dx may be the logits themselves.
int umscale_cross_entropy_backward(int64_t rows, int64_t n, const float* logits, const int64_t* target,
                                   const float* lse, const float* g, int per_row, int threads, float* dx) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const float scale = target[i] < 0 ? 0.0f : g[per_row ? i : 0];
    float* to = dx + i * n;
    const float shift = lse[i];
    sweep(n, logits + i * n, 0.0f, [&](int64_t at, int64_t lanes, vf y) {
      const vf d = exp_of(y - shift) * scale;
      std::memcpy(to + at, &d, lanes * sizeof(float));
    });
    if (target[i] >= 0) to[target[i]] -= scale;
  }
  return 0;
}
}
