// The floor of a step of recurrence: blocks that only exchange a state and wait for each other, and compute nothing.
//
// One block through its shared memory; a cluster through the shared memory of its blocks; the whole grid through the L2
// cache, by the very exchange of the backend `persistent`.

#include <cooperative_groups.h>

#include "layer.cuh"

namespace {

namespace cg = cooperative_groups;

enum Kind { kBlock, kCluster, kGrid };

// `chunks` of 64 bytes for each of `rows`, as `Product` reads them.
struct Arguments {
  int chunks, rows, steps;
  s2s::Exchange<false> exchange;
  uint32_t* result;
};

__device__ uint32_t mixed(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

__global__ void __launch_bounds__(s2s::kThreads, 1) through_grid(const Arguments a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = gridDim.x;
  const int each = s2s::ceil_div(a.chunks, s2s::kWarps), first = warp * each, end = min(a.chunks, first + each);
  const int units = s2s::ceil_div(a.chunks * a.rows * 4, blocks);  // of 16 bytes, that a block writes
  const int from = min(blocks - 1, first * a.rows * 4 / units), to = min(blocks - 1, max(from, (end * a.rows * 4 - 1) / units));
  uint32_t seen = threadIdx.x;
  for (int s = 0; s <= a.steps; ++s) {
    if (s > 0) {
      a.exchange.await(s2s::team(), s - 1, from, to);
      const uint4* vector = reinterpret_cast<const uint4*>(a.exchange.buffer(s2s::team(), s - 1));
#pragma unroll 8
      for (int i = first * a.rows * 4 + lane; i < end * a.rows * 4; i += 32) seen ^= mixed(s2s::load_shared_by_all(vector + i));
      __syncthreads();
    }
    uint4* vector = reinterpret_cast<uint4*>(a.exchange.buffer(s2s::team(), s));
    const int mine = int(blockIdx.x) * units;
    for (int i = mine + int(threadIdx.x); i < min(mine + units, a.chunks * a.rows * 4); i += s2s::kThreads) {
      vector[i] = make_uint4(seen, s, i, 0);
    }
    a.exchange.publish(s);
  }
  if (seen == 0x12345678) *a.result = seen;  // so that the loads are made
}

__global__ void __launch_bounds__(s2s::kThreads, 1) through_cluster(const Arguments a) {
  extern __shared__ uint4 memory[];
  cg::cluster_group cluster = cg::this_cluster();
  const int blocks = cluster.num_blocks(), total = a.chunks * a.rows * 4, units = s2s::ceil_div(total, blocks);
  const int mine = int(cluster.block_rank()) * units;
  uint32_t seen = threadIdx.x;
  cluster.sync();  // nobody writes to a block that is not there yet
  for (int s = 0; s <= a.steps; ++s) {
    uint4* buffer = memory + s % 2 * total;
    for (int i = mine + int(threadIdx.x); i < min(mine + units, total); i += s2s::kThreads) {
      for (int block = 0; block < blocks; ++block) cluster.map_shared_rank(buffer, block)[i] = make_uint4(seen, s, i, 0);
    }
    cluster.sync();
    for (int i = threadIdx.x; i < total; i += s2s::kThreads) seen ^= mixed(buffer[i]);
    __syncthreads();
  }
  if (seen == 0x12345678) *a.result = seen;
}

__global__ void __launch_bounds__(s2s::kThreads, 1) in_block(const Arguments a) {
  extern __shared__ uint4 memory[];
  const int total = a.chunks * a.rows * 4;
  uint32_t seen = threadIdx.x;
  for (int s = 0; s <= a.steps; ++s) {
    uint4* buffer = memory + s % 2 * total;
    for (int i = threadIdx.x; i < total; i += s2s::kThreads) buffer[i] = make_uint4(seen, s, i, 0);
    __syncthreads();
    for (int i = threadIdx.x; i < total; i += s2s::kThreads) seen ^= mixed(buffer[i]);
    __syncthreads();
  }
  if (seen == 0x12345678) *a.result = seen;
}

cudaError_t start(int kind, int blocks, int teams, const Arguments& a) {
  const int shared = kind == kGrid ? 0 : 2 * a.chunks * a.rows * 64;
  void (*kernel)(Arguments) = kind == kGrid ? through_grid : kind == kCluster ? through_cluster : in_block;
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  config.gridDim = dim3(blocks, teams), config.blockDim = dim3(s2s::kThreads), config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  if (kind == kGrid) {
    attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1, config.numAttrs = 1;
  } else if (kind == kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension, config.numAttrs = 1;
    attribute.val.clusterDim.x = blocks, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error) return error;
  }
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  return error ? error : cudaLaunchKernelEx(&config, kernel, a);
}

}  // namespace

#define TRY(call)                                                           \
  do {                                                                      \
    if (const cudaError_t error = (call)) return cudaGetErrorString(error); \
  } while (false)

// Microseconds of a step, from the difference of a long and a short run; null, or what went wrong. `kind` as above, `chunks`
// of 64 bytes for each of `rows` are exchanged between the blocks of each of so many teams.
extern "C" const char* exchange_microseconds(int kind, int blocks, int teams, int chunks, int rows, float* microseconds) {
  constexpr int kShort = 500, kLong = 2500, kRuns = 5;
  constexpr float kWarm = 300;  // milliseconds
  Arguments a = {chunks, rows, 0, {nullptr, size_t(chunks) * rows * 64, 2}, nullptr};
  const size_t bytes = size_t(teams) * (a.exchange.buffers * a.exchange.buffer_bytes + blocks * sizeof(uint32_t));
  TRY(cudaMalloc(&a.exchange.memory, bytes));
  TRY(cudaMalloc(&a.result, sizeof(uint32_t)));
  cudaEvent_t before, after;
  TRY(cudaEventCreate(&before));
  TRY(cudaEventCreate(&after));
  float milliseconds = 0, best[2] = {1e30f, 1e30f};
  const auto timed = [&](int steps) -> const char* {
    a.steps = steps;
    TRY(cudaMemset(a.exchange.memory, 0, bytes));
    TRY(cudaEventRecord(before));
    TRY(start(kind, blocks, teams, a));
    TRY(cudaEventRecord(after));
    TRY(cudaEventSynchronize(after));
    TRY(cudaEventElapsedTime(&milliseconds, before, after));
    return nullptr;
  };
  for (float warm = 0; warm < kWarm; warm += milliseconds) {  // at rest its clock is slower
    if (const char* error = timed(kLong)) return error;
  }
  for (int run = 0; run < kRuns; ++run) {
    for (int which = 0; which < 2; ++which) {
      if (const char* error = timed(which ? kLong : kShort)) return error;
      best[which] = min(best[which], milliseconds);
    }
  }
  *microseconds = 1000 * (best[1] - best[0]) / (kLong - kShort);
  TRY(cudaFree(a.exchange.memory));
  TRY(cudaFree(a.result));
  return nullptr;
}
