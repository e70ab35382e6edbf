// Vectors of floats for the C++ kernels: L lanes, as wide as the processor's registers.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int L = 16;
#else
constexpr int L = 8;
#endif
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));

typedef uint16_t vh __attribute__((vector_size(2 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));

struct bf16 { uint16_t bits; };

[[maybe_unused]] inline vf load(const float* p) { vf x; std::memcpy(&x, p, sizeof x); return x; }
[[maybe_unused]] inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

[[maybe_unused]] inline vf load(const bf16* p) {
  vh x;
  std::memcpy(&x, p, sizeof x);
  return (vf)(__builtin_convertvector(x, vu) << 16);
}
// Rounds to nearest, ties to even; NaN becomes a quiet one.
[[maybe_unused]] inline void store(bf16* p, vf x) {
  const vu bits = (vu)x, nan = (vu)(x != x);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vh y = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), vh);
  std::memcpy(p, &y, sizeof y);
}
[[maybe_unused]] inline float at(const float* p) { return *p; }
[[maybe_unused]] inline float at(const bf16* p) {
  const uint32_t x = uint32_t(p->bits) << 16;
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}
[[maybe_unused]] inline void put(float* p, float x) { *p = x; }
[[maybe_unused]] inline void put(bf16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fc0u : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The first n < L elements, zeros behind them, and back.
template <typename T>
inline vf load_part(const T* p, int64_t n) {
  T x[L] = {};
  std::memcpy(x, p, n * sizeof(T));
  return load(x);
}
template <typename T>
inline void store_part(T* p, int64_t n, vf y) {
  T x[L];
  store(x, y);
  std::memcpy(p, x, n * sizeof(T));
}

// Calls run(type) with a value of the element type.
template <typename Run>
inline void by_type(int is_bf16, const Run& run) { is_bf16 ? run(bf16{}) : run(float{}); }

// Halves are added until one lane is left: a chain of 4 additions, not of 16.
[[maybe_unused]] inline float sum_of(vf x) {
#ifdef __AVX512F__
  typedef float half __attribute__((vector_size(2 * L)));
  half h[2];
  std::memcpy(h, &x, sizeof x);
  const half y = h[0] + h[1];
#else
  const vf y = x;
#endif
  return ((y[0] + y[4]) + (y[1] + y[5])) + ((y[2] + y[6]) + (y[3] + y[7]));
}

[[maybe_unused]] inline float largest_of(vf x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#else
  float largest = x[0];
  for (int l = 1; l < L; ++l) largest = largest > x[l] ? largest : x[l];
  return largest;
#endif
}

// e^x to about 1 ulp: x = n ln 2 + r, |r| <= ln(2)/2, a degree-6 polynomial in r, and n into the exponent.
[[maybe_unused]] inline vf exp_of(vf x) {
  const vf low = vf{} - 87.0f, high = vf{} + 87.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const vf shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest integer
  const vf n = shifted - 12582912.0f;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  return p * (vf)bits;
}

}  // namespace
