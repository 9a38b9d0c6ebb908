// What both passes share: how a layer is laid out over blocks, the exchange between them, and the product of a step.
//
// Teams and blocks. A team carries a tile of 8 * kBatchTiles rows of the batch along one chain: a direction, or a layer of a
// stack. Block p of a team owns `units` hidden units with all their gates, and keeps their weights for the whole sequence.
// In each step a block multiplies its weights by a vector that all blocks of the team know (h of the step before; on the way
// back the gradients of all gates), and adds its share of the next one.
//
// Stacks. A layer also multiplies its input weights by what the layer below has made of the same step (on the way back those
// of the layer above, by its gradients): half of the warps take one vector, the others the other one. So layers follow each
// other at a distance of a step or more. Teams of directions, and of other rows, never wait for each other.
//
// Exchange. Each block writes its share into a buffer, and then the number of the step to its own flag. Each warp multiplies
// a part of the vector alone and waits for the flags of the blocks that wrote that part. Two buffers in turn are enough:
// whoever writes share s + 1 has read all of vector s, to which every block added after it had read all of vector s - 1. In a
// stack each vector has its own, for the layer that reads it may be far behind.
//
// Chunks. The vector is cut into chunks of 64 bytes for each row of the batch, and stands as [chunk][row][64 bytes]; of a
// chunk the lanes of a warp read 16 bytes each: lane l those of row l / 4, beginning at byte 16 (l % 4). These are the
// operands of two products of the tensor cores. Which element of the vector is which k of a product does not matter so long
// as the weights are in the same order.

#pragma once

#include "../activations.cuh"
#include "platform.cuh"

namespace s2s {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kChunkBytes = 64;

template <typename Element>
constexpr int kChunk = kChunkBytes / int(sizeof(Element));  // elements

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int most(int a, int b) { return a < b ? b : a; }

// `kParts`: of a unit, rows of weights on the way there, and numbers that are exchanged on the way back.
struct RNN {
  using Kind = RNN;
  static constexpr bool kStacked = false;
  static constexpr int kGates = 1, kParts = 1;
  static constexpr int kSaved = 0;  // the output says all
  static constexpr bool kMemory = false;
};

struct LSTM {
  using Kind = LSTM;
  static constexpr bool kStacked = false;
  static constexpr int kGates = 4, kParts = 4;
  static constexpr int kSaved = 4;  // i f g o
  static constexpr bool kMemory = true;
};

struct GRU {
  using Kind = GRU;
  static constexpr bool kStacked = false;
  static constexpr int kGates = 3, kParts = 3;
  static constexpr int kSaved = 4;  // r z n, and what the reset gate scales
  static constexpr bool kMemory = false;
};

struct StackedRNN : RNN {
  static constexpr bool kStacked = true;
};

struct StackedLSTM : LSTM {
  static constexpr bool kStacked = true;
};

// What state and input give to n is apart, for the reset gate scales the one alone: r z, n by the state, n by the input.
struct StackedGRU : GRU {
  static constexpr bool kStacked = true;
  static constexpr int kParts = 4;
};

// The gate of a part in the weights of the state, or in those of what another layer has made; -1 for none.
template <typename Cell>
__device__ int gate_of(int part, bool of_other) {
  if (Cell::kParts == Cell::kGates || part < 2) return part;
  return (part == 3) == of_other ? 2 : -1;
}

constexpr int kMostChains = 8;

struct Sizes {
  int time, batch, hidden;
  int units;      // of a block
  int first_row;  // of the batch, in this launch
  int relu;       // instead of tanh
};

// Blocks of a team, teams of a chain, chains: the grid.
__device__ inline int team_of(int chain) { return int(chain * gridDim.y + blockIdx.y); }
__device__ inline int team() { return team_of(int(blockIdx.z)); }

// Memory that the blocks exchange their shares through; zero when a launch begins.
template <bool kStacked>
struct Exchange {
  unsigned char* memory;  // buffers of all teams, and behind them the flags of all blocks
  size_t buffer_bytes;
  int buffers;  // of a team

  __device__ unsigned char* buffer(int team, int step) const {
    return memory + (size_t(buffers) * team + (kStacked ? step : step % 2)) * buffer_bytes;
  }
  __device__ uint32_t* flags(int team) const {
    const size_t teams = size_t(gridDim.y) * gridDim.z;
    return reinterpret_cast<uint32_t*>(memory + buffers * teams * buffer_bytes) + size_t(team) * gridDim.x;
  }

  // By all threads of a block, after its share of vector `step` is written. When it returns, shared memory may be reused.
  __device__ void publish(int step) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags(team()) + blockIdx.x, uint32_t(step + 1));
  }

  // By one warp, for the shares of vector `step` of blocks first to last of a team.
  __device__ void await(int team, int step, int first, int last) const {
    for (int block = first + int(threadIdx.x % 32); block <= last; block += 32) {
      while (load_acquire(flags(team) + block) < uint32_t(step + 1)) {
      }
    }
    __syncwarp();
  }
};

