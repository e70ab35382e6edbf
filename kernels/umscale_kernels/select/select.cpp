// Exact top-m of the candidate grid, one token at a time, everything in L1/L2.
//
//   a_i = sum_a u_a S[row,a]_i      b_j = sum_a v_a S[col,a]_j      keep the m1 largest of each side
//   total_ij = sum_b (sum_a S[row,a]_i W[a,b]) S[col,b]_j           W = sum_q C_q;  keep the m largest
//
// Selection is discrete, so the sums above are rounded exactly as the PyTorch reference rounds them: ascending
// a and b, every product rounded. Compile with -ffp-contract=off.
//
// Top-k is a threshold search: floats become order-preserving int32, the threshold is bisected with counting
// passes, the survivors are compacted in ascending index order. For the grid a lower bound of the threshold
// comes from the maxima of disjoint groups of cells: m groups reach it, hence at least m cells do.
#include <algorithm>
#include <limits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../vector.h"

namespace {

inline vi load(const int32_t* p) { vi x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(int32_t* p, vi x) { std::memcpy(p, &x, sizeof x); }
inline vf splat(float x) { return vf{} + x; }  // x + 0: also turns -0 into 0
inline vi splat(int32_t x) { return vi{} + x; }
inline int padded(int n) { return (n + L - 1) / L * L; }
inline vi lanes() {
  vi x;
  for (int l = 0; l < L; ++l) x[l] = l;
  return x;
}

typedef uint32_t Mask;  // a bit a lane

#ifdef __AVX512F__
inline Mask above(vi x, vi y) { return _mm512_cmpgt_epi32_mask((__m512i)x, (__m512i)y); }
inline Mask equal(vi x, vi y) { return _mm512_cmpeq_epi32_mask((__m512i)x, (__m512i)y); }
inline Mask not_below(vf x, vf y) { return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_NLT_UQ); }
// Writes the lanes in `mask` to p, and arbitrary numbers up to p + L; returns how many.
inline int compress(int32_t* p, Mask mask, vi x) {
  store(p, (vi)_mm512_maskz_compress_epi32(__mmask16(mask), (__m512i)x));
  return __builtin_popcount(mask);
}
inline vf gather(const float* p, vi at) { return (vf)_mm512_i32gather_ps((__m512i)at, p, 4); }
inline int32_t least_of(vi x) { return _mm512_reduce_min_epi32((__m512i)x); }
inline int32_t most_of(vi x) { return _mm512_reduce_max_epi32((__m512i)x); }
#else
inline Mask bits_of(vi mask) {
#if defined(__AVX__)
  return Mask(__builtin_ia32_movmskps256((vf)mask));
#else
  Mask bits = 0;
  for (int l = 0; l < L; ++l) bits |= Mask(mask[l] & 1) << l;
  return bits;
#endif
}
inline Mask above(vi x, vi y) { return bits_of(x > y); }
inline Mask equal(vi x, vi y) { return bits_of(x == y); }
inline Mask not_below(vf x, vf y) { return bits_of(x < y) ^ ((1u << L) - 1); }
inline int compress(int32_t* p, Mask mask, vi x) {
  int32_t lane[L];
  store(lane, x);
  int n = 0;
  for (; mask; mask &= mask - 1) p[n++] = lane[__builtin_ctz(mask)];
  return n;
}
inline vf gather(const float* p, vi at) {
  float lane[L];
  int32_t index[L];
  store(index, at);
  for (int l = 0; l < L; ++l) lane[l] = p[index[l]];
  return load(lane);
}
inline int32_t least_of(vi x) {
  int32_t least = x[0];
  for (int l = 1; l < L; ++l) least = std::min(least, x[l]);
  return least;
}
inline int32_t most_of(vi x) {
  int32_t most = x[0];
  for (int l = 1; l < L; ++l) most = std::max(most, x[l]);
  return most;
}
#endif

inline vi key_of(vf x) {  // order-preserving; -0 and 0 share one key
  vi i = (vi)(x + 0.0f);
  return i ^ ((i >> 31) & 0x7fffffff);
}
inline int32_t key_of(float x) {
  int32_t i;
  x += 0.0f;
  std::memcpy(&i, &x, 4);
  return i ^ ((i >> 31) & 0x7fffffff);
}
inline float value_of(int32_t key) {
  int32_t i = key ^ ((key >> 31) & 0x7fffffff);
  float x;
  std::memcpy(&x, &i, 4);
  return x;
}

constexpr int32_t LOWEST = std::numeric_limits<int32_t>::min();  // key of padding; no number has it

// How many keys exceed each of three thresholds.
struct Counts { int of[3]; };

inline Counts count_above(const int32_t* key, int n_padded, const int32_t* t) {
  const vi t0 = splat(t[0]), t1 = splat(t[1]), t2 = splat(t[2]);
  Counts c{};
  int i = 0;
  for (; i + 4 * L <= n_padded; i += 4 * L) {
    uint64_t bits[3] = {};
    for (int b = 0; b < 4; ++b) {
      const vi x = load(key + i + b * L);
      bits[0] = bits[0] << L | above(x, t0);
      bits[1] = bits[1] << L | above(x, t1);
      bits[2] = bits[2] << L | above(x, t2);
    }
    for (int e = 0; e < 3; ++e) c.of[e] += __builtin_popcountll(bits[e]);
  }
  for (; i < n_padded; i += L) {
    const vi x = load(key + i);
    c.of[0] += __builtin_popcount(above(x, t0));
    c.of[1] += __builtin_popcount(above(x, t1));
    c.of[2] += __builtin_popcount(above(x, t2));
  }
  return c;
}

// Keep every key > above and the first `ties` keys equal to it: exactly k of n.
struct Cut { int32_t above; int ties; };

// key[n .. padded(n)) must hold LOWEST; n > 0.
Cut cut(const int32_t* key, int n, int k) {
  const int n_padded = padded(n);
  vi top = load(key), bottom = top;
  for (int i = L; i + L <= n; i += L) {
    const vi x = load(key + i);
    top = x > top ? x : top;
    bottom = x < bottom ? x : bottom;
  }
  int32_t hi, lo;
  if (n < L) {
    hi = lo = key[0];
    for (int i = 1; i < n; ++i) hi = std::max(hi, key[i]), lo = std::min(lo, key[i]);
  } else {
    hi = most_of(top), lo = least_of(bottom);
    for (int i = n / L * L; i < n; ++i) hi = std::max(hi, key[i]), lo = std::min(lo, key[i]);
  }
  // Invariant: count(key >= lo) >= k > count(key > hi).
  int at_lo = n, above_hi = 0;
  for (int step = 0; lo < hi; ++step) {
    const int32_t middle = lo + int32_t((uint32_t(hi) - uint32_t(lo)) / 2);
    int32_t t[3] = {middle, middle, middle};
    if (step < 12) {
      // In value space scores are spread evenly enough for interpolation to come within some keys, hence a guess
      // and one a little to either side of it; every other pass bisects, and plain integer bisection ends the search
      // whatever the values are.
      const float low = value_of(lo), width = value_of(hi) - low, share = width / float(at_lo - above_hi + 1);
      const float guess = step % 3 == 2 ? low + width * 0.5f : low + share * float(at_lo - k);
      const float aside = share * (step == 0 ? 4.0f : 1.0f);
      for (int e = 0; e < 3; ++e) {
        const int32_t key_e = key_of(guess + aside * float(e - 1));
        t[e] = std::min(std::max(key_e, lo), hi - 1);
      }
    }
    const Counts counts = count_above(key, n_padded, t);
    for (int e = 0; e < 3; ++e) {
      const int count = counts.of[e];
      if (count == k) return {t[e], 0};
      const bool more = count > k;  // then the threshold is higher
      const bool raise = more & (t[e] >= lo), lower = !more & (t[e] < hi);
      at_lo = raise ? count : at_lo, lo = raise ? t[e] + 1 : lo;
      above_hi = lower ? count : above_hi, hi = lower ? t[e] : hi;
    }
  }
  return {lo, k - above_hi};
}

// Ascending positions of the keys that `c` keeps, or what `payload` holds there. Writes up to L entries past the last.
int kept(const int32_t* key, int n, Cut c, const int32_t* payload, int32_t* out) {
  const vi cut_off = splat(c.above);
  int found = 0, ties = c.ties;
  vi position = lanes();
  for (int i = 0; i < n; i += L, position += L) {
    const vi x = load(key + i);
    Mask mask = above(x, cut_off);
    if (ties > 0)
      for (Mask same = equal(x, cut_off); same && ties > 0; same &= same - 1, --ties) mask |= same & -same;
    found += compress(out + found, mask, payload ? load(payload + i) : position);
  }
  return found;
}

struct Scratch {
  std::vector<int32_t> key, cell, kept, rows, cols;
  std::vector<float> a, b, w;
  Scratch(int n, int m1, int m, int r) {
    const int p = padded(m1), wide = std::max(padded(n), p * p) + L;
    key.resize(wide), cell.resize(wide), kept.resize(padded(m) + L), rows.resize(p + L), cols.resize(p + L);
    a.resize(size_t(r) * p), b.resize(size_t(r) * p), w.resize(size_t(r) * p);
  }
};

template <int R>
void preselect(const float* const* side, const float* u, int n, int m1, Scratch& x, int32_t* ids, float* out) {
  const int n_whole = n / L * L;
  int i = 0;
  for (; i < n_whole; i += L) {
    vf sum = load(side[0] + i) * u[0];
    for (int a = 1; a < R; ++a) sum += load(side[a] + i) * u[a];
    store(&x.key[i], key_of(sum));
  }
  for (; i < n; ++i) {
    float sum = side[0][i] * u[0];
    for (int a = 1; a < R; ++a) sum += side[a][i] * u[a];
    x.key[i] = key_of(sum);
  }
  for (; i < padded(n); ++i) x.key[i] = LOWEST;
  if (m1 == n) for (int k = 0; k < n; ++k) ids[k] = k;
  else kept(x.key.data(), n, cut(x.key.data(), n, m1), nullptr, ids);
  const int p = padded(m1);
  for (int k = m1; k < p; ++k) ids[k] = ids[0];
  for (int a = 0; a < R; ++a)
    for (int k = 0; k < p; k += L) store(out + a * p + k, gather(side[a], load(ids + k)));
}

// Pairs of a token's candidates, `cell` = i << 16 | j.
template <int R>
void select_token(const float* const* row_side, const float* const* col_side, const float* u, const float* v,
                  const float* cores, const float* core_sum, int n, int c, int m1, int m, Scratch& x,
                  int64_t* row_out, int64_t* col_out, float* s_out) {
  const int p = padded(m1);
  float *A = x.a.data(), *B = x.b.data(), *W = x.w.data();
  int32_t* key = x.key.data();
  preselect<R>(row_side, u, n, m1, x, x.rows.data(), A);
  preselect<R>(col_side, v, n, m1, x, x.cols.data(), B);
  for (int b = 0; b < R; ++b)
    for (int i = 0; i < p; i += L) {
      vf sum = load(A + i) * core_sum[b];
      for (int a = 1; a < R; ++a) sum += load(A + a * p + i) * core_sum[a * R + b];
      store(W + b * p + i, sum);
    }
  const auto total_of = [&](const vf* col, int i) {
    vf total = col[0] * W[i];
    for (int b = 1; b < R; ++b) total += col[b] * W[b * p + i];
    return total;
  };
  const vi last = lanes() < splat(m1 - (p - L));  // lanes of a row's last vector that are cells

  // Maxima of groups of `height` rows by one column; about 4 m groups keep the bound close and cheap.
  const int height = std::max(1, int(int64_t(m1) * m1 / (4 * int64_t(m))));
  int groups = 0;
  for (int top = 0; top < m1; top += height) {
    const int end = std::min(m1, top + height);
    for (int j = 0; j < p; j += L) {
      vf col[R];
      for (int b = 0; b < R; ++b) col[b] = load(B + b * p + j);
      vf most = total_of(col, top);
      for (int i = top + 1; i < end; ++i) {
        const vf total = total_of(col, i);
        most = most > total ? most : total;
      }
      const vi best = key_of(most);
      store(key + groups, j + L < p ? best : (best & last) | (~last & LOWEST));
      groups += L;
    }
  }
  const Cut group_cut = cut(key, groups, m);
  const vf bound = splat(value_of(group_cut.ties > 0 ? group_cut.above : group_cut.above + 1));

  // Cells that reach the bound; "not below" keeps NaN, so at least m cells survive whatever the input.
  int found = 0;
  for (int i = 0; i < m1; ++i)
    for (int j = 0; j < p; j += L) {
      vf col[R];
      for (int b = 0; b < R; ++b) col[b] = load(B + b * p + j);
      const vf total = total_of(col, i);
      Mask mask = not_below(total, bound);
      if (j + L == p) mask &= Mask((uint64_t(1) << (m1 - j)) - 1);
      compress(x.cell.data() + found, mask, lanes() + (i << 16 | j));
      found += compress(key + found, mask, key_of(total));
    }
  for (int k = found; k < padded(found); ++k) key[k] = LOWEST;
  int32_t* cell = x.cell.data();
  if (found > m) {
    kept(key, found, cut(key, found, m), cell, x.kept.data());
    cell = x.kept.data();
  }

  for (int k = m; k < padded(m); ++k) cell[k] = 0;
  for (int first = 0; first < m; first += L) {
    const int count = std::min(L, m - first);
    const vi at = load(cell + first), i = at >> 16, j = at & 0xffff;
    vf kept_A[R], kept_B[R];
    for (int a = 0; a < R; ++a) kept_A[a] = gather(A + a * p, i), kept_B[a] = gather(B + a * p, j);
    int32_t lane_i[L], lane_j[L];
    store(lane_i, i), store(lane_j, j);
    for (int l = 0; l < count; ++l) row_out[first + l] = x.rows[lane_i[l]], col_out[first + l] = x.cols[lane_j[l]];
    for (int q = 0; q < c; ++q) {
      const float* core = cores + q * R * R;
      vf s{};
      for (int b = 0; b < R; ++b) {
        vf weighted = kept_A[0] * core[b];
        for (int a = 1; a < R; ++a) weighted += kept_A[a] * core[a * R + b];
        s += weighted * kept_B[b];
      }
      float lane[L];
      store(lane, s);
      for (int l = 0; l < count; ++l) s_out[(first + l) * c + q] = lane[l];
    }
  }
}

template <int R>
void select_all(const float* scores, const float* u, const float* v, const float* cores, int64_t T, int n, int c,
                int m1, int m, int threads, int64_t* row, int64_t* col, float* s) {
  float core_sum[R * R];
  for (int e = 0; e < R * R; ++e) {
    core_sum[e] = cores[e];
    for (int q = 1; q < c; ++q) core_sum[e] += cores[q * R * R + e];
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch x(n, m1, m, R);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t) {
      const float *rows[R], *cols[R];
      for (int a = 0; a < R; ++a) {
        rows[a] = scores + (a * T + t) * n;
        cols[a] = scores + ((R + a) * T + t) * n;
      }
      select_token<R>(rows, cols, u, v, cores, core_sum, n, c, m1, m, x, row + t * m, col + t * m, s + t * m * c);
    }
  }
}

