// What the calls of XLA ask of the kernels; compiled for one cell and one dtype.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace s2s {

// Units of a block, and the tiles of the tensor cores that its weights and a team's rows take: which kernel runs.
struct Split {
  int units, row_tiles, batch_tiles;
};

// Arrays as the structs `ForwardChain` and `BackwardChain` have them, in their order; null where one does not apply.
struct Chain {
  static constexpr int kMost = 13;
  void* arrays[kMost];
  bool reverse;
};

// The directions of a layer, or the layers of a stack from the lowest on: which of both is a matter of the cell.
struct Layers {
  static constexpr int kMost = 8;
  int time, batch, hidden;
  bool relu;
  const int32_t* lengths;
  int chains;
  Chain of[kMost];
  void* scratch;
  size_t scratch_bytes;
};

// Starts a pass on the stream. Returns why it cannot: never a launch whose blocks might wait for others that have no place.
std::string forward(const Split& split, const Layers& layers, cudaStream_t stream);
std::string backward(const Split& split, const Layers& layers, cudaStream_t stream);

// Multiprocessors of the current device, and bytes of shared memory that a block may have there; or why it is of no use.
std::string limits(int* multiprocessors, int* shared_bytes);

}  // namespace s2s
