// RMSNorm and its gradient, one pass over each row (PyTorch's CPU path takes a pass per elementary operation).
//
//   rstd = (mean(x²) + eps)^(-1/2)      y = x rstd w
//   dx = rstd (w dy - x rstd mean(w dy x rstd))      dw = sum over rows of dy x rstd
//
// x, y, dx, dy are float32 or bfloat16; everything is computed in float32. dw is summed in blocks of rows in a fixed
// order, so it does not depend on the number of threads.
#include <cmath>
#include <vector>

#include "../vector.h"

namespace {

constexpr int64_t ROWS = 256;  // rows a block

// step(first, load, store) for whole vectors of n elements, then for the rest.
template <typename Step>
inline void sweep(int64_t n, const Step& step) {
  int64_t j = 0;
  for (; j + L <= n; j += L) step(j, L);
  if (j < n) step(j, n - j);
}
template <typename T>
inline vf get(const T* p, int64_t lanes) { return lanes == L ? load(p) : load_part(p, lanes); }
template <typename T>
inline void set(T* p, int64_t lanes, vf x) { lanes == L ? store(p, x) : store_part(p, lanes, x); }

template <typename T>
void forward(int64_t rows, int64_t width, const T* x, const float* w, float eps, int threads, T* y, float* rstd) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* xi = x + i * width;
    T* yi = y + i * width;
    vf squares{};
    sweep(width, [&](int64_t j, int64_t lanes) {
      const vf a = get(xi + j, lanes);
      squares += a * a;
    });
    const float r = 1.0f / std::sqrt(sum_of(squares) / float(width) + eps);
    rstd[i] = r;
    sweep(width, [&](int64_t j, int64_t lanes) { set(yi + j, lanes, get(xi + j, lanes) * r * get(w + j, lanes)); });
  }
}

template <typename T>
void backward(int64_t rows, int64_t width, const T* dy, const T* x, const float* w, const float* rstd, int threads,
              T* dx, float* dw) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  std::vector<float> partial(blocks * width, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    float* sums = partial.data() + b * width;
    const int64_t end = (b + 1) * ROWS < rows ? (b + 1) * ROWS : rows;
    for (int64_t i = b * ROWS; i < end; ++i) {
      const T *xi = x + i * width, *gi = dy + i * width;
      T* oi = dx + i * width;
      const float r = rstd[i];
      vf products{};
      sweep(width, [&](int64_t j, int64_t lanes) {
        products += get(gi + j, lanes) * get(w + j, lanes) * get(xi + j, lanes);
      });
      const float mean = sum_of(products) * r * r / float(width);
      sweep(width, [&](int64_t j, int64_t lanes) {
        const vf g = get(gi + j, lanes), a = get(xi + j, lanes);
        set(sums + j, lanes, get(sums + j, lanes) + g * a * r);
        set(oi + j, lanes, (g * get(w + j, lanes) - a * mean) * r);
      });
    }
  }
  for (int64_t j = 0; j < width; ++j) dw[j] = 0;
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < width; ++j) dw[j] += partial[b * width + j];
}

}  // namespace

extern "C" {

int umscale_rms_norm(int is_bf16, int64_t rows, int64_t width, const void* x, const float* w, float eps, int threads,
                     void* y, float* rstd) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    forward(rows, width, static_cast<const T*>(x), w, eps, threads, static_cast<T*>(y), rstd);
  });
  return 0;
}

int umscale_rms_norm_backward(int is_bf16, int64_t rows, int64_t width, const void* dy, const void* x, const float* w,
                              const float* rstd, int threads, void* dx, float* dw) {
  by_type(is_bf16, [&](auto type) {
    using T = decltype(type);
    backward(rows, width, static_cast<const T*>(dy), static_cast<const T*>(x), w, rstd, threads, static_cast<T*>(dx),
             dw);
  });
  return 0;
}
}
