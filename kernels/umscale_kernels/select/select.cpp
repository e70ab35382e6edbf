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
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int L = 8;  // lanes
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));

inline vf load(const float* p) { vf x; std::memcpy(&x, p, sizeof x); return x; }
inline vi load(const int32_t* p) { vi x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
inline void store(int32_t* p, vi x) { std::memcpy(p, &x, sizeof x); }
inline vf splat(float x) { return vf{} + x; }  // x + 0: also turns -0 into 0
inline vi splat(int32_t x) { return vi{} + x; }
inline int padded(int n) { return (n + L - 1) / L * L; }

inline unsigned bits_of(vi mask) {
#ifdef __AVX__
  return unsigned(__builtin_ia32_movmskps256((vf)mask));
#else
  unsigned bits = 0;
  for (int l = 0; l < L; ++l) bits |= unsigned(mask[l] & 1) << l;
  return bits;
#endif
}

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

inline int count_above(const int32_t* key, int n_padded, int32_t t) {
  vi c0{}, c1{}, tv = splat(t);
  int i = 0;
  for (; i + 2 * L <= n_padded; i += 2 * L) {
    c0 -= load(key + i) > tv;
    c1 -= load(key + i + L) > tv;
  }
  if (i < n_padded) c0 -= load(key + i) > tv;
  c0 += c1;
  int sum = 0;
  for (int l = 0; l < L; ++l) sum += c0[l];
  return sum;
}

// Keep every key > above and the first `ties` keys equal to it: exactly k of n.
struct Cut { int32_t above; int ties; };

// key[n .. padded(n)) must hold INT32_MIN.
Cut cut(const int32_t* key, int n, int k) {
  const int n_padded = padded(n);
  vi top = load(key), bottom = top;
  for (int i = L; i + L <= n; i += L) {
    vi x = load(key + i);
    top = x > top ? x : top;
    bottom = x < bottom ? x : bottom;
  }
  int32_t hi = key[0], lo = key[0];
  for (int l = 0; l < L && l < n; ++l) hi = std::max(hi, top[l]), lo = std::min(lo, bottom[l]);
  for (int i = n / L * L; i < n; ++i) hi = std::max(hi, key[i]), lo = std::min(lo, key[i]);
  // Invariant: count(key >= lo) >= k > count(key > hi).
  int at_lo = n, above_hi = 0;
  for (int step = 0; lo < hi; ++step) {
    int32_t mid = lo + int32_t((uint32_t(hi) - uint32_t(lo)) / 2);
    if (step < 12) {
      // In value space scores are spread evenly enough for interpolation to need few passes; every other
      // pass bisects, and plain integer bisection ends the search whatever the values are.
      float f = step & 1 ? 0.5f : float(at_lo - k) / float(at_lo - above_hi + 1);
      float x = value_of(lo) + (value_of(hi) - value_of(lo)) * f;
      int32_t guess = key_of(x);
      if (guess >= lo && guess < hi) mid = guess;
    }
    int above = count_above(key, n_padded, mid);
    if (above == k) return {mid, 0};
    if (above > k) lo = mid + 1, at_lo = above;
    else hi = mid, above_hi = above;
  }
  return {lo, k - above_hi};
}

// Positions of the set bits, ascending. Writes up to 4 entries past the end of the list.
inline int positions_of(const uint64_t* words, int n_words, int32_t* out) {
  int n = 0;
  for (int w = 0; w < n_words; ++w) {
    uint64_t x = words[w];
    const int found = __builtin_popcountll(x);
    for (int done = 0; done < found; done += 4)
      for (int e = 0; e < 4; ++e) {
        out[n + done + e] = 64 * w + __builtin_ctzll(x | (1ull << 63));
        x &= x - 1;
      }
    n += found;
  }
  return n;
}

// Ascending positions of the keys that `c` keeps.
int kept(const int32_t* key, int n, Cut c, uint64_t* words, int32_t* out) {
  const int n_words = (n + 63) / 64;
  for (int w = 0; w < n_words; ++w) {
    uint64_t x = 0;
    const int end = std::min(64, padded(n) - 64 * w);
    for (int i = 0; i < end; i += L) x |= uint64_t(bits_of(load(key + 64 * w + i) > splat(c.above))) << i;
    words[w] = x;
  }
  if (c.ties > 0) {
    int left = c.ties;
    for (int i = 0; i < n && left > 0; ++i)
      if (key[i] == c.above) words[i / 64] |= 1ull << (i % 64), --left;
  }
  return positions_of(words, n_words, out);
}

struct Scratch {
  std::vector<int32_t> key, cell, kept, rows, cols;
  std::vector<float> a, b, w, best;
  std::vector<uint64_t> words;
  Scratch(int n, int m1, int r) {
    const int p = padded(m1), wide = std::max(padded(n), p * p) + L;
    key.resize(wide), cell.resize(wide), kept.resize(wide), rows.resize(p + L), cols.resize(p + L);
    a.resize(size_t(r) * p), b.resize(size_t(r) * p), w.resize(size_t(r) * p), best.resize(size_t(p) * p + L);
    words.resize(wide / 64 + 2);
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
  for (; i < padded(n); ++i) x.key[i] = std::numeric_limits<int32_t>::min();
  if (m1 == n) for (int k = 0; k < n; ++k) ids[k] = k;
  else kept(x.key.data(), n, cut(x.key.data(), n, m1), x.words.data(), ids);
  const int p = padded(m1);
  for (int a = 0; a < R; ++a) {
    for (int k = 0; k < m1; ++k) out[a * p + k] = side[a][ids[k]];
    for (int k = m1; k < p; ++k) out[a * p + k] = 0.0f;
  }
}

template <int R>
void select_token(const float* const* row_side, const float* const* col_side, const float* u, const float* v,
                  const float* cores, const float* core_sum, int n, int c, int m1, int m, Scratch& x,
                  int64_t* row_out, int64_t* col_out, float* s_out) {
  const int p = padded(m1);
  float *A = x.a.data(), *B = x.b.data(), *W = x.w.data(), *best = x.best.data();
  preselect<R>(row_side, u, n, m1, x, x.rows.data(), A);
  preselect<R>(col_side, v, n, m1, x, x.cols.data(), B);
  for (int b = 0; b < R; ++b)
    for (int i = 0; i < p; i += L) {
      vf sum = load(A + i) * core_sum[b];
      for (int a = 1; a < R; ++a) sum += load(A + a * p + i) * core_sum[a * R + b];
      store(W + b * p + i, sum);
    }

  // Maxima of groups of `height` rows by one column; about 4 m groups keep the bound close and cheap.
  const int height = std::max(1, int(int64_t(m1) * m1 / (4 * int64_t(m))));
  const float lowest = -std::numeric_limits<float>::infinity();
  int groups = 0;
  for (int top = 0; top < m1; top += height) {
    const int end = std::min(m1, top + height);
    for (int j = 0; j < p; j += L) {
      vf col[R], most = splat(lowest);
      for (int b = 0; b < R; ++b) col[b] = load(B + b * p + j);
      for (int i = top; i < end; ++i) {
        vf total = col[0] * W[i];
        for (int b = 1; b < R; ++b) total += col[b] * W[b * p + i];
        most = most > total ? most : total;
      }
      store(best + groups + j, most);
    }
    groups += m1;  // the next block overwrites the padding lanes
  }
  for (int i = 0; i < groups; ++i) x.key[i] = key_of(best[i]);
  for (int i = groups; i < padded(groups); ++i) x.key[i] = std::numeric_limits<int32_t>::min();
  const Cut group_cut = cut(x.key.data(), groups, m);
  const float bound = value_of(group_cut.ties > 0 ? group_cut.above : group_cut.above + 1);

  // Cells that reach the bound; "not below" keeps NaN, so at least m cells survive whatever the input.
  const int n_words = (m1 * p + 63) / 64;
  std::memset(x.words.data(), 0, size_t(n_words) * 8);
  unsigned char* bytes = reinterpret_cast<unsigned char*>(x.words.data());
  const unsigned last = m1 == p ? 0xffu : (1u << (m1 % L)) - 1;
  for (int i = 0; i < m1; ++i) {
    unsigned char* line = bytes + i * (p / L);
    for (int j = 0; j < p; j += L) {
      vf total = load(B + j) * W[i];
      for (int b = 1; b < R; ++b) total += load(B + b * p + j) * W[b * p + i];
      line[j / L] = (unsigned char)(~bits_of(total < splat(bound)));
    }
    line[p / L - 1] &= last;
  }
  const int found = positions_of(x.words.data(), n_words, x.cell.data());
  const uint32_t inverse = uint32_t(((1ull << 32) + p - 1) / p);  // cell / p, exact while m1 <= 1024
  for (int k = 0; k < found; ++k) {
    const int i = int((uint64_t(x.cell[k]) * inverse) >> 32), j = x.cell[k] - i * p;
    float total = B[j] * W[i];
    for (int b = 1; b < R; ++b) total += B[b * p + j] * W[b * p + i];
    x.key[k] = key_of(total);
  }
  for (int k = found; k < padded(found); ++k) x.key[k] = std::numeric_limits<int32_t>::min();
  if (found == m) for (int k = 0; k < m; ++k) x.kept[k] = k;
  else kept(x.key.data(), found, cut(x.key.data(), found, m), x.words.data(), x.kept.data());

  // Kept scores by core, eight cells at a time.
  for (int first = 0; first < m; first += L) {
    const int count = std::min(L, m - first);
    vf kept_A[R] = {}, kept_B[R] = {};
    for (int l = 0; l < count; ++l) {
      const int cell = x.cell[x.kept[first + l]], i = int((uint64_t(cell) * inverse) >> 32), j = cell - i * p;
      row_out[first + l] = x.rows[i];
      col_out[first + l] = x.cols[j];
      for (int a = 0; a < R; ++a) kept_A[a][l] = A[a * p + i], kept_B[a][l] = B[a * p + j];
    }
    for (int q = 0; q < c; ++q) {
      const float* core = cores + q * R * R;
      vf s{};
      for (int b = 0; b < R; ++b) {
        vf weighted = kept_A[0] * core[b];
        for (int a = 1; a < R; ++a) weighted += kept_A[a] * core[a * R + b];
        s += weighted * kept_B[b];
      }
      for (int l = 0; l < count; ++l) s_out[(first + l) * c + q] = s[l];
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
    Scratch x(n, m1, R);
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
