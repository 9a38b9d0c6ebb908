// Affine recurrences s_t = A_t s_{t-1} + b_t of blocks of L numbers, many beside each other, in chunks of time at once.
//
// First each chunk is made one affine map, then the state at the begin of each chunk is found from those, then all states of
// each chunk from that. A and b are read twice, and nobody waits for another block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.h"

namespace s2s {

constexpr int kThreads = 64;
constexpr int kAtOnce = 8;  // steps whose A and b are on their way together

// Arrays are [T, N, L, L], [T, N, L] and [N, L]; `maps` is [chunks, N, L, L + 1], `starts` [chunks, N, L].
struct AffineArguments {
  AffineSizes n;
  AffineArrays p;
  float *maps, *starts;
  int64_t steps;  // of a chunk
};

// Calls `with(t, A, b)` for the steps of a chunk in the order of the recurrence.
template <int L, typename With>
__device__ __forceinline__ void each_step(const AffineArguments& a, int64_t chunk, int64_t block, const With& with) {
  const int64_t begin = chunk * a.steps, end = min(begin + a.steps, a.n.time);
  const auto time_of = [&](int64_t step) { return a.n.reverse ? a.n.time - 1 - step : step; };
  for (int64_t from = begin; from < end; from += kAtOnce) {
    float m[kAtOnce][L][L], v[kAtOnce][L];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i >= end) break;
      const int64_t at = (time_of(from + i) * a.n.blocks + block) * L;
#pragma unroll
      for (int j = 0; j < L; ++j) {
        v[i][j] = a.p.b[at + j];
#pragma unroll
        for (int k = 0; k < L; ++k) m[i][j][k] = a.p.a[(at + j) * L + k];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i < end) with(time_of(from + i), m[i], v[i]);
    }
  }
}

template <int L>
__device__ __forceinline__ void apply(const float (&m)[L][L], const float (&v)[L], float (&s)[L]) {
  float next[L];
#pragma unroll
  for (int j = 0; j < L; ++j) {
    next[j] = v[j];
#pragma unroll
    for (int k = 0; k < L; ++k) next[j] += m[j][k] * s[k];
  }
#pragma unroll
  for (int j = 0; j < L; ++j) s[j] = next[j];
}

__device__ __forceinline__ int64_t block_of_thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// The map of each chunk, column by column: the last one is what it makes of nothing.
template <int L>
__global__ void __launch_bounds__(kThreads) chunk_maps(AffineArguments a) {
  const int64_t block = block_of_thread(), chunk = blockIdx.y;
  if (block >= a.n.blocks) return;
  float columns[L + 1][L] = {};
#pragma unroll
  for (int j = 0; j < L; ++j) columns[j][j] = 1;
  each_step<L>(a, chunk, block, [&](int64_t, const float (&m)[L][L], const float (&v)[L]) {
    const float nothing[L] = {};
#pragma unroll
    for (int j = 0; j < L; ++j) apply<L>(m, nothing, columns[j]);
    apply<L>(m, v, columns[L]);
  });
#pragma unroll
  for (int j = 0; j < L; ++j) {
#pragma unroll
    for (int k = 0; k <= L; ++k) a.maps[((chunk * a.n.blocks + block) * L + j) * (L + 1) + k] = columns[k][j];
  }
}

// One chunk after the other, for each block.
template <int L>
__global__ void __launch_bounds__(kThreads) chunk_starts(AffineArguments a) {
  const int64_t block = block_of_thread(), chunks = (a.n.time + a.steps - 1) / a.steps;
  if (block >= a.n.blocks) return;
  float s[L];
#pragma unroll
  for (int j = 0; j < L; ++j) s[j] = a.p.first[block * L + j];
  for (int64_t from = 0; from < chunks; from += kAtOnce) {
    float m[kAtOnce][L][L], v[kAtOnce][L];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i >= chunks) break;
      const float* map = a.maps + ((from + i) * a.n.blocks + block) * L * (L + 1);
#pragma unroll
      for (int j = 0; j < L; ++j) {
        v[i][j] = map[j * (L + 1) + L];
#pragma unroll
        for (int k = 0; k < L; ++k) m[i][j][k] = map[j * (L + 1) + k];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (from + i >= chunks) break;
#pragma unroll
      for (int j = 0; j < L; ++j) a.starts[((from + i) * a.n.blocks + block) * L + j] = s[j];
      apply<L>(m[i], v[i], s);
    }
  }
}

// Where there is one chunk only it starts from the first state.
template <int L>
__global__ void __launch_bounds__(kThreads) chunk_states(AffineArguments a) {
  const int64_t block = block_of_thread(), chunk = blockIdx.y;
  if (block >= a.n.blocks) return;
  const float* start = a.steps < a.n.time ? a.starts + chunk * a.n.blocks * L : a.p.first;
  float s[L];
#pragma unroll
  for (int j = 0; j < L; ++j) s[j] = start[block * L + j];
  each_step<L>(a, chunk, block, [&](int64_t t, const float (&m)[L][L], const float (&v)[L]) {
    apply<L>(m, v, s);
#pragma unroll
    for (int j = 0; j < L; ++j) a.p.s[(t * a.n.blocks + block) * L + j] = s[j];
  });
}

}  // namespace s2s
