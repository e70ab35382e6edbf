// Gather, dot, scale, gather, accumulate: nothing of shape [T, m, D] exists.
//
//   z_k = <p, P[R_k]>   h_k = act(z_k)          o[slice q] = sum_k s_qk h_k V[R_k][slice q]
//   g_qk = <do[slice q], V[R_k][slice q]>       ds_qk = h_k g_qk        dz_k = act'(z_k) sum_q s_qk g_qk
//   dp = sum_k dz_k P[R_k]       dP[R] = sum_{lookups of R} dz p        dV[R][slice q] = sum s_q h do[slice q]
//
// o has E rows a token where virtual blocks are summed apart; slots[l] is then the row that lookup l adds to.
//
// The token pass computes z, o, ds, dz, dp. The row pass visits the lookups of each row in ascending order (stable
// radix sort), so a table gradient is one fixed sum whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../vector.h"

namespace {

typedef uint16_t vh __attribute__((vector_size(2 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));

struct bf16 { uint16_t bits; };

inline vf load(const bf16* p) {
  vh x;
  std::memcpy(&x, p, sizeof x);
  return (vf)(__builtin_convertvector(x, vu) << 16);
}
inline float at(const float* p) { return *p; }
inline float at(const bf16* p) {
  uint32_t x = uint32_t(p->bits) << 16;
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}

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
template <int W, typename Row, bool ADD, typename RowOf>
inline void bag_block(int count, const float* weight, int stride, const RowOf& row_of, int i, float* out) {
  vf acc[W] = {};
  for (int k = 0; k < count; ++k) {
    const Row* row = row_of(k) + i;
    const float w = weight[k * stride];
    for (int b = 0; b < W; ++b) acc[b] += load(row + b * L) * w;
  }
  for (int b = 0; b < W; ++b) store(out + i + b * L, ADD ? load(out + i + b * L) + acc[b] : acc[b]);
}

// out[begin .. end) = sum_k weight[k * stride] * row(k)[begin .. end), or += it
template <typename Row, bool ADD = false, typename RowOf>
inline void bag(int count, const float* weight, int stride, const RowOf& row_of, int begin, int end, float* out) {
  int i = begin;
  for (; i + 8 * L <= end; i += 8 * L) bag_block<8, Row, ADD>(count, weight, stride, row_of, i, out);
  if (i + 4 * L <= end) bag_block<4, Row, ADD>(count, weight, stride, row_of, i, out), i += 4 * L;
  if (i + 2 * L <= end) bag_block<2, Row, ADD>(count, weight, stride, row_of, i, out), i += 2 * L;
  if (i + L <= end) bag_block<1, Row, ADD>(count, weight, stride, row_of, i, out), i += L;
  for (; i < end; ++i) {
    float sum = 0.0f;
    for (int k = 0; k < count; ++k) sum += weight[k * stride] * at(row_of(k) + i);
    out[i] = ADD ? out[i] + sum : sum;
  }
}

// The W vectors of a row at once, the first W / C of them weighted by core 0, and so on.
template <int W, int C, typename Row, bool ADD, typename RowOf>
inline void bag_row(int count, const float* weight, int by_lookup, int by_core, const RowOf& row_of, float* out) {
  vf acc[W] = {};
  for (int k = 0; k < count; ++k) {
    const Row* row = row_of(k);
    const float* w = weight + k * by_lookup;
    for (int b = 0; b < W; ++b) acc[b] += load(row + b * L) * w[b * C / W * by_core];
  }
  for (int b = 0; b < W; ++b) store(out + b * L, ADD ? load(out + b * L) + acc[b] : acc[b]);
}

// out[slice q] = sum_k weight[k * by_lookup + q * by_core] * row(k)[slice q] of `cores` slices, or += it.
template <typename Row, bool ADD = false, typename RowOf>
inline void bags(int count, const float* weight, int by_lookup, int by_core, const RowOf& row_of, int cores, int width,
                 float* out) {
  if (cores == 1 && width == 2 * L) return bag_row<2, 1, Row, ADD>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 1 && width == 4 * L) return bag_row<4, 1, Row, ADD>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 2 * L) return bag_row<2, 2, Row, ADD>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 4 * L) return bag_row<4, 2, Row, ADD>(count, weight, by_lookup, by_core, row_of, out);
  if (cores == 2 && width == 8 * L) return bag_row<8, 2, Row, ADD>(count, weight, by_lookup, by_core, row_of, out);
  const int slice = width / cores;
  for (int q = 0; q < cores; ++q)
    bag<Row, ADD>(count, weight + q * by_core, by_lookup, row_of, q * slice, (q + 1) * slice, out);
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

