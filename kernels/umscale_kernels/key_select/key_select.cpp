// The gradient of selected scores with respect to queries, keys and cores, through the pairs that were kept alone.
//
//   s_kq = sum_ab A_ka C_q[a, b] B_kb           A_ka = <q[row, a], K[row, a, i_k]>,  B_kb = <q[col, b], K[col, b, j_k]>
//   dA_ka = sum_qb ds_kq C_q[a, b] B_kb         dB_kb = sum_qa ds_kq C_q[a, b] A_ka
//   dq[row, a] = sum_i (sum of dA_ka with i_k = i) K[row, a, i]          dK[row, a, i] = sum over tokens of dA q[row, a]
//
// A token keeps few of the n keys of a side, so nothing of size [T, n] is formed. dK and dC are summed by blocks of
// tokens in a fixed order, whatever the number of threads.
#include <algorithm>
#include <vector>

#include "../vector.h"

namespace {

constexpr int64_t MOST_BLOCKS = 16, LEAST_TOKENS = 256;  // of a block

// to += scale x, for both pairs, over W vectors, or n elements when W is 0.
template <int W>
inline void cross(int n, float scale, const float* key, const float* query, float* d_query, float* d_key) {
  if constexpr (W > 0) {
    for (int v = 0; v < W * L; v += L) {
      store(d_query + v, load(d_query + v) + load(key + v) * scale);
      store(d_key + v, load(d_key + v) + load(query + v) * scale);
    }
  } else {
    for (int c = 0; c < n; ++c) d_query[c] += scale * key[c], d_key[c] += scale * query[c];
  }
}

struct Shape {
  int64_t T;
  int n, c, m, k;
};

// Sums of dA by key for one side and token, and which keys they are.
struct Side {
  std::vector<float> sum;  // [R, n], zero between tokens
  std::vector<int> touched;
  std::vector<char> is_touched;
  Side(int r, int n) : sum(size_t(r) * n, 0.0f), is_touched(n, 0) { touched.reserve(n); }
  void touch(int i) {
    if (!is_touched[i]) is_touched[i] = 1, touched.push_back(i);
  }
};

template <int R, int W>
void spread(const Shape& s, int side, Side& of, const float* q, const float* keys, float* d_q, float* d_keys) {
  for (const int i : of.touched) {
    for (int a = 0; a < R; ++a) {
      float& sum = of.sum[a * s.n + i];
      const int64_t key = (int64_t(side * R + a) * s.n + i) * s.k, at = (side * R + a) * s.k;
      cross<W>(s.k, sum, keys + key, q + at, d_q + at, d_keys + key);
      sum = 0.0f;
    }
    of.is_touched[i] = 0;
  }
  of.touched.clear();
}

template <int R, int W>
void backward(const Shape& s, const float* q, const float* keys, const float* cores, const int64_t* row,
              const int64_t* col, const float* kept, const float* ds, int threads, float* d_q, float* d_keys,
              float* d_cores) {
  const int64_t blocks = std::max<int64_t>(1, std::min(MOST_BLOCKS, s.T / LEAST_TOKENS));
  const int64_t each = (s.T + blocks - 1) / blocks, key_size = int64_t(2) * R * s.n * s.k;
  const int core_size = s.c * R * R;
  std::vector<float> key_sums(size_t(blocks) * key_size, 0.0f);
  std::vector<double> core_sums(size_t(blocks) * core_size, 0.0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Side rows(R, s.n), cols(R, s.n);
    std::vector<float> token_cores(core_size);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      float* d_k = &key_sums[block * key_size];
      double* d_c = &core_sums[block * core_size];
      for (int64_t t = block * each; t < std::min(s.T, (block + 1) * each); ++t) {
        std::fill(token_cores.begin(), token_cores.end(), 0.0f);
        for (int k = 0; k < s.m; ++k) {
          const int64_t l = t * s.m + k;
          const int i = int(row[l]), j = int(col[l]);
          float A[R], B[R], D[R][R] = {};
          for (int a = 0; a < R; ++a) A[a] = kept[l * 2 * R + a], B[a] = kept[l * 2 * R + R + a];
          for (int e = 0; e < s.c; ++e) {
            const float g = ds[l * s.c + e];
            for (int a = 0; a < R; ++a)
              for (int b = 0; b < R; ++b) {
                D[a][b] += g * cores[(e * R + a) * R + b];
                token_cores[(e * R + a) * R + b] += g * A[a] * B[b];
              }
          }
          for (int a = 0; a < R; ++a) {
            float dA = 0.0f, dB = 0.0f;
            for (int b = 0; b < R; ++b) dA += D[a][b] * B[b], dB += D[b][a] * A[b];
            rows.sum[a * s.n + i] += dA;
            cols.sum[a * s.n + j] += dB;
          }
          rows.touch(i);
          cols.touch(j);
        }
        for (int e = 0; e < core_size; ++e) d_c[e] += token_cores[e];
        const int64_t at = t * 2 * R * s.k;
        spread<R, W>(s, 0, rows, q + at, keys, d_q + at, d_k);
        spread<R, W>(s, 1, cols, q + at, keys, d_q + at, d_k);
      }
    }
  }
  std::copy(key_sums.begin(), key_sums.begin() + key_size, d_keys);
  for (int64_t block = 1; block < blocks; ++block)
    for (int64_t e = 0; e < key_size; ++e) d_keys[e] += key_sums[block * key_size + e];
  for (int e = 0; e < core_size; ++e) {
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block) sum += core_sums[block * core_size + e];
    d_cores[e] = float(sum);
  }
}

