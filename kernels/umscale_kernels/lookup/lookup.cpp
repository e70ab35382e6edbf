// Gather, dot, scale, gather, accumulate: nothing of shape [T, m, D] exists.
//
//   z_k = <p, P[R_k]>   h_k = act(z_k)          o[slice q] = sum_k s_qk h_k V[R_k][slice q]
//   g_qk = <do[slice q], V[R_k][slice q]>       ds_qk = h_k g_qk        dz_k = act'(z_k) sum_q s_qk g_qk
//   dp = sum_k dz_k P[R_k]       dP[R] = sum_{lookups of R} dz p        dV[R][slice q] = sum s_q h do[slice q]
//
// o has E rows a token where virtual blocks are summed apart; slots[l] is then the row that lookup l adds to.
//
// The token pass computes z, o, ds, dz, dp; the row pass adds every lookup to the gradient of its row, lookups in
// ascending order. Threads share rows out, not lookups, so that each gradient is one fixed sum whatever their number.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../vector.h"

namespace {

template <typename Row>
inline float dot(const float* x, const Row* y, int n) {
  vf s0{}, s1{};
  int i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    s0 += load(x + i) * load(y + i);
    s1 += load(x + i + L) * load(y + i + L);
  }
  if (i + L <= n) s0 += load(x + i) * load(y + i), i += L;
  float s = sum_of(s0 + s1);
  for (; i < n; ++i) s += x[i] * at(y + i);
  return s;
}

// out[i .. i + W * L) = sum_k weight[k * stride] * row(k)[i ..), accumulated in registers.
template <int W, typename Row, typename RowOf>
inline void bag_block(int count, const float* weight, int stride, const RowOf& row_of, int i, float* out) {
  vf acc[W] = {};
  for (int k = 0; k < count; ++k) {
    const Row* row = row_of(k) + i;
    const float w = weight[k * stride];
    for (int b = 0; b < W; ++b) acc[b] += load(row + b * L) * w;
  }
  for (int b = 0; b < W; ++b) store(out + i + b * L, acc[b]);
}

// out[begin .. end) = sum_k weight[k * stride] * row(k)[begin .. end)
template <typename Row, typename RowOf>
inline void bag(int count, const float* weight, int stride, const RowOf& row_of, int begin, int end, float* out) {
  int i = begin;
  for (; i + 8 * L <= end; i += 8 * L) bag_block<8, Row>(count, weight, stride, row_of, i, out);
  if (i + 4 * L <= end) bag_block<4, Row>(count, weight, stride, row_of, i, out), i += 4 * L;
  if (i + 2 * L <= end) bag_block<2, Row>(count, weight, stride, row_of, i, out), i += 2 * L;
  if (i + L <= end) bag_block<1, Row>(count, weight, stride, row_of, i, out), i += L;
  for (; i < end; ++i) {
    float sum = 0.0f;
    for (int k = 0; k < count; ++k) sum += weight[k * stride] * at(row_of(k) + i);
    out[i] = sum;
  }
}

// The W vectors of a row at once, the first W / C of them weighted by core 0, and so on.
template <int W, int C, typename Row, typename RowOf>
inline void bag_row(int count, const float* weight, int by_lookup, int by_core, const RowOf& row_of, float* out) {
  vf acc[W] = {};
  for (int k = 0; k < count; ++k) {
    const Row* row = row_of(k);
    const float* w = weight + k * by_lookup;
    for (int b = 0; b < W; ++b) acc[b] += load(row + b * L) * w[b * C / W * by_core];
  }
  for (int b = 0; b < W; ++b) store(out + b * L, acc[b]);
}

// out[slice q] = sum_k weight[k * by_lookup + q * by_core] * row(k)[slice q] of `cores` slices.
template <typename Row, typename RowOf>
inline void bags(int count, const float* weight, int by_lookup, int by_core, const RowOf& row_of, int cores, int width,
                 float* out) {
  if (cores == 1 && width == 2 * L) return bag_row<2, 1, Row>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 1 && width == 4 * L) return bag_row<4, 1, Row>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 2 * L) return bag_row<2, 2, Row>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 4 * L) return bag_row<4, 2, Row>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 8 * L) return bag_row<8, 2, Row>(count, weight, by_lookup, by_core, row_of, out);
  const int slice = width / cores;
  for (int q = 0; q < cores; ++q)
    bag<Row>(count, weight + q * by_core, by_lookup, row_of, q * slice, (q + 1) * slice, out);
}

struct Shape {
  int64_t T, N;
  int m, c, E, Dp, Dv;  // Dp = 0: no pre-values, h = 1
  bool gelu;
};

inline float normal_cdf(float z) { return 0.5f * (1.0f + std::erf(z * 0.70710678f)); }
inline float act(const Shape& d, float z) { return d.gelu ? z * normal_cdf(z) : z; }
inline float act_slope(const Shape& d, float z) {
  return d.gelu ? normal_cdf(z) + z * 0.39894228f * std::exp(-0.5f * z * z) : 1.0f;
}

constexpr int AHEAD = 12;  // lookups between the prefetch of a row and its use