// ds -> dS (dense, overwritten) and the sum over this token of dC, in float64.
template <int R>
void backward_token(const float* const* row_side, const float* const* col_side, const float* cores,
                    const int64_t* row, const int64_t* col, const float* ds, int n, int c, int m,
                    float* const* d_row, float* const* d_col, float* d_cores) {
  for (int a = 0; a < R; ++a) {
    std::memset(d_row[a], 0, size_t(n) * 4);
    std::memset(d_col[a], 0, size_t(n) * 4);
  }
  for (int k = 0; k < m; ++k) {
    const int64_t i = row[k], j = col[k];
    float A[R], B[R], D[R][R] = {};
    for (int a = 0; a < R; ++a) A[a] = row_side[a][i], B[a] = col_side[a][j];
    for (int q = 0; q < c; ++q) {
      const float g = ds[k * c + q];
      for (int a = 0; a < R; ++a)
        for (int b = 0; b < R; ++b) {
          D[a][b] += g * cores[(q * R + a) * R + b];
          d_cores[(q * R + a) * R + b] += g * A[a] * B[b];
        }
    }
    for (int a = 0; a < R; ++a) {
      float dA = 0.0f, dB = 0.0f;
      for (int b = 0; b < R; ++b) dA += D[a][b] * B[b], dB += D[b][a] * A[b];
      d_row[a][i] += dA;
      d_col[a][j] += dB;
    }
  }
}

