// Causal attention from the joint projection of queries, keys and values, and its gradient.
//
//   q_i, k_i = turn_i(RMSNorm(x) gain)       P_ij = exp(<q_i, k_j> / sqrt(d) - lse_i),  start_i <= j <= i
//   o_i = sum_j P_ij v_j
//   dP = do v^T     dS = P (dP - rowsum(P dP))     dq = dS k / sqrt(d)     dk = dS^T q / sqrt(d)     dv = P^T do
//
// One (sequence, head) at a time: its q, k, v are laid out once, in scratch that stays in the cache, and its scores
// exist for QUERIES rows at a time. x, o and their gradients are float32 or bfloat16, everything between is float32. Nothing crosses (sequence, head) but the norms'
// gains, whose gradients are summed in fixed blocks: results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../vector.h"

namespace {

#ifdef __AVX512F__
constexpr int MR = 8;  // rows of a product's register tile, of 2 L columns
#else
constexpr int MR = 4;
#endif
constexpr int64_t QUERIES = 32;  // query rows whose scores exist at a time; keys are padded to a multiple
constexpr int64_t TOKENS = 256;  // tokens whose gain gradients are summed together

struct Shape {
  int64_t B, S, H, d;
  int64_t h() const { return H * d; }
  int64_t padded() const { return (S + QUERIES - 1) / QUERIES * QUERIES; }  // positions
  int64_t wide() const { return (d + L - 1) / L * L; }                      // channels
};

template <int NV, bool ADD>
inline void tile(int64_t K, const float* A, int64_t a_row, int64_t a_col, const float* B, int64_t ldb, float* C,
                 int64_t ldc) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = ADD ? load(C + m * ldc + v * L) : vf{};
  for (int64_t k = 0; k < K; ++k) {
    vf b[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) b[v] = load(B + k * ldb + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const float a = A[m * a_row + k * a_col];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] += b[v] * a;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(C + m * ldc + v * L, acc[m][v]);
}

// C [M, N] (+)= A [M, K] B [K, N]; M is a multiple of MR, N of L; A(m, k) = A[m a_row + k a_col].
template <bool ADD>
void product(int64_t M, int64_t N, int64_t K, const float* A, int64_t a_row, int64_t a_col, const float* B,
             int64_t ldb, float* C, int64_t ldc) {
  int64_t n = 0;
  for (; n + 2 * L <= N; n += 2 * L)
    for (int64_t m = 0; m < M; m += MR) tile<2, ADD>(K, A + m * a_row, a_row, a_col, B + n, ldb, C + m * ldc + n, ldc);
  if (n < N)
    for (int64_t m = 0; m < M; m += MR) tile<1, ADD>(K, A + m * a_row, a_row, a_col, B + n, ldb, C + m * ldc + n, ldc);
}

// y = turn(x r gain), over the d channels of a head; turn holds a cosine and a sine for each pair.
template <typename T>
inline void place(int64_t d, const T* x, float r, const float* gain, const float* turn, float* y) {
  for (int64_t j = 0; j < d; j += 2) {
    const float a = at(x + j) * r * gain[j], b = at(x + j + 1) * r * gain[j + 1];
    y[j] = a * turn[j] - b * turn[j + 1];
    y[j + 1] = a * turn[j + 1] + b * turn[j];
  }
}

template <typename T>
inline void widen(int64_t n, const T* x, float* y) {
  for (int64_t j = 0; j < n; ++j) y[j] = at(x + j);
}

void transpose(int64_t rows, int64_t cols, const float* x, float* y) {  // [rows, cols] -> [cols, rows]
  constexpr int64_t EDGE = 16;
  for (int64_t i = 0; i < rows; i += EDGE)
    for (int64_t j = 0; j < cols; ++j)
      for (int64_t k = i; k < std::min(rows, i + EDGE); ++k) y[j * rows + k] = x[k * cols + j];
}

// The operands of one (sequence, head), zero beyond S and d.
struct Head {
  std::vector<float> q, k, v, k_t, v_t, o, d_o, d_q, d_k, d_v, scores, d_scores;
  Head(const Shape& s, bool backward) {
    const size_t size = size_t(s.padded()) * s.wide();
    for (auto* x : {&q, &k, &v, &k_t}) x->assign(size, 0.0f);
    if (backward)
      for (auto* x : {&v_t, &d_o, &d_q, &d_k, &d_v}) x->assign(size, 0.0f);
    scores.resize(size_t(QUERIES) * s.padded());
    o.resize(size_t(QUERIES) * s.wide());
    if (backward) d_scores.resize(scores.size());
  }
};

template <typename T>
struct Operands {
  const T* qkv;
  const float *q_gain, *k_gain, *turns, *rstd;
  const int64_t* start;  // [B, S], first position that attends to nothing before itself; null: 0
};

template <typename T>
void lay_out(const Shape& s, const Operands<T>& x, int64_t b, int64_t head, Head& to) {
  const int64_t w = s.wide(), first = head * s.d;
  const float scale = 1.0f / std::sqrt(float(s.d));
  for (int64_t i = 0; i < s.S; ++i) {
    const int64_t token = b * s.S + i;
    const T* from = x.qkv + token * 3 * s.h() + first;
    const float* turn = x.turns + i * s.d;
    place(s.d, from, x.rstd[2 * token] * scale, x.q_gain + first, turn, &to.q[i * w]);
    place(s.d, from + s.h(), x.rstd[2 * token + 1], x.k_gain + first, turn, &to.k[i * w]);
    widen(s.d, from + 2 * s.h(), &to.v[i * w]);
  }
  transpose(s.padded(), w, to.k.data(), to.k_t.data());
}

// First key that any of the queries [i0, i0 + QUERIES) attends to, rounded down to a block.
template <typename T>
int64_t first_key(const Shape& s, const Operands<T>& x, int64_t b, int64_t i0) {
  if (!x.start) return 0;
  int64_t lowest = i0;
  for (int64_t i = i0; i < std::min(s.S, i0 + QUERIES); ++i) lowest = std::min(lowest, x.start[b * s.S + i]);
  return lowest / QUERIES * QUERIES;
}

// Masked scores of the queries from i0 on and the keys [j0, i0 + QUERIES), row stride `padded`.
template <typename T>
void score(const Shape& s, const Operands<T>& x, int64_t b, int64_t i0, int64_t j0, Head& of) {
  const int64_t ld = s.padded(), w = s.wide(), keys = i0 + QUERIES - j0;
  float* scores = of.scores.data();
  product<false>(QUERIES, keys, w, &of.q[i0 * w], w, 1, &of.k_t[j0], ld, scores, ld);
  const float never = -std::numeric_limits<float>::infinity();
  for (int64_t r = 0; r < QUERIES; ++r) {
    float* row = scores + r * ld;
    for (int64_t j = i0 + r + 1 - j0; j < keys; ++j) row[j] = never;
    if (x.start && i0 + r < s.S)
      for (int64_t j = 0; j < x.start[b * s.S + i0 + r] - j0; ++j) row[j] = never;
  }
}

inline vf exp_or_zero(vf x) {
  const vf zero{}, low = vf{} - 80.0f;
  return x < low ? zero : exp_of(x);
}

template <typename T>
void forward_head(const Shape& s, const Operands<T>& x, int64_t b, int64_t head, Head& of, T* out,
                  float* lse) {
  const int64_t ld = s.padded(), w = s.wide();
  lay_out(s, x, b, head, of);
  for (int64_t i0 = 0; i0 < s.S; i0 += QUERIES) {
    const int64_t j0 = first_key(s, x, b, i0), keys = i0 + QUERIES - j0;
    score(s, x, b, i0, j0, of);
    float inverse[QUERIES];
    for (int64_t r = 0; r < QUERIES; ++r) {
      float* row = &of.scores[r * ld];
      vf most = load(row);
      for (int64_t j = L; j < keys; j += L) {
        const vf y = load(row + j);
        most = most > y ? most : y;
      }
      const float top = largest_of(most);
      vf sum{};
      for (int64_t j = 0; j < keys; j += L) {
        const vf p = exp_or_zero(load(row + j) - top);
        store(row + j, p);
        sum += p;
      }
      const float total = sum_of(sum);
      inverse[r] = 1.0f / total;
      if (i0 + r < s.S) lse[(b * s.H + head) * s.S + i0 + r] = top + std::log(total);
    }
    product<false>(QUERIES, w, keys, of.scores.data(), ld, 1, &of.v[j0 * w], w, of.o.data(), w);
    for (int64_t r = 0; r < std::min(QUERIES, s.S - i0); ++r) {
      T* to = out + (b * s.S + i0 + r) * s.h() + head * s.d;
      for (int64_t c = 0; c < s.d; ++c) put(to + c, of.o[r * w + c] * inverse[r]);
    }
  }
}

// Gradients with respect to the placed queries and keys, turned back, into d_placed [B, S, 2 h], and to the values into
// d_qkv.
template <typename T>
void backward_head(const Shape& s, const Operands<T>& x, int64_t b, int64_t head, Head& of, const T* d_out,
                   const float* lse, float* d_placed, T* d_qkv) {
  const int64_t ld = s.padded(), w = s.wide(), first = head * s.d;
  lay_out(s, x, b, head, of);
  transpose(ld, w, of.v.data(), of.v_t.data());
  for (int64_t i = 0; i < s.S; ++i)
    widen(s.d, d_out + (b * s.S + i) * s.h() + first, &of.d_o[i * w]);
  std::fill(of.d_k.begin(), of.d_k.end(), 0.0f);
  std::fill(of.d_v.begin(), of.d_v.end(), 0.0f);
  float *P = of.scores.data(), *dP = of.d_scores.data();
  for (int64_t i0 = 0; i0 < s.S; i0 += QUERIES) {
    const int64_t j0 = first_key(s, x, b, i0), keys = i0 + QUERIES - j0;
    score(s, x, b, i0, j0, of);
    product<false>(QUERIES, keys, w, &of.d_o[i0 * w], w, 1, &of.v_t[j0], ld, dP, ld);
    for (int64_t r = 0; r < QUERIES; ++r) {
      float *p = P + r * ld, *dp = dP + r * ld;
      const float norm = i0 + r < s.S ? lse[(b * s.H + head) * s.S + i0 + r] : 0.0f;
      vf sum{};
      for (int64_t j = 0; j < keys; j += L) {
        const vf y = exp_or_zero(load(p + j) - norm);
        store(p + j, y);
        sum += y * load(dp + j);
      }
      const float mean = sum_of(sum);
      for (int64_t j = 0; j < keys; j += L) store(dp + j, load(p + j) * (load(dp + j) - mean));
    }
    product<false>(QUERIES, w, keys, dP, ld, 1, &of.k[j0 * w], w, &of.d_q[i0 * w], w);
    product<true>(keys, w, QUERIES, dP, 1, ld, &of.q[i0 * w], w, &of.d_k[j0 * w], w);
    product<true>(keys, w, QUERIES, P, 1, ld, &of.d_o[i0 * w], w, &of.d_v[j0 * w], w);
  }
  const float scale = 1.0f / std::sqrt(float(s.d));
  for (int64_t i = 0; i < s.S; ++i) {
    float* to = d_placed + (b * s.S + i) * 2 * s.h() + first;
    T* to_v = d_qkv + ((b * s.S + i) * 3 + 2) * s.h() + first;
    const float *turn = x.turns + i * s.d, *dq = &of.d_q[i * w], *dk = &of.d_k[i * w];
    for (int64_t j = 0; j < s.d; j += 2) {
      const float c = turn[j], sine = turn[j + 1];
      to[j] = (dq[j] * c + dq[j + 1] * sine) * scale;
      to[j + 1] = (dq[j + 1] * c - dq[j] * sine) * scale;
      to[s.h() + j] = dk[j] * c + dk[j + 1] * sine;
      to[s.h() + j + 1] = dk[j + 1] * c - dk[j] * sine;
    }
    for (int64_t j = 0; j < s.d; ++j) put(to_v + j, of.d_v[i * w + j]);
  }
}

// sum of a b c
template <typename T>
inline float dot(int64_t n, const float* a, const float* b, const T* c) {
  vf lanes{};
  int64_t i = 0;
  for (; i + L <= n; i += L) lanes += load(a + i) * load(b + i) * load(c + i);
  float sum = sum_of(lanes);
  for (; i < n; ++i) sum += a[i] * b[i] * at(c + i);
  return sum;
}

template <typename T>
inline float square(int64_t n, const T* a) {
  vf lanes{};
  int64_t i = 0;
  for (; i + L <= n; i += L) lanes += load(a + i) * load(a + i);
  float sum = sum_of(lanes);
  for (; i < n; ++i) sum += at(a + i) * at(a + i);
  return sum;
}

template <typename T>
void forward(const Shape& s, const Operands<T>& x, float eps, int threads, T* out, float* lse, float* rstd) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < 2 * s.B * s.S; ++i)
      rstd[i] = 1.0f / std::sqrt(square(s.h(), x.qkv + (i / 2 * 3 + i % 2) * s.h()) / float(s.h()) + eps);
    Head of(s, false);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.B * s.H; ++i) forward_head(s, x, i / s.H, i % s.H, of, out, lse);
  }
}

