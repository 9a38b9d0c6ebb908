// Vectors of floats as wide as the machine's registers, and the gate functions on them.
//
// Only the vector types of GCC and Clang are used, so the same code compiles for any processor; where it has no vector
// registers of that width the compiler takes the operations apart.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace s2s {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kAccumulators = 24;  // of 32 registers; the rest holds operands
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kAccumulators = 12;  // of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kAccumulators = 24;  // of 32
#else
constexpr int kLanes = 4;
constexpr int kAccumulators = 12;
#endif
constexpr int kWidth = 2 * kLanes;  // columns of a panel of weights: two vectors

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

#define S2S_INLINE inline __attribute__((always_inline))

S2S_INLINE Vector splat(float value) { return value - Vector{}; }

S2S_INLINE Vector load(const float* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

S2S_INLINE void store(float* to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }

// The first `count` floats; the others are zero.
S2S_INLINE Vector load(const float* from, long count) {
  if (count >= kLanes) return load(from);
  Vector value{};
  if (count > 0) __builtin_memcpy(&value, from, count * sizeof(float));
  return value;
}

S2S_INLINE void store(float* to, Vector value, long count) {
  if (count >= kLanes) return store(to, value);
  if (count > 0) __builtin_memcpy(to, &value, count * sizeof(float));
}

// NaN passes through: where one of the two is NaN these instructions, as the comparisons, take the second one.
S2S_INLINE Vector clamp(Vector x, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(splat(high), _mm512_max_ps(splat(low), x));
#elif defined(__AVX__)
  return _mm256_min_ps(splat(high), _mm256_max_ps(splat(low), x));
#else
  x = x < splat(low) ? splat(low) : x;
  return x > splat(high) ? splat(high) : x;
#endif
}

// exp(x) = 2^n exp(r) with |r| <= log(2) / 2, as 2^n and expm1(r) = r + r^2 q(r). The coefficients of q make the largest relative
// error of expm1 smallest, 1.4e-8 (least squares with Lawson's weights); |x| must stay below 87.
S2S_INLINE void exponential(Vector x, Vector& power, Vector& fraction) {
  const Vector rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vector shifted = x * splat(1.44269504088896341f) + rounder;
  const Vector n = shifted - rounder;
  Vector r = x - n * splat(0.693145751953125f);  // log(2) in two parts, the first one exact in 16 bits
  r = r - n * splat(1.42860682030941723212e-6f);
  Vector q = splat(0.00139466f);
  q = q * r + splat(0.00836664f);
  q = q * r + splat(0.04166628f);
  q = q * r + splat(0.16666543f);
  q = q * r + splat(0.50000001f);
  fraction = (q * r) * r + r;
  Integers bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  __builtin_memcpy(&power, &bits, sizeof power);
}

// A gate function as a fraction: a division takes longer than the rest of it, and two fractions need only one.
struct Fraction {
  Vector top, bottom;
  Vector value() const { return top / bottom; }
};

// The bounds keep the product of two denominators finite; the sigmoid of -43 is 2e-19.
S2S_INLINE Fraction sigmoid_fraction(Vector x) {
  Vector power, fraction;
  exponential(clamp(-x, -43.0f, 43.0f), power, fraction);
  return {splat(1.0f), splat(1.0f) + (power * fraction + power)};
}

// By expm1, which keeps the relative accuracy near zero: tanh(x) = expm1(2x) / (expm1(2x) + 2).
S2S_INLINE Fraction tanh_fraction(Vector x) {
  Vector power, fraction;
  exponential(clamp(x + x, -40.0f, 40.0f), power, fraction);
  const Vector minus_one = power * fraction + (power - splat(1.0f));
  return {minus_one, minus_one + splat(2.0f)};
}

S2S_INLINE void values(Fraction a, Fraction b, Vector& value_a, Vector& value_b) {
  const Vector inverse = splat(1.0f) / (a.bottom * b.bottom);
  value_a = a.top * b.bottom * inverse;
  value_b = b.top * a.bottom * inverse;
}

S2S_INLINE Vector tanh(Vector x) { return tanh_fraction(x).value(); }

S2S_INLINE Vector relu(Vector x) { return x < splat(0.0f) ? splat(0.0f) : x; }

}  // namespace s2s