// ds, dp, and per lookup what the row pass needs: weight[.., q] = s_q h and dz.
template <typename Row>
void token_pass(const Shape& d, const float* d_o, const float* s, const float* z, const int64_t* rows,
                const int64_t* slots, const Row* P, const Row* V, int threads, float* dp, float* ds, float* weight, float* dz) {
  const int slice = d.Dv / d.c;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < d.T; ++t) {
    const int64_t* R = rows + t * d.m;
    const int64_t first = t * d.m;
    for (int k = 0; k < d.m; ++k) {
      const int64_t l = first + k;
      const float h = d.Dp > 0 ? act(d, z[l]) : 1.0f;
      float dzk = 0.0f;
      if (l + AHEAD < d.T * d.m) prefetch(V + R[k + AHEAD] * d.Dv, d.Dv);
      if (d.Dp > 0) prefetch(P + R[k] * d.Dp, d.Dp);
      const float* d_ot = d_o + (slots ? slots[l] : t) * d.Dv;
      for (int q = 0; q < d.c; ++q) {
        const float g = dot(d_ot + q * slice, V + R[k] * d.Dv + q * slice, slice);
        const float sq = s[l * d.c + q];
        ds[l * d.c + q] = h * g;
        weight[l * d.c + q] = h * sq;
        dzk += sq * g;
      }
      if (d.Dp > 0) dz[l] = act_slope(d, z[l]) * dzk;
    }
    if (d.Dp > 0) {
      const auto row_of = [&](int k) { return P + R[k] * d.Dp; };
      bags<Row>(d.m, dz + first, 1, 0, row_of, 1, d.Dp, dp + t * d.Dp);
    }
  }
}

// The lookups of row distinct[u] are order[start[u] .. start[u + 1]), ascending; u counts the rows read.
struct Segments {
  const int64_t *distinct, *order, *start;
  int64_t count;
};

// One stable pass of a radix sort on `bits` bits from `shift` on. Chunks of the input count and place their own keys.
void radix_pass(const std::vector<uint64_t>& in, std::vector<uint64_t>& out, int shift, int bits, int threads) {
  const int64_t n = int64_t(in.size()), bins = int64_t(1) << bits, chunk = (n + threads - 1) / threads;
  std::vector<int64_t> slots(size_t(bins) * threads);  // of (chunk, digit): its count, then its next slot
  const auto digit = [&](uint64_t key) { return int64_t(key >> shift) & (bins - 1); };
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int c = 0; c < threads; ++c) {
    int64_t* slot = &slots[size_t(c) * bins];
    for (int64_t i = c * chunk; i < std::min(n, (c + 1) * chunk); ++i) ++slot[digit(in[i])];
  }
  int64_t next = 0;
  for (int64_t b = 0; b < bins; ++b)
    for (int c = 0; c < threads; ++c) {
      int64_t& slot = slots[size_t(c) * bins + b];
      const int64_t count = slot;
      slot = next;
      next += count;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int c = 0; c < threads; ++c) {
    int64_t* slot = &slots[size_t(c) * bins];
    for (int64_t i = c * chunk; i < std::min(n, (c + 1) * chunk); ++i) out[slot[digit(in[i])]++] = in[i];
  }
}

int bits_of(uint64_t n) {
  int bits = 1;
  while (n >> bits) ++bits;
  return bits;
}

enum Tables { NONE, ROWS, DENSE, ADD };  // which table gradients: none, of the distinct rows, of all, added to those

