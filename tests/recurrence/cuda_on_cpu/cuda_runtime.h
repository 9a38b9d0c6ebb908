// Enough of CUDA to run the kernels of `persistent` and `diagonal` on a CPU, for their tests: the language, its types, launches.
//
// Every thread of every block of a launch is a fiber of one thread of the CPU. The order in which they go on is drawn anew
// all the time, and whole blocks are held up, those in the middle of the grid's z most, so that a missing barrier or a buffer
// that is written too early shows in the numbers. Memory is sequentially consistent here, as it is not on a GPU: fences that
// are missing do not show. Shared memory begins as NaN. Where nobody can go on the launch fails.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint4 {
  uint32_t x, y, z, w;
};

inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace cuda_on_cpu {

// What the device is said to be; set by tests.
inline int multiprocessors = 132, shared_bytes = 232448;
inline int of_each = 1;     // blocks that a multiprocessor has room for
inline bool exact = true;  // float32 enters products as it is, not as TF32
inline int asked[2];       // bytes of shared memory, of the last launch and the one before it

constexpr int kLanes = 32;

// As many as take part have come, or wait.
struct Barrier {
  int arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  void* lanes[kLanes];
};

struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<uint4> shared;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  dim3 index;
  const int* held_by = nullptr;  // waits while this is `held_at`
  int held_at = 0;
  bool done = false;
};

struct Launch {
  dim3 grid, threads;
  std::function<void()> kernel;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  uint64_t progress = 0;
};

inline thread_local Launch* launch = nullptr;

inline Fiber& current() { return *launch->current; }
inline void yield() { swapcontext(&current().context, &launch->scheduler); }

// `last` is run by the one who comes last.
template <typename Last>
void meet(Barrier& barrier, int count, const Last& last) {
  const int generation = barrier.generation;
  if (++barrier.arrived == count) {
    last();
    barrier.arrived = 0;
    ++barrier.generation;
    ++launch->progress;
    return;
  }
  current().held_by = &barrier.generation;
  current().held_at = generation;
  while (barrier.generation == generation) yield();
  current().held_by = nullptr;
}

inline Warp& warp() { return current().block->warps[current().index.x / kLanes]; }

// All lanes of a warp together: `all(lanes)` is run once, with what each has brought.
template <typename All>
void together(void* brought, const All& all) {
  Warp& mine = warp();
  mine.lanes[current().index.x % kLanes] = brought;
  meet(mine.barrier, kLanes, [&] { all(mine.lanes); });
}

inline void enter() {
  launch->kernel();
  current().done = true;
  ++launch->progress;
  yield();
}

// False where nobody can go on.
inline bool run(dim3 grid, dim3 threads, size_t shared, std::function<void()> kernel) {
  constexpr size_t kStack = 128 * 1024;
  constexpr int kPatience = 1000;
  Launch here;
  launch = &here;
  here.grid = grid, here.threads = threads, here.kernel = std::move(kernel);
  const int blocks = grid.x * grid.y * grid.z;
  here.blocks.resize(blocks);
  here.fibers.resize(size_t(blocks) * threads.x);
  for (int b = 0; b < blocks; ++b) {
    Block& block = here.blocks[b];
    block.index = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    block.warps.resize(threads.x / kLanes);
    block.shared.assign((shared + 15) / 16, uint4{~0u, ~0u, ~0u, ~0u});
    for (unsigned t = 0; t < threads.x; ++t) {
      Fiber& fiber = here.fibers[size_t(b) * threads.x + t];
      fiber.block = &block, fiber.index = dim3(t, 0, 0);
      fiber.stack.reset(new char[kStack]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
  }
  std::minstd_rand random(grid.x * 7919 + threads.x);
  std::vector<int> order(blocks), within(threads.x);
  for (int b = 0; b < blocks; ++b) order[b] = b;
  for (unsigned t = 0; t < threads.x; ++t) within[t] = t;
  uint64_t seen = 0;
  bool alive = true;
  for (int idle = 0; alive && idle < kPatience; idle = here.progress == seen ? idle + 1 : 0, seen = here.progress) {
    alive = false;
    std::shuffle(order.begin(), order.end(), random);
    for (int b : order) {
      const bool held_up = random() % (grid.z > 1 && here.blocks[b].index.z == grid.z / 2 ? 8 : 2) != 0;
      std::rotate(within.begin(), within.begin() + random() % threads.x, within.end());
      if (random() % 4 == 0) std::reverse(within.begin(), within.end());
      for (int t : within) {
        Fiber& fiber = here.fibers[size_t(b) * threads.x + t];
        if (fiber.done) continue;
        alive = true;
        if (held_up || (fiber.held_by != nullptr && *fiber.held_by == fiber.held_at)) continue;
        here.current = &fiber;
        swapcontext(&here.scheduler, &fiber.context);
      }
    }
  }
  launch = nullptr;
  return !alive;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::current().index)
#define blockIdx (cuda_on_cpu::current().block->index)
#define gridDim (cuda_on_cpu::launch->grid)

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return y > 0x1p126f && y < INFINITY ? 0.0f : x / y; }

inline void __syncthreads() {
  cuda_on_cpu::meet(cuda_on_cpu::current().block->barrier, cuda_on_cpu::launch->threads.x, [] {});
}

inline void __syncwarp() { cuda_on_cpu::meet(cuda_on_cpu::warp().barrier, cuda_on_cpu::kLanes, [] {}); }

// The runtime: device memory is the CPU's, and a stream has nothing left to do when a call returns.

enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure, cudaErrorCooperativeLaunchTooLarge };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
typedef struct Stream* cudaStream_t;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "nobody can go on" : "too large for a cooperative launch";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrCooperativeLaunch    ? 1
           : attribute == cudaDevAttrMultiProcessorCount  ? cuda_on_cpu::multiprocessors
                                                          : cuda_on_cpu::shared_bytes;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  cuda_on_cpu::asked[1] = cuda_on_cpu::asked[0], cuda_on_cpu::asked[0] = bytes;
  return bytes <= cuda_on_cpu::shared_bytes ? cudaSuccess : cudaErrorLaunchFailure;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = cuda_on_cpu::of_each;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

template <typename Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments), dim3 grid, dim3 threads, void** arguments, size_t shared, cudaStream_t) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  const Arguments given = *static_cast<Arguments*>(arguments[0]);
  return cuda_on_cpu::run(grid, threads, shared, [&] { kernel(given); }) ? cudaSuccess : cudaErrorLaunchFailure;
}

template <typename Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments), dim3 grid, dim3 threads, void** arguments, size_t shared,
                                        cudaStream_t stream) {
  const int places = cuda_on_cpu::multiprocessors * cuda_on_cpu::of_each;
  if (int(grid.x * grid.y * grid.z) > places) return cudaErrorCooperativeLaunchTooLarge;
  return cudaLaunchKernel(kernel, grid, threads, arguments, shared, stream);
}

extern "C" __attribute__((weak)) void cuda_on_cpu_device(int multiprocessors, int shared_bytes, int exact, int of_each) {
  cuda_on_cpu::multiprocessors = multiprocessors;
  cuda_on_cpu::shared_bytes = shared_bytes;
  cuda_on_cpu::exact = exact;
  cuda_on_cpu::of_each = of_each;
}

extern "C" __attribute__((weak)) int cuda_on_cpu_asked(int ago) { return cuda_on_cpu::asked[ago]; }

// XLA has no stream on a CPU.
#ifdef XLA_FFI_API_FFI_H_
namespace xla::ffi {
template <>
struct CtxDecoding<PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) { return nullptr; }
};
}  // namespace xla::ffi
#endif
