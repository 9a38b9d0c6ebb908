// The kernels for one cell (S2S_CELL: RNN, LSTM, GRU, or a stack's) and one dtype (S2S_ELEMENT), and how they are started.

#include "launch.h"

#include <algorithm>

#include "backward.cuh"
#include "forward.cuh"

namespace s2s {
namespace {

using Cell = S2S_CELL;
using Element = S2S_ELEMENT;

template <typename Chain>
struct Kernel {
  int row_tiles, batch_tiles;
  void (*start)(Arguments<Cell, Chain>);
  size_t (*shared_bytes)(int chunks, int vectors);
};

#define S2S_KERNEL(pass, Step, rows, batch) \
  { rows, batch, pass<Cell, Element, rows, batch>, Step<Cell, Element, rows, batch>::shared_bytes }
#define S2S_KERNELS(pass, Step, rows) \
  S2S_KERNEL(pass, Step, rows, 1), S2S_KERNEL(pass, Step, rows, 2), S2S_KERNEL(pass, Step, rows, 4)

constexpr Kernel<ForwardChain<Element>> kForward[] = {
    S2S_KERNELS(forward, ForwardProduct, 1), S2S_KERNELS(forward, ForwardProduct, 2), S2S_KERNELS(forward, ForwardProduct, 3),
    S2S_KERNELS(forward, ForwardProduct, 4)};
constexpr Kernel<BackwardChain<Element>> kBackward[] = {S2S_KERNELS(backward, BackwardProduct, 1),
                                                        S2S_KERNELS(backward, BackwardProduct, 2)};
static_assert(kMostChains == Layers::kMost);

std::string named(const char* what, cudaError_t error) { return std::string(what) + ": " + cudaGetErrorString(error); }

#define S2S_TRY(call)                                                      \
  do {                                                                     \
    if (const cudaError_t error = (call)) return named(#call, error);      \
  } while (false)

void take(ForwardChain<Element>& d, void* const* arrays) {
  d = {static_cast<const float*>(arrays[0]), static_cast<const Element*>(arrays[1]), static_cast<const Element*>(arrays[2]),
       static_cast<const float*>(arrays[3]), static_cast<const float*>(arrays[4]),   static_cast<const float*>(arrays[5]),
       static_cast<Element*>(arrays[6]),     static_cast<float*>(arrays[7]),         static_cast<float*>(arrays[8]),
       static_cast<Element*>(arrays[9]),     static_cast<float*>(arrays[10]),        0};
}

void take(BackwardChain<Element>& d, void* const* arrays) {
  d = {static_cast<const Element*>(arrays[0]), static_cast<const Element*>(arrays[1]), static_cast<const float*>(arrays[2]),
       static_cast<const float*>(arrays[3]),   static_cast<const Element*>(arrays[4]), static_cast<const Element*>(arrays[5]),
       static_cast<const float*>(arrays[6]),   static_cast<const Element*>(arrays[7]), static_cast<const float*>(arrays[8]),
       static_cast<const float*>(arrays[9]),   static_cast<Element*>(arrays[10]),      static_cast<float*>(arrays[11]),
       static_cast<float*>(arrays[12]),        0};
}

// One launch after the other, each over as many tiles of the batch as have room for every block, and scratch memory.
// `rows_per_unit`: of the weights; `numbers_per_unit`: of what the blocks exchange.
template <typename Chain, size_t kKernels>
std::string run(const Kernel<Chain> (&kernels)[kKernels], int rows_per_unit, int numbers_per_unit, const Split& split,
                const Layers& layers, cudaStream_t stream) {
  const auto* kernel = std::find_if(kernels, kernels + kKernels, [&](const auto& k) {
    return k.row_tiles == split.row_tiles && k.batch_tiles == split.batch_tiles;
  });
  if (kernel == kernels + kKernels || split.units < 1 || split.units * rows_per_unit > 16 * split.row_tiles) {
    return "there is no kernel for this split";
  }
  const int chunks = ceil_div(layers.hidden, kChunk<Element>) * numbers_per_unit, rows = 8 * split.batch_tiles;
  const size_t shared = kernel->shared_bytes(chunks, Cell::kStacked ? 2 : 1);
  int device = 0, multiprocessors = 0, of_each = 0, cooperative = 0;
  S2S_TRY(cudaGetDevice(&device));
  S2S_TRY(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  if (!cooperative) return "the device has no cooperative launch";
  S2S_TRY(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  S2S_TRY(cudaFuncSetAttribute(kernel->start, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  S2S_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_each, kernel->start, kThreads, shared));
  const int blocks = ceil_div(layers.hidden, split.units), tiles = ceil_div(layers.batch, rows);
  const int placed = multiprocessors * of_each / (blocks * layers.chains);
  if (placed < 1) return "the blocks of a team do not fit onto the device at the same time";

  Arguments<Cell, Chain> a = {};
  a.lengths = layers.lengths;
  const int buffers = Cell::kStacked ? layers.time + 1 : 2;
  a.exchange = {static_cast<unsigned char*>(layers.scratch), size_t(chunks) * rows * kChunkBytes, buffers};
  const size_t of_tile = layers.chains * (buffers * a.exchange.buffer_bytes + blocks * sizeof(uint32_t));
  if (layers.scratch_bytes < of_tile) return "the scratch memory is too small";
  // plan.py, which sized it, counts on one block for each multiprocessor: there may be room for more.
  const int most = int(std::min<size_t>(std::min(tiles, placed), layers.scratch_bytes / of_tile));
  for (int i = 0; i < layers.chains; ++i) {
    take(a.chains[i], layers.of[i].arrays);
    a.chains[i].reverse = layers.of[i].reverse;
  }
  for (int first = 0; first < tiles; first += most) {
    const int now = std::min(most, tiles - first);
    a.sizes = {layers.time, layers.batch, layers.hidden, split.units, first * rows, layers.relu};
    S2S_TRY(cudaMemsetAsync(layers.scratch, 0, now * of_tile, stream));
    void* arguments[] = {&a};
    // Which the driver refuses where not all blocks have a place at the same time.
    S2S_TRY(cudaLaunchCooperativeKernel(kernel->start, dim3(blocks, now, layers.chains), dim3(kThreads), arguments, shared,
                                        stream));
  }
  return "";
}

}  // namespace

std::string forward(const Split& split, const Layers& layers, cudaStream_t stream) {
  return run(kForward, Cell::kParts, 1, split, layers, stream);
}

std::string backward(const Split& split, const Layers& layers, cudaStream_t stream) {
  return run(kBackward, 1, Cell::kParts, split, layers, stream);
}

std::string limits(int* multiprocessors, int* shared_bytes) {
  int device = 0;
  int major = 0;
  S2S_TRY(cudaGetDevice(&device));
  S2S_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major != 9) return "the kernels are for compute capability 9.0";
  S2S_TRY(cudaDeviceGetAttribute(multiprocessors, cudaDevAttrMultiProcessorCount, device));
  S2S_TRY(cudaDeviceGetAttribute(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return "";
}

}  // namespace s2s