template <typename Row>
inline void prefetch(const Row* row, int width) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int byte = 0; byte < width * int(sizeof(Row)); byte += 64) __builtin_prefetch(p + byte);
}

template <typename Row>
void forward(const Shape& d, const float* p, const float* s, const int64_t* rows, const int64_t* slots, const Row* P,
             const Row* V, int threads, float* o, float* z) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> weight(size_t(d.m) * d.c);
    std::vector<int64_t> row(d.m);           // of the token's lookups, by block
    std::vector<int> place(d.m), end(d.E);   // of lookup k among them; where each block ends
#pragma omp for schedule(static)
    for (int64_t t = 0; t < d.T; ++t) {
      const int64_t* R = rows + t * d.m;
      const float* st = s + t * d.m * d.c;
      std::fill(end.begin(), end.end(), 0);
      const auto block_of = [&](int k) { return slots ? int(slots[t * d.m + k] - t * d.E) : 0; };
      for (int k = 0; k < d.m; ++k) ++end[block_of(k)];
      for (int e = 0, sum = 0; e < d.E; ++e) sum += end[e], end[e] = sum - end[e];  // where it begins
      for (int k = 0; k < d.m; ++k) row[place[k] = end[block_of(k)]++] = R[k];
      for (int k = 0; k < d.m; ++k) {
        float h = 1.0f;
        prefetch(V + R[k] * d.Dv, d.Dv);
        if (d.Dp > 0) {
          if (t * d.m + k + AHEAD < d.T * d.m) prefetch(P + R[k + AHEAD] * d.Dp, d.Dp);
          h = act(d, z[t * d.m + k] = dot(p + t * d.Dp, P + R[k] * d.Dp, d.Dp));
        }
        for (int q = 0; q < d.c; ++q) weight[q * d.m + place[k]] = st[k * d.c + q] * h;
      }
      for (int e = 0; e < d.E; ++e) {
        const int first = e ? end[e - 1] : 0;
        const auto row_of = [&](int k) { return V + row[first + k] * d.Dv; };
        bags<Row>(end[e] - first, weight.data() + first, 1, d.m, row_of, d.c, d.Dv, o + (t * d.E + e) * d.Dv);
      }
    }
  }
}

// Where table gradients go: row r to row place[r] of dP and dV, or to r itself when `place` is null.
struct Gradients {
  const int32_t* place;
  float *dP, *dV;  // dV null: none
  int64_t row(int64_t r) const { return place ? place[r] : r; }
};

// y += w x
inline void add(int n, float w, const float* x, float* y) {
  int i = 0;
  for (; i + L <= n; i += L) store(y + i, load(y + i) + load(x + i) * w);
  for (; i < n; ++i) y[i] += w * x[i];
}

// The gradient of lookup l of token t, of weights s_q h and dz.
inline void add_lookup(const Shape& d, int64_t t, int64_t slot, const float* d_o, const float* p, const float* weight,
                       float dz, int64_t row, const Gradients& to) {
  const int slice = d.Dv / d.c;
  for (int q = 0; q < d.c; ++q)
    add(slice, weight[q], d_o + slot * d.Dv + q * slice, to.dV + row * d.Dv + q * slice);
  if (d.Dp > 0) add(d.Dp, dz, p + t * d.Dp, to.dP + row * d.Dp);
}

// ds, dp, and per lookup what the row pass needs: weight[.., q] = s_q h and dz. A single thread does the row pass in
// passing (`to`), while the rows are at hand.
template <typename Row>
void token_pass(const Shape& d, const float* d_o, const float* p, const float* s, const float* z, const int64_t* rows,
                const int64_t* slots, const Row* P, const Row* V, int threads, float* dp, float* ds, float* weight,
                float* dz, const Gradients* to) {
  const int slice = d.Dv / d.c;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < d.T; ++t) {
    const int64_t* R = rows + t * d.m;
    const int64_t first = t * d.m;
    for (int k = 0; k < d.m; ++k) {
      const int64_t l = first + k;
      const float h = d.Dp > 0 ? act(d, z[l]) : 1.0f;
      float dzk = 0.0f;
      if (l + AHEAD < d.T * d.m) {
        prefetch(V + R[k + AHEAD] * d.Dv, d.Dv);
        if (to) {
          const int64_t next = to->row(R[k + AHEAD]);
          prefetch(to->dV + next * d.Dv, d.Dv);
          if (d.Dp > 0) prefetch(to->dP + next * d.Dp, d.Dp);
        }
      }
      if (d.Dp > 0) prefetch(P + R[k] * d.Dp, d.Dp);
      const int64_t slot = slots ? slots[l] : t;
      for (int q = 0; q < d.c; ++q) {
        const float g = dot(d_o + slot * d.Dv + q * slice, V + R[k] * d.Dv + q * slice, slice);
        const float sq = s[l * d.c + q];
        ds[l * d.c + q] = h * g;
        weight[l * d.c + q] = h * sq;
        dzk += sq * g;
      }
      if (d.Dp > 0) dz[l] = act_slope(d, z[l]) * dzk;
      if (to) add_lookup(d, t, slot, d_o, p, weight + l * d.c, d.Dp > 0 ? dz[l] : 0.0f, to->row(R[k]), *to);
    }
    if (d.Dp > 0) {
      const auto row_of = [&](int k) { return P + R[k] * d.Dp; };
      bags<Row>(d.m, dz + first, 1, 0, row_of, 1, d.Dp, dp + t * d.Dp);
    }
  }
}

