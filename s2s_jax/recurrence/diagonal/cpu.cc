// The two calls that XLA makes on a CPU.

#include <exception>

#include "../native/memory.h"
#include "cpu.h"
#include "ffi.h"

namespace ffi = xla::ffi;

namespace s2s {
namespace {

template <typename Pass>
ffi::Error run_on(ffi::ThreadPool& pool, int64_t cell, const DiagonalSizes& n, const Pass& pass) try {
  const auto schedule = [&](auto task) { pool.Schedule(std::move(task)); };
  if (run_pass(cell, n, pass, std::max<int64_t>(1, pool.num_threads()), schedule)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "backend diagonal: there is no such cell of such arrays");
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
}

ffi::Error forward(ffi::ThreadPool pool, Buffer lengths, Buffer z, Buffer w, Buffer first, Made y, Made last, Made c,
                   int64_t cell, bool relu, bool reverse) {
  prefer_huge_pages(y->untyped_data(), y->size_bytes());
  prefer_huge_pages(c->untyped_data(), c->size_bytes());
  return run_on(pool, cell, sizes_of(w, first, z, *y, relu, reverse), forward_of<float>(lengths, z, w, first, y, last, c));
}

ffi::Error backward(ffi::ThreadPool pool, Buffer lengths, Buffer z, Buffer w, Buffer first, Buffer y, Buffer c, Buffer dy,
                    Buffer d_last, Made dz, Made d_first, Made dw, int64_t cell, bool relu, bool reverse) {
  prefer_huge_pages(dz->untyped_data(), dz->size_bytes());
  return run_on(pool, cell, sizes_of(w, first, *dz, y, relu, reverse),
                backward_of<float>(lengths, z, w, first, y, c, dy, d_last, dz, d_first, dw));
}

}  // namespace
}  // namespace s2s

S2S_DIAGONAL_HANDLERS(ffi::ThreadPool, s2s::forward, s2s::backward);