constexpr int64_t BLOCK = 32;  // tokens whose dC is summed together: fixed, so threads do not change results

template <int R>
void backward_all(const float* scores, const float* cores, const int64_t* row, const int64_t* col, const float* ds,
                  int64_t T, int n, int c, int m, int threads, float* d_scores, float* d_cores) {
  const int64_t blocks = (T + BLOCK - 1) / BLOCK;
  const int size = c * R * R;
  std::vector<float> partial(size_t(blocks) * size, 0.0f);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t t = block * BLOCK; t < std::min(T, (block + 1) * BLOCK); ++t) {
      const float *rows[R], *cols[R];
      float *d_rows[R], *d_cols[R];
      for (int a = 0; a < R; ++a) {
        rows[a] = scores + (a * T + t) * n, d_rows[a] = d_scores + (a * T + t) * n;
        cols[a] = scores + ((R + a) * T + t) * n, d_cols[a] = d_scores + ((R + a) * T + t) * n;
      }
      backward_token<R>(rows, cols, cores, row + t * m, col + t * m, ds + t * m * c, n, c, m, d_rows, d_cols,
                        &partial[size_t(block) * size]);
    }
  for (int e = 0; e < size; ++e) {
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block) sum += partial[size_t(block) * size + e];
    d_cores[e] = float(sum);
  }
}

}  // namespace

