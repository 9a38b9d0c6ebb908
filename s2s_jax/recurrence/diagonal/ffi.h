// How the two calls of XLA name their arrays; those that do not apply come with no elements.
#pragma once

#include <algorithm>

#include "pass.h"
#include "xla/ffi/api/ffi.h"

namespace s2s {

using Buffer = xla::ffi::AnyBuffer;
using Made = xla::ffi::Result<xla::ffi::AnyBuffer>;

template <typename T>
T* array(const Buffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : static_cast<T*>(buffer.untyped_data());
}

// By w, `first`, and z or its gradient and y, which are [T, B, ...].
inline DiagonalSizes sizes_of(const Buffer& w, const Buffer& first, const Buffer& z, const Buffer& y, bool relu, bool reverse) {
  const auto of_first = first.dimensions(), of_z = z.dimensions();
  const int64_t hidden = std::max<int64_t>(1, of_first[2]);
  return {of_z[0], of_first[1], of_first[2], w.dimensions()[0], of_z[2] / hidden, y.dimensions()[2] / hidden, of_first[0], relu, reverse};
}

template <typename Element>
DiagonalForward<Element> forward_of(const Buffer& lengths, const Buffer& z, const Buffer& w, const Buffer& first, Made y,
                                    Made last, Made c) {
  return {array<const int32_t>(lengths), array<const float>(z), array<const float>(w), array<const float>(first),
          array<Element>(*y),            array<float>(*last),     array<float>(*c)};
}

template <typename Element>
DiagonalBackward<Element> backward_of(const Buffer& lengths, const Buffer& z, const Buffer& w, const Buffer& first,
                                      const Buffer& y, const Buffer& c, const Buffer& dy, const Buffer& d_last, Made dz,
                                      Made d_first, Made dw) {
  return {array<const int32_t>(lengths), array<const float>(z), array<const float>(w),      array<const float>(first),
          array<const Element>(y),       array<const float>(c),   array<const Element>(dy),   array<const float>(d_last),
          array<Element>(*dz),           array<float>(*d_first),  array<float>(*dw)};
}

}  // namespace s2s

// `Context` is what a platform runs on: a stream, or threads.
#define S2S_DIAGONAL_HANDLERS(Context, forward, backward)                                                               \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(s2s_diagonal_forward, forward,                                                          \
                                xla::ffi::Ffi::Bind()                                                                   \
                                    .Ctx<Context>()                                                                     \
                                    .Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>()        \
                                    .Ret<s2s::Buffer>().Ret<s2s::Buffer>().Ret<s2s::Buffer>()                           \
                                    .Attr<int64_t>("cell").Attr<bool>("relu").Attr<bool>("reverse"));                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(s2s_diagonal_backward, backward,                                                        \
                                xla::ffi::Ffi::Bind()                                                                   \
                                    .Ctx<Context>()                                                                     \
                                    .Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>()        \
                                    .Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>().Arg<s2s::Buffer>()        \
                                    .Ret<s2s::Buffer>().Ret<s2s::Buffer>().Ret<s2s::Buffer>()                           \
                                    .Attr<int64_t>("cell").Attr<bool>("relu").Attr<bool>("reverse"))
