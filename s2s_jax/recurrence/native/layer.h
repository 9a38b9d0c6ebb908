// What one call works on: a layer in one or two directions, its rows in an order that keeps those still running in front, and
// where each part of its weights and gates lies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "memory.h"
#include "product.h"

namespace s2s {

enum class Cell : int64_t { kTanh = 0, kRelu = 1, kLstm = 2, kGruAfter = 3, kGruBefore = 4 };

// Every array of weights has its gates along the last axis, in the order of the package's parameters.
struct Sizes {
  Cell cell;
  long batch, time, in, hidden;

  bool lstm() const { return cell == Cell::kLstm; }
  bool gru() const { return cell == Cell::kGruAfter || cell == Cell::kGruBefore; }
  int gates() const { return lstm() ? 4 : gru() ? 3 : 1; }
  // Sums that a step forms for each unit: with the reset gate after the product, the candidate's two parts stay apart.
  int sums() const { return cell == Cell::kGruAfter ? 4 : gates(); }
  // What a step keeps for the backward pass, for each unit. A simple cell's output says all.
  int saved() const { return lstm() ? 5 : cell == Cell::kGruAfter ? 4 : gru() ? 3 : 0; }
  long blocks() const { return (hidden + kWidth - 1) / kWidth; }  // of kWidth units
  long padded() const { return blocks() * kWidth; }
  long in_blocks() const { return (in + kWidth - 1) / kWidth; }
  long width(long block) const { return std::min<long>(kWidth, hidden - block * kWidth); }
};

// One direction. Sequences are [batch, time, features]; a pointer that is null was not given, or is not wanted.
struct Direction {
  bool reverse = false;
  const float *x = nullptr, *w = nullptr, *u = nullptr, *b = nullptr, *b_n = nullptr, *h0 = nullptr, *c0 = nullptr;
  float *y = nullptr, *h_last = nullptr, *c_last = nullptr, *saved = nullptr;  // saved: [time][batch][saved() * hidden]
  const float *dy = nullptr, *dh_last = nullptr, *dc_last = nullptr;
  float *dx = nullptr, *dw = nullptr, *du = nullptr, *db = nullptr, *db_n = nullptr, *dh0 = nullptr, *dc0 = nullptr;
};

// Rows of the batch, longest first within each group. Step s of a row is its s-th valid position in the direction of travel, so
// at any step those that still run stand in front, and padding costs nothing.
class Rows {
 public:
  Rows(const Sizes& sizes, const int32_t* lengths, int groups) {
    std::vector<long> all(sizes.batch);
    std::vector<long> length(sizes.batch, sizes.time);
    for (long b = 0; b < sizes.batch; ++b) {
      all[b] = b;
      if (lengths != nullptr) length[b] = std::clamp<long>(lengths[b], 0, sizes.time);
    }
    if (lengths != nullptr) {
      std::stable_sort(all.begin(), all.end(), [&](long a, long b) { return length[a] > length[b]; });
    }
    for (int g = 0; g < groups; ++g) {  // dealt out like cards, so that every group gets long and short ones
      starts_.push_back(static_cast<long>(order_.size()));
      for (long i = g; i < sizes.batch; i += groups) order_.push_back(all[i]);
    }
    starts_.push_back(sizes.batch);
    for (long b : order_) lengths_.push_back(length[b]);
    steps_ = lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
    running_.assign(groups * (steps_ + 1), 0);
    for (int g = 0; g < groups; ++g) {
      for (long s = 0, n = count(g); s <= steps_; ++s) {
        while (n > 0 && lengths_[starts_[g] + n - 1] <= s) --n;
        running_[g * (steps_ + 1) + s] = n;
      }
    }
    before_.assign(groups * (steps_ + 1), 0);
    for (int g = 0; g < groups; ++g) {
      for (long s = 0; s < steps_; ++s) before_[g * (steps_ + 1) + s + 1] = before_[g * (steps_ + 1) + s] + running(g, s);
    }
  }

