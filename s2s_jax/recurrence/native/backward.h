// The backward pass of a layer: from the last step to the first, chunk by chunk of steps.
//
// In a chunk the gradients of the gates are formed step by step, as in the forward pass by rows or by units, and kept. Then the
// gradients of the weights and of the inputs are formed from all of them at once, so that they never leave the cache.
#pragma once

#include "forward.h"

namespace s2s {

class Backward {
 public:
  Backward(const Sizes& sizes, std::vector<Direction> directions, const int32_t* lengths, int threads)
      : n_(sizes), directions_(std::move(directions)), threads_(threads),
        groups_(Forward::row_groups(sizes, directions_.size(), threads)), rows_(sizes, lengths, groups_),
        by_rows_(Forward::by_rows(groups_, directions_.size(), threads)) {
    long most = 1;
    for (int g = 0; g < groups_; ++g) most = std::max(most, rows_.count(g));
    // By units a chunk has two steps at least: its last step then lies behind the rows that the first step of the chunk before,
    // which is read at the same time, has in the same buffer.
    chunk_ = std::min(std::max<long>(kChunkRows / most, by_rows_ ? 1 : 2), std::max<long>(1, rows_.steps()));
    depth_ = chunk_ * most;
    units_ = static_cast<int>(std::min<long>(threads_, n_.blocks()));
    plan();
  }

  template <typename Schedule>
  void run(const Schedule& schedule) {
    for (const Direction& d : directions_) idle(d);
    Pieces measured;
    divide(measured);
    Scratch scratch(measured.used());
    Pieces pieces(scratch.floats());
    divide(pieces);
    run_phases(counts_, threads_ - 1, [this](int64_t p, int item) { work(phases_[p], item); }, schedule);
  }

 private:
  static constexpr long kChunkRows = 384;
  static constexpr long kInputRows = 96;  // of gradients of inputs that are formed at once
  enum class Kind { kPack, kRows, kGates, kResetGates, kLeft, kWeights, kFinish };
  struct Phase {
    Kind kind;
    int direction;
    long step;  // kGates, kResetGates: the step; kRows, kLeft, kWeights: the first of the chunk
  };
  struct Buffers {
    float *u_transposed, *w_transposed;
    float *dw, *du, *db;           // [sum][block of units][rows of the matrix][kWidth], and [sum][block][kWidth]
    float *dh, *dc, *dreset;       // [group][block][row][kWidth]
    float *gates;                  // of a chunk: [group][sum][block][row of the chunk][kWidth]
    float *left_x, *left_h, *left_reset;  // left operands of a chunk: [group], packed for `accumulate`
    float *out;                    // gradients of inputs on their way: [thread][block of inputs][kInputRows][kWidth]
    float *zeros;
  };

  long chunks() const { return (rows_.steps() + chunk_ - 1) / chunk_; }
  long chunk_end(long first) const { return std::min(first + chunk_, rows_.steps()); }
  // Rows of a group in the chunk that begins at step `first`, and where step s begins among them.
  long depth(int group, long first) const { return rows_.before(group, chunk_end(first)) - rows_.before(group, first); }
  long offset(int group, long s) const { return rows_.before(group, s) - rows_.before(group, s / chunk_ * chunk_); }

  void plan() {
    const int count = static_cast<int>(directions_.size());
    add(Kind::kPack, 0, 0, threads_ * count);
    if (by_rows_) {
      for (long c = chunks() - 1; c >= 0; --c) {
        add(Kind::kRows, 0, c * chunk_, groups_ * count);
        add(Kind::kWeights, 0, c * chunk_, pieces() * count);
      }
    } else {
      for (int d = 0; d < count; ++d) {
        for (long c = chunks() - 1; c >= 0; --c) {
          for (long s = chunk_end(c * chunk_) - 1; s >= c * chunk_; --s) {
            add(Kind::kGates, d, s, units_);
            if (n_.cell == Cell::kGruBefore) add(Kind::kResetGates, d, s, units_);
          }
          add(Kind::kLeft, d, c * chunk_, units_);
          add(Kind::kWeights, d, c * chunk_, pieces());
        }
      }
    }
    add(Kind::kFinish, 0, 0, threads_ * count);
  }

  // Into how many items the products of a chunk are cut: enough that threads which come late still find some.
  int pieces() const { return threads_ == 1 ? 1 : 2 * threads_; }

