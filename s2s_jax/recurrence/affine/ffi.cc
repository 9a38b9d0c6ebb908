// The call that XLA makes.

#include "xla/ffi/api/ffi.h"

#include "launch.h"

namespace ffi = xla::ffi;

namespace s2s {
namespace {

using Array = ffi::Buffer<ffi::F32>;

ffi::Error solve(cudaStream_t stream, Array a, Array b, Array first, ffi::Result<Array> s, ffi::Result<Array> scratch,
                 bool reverse, int64_t steps) {
  const auto sizes = b.dimensions();
  const AffineArrays arrays = {a.typed_data(), b.typed_data(), first.typed_data(), s->typed_data()};
  const std::string why = solve_affine({sizes[0], sizes[1], sizes[2], reverse}, arrays, scratch->typed_data(),
                                       static_cast<int64_t>(scratch->element_count()), steps, stream);
  return why.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kFailedPrecondition, "affine recurrence: " + why);
}

}  // namespace
}  // namespace s2s

XLA_FFI_DEFINE_HANDLER_SYMBOL(s2s_affine, s2s::solve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Arg<s2s::Array>()
                                  .Arg<s2s::Array>()
                                  .Arg<s2s::Array>()
                                  .Ret<s2s::Array>()
                                  .Ret<s2s::Array>()
                                  .Attr<bool>("reverse")
                                  .Attr<int64_t>("steps"));