template <int R, typename... Rest>
void by_width(const Shape& s, Rest... rest) {
  if (s.k == L) backward<R, 1>(s, rest...);
  else if (s.k == 2 * L) backward<R, 2>(s, rest...);
  else if (s.k == 4 * L) backward<R, 4>(s, rest...);
  else if (s.k == 8 * L) backward<R, 8>(s, rest...);
  else backward<R, 0>(s, rest...);
}

}  // namespace

extern "C" {

// scores [2, R, T, n] of one head at its pairs row, col [T, m] -> kept [T, m, 2, R].
int umscale_kept_scores(int64_t T, int n, int r, int m, const float* scores, const int64_t* row, const int64_t* col,
                        int threads, float* kept) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < T; ++t)
    for (int64_t l = t * m; l < (t + 1) * m; ++l)
      for (int a = 0; a < r; ++a) {
        kept[l * 2 * r + a] = scores[(a * T + t) * n + row[l]];
        kept[l * 2 * r + r + a] = scores[((r + a) * T + t) * n + col[l]];
      }
  return 0;
}

// One head: q [T, 2 R, k], keys [2 R, n, k], cores [c, R, R], kept [T, m, 2, R], ds [T, m, c] -> added to d_q, which
// heads share; d_keys and d_cores are overwritten.
int umscale_key_select_backward(int64_t T, int n, int r, int c, int m, int k, const float* q, const float* keys,
                                const float* cores, const int64_t* row, const int64_t* col, const float* kept,
                                const float* ds, int threads, float* d_q, float* d_keys, float* d_cores) {
  const Shape s{T, n, c, m, k};
  switch (r) {
    case 1: by_width<1>(s, q, keys, cores, row, col, kept, ds, threads, d_q, d_keys, d_cores); return 0;
    case 2: by_width<2>(s, q, keys, cores, row, col, kept, ds, threads, d_q, d_keys, d_cores); return 0;
    case 3: by_width<3>(s, q, keys, cores, row, col, kept, ds, threads, d_q, d_keys, d_cores); return 0;
    case 4: by_width<4>(s, q, keys, cores, row, col, kept, ds, threads, d_q, d_keys, d_cores); return 0;
  }
  return 1;
}
}