  void add(Kind kind, int direction, long step, int items) {
    phases_.push_back({kind, direction, step});
    counts_.push_back(items);
  }

  void divide(Pieces& pieces) {
    buffers_.resize(directions_.size());
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Direction& d = directions_[i];
      Buffers& at = buffers_[i];
      at.u_transposed = pieces.take(n_.blocks() * n_.gates() * n_.padded() * kWidth);
      at.w_transposed = pieces.take(d.dx == nullptr ? 0 : n_.in_blocks() * n_.gates() * n_.padded() * kWidth);
      at.dw = pieces.take(n_.gates() * n_.blocks() * n_.in * kWidth);
      at.du = pieces.take(n_.gates() * n_.blocks() * n_.hidden * kWidth);
      at.db = pieces.take(n_.sums() * n_.padded());
      at.dh = pieces.take(n_.batch * n_.padded());
      at.dc = pieces.take(n_.lstm() ? n_.batch * n_.padded() : 0);
      at.dreset = pieces.take(n_.cell == Cell::kGruBefore ? n_.batch * n_.padded() : 0);
      at.gates = pieces.take(groups_ * n_.sums() * n_.padded() * depth_);
      at.left_x = pieces.take(groups_ * n_.in * depth_);
      at.left_h = pieces.take(groups_ * n_.hidden * depth_);
      at.left_reset = pieces.take(n_.cell == Cell::kGruBefore ? groups_ * n_.hidden * depth_ : 0);
      at.out = pieces.take(d.dx == nullptr ? 0 : this->pieces() * n_.in_blocks() * kWidth * kInputRows);
      at.zeros = pieces.take(kWidth);
    }
  }

  // What no step touches: rows of length 0 and gradients of inputs in the padding.
  void idle(const Direction& d) const {
    for (long i = 0; i < n_.batch; ++i) {
      const long b = rows_.batch_row(i);
      const long length = rows_.length(i);
      if (length == 0) {
        std::copy_n(d.dh_last + b * n_.hidden, n_.hidden, d.dh0 + b * n_.hidden);
        if (n_.lstm()) std::copy_n(d.dc_last + b * n_.hidden, n_.hidden, d.dc0 + b * n_.hidden);
      }
      if (d.dx != nullptr) std::fill_n(d.dx + (b * n_.time + length) * n_.in, (n_.time - length) * n_.in, 0.0f);
    }
  }

  void work(const Phase& phase, int item) {
    const int count = static_cast<int>(directions_.size());
    const auto [from, to] = share(n_.blocks(), units_, item % units_);
    switch (phase.kind) {
      case Kind::kPack:
        return pack(item / threads_, item % threads_);
      case Kind::kRows:
        return carry(item % count, item / count, phase.step);
      case Kind::kGates:
        if (phase.step + 1 < rows_.steps()) state(phase.direction, 0, phase.step + 1, from, to);
        return gates(phase.direction, 0, phase.step, from, to);
      case Kind::kResetGates:
        return reset_gates(phase.direction, 0, phase.step, from, to);
      case Kind::kLeft: {
        if (phase.step == 0) state(phase.direction, 0, 0, from, to);
        const auto [first, last] = share(depth(0, phase.step), units_, item);
        return left(phase.direction, 0, phase.step, first, last);
      }
      case Kind::kWeights:
        return by_rows_ ? products(item % count, phase.step, item / count) : products(phase.direction, phase.step, item);
      case Kind::kFinish:
        return finish(item / threads_, item % threads_);
    }
  }

  void pack(int direction, int part) {
    const Direction& d = directions_[direction];
    Buffers& at = buffers_[direction];
    const auto [from, to] = share(n_.blocks(), threads_, part);
    // The gradient of r * h comes from the candidate alone, the one of h from the two gates.
    if (n_.cell == Cell::kGruBefore) {
      pack_transposed(n_, d.u, n_.hidden, 0, 1, from, to, at.u_transposed);
      pack_transposed(n_, d.u, n_.hidden, 1, 2, from, to, at.u_transposed + n_.blocks() * n_.padded() * kWidth);
    } else {
      pack_transposed(n_, d.u, n_.hidden, first_recurrent_sum(n_), n_.gates(), from, to, at.u_transposed);
    }
    if (d.dx != nullptr) {
      const auto [first, last] = share(n_.in_blocks(), threads_, part);
      pack_transposed(n_, d.w, n_.in, 0, n_.gates(), first, last, at.w_transposed);
    }
    const auto clear = [&](float* begin, long floats) {
      const auto [first, last] = share(floats, threads_, part);
      std::fill(begin + first, begin + last, 0.0f);
    };
    clear(at.dw, n_.gates() * n_.blocks() * n_.in * kWidth);
    clear(at.du, n_.gates() * n_.blocks() * n_.hidden * kWidth);
    clear(at.db, n_.sums() * n_.padded());
    clear(at.zeros, kWidth);
  }

