// The two calls that XLA makes: forward and backward through the directions of a layer, or the layers of a stack.
//
// Arrays that do not apply come with no elements. The last result of either is scratch memory.

#include "xla/ffi/api/ffi.h"

#include "launch.h"

namespace ffi = xla::ffi;

namespace s2s {
namespace {

using Arguments = ffi::RemainingArgs;
using Results = ffi::RemainingRets;
using Pass = std::string(const Split&, const Layers&, cudaStream_t);

template <typename Buffer>
void* pointer(const Buffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.untyped_data();
}

// Operands are the lengths, then those of each chain; `sequence` says which arrays of the first are [T, B, ...], and `state`
// which are [B, H].
ffi::Error run(Pass& pass, cudaStream_t stream, const Arguments& args, const Results& rets, int64_t relu, int64_t reversed,
               int64_t chains, int64_t units, int64_t row_tiles, int64_t batch_tiles, int chain_args, int chain_rets,
               int sequence, int state) {
  const auto arg = [&](int64_t i) { return args.get<ffi::AnyBuffer>(i).value(); };
  const auto ret = [&](int64_t i) { return *rets.get<ffi::AnyBuffer>(i).value(); };
  if (chains < 1 || chains > Layers::kMost) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, "backend persistent: there are too many layers or directions");
  }
  Layers layers = {};
  layers.time = int(arg(1 + sequence).dimensions()[0]);
  layers.batch = int(arg(1 + state).dimensions()[0]);
  layers.hidden = int(arg(1 + state).dimensions()[1]);
  layers.relu = relu != 0;
  layers.lengths = static_cast<const int32_t*>(pointer(arg(0)));
  layers.chains = int(chains);
  for (int64_t i = 0; i < chains; ++i) {
    for (int k = 0; k < chain_args; ++k) layers.of[i].arrays[k] = pointer(arg(1 + i * chain_args + k));
    for (int k = 0; k < chain_rets; ++k) layers.of[i].arrays[chain_args + k] = pointer(ret(i * chain_rets + k));
    layers.of[i].reverse = (reversed >> i) & 1;
  }
  const auto scratch = ret(chains * chain_rets);
  layers.scratch = scratch.untyped_data();
  layers.scratch_bytes = scratch.size_bytes();
  const std::string why = pass({int(units), int(row_tiles), int(batch_tiles)}, layers, stream);
  return why.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kFailedPrecondition, "backend persistent: " + why);
}

ffi::Error call_forward(cudaStream_t stream, Arguments args, Results rets, int64_t relu, int64_t reversed, int64_t chains,
                        int64_t units, int64_t row_tiles, int64_t batch_tiles) {
  return run(forward, stream, args, rets, relu, reversed, chains, units, row_tiles, batch_tiles, 6, 5, 0, 4);
}

ffi::Error call_backward(cudaStream_t stream, Arguments args, Results rets, int64_t relu, int64_t reversed, int64_t chains,
                         int64_t units, int64_t row_tiles, int64_t batch_tiles) {
  return run(backward, stream, args, rets, relu, reversed, chains, units, row_tiles, batch_tiles, 10, 3, 4, 2);
}

}  // namespace
}  // namespace s2s

#define S2S_HANDLER(symbol, function)                                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,                                 \
                                ffi::Ffi::Bind()                                  \
                                    .Ctx<ffi::PlatformStream<cudaStream_t>>()     \
                                    .RemainingArgs()                              \
                                    .RemainingRets()                              \
                                    .Attr<int64_t>("relu")                        \
                                    .Attr<int64_t>("reversed")                    \
                                    .Attr<int64_t>("chains")                      \
                                    .Attr<int64_t>("units")                       \
                                    .Attr<int64_t>("row_tiles")                   \
                                    .Attr<int64_t>("batch_tiles"))

S2S_HANDLER(s2s_persistent_forward, s2s::call_forward);
S2S_HANDLER(s2s_persistent_backward, s2s::call_backward);

// For Python, by ctypes: empty, or why the device is of no use, at most until the next call.
extern "C" const char* s2s_persistent_limits(int* multiprocessors, int* shared_bytes) {
  static std::string why;
  why = s2s::limits(multiprocessors, shared_bytes);
  return why.c_str();
}