// Every thread goes through all lookups and adds those of its share of the `outputs` rows.
void row_pass(const Shape& d, const float* d_o, const float* p, const float* weight, const float* dz,
              const int64_t* rows, const int64_t* slots, const Gradients& to, int64_t outputs, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int share = 0; share < threads; ++share) {
    const int64_t first = outputs * share / threads, end = outputs * (share + 1) / threads;
    for (int64_t t = 0; t < d.T; ++t)
      for (int64_t l = t * d.m; l < (t + 1) * d.m; ++l) {
        const int64_t row = to.row(rows[l]);
        if (row < first || row >= end) continue;
        add_lookup(d, t, slots ? slots[l] : t, d_o, p, weight + l * d.c, d.Dp > 0 ? dz[l] : 0.0f, row, to);
      }
  }
}

template <typename Row>
void backward(const Shape& d, const float* d_o, const float* p, const float* s, const float* z, const int64_t* rows,
              const int64_t* slots, const Row* P, const Row* V, int threads, float* dp, float* ds,
              const Gradients& to, int64_t outputs) {
  const std::unique_ptr<float[]> weight(new float[size_t(d.T) * d.m * d.c]);
  const std::unique_ptr<float[]> dz(new float[d.Dp > 0 ? size_t(d.T) * d.m : 0]);
  const Gradients* at_once = to.dV && threads == 1 ? &to : nullptr;
  token_pass<Row>(d, d_o, p, s, z, rows, slots, P, V, threads, dp, ds, weight.get(), dz.get(), at_once);
  if (to.dV && !at_once) row_pass(d, d_o, p, weight.get(), dz.get(), rows, slots, to, outputs, threads);
}

}  // namespace

// Returns 1 when a row is outside [0, N). `slots` is null for E = 1.
extern "C" int umscale_lookup(int bf16_tables, int64_t T, int64_t N, int m, int c, int E, int Dp, int Dv, int gelu,
                              const float* p, const float* s, const int64_t* rows, const int64_t* slots,
                              const void* P, const void* V, int threads, float* o, float* z) {
  int64_t lowest = 0, highest = 0;
  for (int64_t l = 0; l < T * m; ++l) lowest = std::min(lowest, rows[l]), highest = std::max(highest, rows[l]);
  if (lowest < 0 || highest >= N) return 1;
  const Shape d{T, N, m, c, E, Dp, Dv, gelu != 0};
  const auto run = [&](auto type) {
    using Row = decltype(type);
    forward(d, p, s, rows, slots, static_cast<const Row*>(P), static_cast<const Row*>(V), threads, o, z);
  };
  bf16_tables ? run(bf16{}) : run(float{});
  return 0;
}

// The distinct rows that are read, ascending (the first *count of `distinct` [min(lookups, N)]), and where each is among
// them (`place` [N], set for these). Rows lie in [0, N).
extern "C" int umscale_lookup_distinct(int64_t lookups, int64_t N, const int64_t* rows, int64_t* distinct,
                                       int32_t* place, int64_t* count) {
  std::vector<uint64_t> read((N + 63) / 64);
  for (int64_t l = 0; l < lookups; ++l) read[rows[l] / 64] |= uint64_t(1) << (rows[l] % 64);
  int64_t u = 0;
  for (int64_t w = 0; w < int64_t(read.size()); ++w)
    for (uint64_t bits = read[w]; bits; bits &= bits - 1) {
      const int64_t row = w * 64 + __builtin_ctzll(bits);
      place[row] = int32_t(u);
      distinct[u++] = row;
    }
  *count = u;
  return 0;
}

// Table gradients are added to dP and dV, fp32 [outputs, ..], at the rows that `place` [N] says (null: as they are);
// dV null: none.
extern "C" int umscale_lookup_backward(int bf16_tables, int64_t T, int64_t N, int m, int c, int E, int Dp, int Dv,
                                       int gelu, const float* d_o, const float* p, const float* s, const float* z,
                                       const int64_t* rows, const int64_t* slots, const void* P, const void* V,
                                       int threads, float* dp, float* ds, const int32_t* place, int64_t outputs,
                                       float* dP, float* dV) {
  const Shape d{T, N, m, c, E, Dp, Dv, gelu != 0};
  const Gradients to{place, dP, dV};
  const auto run = [&](auto type) {
    using Row = decltype(type);
    backward(d, d_o, p, s, z, rows, slots, static_cast<const Row*>(P), static_cast<const Row*>(V), threads, dp, ds, to,
             outputs);
  };
  bf16_tables ? run(bf16{}) : run(float{});
  return 0;
}