// Gradients of every row (DENSE, those not read are 0), or of the distinct rows, in their order or added in place.
void row_pass(const Shape& d, const float* d_o, const float* p, const float* weight, const float* dz,
              const int64_t* slots, const Segments& segments, Tables tables, int threads, float* dP, float* dV) {
  const bool dense = tables == DENSE;
  const double a_token = 1.0 / d.m;
  const int64_t outputs = dense ? d.N : segments.count, block = 256;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<int64_t> token, slot;
    std::vector<float> w, wz;
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < outputs; first += block) {
      const int64_t* end = segments.distinct + segments.count;
      int64_t u = dense ? std::lower_bound(segments.distinct, end, first) - segments.distinct : first;
      for (int64_t r = first; r < std::min(outputs, first + block); ++r) {
        const bool is_read = !dense || (u < segments.count && segments.distinct[u] == r);
        const int64_t out = tables == ADD ? segments.distinct[u] : r;
        const int count = is_read ? int(segments.start[u + 1] - segments.start[u]) : 0;
        const int64_t* l = is_read ? segments.order + segments.start[u++] : nullptr;
        if (int(token.size()) < count)
          token.resize(count), slot.resize(count), wz.resize(count), w.resize(size_t(count) * d.c);
        for (int k = 0; k < count; ++k) {
          token[k] = int64_t((double(l[k]) + 0.5) * a_token);  // l / m: exact below 2^51
          slot[k] = slots ? slots[l[k]] : token[k];
          for (int q = 0; q < d.c; ++q) w[k * d.c + q] = weight[l[k] * d.c + q];
          if (d.Dp > 0) wz[k] = dz[l[k]];
        }
        const auto out_row = [&](int k) { return d_o + slot[k] * d.Dv; };
        const auto in_row = [&](int k) { return p + token[k] * d.Dp; };
        if (tables == ADD) {
          bags<float, true>(count, w.data(), d.c, 1, out_row, d.c, d.Dv, dV + out * d.Dv);
          if (d.Dp > 0) bags<float, true>(count, wz.data(), 1, 0, in_row, 1, d.Dp, dP + out * d.Dp);
        } else {
          bags<float>(count, w.data(), d.c, 1, out_row, d.c, d.Dv, dV + out * d.Dv);
          if (d.Dp > 0) bags<float>(count, wz.data(), 1, 0, in_row, 1, d.Dp, dP + out * d.Dp);
        }
      }
    }
  }
}

template <typename Row>
void backward(const Shape& d, const float* d_o, const float* p, const float* s, const float* z, const int64_t* rows,
              const int64_t* slots, const Row* P, const Row* V, int threads, float* dp, float* ds,
              const Segments& segments, Tables tables, float* dP, float* dV) {
  std::vector<float> weight(size_t(d.T) * d.m * d.c), dz(d.Dp > 0 ? size_t(d.T) * d.m : 0);
  token_pass<Row>(d, d_o, s, z, rows, slots, P, V, threads, dp, ds, weight.data(), dz.data());
  if (tables != NONE) row_pass(d, d_o, p, weight.data(), dz.data(), slots, segments, tables, threads, dP, dV);
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

// Sorts lookups by row, stably: the first *count entries of `distinct` [lookups] and of `start` [lookups + 1] are used,
// and one more of `start`. Rows lie in [0, N).
extern "C" int umscale_lookup_sort(int64_t lookups, int64_t N, const int64_t* rows, int threads, int64_t* distinct,
                                   int64_t* order, int64_t* start, int64_t* count) {
  const int id_bits = bits_of(uint64_t(lookups)), row_bits = bits_of(uint64_t(N));
  const int passes = (row_bits + 10) / 11, digit_bits = (row_bits + passes - 1) / passes;
  std::vector<uint64_t> keys(static_cast<size_t>(lookups)), other(keys.size());
  for (int64_t l = 0; l < lookups; ++l) keys[l] = uint64_t(rows[l]) << id_bits | uint64_t(l);
  for (int i = 0; i < passes; ++i) {
    radix_pass(keys, other, id_bits + i * digit_bits, digit_bits, threads);
    keys.swap(other);
  }
  int64_t u = 0;
  for (int64_t i = 0; i < lookups; ++i) {
    const int64_t row = int64_t(keys[i] >> id_bits);
    order[i] = int64_t(keys[i] & ((uint64_t(1) << id_bits) - 1));
    if (u == 0 || distinct[u - 1] != row) distinct[u] = row, start[u++] = i;
  }
  start[u] = lookups;
  *count = u;
  return 0;
}

// `tables` is one of Tables; dP and dV are fp32.
extern "C" int umscale_lookup_backward(int bf16_tables, int64_t T, int64_t N, int m, int c, int E, int Dp, int Dv,
                                       int gelu, const float* d_o, const float* p, const float* s, const float* z,
                                       const int64_t* rows, const int64_t* slots, const void* P, const void* V,
                                       int threads, float* dp, float* ds, const int64_t* distinct,
                                       const int64_t* order, const int64_t* start, int64_t count, int tables,
                                       float* dP, float* dV) {
  const Shape d{T, N, m, c, E, Dp, Dv, gelu != 0};
  const Segments segments{distinct, order, start, count};
  const auto run = [&](auto type) {
    using Row = decltype(type);
    backward(d, d_o, p, s, z, rows, slots, static_cast<const Row*>(P), static_cast<const Row*>(V), threads, dp, ds,
             segments, Tables(tables), dP, dV);
  };
  bf16_tables ? run(bf16{}) : run(float{});
  return 0;
}
