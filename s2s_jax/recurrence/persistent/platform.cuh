// What the kernels ask of the machine: tensor-core products, ordered loads and stores, shared memory, numbers of each width.
//
// Each is one instruction of PTX. Without nvcc the same names come from the header `emulator.h`, which only the tests have: it
// runs the kernels on a CPU.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include "emulator.h"
#endif

namespace s2s {

// One warp multiplies a 16 x K tile `a` by a K x 8 tile `b` and adds to the 16 x 8 tile `c`; K is 16 narrow numbers or 8 of
// float32. Which element stands in which lane: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "... for mma.m16n8k8".
template <typename Element>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#ifdef __CUDACC__

#define S2S_MMA(instruction)                                                                          \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  S2S_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
}

template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  S2S_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
}

template <>
__device__ __forceinline__ void multiply_add<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  S2S_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef S2S_MMA

// What another block wrote before its `store_release` is there for whoever sees that store by `load_acquire`.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// From the L2 cache, which all multiprocessors share; never from a first-level cache, which may hold what was there before.
__device__ __forceinline__ uint4 load_shared_by_all(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

// A register of weights as they enter a product, from where they stand; null for a zero. Predicates and not branches, so
// that many are on their way at a time.
template <typename Narrow>
__device__ __forceinline__ uint32_t packed(const Narrow* const (&from)[2]) {
  uint32_t both;
  asm volatile(
      "{ .reg .b16 low, high;\n .reg .pred p, q;\n mov.b16 low, 0;\n mov.b16 high, 0;\n"
      " setp.ne.u64 p, %1, 0;\n setp.ne.u64 q, %2, 0;\n"
      " @p ld.global.nc.b16 low, [%1];\n @q ld.global.nc.b16 high, [%2];\n mov.b32 %0, {low, high}; }"
      : "=r"(both)
      : "l"(from[0]), "l"(from[1]));
  return both;
}

__device__ __forceinline__ uint32_t packed(const float* const (&from)[1]) {
  uint32_t rounded;
  asm volatile(
      "{ .reg .f32 x;\n .reg .pred p;\n mov.f32 x, 0f00000000;\n setp.ne.u64 p, %1, 0;\n"
      " @p ld.global.nc.f32 x, [%1];\n cvt.rna.tf32.f32 %0, x; }"
      : "=r"(rounded)
      : "l"(from[0]));
  return rounded;
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ uint4 s2s_shared_memory[];
  return reinterpret_cast<unsigned char*>(s2s_shared_memory);
}

// To the nearest number of 10 bits behind the point: the tensor cores would cut the others off.
__device__ __forceinline__ float rounded_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

#endif

// The place, or null; by arithmetic, where a condition might become a branch around whatever reads there.
template <typename Element>
__device__ __forceinline__ const Element* only_if(bool there, const Element* place) {
  return reinterpret_cast<const Element*>(reinterpret_cast<uintptr_t>(place) & (uintptr_t(0) - uintptr_t(there)));
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename Element>
__device__ Element from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half(x);
}

// As it enters a product.
template <typename Element>
__device__ inline Element operand(float x) {
  return from_float<Element>(x);
}
template <>
__device__ inline float operand<float>(float x) {
  return rounded_to_tf32(x);
}

}  // namespace s2s
