// The two calls that XLA makes: a layer forward and a layer backward, each for one direction or two.
//
// Arrays that do not apply come with no elements: biases, memory cells, gradients that nobody asked for.

#include <exception>

#include "backward.h"
#include "forward.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace s2s {
namespace {

constexpr int kForwardArgs = 7;   // x w u b b_n h0 c0
constexpr int kForwardRets = 4;   // y h_last c_last saved
constexpr int kBackwardArgs = 10;  // x w u h0 c0 y saved dy dh_last dc_last
constexpr int kBackwardRets = 7;  // dx dw du db db_n dh0 dc0

// A thread costs more than it brings for fewer operations a step.
constexpr double kWorthAThread = 1e5;

template <typename Buffer>
float* floats(const Buffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : static_cast<float*>(buffer.untyped_data());
}

struct Call {
  Sizes sizes;
  const int32_t* lengths;
  int threads;
};

Call call(ffi::ThreadPool& pool, int64_t cell, const ffi::AnyBuffer& lengths, const ffi::AnyBuffer& x, const ffi::AnyBuffer& u,
          int64_t directions) {
  Call c;
  c.sizes.cell = static_cast<Cell>(cell);
  c.sizes.batch = x.dimensions()[0];
  c.sizes.time = x.dimensions()[1];
  c.sizes.in = x.dimensions()[2];
  c.sizes.hidden = u.dimensions()[0];
  c.lengths = lengths.element_count() == 0 ? nullptr : static_cast<const int32_t*>(lengths.untyped_data());
  const double step = 2.0 * c.sizes.batch * c.sizes.gates() * c.sizes.hidden * (c.sizes.in + c.sizes.hidden) * directions;
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), 64));
  c.threads = static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(step / kWorthAThread), 1, most));
  return c;
}

ffi::Error forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t cell, int64_t reversed,
                   int64_t directions) try {
  const auto arg = [&](int64_t i) { return args.get<ffi::AnyBuffer>(i).value(); };
  const auto ret = [&](int64_t i) { return *rets.get<ffi::AnyBuffer>(i).value(); };
  const Call c = call(pool, cell, arg(0), arg(1), arg(3), directions);
  std::vector<Direction> all(directions);
  for (int64_t i = 0; i < directions; ++i) {
    const int64_t a = 1 + i * kForwardArgs, r = i * kForwardRets;
    Direction& d = all[i];
    d.reverse = (reversed >> i) & 1;
    d.x = floats(arg(a)), d.w = floats(arg(a + 1)), d.u = floats(arg(a + 2)), d.b = floats(arg(a + 3));
    d.b_n = floats(arg(a + 4)), d.h0 = floats(arg(a + 5)), d.c0 = floats(arg(a + 6));
    d.y = floats(ret(r)), d.h_last = floats(ret(r + 1)), d.c_last = floats(ret(r + 2)), d.saved = floats(ret(r + 3));
    for (int64_t k : {r, r + 3}) prefer_huge_pages(ret(k).untyped_data(), ret(k).size_bytes());
  }
  Forward(c.sizes, std::move(all), c.lengths, c.threads).run([&](auto task) { pool.Schedule(std::move(task)); });
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
}

ffi::Error backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t cell, int64_t reversed,
                    int64_t directions) try {
  const auto arg = [&](int64_t i) { return args.get<ffi::AnyBuffer>(i).value(); };
  const auto ret = [&](int64_t i) { return *rets.get<ffi::AnyBuffer>(i).value(); };
  const Call c = call(pool, cell, arg(0), arg(1), arg(3), directions);
  std::vector<Direction> all(directions);
  for (int64_t i = 0; i < directions; ++i) {
    const int64_t a = 1 + i * kBackwardArgs, r = i * kBackwardRets;
    Direction& d = all[i];
    d.reverse = (reversed >> i) & 1;
    d.x = floats(arg(a)), d.w = floats(arg(a + 1)), d.u = floats(arg(a + 2)), d.h0 = floats(arg(a + 3));
    d.c0 = floats(arg(a + 4)), d.y = floats(arg(a + 5)), d.saved = floats(arg(a + 6)), d.dy = floats(arg(a + 7));
    d.dh_last = floats(arg(a + 8)), d.dc_last = floats(arg(a + 9));
    d.dx = floats(ret(r)), d.dw = floats(ret(r + 1)), d.du = floats(ret(r + 2)), d.db = floats(ret(r + 3));
    d.db_n = floats(ret(r + 4)), d.dh0 = floats(ret(r + 5)), d.dc0 = floats(ret(r + 6));
    prefer_huge_pages(ret(r).untyped_data(), ret(r).size_bytes());
  }
  Backward(c.sizes, std::move(all), c.lengths, c.threads).run([&](auto task) { pool.Schedule(std::move(task)); });
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
}

}  // namespace
}  // namespace s2s

XLA_FFI_DEFINE_HANDLER_SYMBOL(s2s_forward, s2s::forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("cell")
                                  .Attr<int64_t>("reversed")
                                  .Attr<int64_t>("directions"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(s2s_backward, s2s::backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("cell")
                                  .Attr<int64_t>("reversed")
                                  .Attr<int64_t>("directions"));
