// The two calls that XLA makes on a GPU.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ffi.h"
#include "gpu.h"

namespace ffi = xla::ffi;

namespace s2s {
namespace {

ffi::Error told(const std::string& why) {
  return why.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kFailedPrecondition, "backend diagonal: " + why);
}

// `with(Element{})` for the dtype of the outputs.
template <typename With>
ffi::Error by_dtype(ffi::DataType dtype, const With& with) {
  switch (dtype) {
    case ffi::F32: return told(with(float{}));
    case ffi::BF16: return told(with(__nv_bfloat16{}));
    case ffi::F16: return told(with(__half{}));
    default: return told("it has no kernels for this dtype");
  }
}

ffi::Error forward(cudaStream_t stream, Buffer lengths, Buffer z, Buffer w, Buffer first, Made y, Made last, Made c,
                   int64_t cell, bool relu, bool reverse) {
  return by_dtype(y->element_type(), [&](auto element) {
    return start(cell, sizes_of(w, first, z, *y, relu, reverse),
                 forward_of<decltype(element)>(lengths, z, w, first, y, last, c), stream);
  });
}

ffi::Error backward(cudaStream_t stream, Buffer lengths, Buffer z, Buffer w, Buffer first, Buffer y, Buffer c, Buffer dy,
                    Buffer d_last, Made dz, Made d_first, Made dw, int64_t cell, bool relu, bool reverse) {
  return by_dtype(y.element_type(), [&](auto element) {
    return start(cell, sizes_of(w, first, *dz, y, relu, reverse),
                 backward_of<decltype(element)>(lengths, z, w, first, y, c, dy, d_last, dz, d_first, dw), stream);
  });
}

}  // namespace
}  // namespace s2s

S2S_DIAGONAL_HANDLERS(ffi::PlatformStream<cudaStream_t>, s2s::forward, s2s::backward);
