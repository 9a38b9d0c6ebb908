// What the call of XLA asks of the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace s2s {

struct AffineSizes {
  int64_t time, blocks, numbers;  // steps, blocks beside each other, numbers of a block
  bool reverse;
};

struct AffineArrays {
  const float *a, *b, *first;  // [T, N, L, L], [T, N, L], [N, L]
  float* s;                    // [T, N, L]
};

// Starts the kernels on the stream, in chunks of so many steps; `scratch` is [chunks, N, L, L + 2]. Returns why it cannot.
std::string solve_affine(const AffineSizes& n, const AffineArrays& p, float* scratch, int64_t scratch_numbers, int64_t steps,
                         cudaStream_t stream);

}  // namespace s2s
