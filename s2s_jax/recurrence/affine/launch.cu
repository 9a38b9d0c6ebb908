// How the kernels are started.

#include "launch.h"

#include "kernels.cuh"

namespace s2s {
namespace {

template <int L>
std::string run(const AffineSizes& n, const AffineArrays& p, float* scratch, int64_t scratch_numbers, int64_t steps,
                cudaStream_t stream) {
  const int64_t chunks = (n.time + steps - 1) / steps, across = (n.blocks + kThreads - 1) / kThreads;
  if (across > 0x7fffffff || chunks > 0xffff) return "there are too many blocks or chunks";
  if (chunks > 1 && scratch_numbers < chunks * n.blocks * L * (L + 2)) return "the scratch memory is too small";
  AffineArguments arguments = {n, p, scratch, scratch + chunks * n.blocks * L * (L + 1), steps};
  void* given[] = {&arguments};
  const dim3 all(static_cast<unsigned>(across), static_cast<unsigned>(chunks)), one(static_cast<unsigned>(across));
  cudaError_t error = cudaSuccess;
  if (chunks > 1) {
    error = cudaLaunchKernel(chunk_maps<L>, all, dim3(kThreads), given, 0, stream);
    if (error == cudaSuccess) error = cudaLaunchKernel(chunk_starts<L>, one, dim3(kThreads), given, 0, stream);
  }
  if (error == cudaSuccess) error = cudaLaunchKernel(chunk_states<L>, all, dim3(kThreads), given, 0, stream);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace

std::string solve_affine(const AffineSizes& n, const AffineArrays& p, float* scratch, int64_t scratch_numbers, int64_t steps,
                         cudaStream_t stream) {
  if (n.time == 0 || n.blocks == 0) return "";
  if (steps < 1) return "a chunk needs a step";
  switch (n.numbers) {
    case 1: return run<1>(n, p, scratch, scratch_numbers, steps, stream);
    case 2: return run<2>(n, p, scratch, scratch_numbers, steps, stream);
    case 3: return run<3>(n, p, scratch, scratch_numbers, steps, stream);
    case 4: return run<4>(n, p, scratch, scratch_numbers, steps, stream);
    default: return "there are no kernels for blocks of so many numbers";
  }
}

}  // namespace s2s