template <typename T>
void backward(const Shape& s, const Operands<T>& x, const T* d_out, const float* lse, int threads, T* d_qkv,
              float* d_gain) {
  const int64_t h = s.h(), tokens = s.B * s.S, blocks = (tokens + TOKENS - 1) / TOKENS;
  std::vector<float> partial(size_t(blocks) * 2 * h, 0.0f);
  const std::unique_ptr<float[]> d_placed(new float[size_t(tokens) * 2 * h]);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Head of(s, true);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.B * s.H; ++i)
      backward_head(s, x, i / s.H, i % s.H, of, d_out, lse, d_placed.get(), d_qkv);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t t = block * TOKENS; t < std::min(tokens, (block + 1) * TOKENS); ++t)
        for (int side = 0; side < 2; ++side) {
          const T* from = x.qkv + (3 * t + side) * h;
          T* to = d_qkv + (3 * t + side) * h;
          const float *gain = side ? x.k_gain : x.q_gain, *g = d_placed.get() + (2 * t + side) * h;
          float* sums = &partial[(2 * block + side) * h];
          const float r = x.rstd[2 * t + side], mean = dot(h, g, gain, from) * r * r / float(h);
          for (int64_t c = 0; c < h; ++c) {
            sums[c] += g[c] * at(from + c) * r;
            put(to + c, r * (g[c] * gain[c] - at(from + c) * mean));
          }
        }
  }
  std::fill(d_gain, d_gain + 2 * h, 0.0f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t c = 0; c < 2 * h; ++c) d_gain[c] += partial[block * 2 * h + c];
}

}  // namespace

