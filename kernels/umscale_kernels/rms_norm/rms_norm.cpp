// RMSNorm and its gradient, one pass over each row (PyTorch's CPU path takes a pass per elementary operation).
//
//   rstd = (mean(x²) + eps)^(-1/2)      y = x rstd w
//   dx = rstd (w dy - x rstd mean(w dy x rstd))      dw = sum over rows of dy x rstd
//
// dw is summed in blocks of rows in a fixed order, so it does not depend on the number of threads.
#include <cmath>
#include <cstdint>
#include <vector>

namespace {
constexpr int64_t ROWS = 256;  // rows a block
}

extern "C" {

int umscale_rms_norm(int64_t rows, int64_t width, const float* x, const float* w, float eps, int threads,
                     float* y, float* rstd) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float* xi = x + i * width;
    float* yi = y + i * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) sum += xi[j] * xi[j];
    const float r = 1.0f / std::sqrt(sum / float(width) + eps);
    rstd[i] = r;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) yi[j] = xi[j] * r * w[j];
  }
  return 0;
}

int umscale_rms_norm_backward(int64_t rows, int64_t width, const float* dy, const float* x, const float* w,
                              const float* rstd, int threads, float* dx, float* dw) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  std::vector<float> partial(blocks * width, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    float* sums = partial.data() + b * width;
    const int64_t end = (b + 1) * ROWS < rows ? (b + 1) * ROWS : rows;
    for (int64_t i = b * ROWS; i < end; ++i) {
      const float *xi = x + i * width, *gi = dy + i * width;
      float* oi = dx + i * width;
      const float r = rstd[i];
      float mean = 0;
#pragma omp simd reduction(+ : mean)
      for (int64_t j = 0; j < width; ++j) mean += gi[j] * w[j] * xi[j];
      mean *= r * r / float(width);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        sums[j] += gi[j] * xi[j] * r;
        oi[j] = r * (gi[j] * w[j] - xi[j] * mean);
      }
    }
  }
  for (int64_t j = 0; j < width; ++j) dw[j] = 0;
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < width; ++j) dw[j] += partial[b * width + j];
  return 0;
}
}
