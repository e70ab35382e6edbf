// AdamW on a table or on some of its rows, one pass: every operand is read and written once.
//
//   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g²     (v of a whole row: the mean of its g²)
//   p = decay p - rate m / (v^(1/2) / (1 - beta2^t)^(1/2) + eps)        decay = 1 - lr wd, rate = lr / (1 - beta1^t)
//   shadow = bfloat16(p)
//
// No sum crosses rows, so results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t BLOCK = 1024;  // elements a flat block: its operands stay in the L1 cache for the shadow copy
constexpr int64_t AHEAD = 4;     // rows between the prefetch of a row and its use
constexpr int L = 8;             // lanes
typedef float vf __attribute__((vector_size(4 * L)));

struct Rates {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, correction, eps, decay, rate;  // correction of sqrt(v)
};

void update(const Rates& r, int64_t n, const float* __restrict g, float* __restrict m, float* __restrict v,
            float* __restrict p) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = r.beta1 * m[i] + r.one_minus_beta1 * g[i];
    v[i] = r.beta2 * v[i] + r.one_minus_beta2 * (g[i] * g[i]);
    p[i] = r.decay * p[i] - r.rate * m[i] / (std::sqrt(v[i]) * r.correction + r.eps);
  }
}

// The same for a gradient of zero.
void coast(const Rates& r, int64_t n, float* __restrict m, float* __restrict v, float* __restrict p) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = r.beta1 * m[i];
    v[i] = r.beta2 * v[i];
    p[i] = r.decay * p[i] - r.rate * m[i] / (std::sqrt(v[i]) * r.correction + r.eps);
  }
}

float mean_square(int64_t n, const float* g) {
  vf lanes{};
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    vf x;
    std::memcpy(&x, g + i, sizeof x);
    lanes += x * x;
  }
  float sum = 0.0f;
  for (int l = 0; l < L; ++l) sum += lanes[l];
  for (; i < n; ++i) sum += g[i] * g[i];
  return sum / float(n);
}

void update_row(const Rates& r, int64_t n, const float* __restrict g, float* __restrict m, float* v,
                float* __restrict p) {
  *v = r.beta2 * *v + r.one_minus_beta2 * mean_square(n, g);
  const float rate = r.rate / (std::sqrt(*v) * r.correction + r.eps);
  for (int64_t i = 0; i < n; ++i) {
    m[i] = r.beta1 * m[i] + r.one_minus_beta1 * g[i];
    p[i] = r.decay * p[i] - rate * m[i];
  }
}

// Round to nearest, ties to even; NaN stays NaN.
void to_bf16(int64_t n, const float* __restrict p, uint16_t* __restrict shadow) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t x;
    std::memcpy(&x, p + i, 4);
    const uint32_t rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
    shadow[i] = uint16_t((x & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

void coast_row(const Rates& r, int64_t n, float* __restrict m, float* v, float* __restrict p) {
  *v = r.beta2 * *v;
  const float rate = r.rate / (std::sqrt(*v) * r.correction + r.eps);
  for (int64_t i = 0; i < n; ++i) {
    m[i] = r.beta1 * m[i];
    p[i] = r.decay * p[i] - rate * m[i];
  }
}

// All rows [first, end), those between rows[u] and the next with a gradient of zero.
void update_all(const Rates& r, int64_t first, int64_t end, int64_t D, const int64_t* rows, int64_t U, const float* g,
                float* m, int row_wise, float* v, float* p, uint16_t* shadow) {
  int64_t u = std::lower_bound(rows, rows + U, first) - rows;
  for (int64_t R = first; R < end;) {
    const int64_t next = u < U ? std::min(end, rows[u]) : end;
    if (row_wise) for (int64_t k = R; k < next; ++k) coast_row(r, D, m + k * D, v + k, p + k * D);
    else coast(r, (next - R) * D, m + R * D, v + R * D, p + R * D);
    if (next < end) {
      if (row_wise) update_row(r, D, g + u * D, m + next * D, v + next, p + next * D);
      else update(r, D, g + u * D, m + next * D, v + next * D, p + next * D);
      ++u;
    }
    R = next + 1;
  }
  if (shadow) to_bf16((end - first) * D, p + first * D, shadow + first * D);
}

template <typename T>
void prefetch(const T* row, int64_t n) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(at + byte, 1);
}

}  // namespace

// g [U, D] over distinct rows [U] of the [N, D] tables m, p, shadow (may be null) and v ([N] when row_wise, else
// [N, D]); rows null: all, U = N. With `all` the rows ascend, and the others have a gradient of zero. Returns 1, with nothing changed, when a row is outside [0, N).
extern "C" int umscale_table_adamw(int64_t U, int64_t N, int64_t D, const int64_t* rows, const float* g, float* m,
                                   int row_wise, float* v, float* p, uint16_t* shadow, float beta1,
                                   float one_minus_beta1, float beta2, float one_minus_beta2, float correction,
                                   float eps, float decay, float rate, int all, int threads) {
  const Rates r{beta1, one_minus_beta1, beta2, one_minus_beta2, correction, eps, decay, rate};
  if (!rows && !row_wise) {  // rows mean nothing here
    const int64_t n = N * D;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += BLOCK) {
      const int64_t count = std::min(BLOCK, n - i);
      update(r, count, g + i, m + i, v + i, p + i);
      if (shadow) to_bf16(count, p + i, shadow + i);
    }
    return 0;
  }
  for (int64_t k = 0; rows && k < U; ++k)
    if (rows[k] < 0 || rows[k] >= N) return 1;
  if (rows && all) {
    const int64_t block = std::max<int64_t>(1, 4 * BLOCK / D);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < N; first += block)
      update_all(r, first, std::min(N, first + block), D, rows, U, g, m, row_wise, v, p, shadow);
    return 0;
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < U; ++k) {
    if (rows && k + AHEAD < U) {
      const int64_t next = rows[k + AHEAD];
      prefetch(m + next * D, D);
      prefetch(p + next * D, D);
      if (row_wise) prefetch(v + next, 1);
      else prefetch(v + next * D, D);
      if (shadow) prefetch(shadow + next * D, D);
    }
    const int64_t R = rows ? rows[k] : k;
    if (row_wise) update_row(r, D, g + k * D, m + R * D, v + R, p + R * D);
    else update(r, D, g + k * D, m + R * D, v + R * D, p + R * D);
    if (shadow) to_bf16(D, p + R * D, shadow + R * D);
  }
  return 0;
}