// What a kernel of either pass is given.
template <typename Cell, typename Chain>
struct Arguments {
  Sizes sizes;
  const int32_t* lengths;  // [B], or null
  Exchange<Cell::kStacked> exchange;
  Chain chains[kMostChains];
};

// Where an element of the vector stands in a buffer; `parts` of them for each unit, parts of a chunk of units side by side.
template <typename Element>
__device__ Element* place(unsigned char* buffer, int rows, int parts, int part, int unit, int row) {
  const int chunk = unit / kChunk<Element> * parts + part;
  return reinterpret_cast<Element*>(buffer) + (size_t(chunk) * rows + row) * kChunk<Element> + unit % kChunk<Element>;
}

// The product of a step: 16 * kRowTiles rows of weights by the vector, for 8 * kBatchTiles rows of the batch.
//
// Each warp takes some chunks of the vector. Of their weights it keeps the first ones in registers, the others in shared
// memory, both in the order in which the tensor cores read them. What the warps make is added up by whoever calls `sum`.
// `kRegisters` are those that weights, vector and sums may take of a thread's 255; with more of them the compiler spills.
template <typename Element, int kRowTiles, int kBatchTiles, int kRegisters>
class Product {
 public:
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kBatch = 8 * kBatchTiles;
  // A product waits for the sums of the one before it: with few tiles several sums are made of each, in turns.
  static constexpr int kTurns = kRowTiles * kBatchTiles == 1 ? 4 : kRowTiles * kBatchTiles < 4 ? 2 : 1;
  // Chunks in registers: each takes 8 for a tile of weights and 4 for what they are multiplied by; a tile of sums takes 4.
  static constexpr int kSums = 4 * kRowTiles * kBatchTiles * kTurns, kOfChunk = 8 * kRowTiles + 4 * kBatchTiles;
  static constexpr int kHeld = most(1, least(ceil_div(12, kRowTiles), (kRegisters - kSums) / kOfChunk));
  static constexpr int kAhead = kBatchTiles < 4 ? 4 / kBatchTiles : 1;  // of the others so many are asked for at once
  static constexpr int kStride = kRows + 4;  // so that the lanes that write sums do not meet in one bank

  // chunks: of a vector; parts: how many chunks come from the same units; vectors: 1, or 2 with that of another layer.
  __device__ Product(int chunks, int parts, int units, int vectors) {
    const int warp = threadIdx.x / 32, warps = kWarps / vectors, each = ceil_div(chunks, warps);
    of_other_ = warp >= warps;
    first_ = warp % warps * each;
    count_ = max(0, min(each, chunks - first_));
    sums_ = reinterpret_cast<float*>(shared_memory());
    rest_ = reinterpret_cast<uint4*>(sums_ + kWarps * kBatch * kStride) + size_t(warp) * max(0, each - kHeld) * kUint4s;
    const int last = max(first_, first_ + count_ - 1);
    first_block_ = first_ / parts * kChunk<Element> / units;
    const int beyond = min(int(gridDim.x), ceil_div((last / parts + 1) * kChunk<Element>, units));
    last_block_ = count_ == 0 ? first_block_ - 1 : beyond - 1;
  }

  // Whether this warp takes the vector of another layer.
  __device__ bool of_other() const { return of_other_; }

  // weight(row, chunk, element) is where it stands; null beyond the layer.
  template <typename Weight>
  __device__ void load(const Weight& weight) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int k = 0; k < 2; ++k) fragment(weight, j, m, k, held_[j][m][k]);
      }
    }
    for (int j = kHeld; j < count_; ++j) {
      for (int m = 0; m < kRowTiles; ++m) {
        for (int k = 0; k < 2; ++k) {
          uint32_t a[4];
          fragment(weight, j, m, k, a);
          rest_[(size_t(j - kHeld) * kRowTiles + m) * 64 + k * 32 + lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
      }
    }
  }

  // Waits for vector `step` of a team and leaves the sums of this warp in shared memory; zeros where it is none of its own.
  template <bool kStacked>
  __device__ void run(const Exchange<kStacked>& exchange, int team, int step, bool some = true) {
    const int count = some ? count_ : 0;
    if (some) exchange.await(team, step, first_block_, last_block_);
    const uint4* whole = reinterpret_cast<const uint4*>(exchange.buffer(team, step));
    const uint4* vector = whole + size_t(first_) * kBatch * 4 + threadIdx.x % 32;
    Sums sums[kTurns] = {};
    uint4 parts[kHeld][kBatchTiles];  // all on their way before the first is needed
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j < count) read(vector, j, parts[j]);
    }
    __syncwarp();  // past which ptxas moves no load: it would put products, which wait, before the later ones
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j < count) add(held_[j], parts[j], sums, 2 * j);
    }
    for (int j = kHeld; j < count; j += kAhead) {
      uint4 part[kAhead][kBatchTiles];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (j + i < count) read(vector, j + i, part[i]);
      }
      __syncwarp();  // as above
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (j + i < count) {
          uint32_t a[kRowTiles][2][4];
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const uint4 v = rest_[(size_t(j + i - kHeld) * kRowTiles + m) * 64 + k * 32 + threadIdx.x % 32];
              a[m][k][0] = v.x, a[m][k][1] = v.y, a[m][k][2] = v.z, a[m][k][3] = v.w;
            }
          }
          add(a, part[i], sums, 2 * i);
        }
      }
    }
    const int group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
    float* to = sums_ + threadIdx.x / 32 * kBatch * kStride;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = sums[0].of[m][n][i];