extern "C" {

// qkv [B, S, 3 H d]; gains [H d]; turns [S, d / 2, 2]; start [B, S] or null -> out [B, S, H d], lse [B, H, S],
// rstd [B, S, 2] of queries and keys.
int umscale_attention(int is_bf16, int64_t B, int64_t S, int64_t H, int64_t d, const void* qkv, const float* q_gain,
                      const float* k_gain, const float* turns, const int64_t* start, float eps, int threads,
                      void* out, float* lse, float* rstd) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    const Operands<T> x{static_cast<const T*>(qkv), q_gain, k_gain, turns, rstd, start};
    forward(Shape{B, S, H, d}, x, eps, threads, static_cast<T*>(out), lse, rstd);
  });
  return 0;
}

// -> d_qkv [B, S, 3 H d], d_gain [2, H d] of queries and keys.
int umscale_attention_backward(int is_bf16, int64_t B, int64_t S, int64_t H, int64_t d, const void* d_out,
                               const void* qkv, const float* q_gain, const float* k_gain, const float* turns,
                               const int64_t* start, const float* lse, const float* rstd, int threads, void* d_qkv,
                               float* d_gain) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    const Operands<T> x{static_cast<const T*>(qkv), q_gain, k_gain, turns, rstd, start};
    backward(Shape{B, S, H, d}, x, static_cast<const T*>(d_out), lse, threads, static_cast<T*>(d_qkv), d_gain);
  });
  return 0;
}
}
