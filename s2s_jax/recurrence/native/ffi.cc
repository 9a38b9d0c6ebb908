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

// A thread costs more than it brings for fewer operations a step.
constexpr double kWorthAThread = 7.5e4;

template <typename Buffer>
float* floats(const Buffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : static_cast<float*>(buffer.untyped_data());
}

using Arguments = ffi::RemainingArgs;
using Results = ffi::RemainingRets;

// One pass over a layer. Arguments are the lengths and then those of each direction, which begin with x, w and u; `place` tells
// where those of a direction and its results go.
template <typename Pass, typename Place>
ffi::Error run(ffi::ThreadPool& pool, const Arguments& args, const Results& rets, int64_t cell, int64_t reversed,
               int64_t directions, int per_direction_args, int per_direction_rets, const Place& place) try {
  const auto arg = [&](int64_t i) { return args.get<ffi::AnyBuffer>(i).value(); };
  const auto ret = [&](int64_t i) { return *rets.get<ffi::AnyBuffer>(i).value(); };
  Sizes n;
  n.cell = static_cast<Cell>(cell);
  n.batch = arg(1).dimensions()[0];
  n.time = arg(1).dimensions()[1];
  n.in = arg(1).dimensions()[2];
  n.hidden = arg(3).dimensions()[0];
  const int32_t* lengths = arg(0).element_count() == 0 ? nullptr : static_cast<const int32_t*>(arg(0).untyped_data());
  const double step = 2.0 * n.batch * n.gates() * n.hidden * (n.in + n.hidden) * directions;
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), 64));
  const int threads = static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(step / kWorthAThread), 1, most));
  std::vector<Direction> all(directions);
  for (int64_t i = 0; i < directions; ++i) {
    const int64_t first_arg = 1 + i * per_direction_args, first_ret = i * per_direction_rets;
    all[i].reverse = (reversed >> i) & 1;
    place(all[i], [&](int k) { return floats(arg(first_arg + k)); }, [&](int k) { return floats(ret(first_ret + k)); });
    for (int64_t k = first_ret; k < first_ret + per_direction_rets; ++k) {
      prefer_huge_pages(ret(k).untyped_data(), ret(k).size_bytes());
    }
  }
  Pass(n, std::move(all), lengths, threads).run([&](auto task) { pool.Schedule(std::move(task)); });
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, error.what());
}

ffi::Error forward(ffi::ThreadPool pool, Arguments args, Results rets, int64_t cell, int64_t reversed, int64_t directions) {
  const auto place = [](Direction& d, const auto& arg, const auto& ret) {
    d.x = arg(0), d.w = arg(1), d.u = arg(2), d.b = arg(3), d.b_n = arg(4), d.h0 = arg(5), d.c0 = arg(6);
    d.y = ret(0), d.h_last = ret(1), d.c_last = ret(2), d.saved = ret(3);
  };
  return run<Forward>(pool, args, rets, cell, reversed, directions, 7, 4, place);
}

ffi::Error backward(ffi::ThreadPool pool, Arguments args, Results rets, int64_t cell, int64_t reversed, int64_t directions) {
  const auto place = [](Direction& d, const auto& arg, const auto& ret) {
    d.x = arg(0), d.w = arg(1), d.u = arg(2), d.h0 = arg(3), d.c0 = arg(4), d.y = arg(5), d.saved = arg(6);
    d.dy = arg(7), d.dh_last = arg(8), d.dc_last = arg(9);
    d.dx = ret(0), d.dw = ret(1), d.du = ret(2), d.db = ret(3), d.db_n = ret(4), d.dh0 = ret(5), d.dc0 = ret(6);
  };
  return run<Backward>(pool, args, rets, cell, reversed, directions, 10, 7, place);
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