#pragma unroll
          for (int turn = 1; turn < kTurns; ++turn) sum += sums[turn].of[m][n][i];
          to[(8 * n + 2 * within + i % 2) * kStride + 16 * m + group + i / 2 * 8] = sum;
        }
      }
    }
  }

  // After a barrier: what all warps made of a row of the weights and one of the batch.
  __device__ float sum(int row, int batch) const {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += sums_[(warp * kBatch + batch) * kStride + row];
    return total;
  }

  static size_t shared_bytes(int chunks, int vectors) {
    const int beyond = ceil_div(chunks, kWarps / vectors) - kHeld;
    return kWarps * (size_t(kBatch) * kStride * sizeof(float) + size_t(beyond > 0 ? beyond : 0) * kUint4s * sizeof(uint4));
  }

 private:
  static constexpr int kUint4s = kRowTiles * 2 * 32;  // of the weights of a chunk

  struct Sums {
    float of[kRowTiles][kBatchTiles][4];
  };

  // Weights of this lane for chunk j of the warp, tile m of rows and the k-th of the chunk's two products.
  template <typename Weight>
  __device__ void fragment(const Weight& weight, int j, int m, int k, uint32_t (&a)[4]) const {
    constexpr int kPacked = 4 / int(sizeof(Element));  // elements of a register
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * m + lane / 4 + i % 2 * 8;
      const int element = kPacked * (lane % 4 * 4 + 2 * k + i / 2);
      const Element* from[kPacked];
#pragma unroll
      for (int e = 0; e < kPacked; ++e) from[e] = weight(row, first_ + j, element + e);
      a[i] = packed(from);
    }
  }

  __device__ void read(const uint4* vector, int j, uint4 (&part)[kBatchTiles]) const {
#pragma unroll
    for (int n = 0; n < kBatchTiles; ++n) part[n] = load_shared_by_all(vector + (size_t(j) * kBatchTiles + n) * 32);
  }

  __device__ __forceinline__ void add(const uint32_t (&a)[kRowTiles][2][4], const uint4 (&part)[kBatchTiles],
                                      Sums (&sums)[kTurns], int turn) const {
#pragma unroll
    for (int n = 0; n < kBatchTiles; ++n) {
      const uint32_t b[2][2] = {{part[n].x, part[n].y}, {part[n].z, part[n].w}};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) multiply_add<Element>(sums[(turn + k) % kTurns].of[m][n], a[m][k], b[k]);
      }
    }
  }

  int first_, count_, first_block_, last_block_;
  bool of_other_;
  float* sums_;
  uint4* rest_;
  uint32_t held_[kHeld][kRowTiles][2][4];
};

// One number of the state: a unit of this block and a row of the batch. Each thread has `kMost` of them, or fewer.
struct Place {
  int unit;   // within the layer
  int local;  // within the block
  int row;    // within the tile
  int batch;  // within the batch
  int length;
  bool mine;  // there is such a number

  Place() = default;

  __device__ Place(const Sizes& n, const int32_t* lengths, int rows, int index) {
    const int first = n.first_row + int(blockIdx.y) * rows;
    local = index % n.units, row = index / n.units;
    unit = int(blockIdx.x) * n.units + local, batch = first + row;
    mine = row < rows && unit < n.hidden && batch < n.batch;
    length = !mine ? 0 : lengths == nullptr ? n.time : lengths[batch];
  }

  __device__ size_t at(const Sizes& n, int t, int features, int feature) const {
    return (size_t(t) * n.batch + batch) * features * n.hidden + size_t(feature) * n.hidden + unit;
  }
};

// Steps of the longest row of a tile; all threads of all blocks of a team find the same.
__device__ inline int longest(const Sizes& n, const int32_t* lengths, int rows) {
  if (lengths == nullptr) return n.time;
  const int first = n.first_row + int(blockIdx.y) * rows;
  int steps = 0;
  for (int row = first; row < min(first + rows, n.batch); ++row) steps = max(steps, lengths[row]);
  return steps;
}

__device__ inline float activated(float x, int relu) { return relu ? (x > 0.0f || x != x ? x : 0.0f) : tanh(x); }
__device__ inline float slope(float y, int relu) { return relu ? (y > 0.0f ? 1.0f : 0.0f) : 1.0f - y * y; }

}  // namespace s2s
