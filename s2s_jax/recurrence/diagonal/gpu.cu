// The kernels for all cells, in float32, bfloat16 and float16, and how they are started.

#include "gpu.h"

#include "gpu.cuh"

namespace s2s {
namespace {

template <typename Pass, typename Kernel>
std::string launch(Kernel* kernel, const DiagonalSizes& n, const Pass& pass, cudaStream_t stream) {
  const int64_t units = n.batch * n.hidden, blocks = (units + kThreads - 1) / kThreads;
  if (blocks == 0) return "";
  if (blocks > 0x7fffffff) return "there are too many units";
  Arguments<Pass> arguments = {n, pass};
  void* given[] = {&arguments};
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(unsigned(blocks)), dim3(kThreads), given, 0, stream);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace

#define S2S_START(Pass, kernel)                                                                                     \
  template <typename Element>                                                                                       \
  std::string start(int64_t cell, const DiagonalSizes& n, const Pass<Element>& pass, cudaStream_t stream) {         \
    std::string why;                                                                                                \
    const auto with = [&](auto known) {                                                                             \
      using Cell = decltype(known);                                                                                 \
      why = is_of<Cell>(n) ? launch(kernel<Cell, Element>, n, pass, stream) : "the arrays are another cell's";      \
    };                                                                                                              \
    return with_cell<float>(cell, with) ? why : "there is no such cell";                                            \
  }                                                                                                                 \
  template std::string start(int64_t, const DiagonalSizes&, const Pass<float>&, cudaStream_t);                      \
  template std::string start(int64_t, const DiagonalSizes&, const Pass<__nv_bfloat16>&, cudaStream_t);              \
  template std::string start(int64_t, const DiagonalSizes&, const Pass<__half>&, cudaStream_t);

S2S_START(DiagonalForward, forward)
S2S_START(DiagonalBackward, backward)

}  // namespace s2s
