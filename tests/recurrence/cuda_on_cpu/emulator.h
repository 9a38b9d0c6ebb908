// The instructions of platform.cuh in plain C++; the fragments of a product as NVIDIA's PTX ISA has them, section "Matrix
// Fragments for mma.m16n8k16 with floating point type" and, for .tf32, "Matrix Fragments for mma.m16n8k8".

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace cuda_on_cpu {

struct Fragments {
  float* c;
  const uint32_t *a, *b;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The i-th element of a fragment of 16-bit numbers.
template <typename Narrow>
Narrow element(const uint32_t* registers, int i) {
  const uint16_t bits = uint16_t(registers[i / 2] >> (i % 2 * 16));
  Narrow value;
  std::memcpy(&value, &bits, 2);
  return value;
}

inline float value(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float value(__half x) { return __half2float(x); }

template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], void** lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? group : group + 8, col = in_group * 2 + (i & 1);
      float sum = 0;
      for (int k = 0; k < K; ++k) sum += a[row][k] * b[k][col];
      static_cast<Fragments*>(lanes[lane])->c[i] += sum;
    }
  }
}

template <typename Narrow>
void mma_m16n8k16(void** lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fragments& of = *static_cast<Fragments*>(lanes[lane]);
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int col = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      a[row][col] = value(element<Narrow>(of.a, i));
    }
    for (int i = 0; i < 4; ++i) {
      const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8), col = group;
      b[row][col] = value(element<Narrow>(of.b, i));
    }
  }
  multiply(a, b, lanes);
}

inline float as_tf32(uint32_t bits) { return from_bits(exact ? bits : bits & ~0x1fffu); }

inline void mma_m16n8k8_tf32(void** lanes) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fragments& of = *static_cast<Fragments*>(lanes[lane]);
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i == 0 || i == 2 ? group : group + 8, col = i < 2 ? in_group : in_group + 4;
      a[row][col] = as_tf32(of.a[i]);
    }
    for (int i = 0; i < 2; ++i) b[i == 0 ? in_group : in_group + 4][group] = as_tf32(of.b[i]);
  }
  multiply(a, b, lanes);
}

}  // namespace cuda_on_cpu

namespace s2s {

template <typename Element>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_cpu::Fragments mine{c, a, b};
  cuda_on_cpu::together(&mine, [](void** lanes) {
    if constexpr (sizeof(Element) == 4) {
      cuda_on_cpu::mma_m16n8k8_tf32(lanes);
    } else {
      cuda_on_cpu::mma_m16n8k16<Element>(lanes);
    }
  });
}

inline uint32_t load_acquire(const uint32_t* from) {
  cuda_on_cpu::yield();
  return *from;
}

inline void store_release(uint32_t* to, uint32_t value) {
  *to = value;
  ++cuda_on_cpu::launch->progress;
}

inline uint4 load_shared_by_all(const uint4* from) { return *from; }

template <typename Narrow>
uint32_t packed(const Narrow* const (&from)[2]) {
  uint16_t halves[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    if (from[i] != nullptr) std::memcpy(&halves[i], from[i], 2);
  }
  return halves[0] | uint32_t(halves[1]) << 16;
}

inline float rounded_to_tf32(float x);

inline uint32_t packed(const float* const (&from)[1]) {
  const float x = rounded_to_tf32(from[0] == nullptr ? 0.0f : *from[0]);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(cuda_on_cpu::current().block->shared.data());
}

inline float rounded_to_tf32(float x) {
  if (cuda_on_cpu::exact || x != x || std::isinf(x)) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return cuda_on_cpu::from_bits((bits + 0x1000u) & ~0x1fffu);  // away from zero where it is in the middle
}

}  // namespace s2s