  void carry(int direction, int group, long first) {
    for (long s = chunk_end(first) - 1; s >= first; --s) {
      gates(direction, group, s, 0, n_.blocks());
      if (n_.cell == Cell::kGruBefore) reset_gates(direction, group, s, 0, n_.blocks());
      state(direction, group, s, 0, n_.blocks());
    }
    left(direction, group, first, 0, depth(group, first));
  }

  float* gate_panel(int direction, int group, int sum, long block) const {
    return buffers_[direction].gates + ((group * n_.sums() + sum) * n_.blocks() + block) * depth_ * kWidth;
  }

  float* state_panel(float* begin, int group, long block) const {
    return begin + rows_.start(group) * n_.padded() + block * rows_.count(group) * kWidth;
  }

  // dh of the state before step s, for blocks [from, to) of it: gradients of gates times the transposed weights, on top of what
  // `gates` left there. After the first step it is the gradient of the initial state.
  void state(int direction, int group, long s, long from, long to) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const bool before = n_.cell == Cell::kGruBefore;
    const int first = before ? 1 : first_recurrent_sum(n_);
    const int count = before ? 2 : n_.gates();
    const float* weights = at.u_transposed + (before ? n_.blocks() * n_.padded() * kWidth : 0);
    times_transposed(direction, group, s, first, count, weights, at.dh, n_.gru(), from, to);
    if (s > 0) return;
    for (long j = from; j < to; ++j) {
      for (long i = 0; i < rows_.running(group, 0); ++i) {
        const long b = rows_.batch_row(rows_.start(group) + i);
        const float* dh = state_panel(at.dh, group, j) + i * kWidth;
        std::copy_n(dh, n_.width(j), d.dh0 + b * n_.hidden + j * kWidth);
        if (n_.lstm()) std::copy_n(state_panel(at.dc, group, j) + i * kWidth, n_.width(j), d.dc0 + b * n_.hidden + j * kWidth);
      }
    }
  }

  void times_transposed(int direction, int group, long s, int first, int count, const float* weights, float* out, bool onto,
                        long from, long to) {
    const long running = rows_.running(group, s);
    thread_local std::vector<const float*> rows;
    rows.resize(running);
    for (long i = 0; i < running; ++i) rows[i] = gate_panel(direction, group, first, 0) + (offset(group, s) + i) * kWidth;
    const Left left{count * n_.blocks(), depth_ * kWidth, kWidth};
    Panel panels[4];
    const bool backwards = s % 2 == 1;  // as in the forward pass
    const long size = count * n_.padded() * kWidth;  // of a panel
    for (long done = 0; done < to - from;) {
      const long width = std::min<long>(4, to - from - done);
      const long j = backwards ? to - done - width : from + done;
      for (long p = 0; p < width; ++p) {
        float* target = state_panel(out, group, j + p);
        panels[p] = {weights + (j + p) * size, onto ? target : buffers_[direction].zeros, onto ? kWidth : 0, target};
      }
      multiply(running, rows.data(), left, panels, width, backwards ? -2 * width * size : 0);
      done += width;
    }
  }

  // What one row needs at one step, for half a block of units.
  struct Place {
    long count;
    const float *saved, *y, *dy;
    const float *h_before, *c_before;  // in the arrays of the batch: only `count` of them exist
    const float *dh_in, *dc_in;        // from the step after, or the gradient of the final state
    bool last;
    float *dh, *dc, *dreset, *gate;    // `gate`: of the first sum
    long part, next;                   // from one saved value, one sum to the next
  };

  template <typename Each>
  S2S_INLINE void for_rows(int direction, int group, long s, long j, const Each& each) const {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long begin = rows_.start(group);
    for (long row = 0; row < rows_.running(group, s); ++row) {
      const long i = begin + row;
      const long b = rows_.batch_row(i);
      const long out = (b * n_.time + rows_.position(i, s, d.reverse)) * n_.hidden + j * kWidth;
      const long out_before = s == 0 ? 0 : (b * n_.time + rows_.position(i, s - 1, d.reverse)) * n_.hidden + j * kWidth;
      const long in_state = b * n_.hidden + j * kWidth;
      const long saved = ((s * n_.batch + b) * n_.hidden + j * kWidth) * n_.saved();
      const long saved_before = ((s - 1) * n_.batch + b) * n_.hidden * n_.saved() + j * kWidth * n_.saved();
      Place p;
      p.last = s + 1 == rows_.length(i);
      p.part = n_.width(j);
      p.next = n_.blocks() * depth_ * kWidth;
      p.y = d.y + out;
      p.dy = d.dy == nullptr ? nullptr : d.dy + out;
      p.saved = d.saved + saved;
      p.h_before = s == 0 ? d.h0 + in_state : d.y + out_before;
      p.c_before = !n_.lstm() ? nullptr : s == 0 ? d.c0 + in_state : d.saved + saved_before + 4 * p.part;
      p.dh = state_panel(at.dh, group, j) + row * kWidth;
      p.dc = n_.lstm() ? state_panel(at.dc, group, j) + row * kWidth : nullptr;
      p.dreset = n_.cell == Cell::kGruBefore ? state_panel(at.dreset, group, j) + row * kWidth : nullptr;
      p.dh_in = p.last ? d.dh_last + in_state : p.dh;
      p.dc_in = !n_.lstm() ? nullptr : p.last ? d.dc_last + in_state : p.dc;
      p.gate = gate_panel(direction, group, 0, j) + (offset(group, s) + row) * kWidth;
      for (int v = 0; v < 2; ++v) {
        p.count = p.part - v * kLanes;
        if (p.count > 0) each(p, v * kLanes);
      }
    }
  }

  // Lanes beyond the last unit take part in products.
  void clear_beyond(int direction, int group, long s, long j) const {
    if (n_.width(j) > kLanes) return;
    for (int sum = 0; sum < n_.sums(); ++sum) {
      float* gate = gate_panel(direction, group, sum, j) + offset(group, s) * kWidth + kLanes;
      for (long row = 0; row < rows_.running(group, s); ++row) store(gate + row * kWidth, Vector{});
    }
  }

  S2S_INLINE static Vector arriving(const Place& p, long v) {
    const Vector dh = load(p.dh_in + v, p.last ? p.count : kLanes);
    return p.dy == nullptr ? dh : dh + load(p.dy + v, p.count);
  }

  void gates(int direction, int group, long s, long from, long to) const {
    const Vector one = splat(1.0f);
    for (long j = from; j < to; ++j) {
      clear_beyond(direction, group, s, j);
      switch (n_.cell) {
        case Cell::kTanh:
        case Cell::kRelu:
          for_rows(direction, group, s, j, [&](const Place& p, long v) {
            const Vector y = load(p.y + v, p.count);
            const Vector dh = arriving(p, v);
            store(p.gate + v, n_.cell == Cell::kRelu ? (y > splat(0.0f) ? dh : splat(0.0f)) : dh * (one - y * y));
          });
          break;
        case Cell::kLstm:
          for_rows(direction, group, s, j, [&](const Place& p, long v) {
            const float* saved = p.saved + v;
            const Vector i = load(saved, p.count);
            const Vector f = load(saved + p.part, p.count);
            const Vector g = load(saved + 2 * p.part, p.count);
            const Vector o = load(saved + 3 * p.part, p.count);
            const Vector shown = tanh(load(saved + 4 * p.part, p.count));
            const Vector dh = arriving(p, v);
            const Vector dc = load(p.dc_in + v, p.last ? p.count : kLanes) + dh * o * (one - shown * shown);
            store(p.gate + v, dc * g * i * (one - i));
            store(p.gate + p.next + v, dc * load(p.c_before + v, p.count) * f * (one - f));
            store(p.gate + 2 * p.next + v, dc * i * (one - g * g));
            store(p.gate + 3 * p.next + v, dh * shown * o * (one - o));
            store(p.dc + v, dc * f);
          });
          break;
        case Cell::kGruAfter:
          for_rows(direction, group, s, j, [&](const Place& p, long v) {
            const float* saved = p.saved + v;
            const Vector r = load(saved, p.count);
            const Vector z = load(saved + p.part, p.count);
            const Vector n = load(saved + 2 * p.part, p.count);
            const Vector inner = load(saved + 3 * p.part, p.count);
            const Vector dh = arriving(p, v);
            const Vector dn = dh * (one - z) * (one - n * n);
            store(p.gate + v, dn);
            store(p.gate + p.next + v, dn * inner * r * (one - r));
            store(p.gate + 2 * p.next + v, dh * (load(p.h_before + v, p.count) - n) * z * (one - z));
            store(p.gate + 3 * p.next + v, dn * r);
            store(p.dh + v, dh * z);
          });
          break;
        case Cell::kGruBefore:
          for_rows(direction, group, s, j, [&](const Place& p, long v) {
            const float* saved = p.saved + v;
            const Vector z = load(saved + p.part, p.count);
            const Vector n = load(saved + 2 * p.part, p.count);
            const Vector dh = arriving(p, v);
            store(p.gate + v, dh * (one - z) * (one - n * n));
            store(p.gate + p.next + v, Vector{});  // comes next, from the gradient of r * h
            store(p.gate + 2 * p.next + v, dh * (load(p.h_before + v, p.count) - n) * z * (one - z));
            store(p.dh + v, dh * z);
          });
          break;
      }
    }
  }

  // With the reset gate before the product: the gradient of r * h, and through it that of r and of h.
  void reset_gates(int direction, int group, long s, long from, long to) {
    const Buffers& at = buffers_[direction];
    const Vector one = splat(1.0f);
    times_transposed(direction, group, s, 0, 1, at.u_transposed, at.dreset, false, from, to);
    for (long j = from; j < to; ++j) {
      for_rows(direction, group, s, j, [&](const Place& p, long v) {
        const Vector r = load(p.saved + v, p.count);
        const Vector dreset = load(p.dreset + v);
        store(p.gate + p.next + v, dreset * load(p.h_before + v, p.count) * r * (one - r));
        store(p.dh + v, load(p.dh + v) + dreset * r);
      });
    }
  }

  // Gathers rows [from, to) of a chunk of inputs and of states before each step, as left operands.
  void left(int direction, int group, long first, long from, long to) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long depth = this->depth(group, first);
    float* x = at.left_x + group * n_.in * depth_;
    float* h = at.left_h + group * n_.hidden * depth_;
    float* reset = n_.cell == Cell::kGruBefore ? at.left_reset + group * n_.hidden * depth_ : nullptr;
    thread_local std::vector<float> product;
    long k = 0;
    for (long s = first; s < chunk_end(first); ++s) {
      const long running = rows_.running(group, s);
      for (long row = std::max<long>(0, from - k); row < std::min(running, to - k); ++row) {
        const long i = rows_.start(group) + row;
        const long b = rows_.batch_row(i);
        pack_row(d.x + (b * n_.time + rows_.position(i, s, d.reverse)) * n_.in, n_.in, depth, k + row, x);
        const float* before =
            s == 0 ? d.h0 + b * n_.hidden : d.y + (b * n_.time + rows_.position(i, s - 1, d.reverse)) * n_.hidden;
        pack_row(before, n_.hidden, depth, k + row, h);
        if (reset == nullptr) continue;
        product.resize(n_.hidden);
        for (long unit = 0; unit < n_.hidden; ++unit) {
          const long j = unit / kWidth;
          const float* saved = d.saved + ((s * n_.batch + b) * n_.hidden + j * kWidth) * n_.saved();
          product[unit] = saved[unit - j * kWidth] * before[unit];
        }
        pack_row(product.data(), n_.hidden, depth, k + row, reset);
      }
      k += running;
    }
  }

  // A share of the products of a chunk: gradients of weights by panel, gradients of inputs by row.
  void products(int direction, long first, int part) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const auto [from, to] = share(n_.sums() * n_.blocks(), pieces(), part);
    for (long panel = from; panel < to; ++panel) {
      const int sum = static_cast<int>(panel / n_.blocks());
      const int recurrent = sum - first_recurrent_sum(n_);
      const bool reset = n_.cell == Cell::kGruBefore && sum == 0;
      for (int g = 0; g < groups_; ++g) {  // innermost, while the cache holds this panel of the gradients
        const long depth = this->depth(g, first);
        if (depth == 0) continue;
        const float* gate = gate_panel(direction, g, sum, panel % n_.blocks());
        if (sum < n_.gates()) accumulate(n_.in, depth, at.left_x + g * n_.in * depth_, gate, at.dw + panel * n_.in * kWidth);
        if (recurrent >= 0) {
          const float* left = (reset ? at.left_reset : at.left_h) + g * n_.hidden * depth_;
          float* du = at.du + (recurrent * n_.blocks() + panel % n_.blocks()) * n_.hidden * kWidth;
          accumulate(n_.hidden, depth, left, gate, du);
        }
        Vector sum0{}, sum1{};
        for (long k = 0; k < depth; ++k) {
          sum0 += load(gate + k * kWidth);
          sum1 += load(gate + k * kWidth + kLanes);
        }
        float* db = at.db + panel * kWidth;
        store(db, load(db) + sum0);
        store(db + kLanes, load(db + kLanes) + sum1);
      }
    }
    if (d.dx == nullptr) return;
    for (int g = 0; g < groups_; ++g) {
      const auto [begin, end] = share(depth(g, first), pieces(), part);
      inputs(direction, g, first, begin, end, at.out + part * n_.in_blocks() * kWidth * kInputRows);
    }
  }

  // Gradients of inputs for rows [from, to) of a chunk.
  void inputs(int direction, int group, long first, long from, long to, float* out) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    long s = first, begins = 0;  // the step of the row at hand, and the row that this step begins with
    const float* rows[kInputRows];
    for (long k0 = from; k0 < to; k0 += kInputRows) {
      const long count = std::min(kInputRows, to - k0);
      for (long k = 0; k < count; ++k) rows[k] = gate_panel(direction, group, 0, 0) + (k0 + k) * kWidth;
      const Left left{n_.gates() * n_.blocks(), depth_ * kWidth, kWidth};
      for (long p = 0; p < n_.in_blocks(); ++p) {
        const Panel panel{at.w_transposed + p * n_.gates() * n_.padded() * kWidth, at.zeros, 0, out + p * kInputRows * kWidth};
        multiply(count, rows, left, &panel, 1);
      }
      for (long k = 0; k < count; ++k) {
        while (k0 + k - begins >= rows_.running(group, s)) begins += rows_.running(group, s++);
        const long i = rows_.start(group) + k0 + k - begins;
        float* dx = d.dx + (rows_.batch_row(i) * n_.time + rows_.position(i, s, d.reverse)) * n_.in;
        for (long p = 0; p < n_.in_blocks(); ++p) {
          std::copy_n(out + (p * kInputRows + k) * kWidth, std::min<long>(kWidth, n_.in - p * kWidth), dx + p * kWidth);
        }
      }
    }
  }

  // Gradients of the weights, from panels to where they belong.
  void finish(int direction, int part) const {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long stride = n_.gates() * n_.hidden;
    const auto unpack = [&](const float* panels, long rows, int first_sum, float* matrix) {
      const auto [from, to] = share(rows, threads_, part);
      for (int g = 0; g < n_.gates(); ++g) {
        for (long j = 0; j < n_.blocks(); ++j) {
          const float* panel = panels + (g * n_.blocks() + j) * rows * kWidth;
          float* target = matrix + column_of_gate(n_, first_sum + g) * n_.hidden + j * kWidth;
          for (long k = from; k < to; ++k) std::copy_n(panel + k * kWidth, n_.width(j), target + k * stride);
        }
      }
    };
    unpack(at.dw, n_.in, 0, d.dw);
    unpack(at.du, n_.hidden, first_recurrent_sum(n_), d.du);
    if (part > 0) return;
    for (long j = 0; j < n_.blocks(); ++j) {
      for (int g = 0; g < n_.gates() && d.db != nullptr; ++g) {
        float* target = d.db + column_of_gate(n_, g) * n_.hidden + j * kWidth;
        std::copy_n(at.db + (g * n_.blocks() + j) * kWidth, n_.width(j), target);
      }
      if (d.db_n == nullptr) continue;
      if (n_.cell == Cell::kGruAfter) {
        std::copy_n(at.db + (3 * n_.blocks() + j) * kWidth, n_.width(j), d.db_n + j * kWidth);
      } else {
        std::fill_n(d.db_n + j * kWidth, n_.width(j), 0.0f);
      }
    }
  }

  Sizes n_;
  std::vector<Direction> directions_;
  int threads_;
  int groups_;
  Rows rows_;
  bool by_rows_;
  long chunk_, depth_;
  int units_;
  std::vector<Phase> phases_;
  std::vector<int> counts_;
  std::vector<Buffers> buffers_;
};

}  // namespace s2s