  long steps() const { return steps_; }
  long start(int group) const { return starts_[group]; }
  long count(int group) const { return starts_[group + 1] - starts_[group]; }
  long batch_row(long i) const { return order_[i]; }
  long length(long i) const { return lengths_[i]; }
  // How many rows of a group still run at step s.
  long running(int group, long s) const { return s > steps_ ? 0 : running_[group * (steps_ + 1) + s]; }
  // How many rows of a group ran at all steps before s, together.
  long before(int group, long s) const { return before_[group * (steps_ + 1) + s]; }
  // The position in time of step s of the i-th row.
  long position(long i, long s, bool reverse) const { return reverse ? lengths_[i] - 1 - s : s; }

 private:
  long steps_ = 0;
  std::vector<long> order_, starts_, lengths_, running_, before_;
};

// Where a gate stands along the last axis of w, u and b, by its place in a block of sums.
//   LSTM: i f g o. GRU: r z n in the parameters; here n first (its part from the input), then r, z, and, with the reset gate
//   after the product, last the candidate's part from the state. So the gates that the input reaches are a run of neighbours,
//   and those that the state reaches are one too.
inline int column_of_gate(const Sizes& sizes, int sum) {
  if (!sizes.gru()) return sum;
  constexpr int kColumns[4] = {2, 0, 1, 2};
  return kColumns[sum];
}

inline int first_recurrent_sum(const Sizes& sizes) { return sizes.cell == Cell::kGruAfter ? 1 : 0; }

inline void copy_padded(const float* from, long count, float* to, long padded) {
  std::fill_n(std::copy_n(from, count, to), padded - count, 0.0f);
}

inline std::pair<long, long> share(long total, int parts, int part) {
  return {total * part / parts, total * (part + 1) / parts};
}

// The panels of blocks [from, to) of a matrix [depth, gates * hidden]: [block][gate][depth][kWidth], zero beyond the last unit.
inline void pack_panels(const Sizes& sizes, const float* matrix, long depth, int first_sum, long from, long to, float* panels) {
  const long stride = sizes.gates() * sizes.hidden;
  constexpr long kStrip = 8;  // rows: as many pages are read at a time, and whole runs of cache lines written
  for (long k0 = 0; k0 < depth; k0 += kStrip) {
    for (int g = 0; g < sizes.gates(); ++g) {
      for (long j = from; j < to; ++j) {
        const long width = sizes.width(j);
        const float* source = matrix + column_of_gate(sizes, first_sum + g) * sizes.hidden + j * kWidth;
        float* panel = panels + (j * sizes.gates() + g) * depth * kWidth;
        for (long k = k0; k < std::min(k0 + kStrip, depth); ++k) {
          store(panel + k * kWidth, load(source + k * stride, width));
          store(panel + k * kWidth + kLanes, load(source + k * stride + kLanes, width - kLanes));
        }
      }
    }
  }
}

// The panels of the transpose of a matrix [rows, gates * hidden], for the product of gradients of gates with it:
// [block of rows][gate][padded hidden][kWidth rows]; gates [first, first + count) in the order of sums. Rows beyond the last and
// units beyond the last are zero.
inline void pack_transposed(const Sizes& sizes, const float* matrix, long rows, int first, int count, long from, long to,
                            float* panels) {
  const long stride = sizes.gates() * sizes.hidden;
  for (long j = from; j < to; ++j) {
    const long width = std::min<long>(kWidth, rows - j * kWidth);
    for (int g = 0; g < count; ++g) {
      const float* source = matrix + j * kWidth * stride + column_of_gate(sizes, first + g) * sizes.hidden;
      float* panel = panels + (j * count + g) * sizes.padded() * kWidth;
      constexpr long kStrip = 16;  // of columns: the rows they are read from stay in the cache
      for (long k0 = 0; k0 < sizes.padded(); k0 += kStrip) {
        for (long r = 0; r < kWidth; ++r) {
          for (long k = k0; k < std::min(k0 + kStrip, sizes.padded()); ++k) {
            panel[k * kWidth + r] = r < width && k < sizes.hidden ? source[r * stride + k] : 0.0f;
          }
        }
      }
    }
  }
}

}  // namespace s2s