extern "C" int umscale_select(const float* scores, const float* u, const float* v, const float* cores, int64_t T,
                              int n, int r, int c, int m1, int m, int threads, int64_t* row, int64_t* col,
                              float* s) {
  switch (r) {
    case 1: select_all<1>(scores, u, v, cores, T, n, c, m1, m, threads, row, col, s); return 0;
    case 2: select_all<2>(scores, u, v, cores, T, n, c, m1, m, threads, row, col, s); return 0;
    case 3: select_all<3>(scores, u, v, cores, T, n, c, m1, m, threads, row, col, s); return 0;
    case 4: select_all<4>(scores, u, v, cores, T, n, c, m1, m, threads, row, col, s); return 0;
  }
  return 1;
}

extern "C" int umscale_select_backward(const float* scores, const float* cores, const int64_t* row,
                                       const int64_t* col, const float* ds, int64_t T, int n, int r, int c, int m,
                                       int threads, float* d_scores, float* d_cores) {
  switch (r) {
    case 1: backward_all<1>(scores, cores, row, col, ds, T, n, c, m, threads, d_scores, d_cores); return 0;
    case 2: backward_all<2>(scores, cores, row, col, ds, T, n, c, m, threads, d_scores, d_cores); return 0;
    case 3: backward_all<3>(scores, cores, row, col, ds, T, n, c, m, threads, d_scores, d_cores); return 0;
    case 4: backward_all<4>(scores, cores, row, col, ds, T, n, c, m, threads, d_scores, d_cores); return 0;
  }
  return 1;
}
