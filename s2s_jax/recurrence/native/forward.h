// The forward pass of a layer.
//
// With enough rows each thread carries rows of its own through all of time and never waits. With few rows the threads share the
// units of each step and meet once a step. Where a thread has few rows at a step, the input product of many steps is formed at once
// beforehand: the input's weights are then read once for all of them. Of a step or two of few rows, as in streaming, arranging the
// weights would take longer than the products: there they are read in place.
#pragma once

#include "layer.h"
#include "team.h"

namespace s2s {

class Forward {
 public:
  Forward(const Sizes& sizes, std::vector<Direction> directions, const int32_t* lengths, int threads)
      : n_(sizes), directions_(std::move(directions)), threads_(threads), in_place_(in_place(sizes)),
        groups_(in_place_ ? 1 : row_groups(sizes, directions_.size(), threads)), rows_(sizes, lengths, groups_),
        by_rows_(by_rows(groups_, directions_.size(), threads)),
        inputs_inside_(in_place_ || (by_rows_ && rows_of_group() >= kTileRows)) {
    const long rows = by_rows_ ? kOwnChunkRows : kChunkRows;
    chunk_ = inputs_inside_ ? 0 : std::max<long>(1, rows / std::max<long>(1, rows_of_group()));
    plan();
  }

  // Into how many groups of rows the threads share a direction; one group means that they share the units instead. Where the
  // recurrent weights outgrow a core's own cache, each thread that carries all of them needs many rows to make up for it.
  static int row_groups(const Sizes& sizes, size_t directions, int threads) {
    const bool fit = sizes.gates() * sizes.hidden * sizes.hidden * static_cast<long>(sizeof(float)) <= kOwnCache;
    const long count = static_cast<long>(directions);
    const long wanted = (threads + count - 1) / count;
    return static_cast<int>(std::clamp<long>(sizes.batch / (fit ? 2 : 16), 1, wanted));
  }

  // Whether the weights are read where they are: blocks must be whole, as what lies behind the last unit is another gate's.
  static bool in_place(const Sizes& sizes) {
    return sizes.time <= kInPlaceSteps && sizes.batch <= kInPlaceRows && sizes.hidden % kWidth == 0;
  }

  // Whether each thread carries rows, or directions, of its own.
  static bool by_rows(int groups, size_t directions, int threads) {
    return groups > 1 || static_cast<int>(directions) >= threads;
  }

  template <typename Schedule>
  void run(const Schedule& schedule) {
    for (const Direction& d : directions_) idle(d);
    if (rows_.steps() == 0) return;
    Pieces measured;
    divide(measured);
    Scratch scratch(measured.used());
    Pieces pieces(scratch.floats());
    divide(pieces);
    if (in_place_) {
      for (size_t d = 0; d < directions_.size(); ++d) begin(static_cast<int>(d), 0, n_.batch);
    }
    run_phases(counts_, threads_ - 1, [this](int64_t p, int item) { work(phases_[p], item); }, schedule);
  }

 private:
  static constexpr long kChunkRows = 384;
  static constexpr long kOwnChunkRows = 48;  // of a thread's own: its inputs stay in the cache
  static constexpr long kOwnCache = 512 << 10;
  static constexpr long kInPlaceSteps = 2;
  enum class Kind { kPack, kRows, kInputs, kStep, kCandidate };
  struct Phase {
    Kind kind;
    int direction;
    long step;
  };
  struct Buffers {
    float *w, *u, *bias, *bias_n, *zeros, *h[2], *c, *sums, *reset;
    float* inputs;  // of a chunk of steps: [block][gate][rows][kWidth], rows by group
  };

  long rows_of_group() const { return (n_.batch + groups_ - 1) / groups_; }

  void plan() {
    const int count = static_cast<int>(directions_.size());
    const int parts = static_cast<int>(std::min<long>(threads_, n_.blocks()));
    if (!in_place_) add(Kind::kPack, 0, 0, threads_ * count);
    if (by_rows_) return add(Kind::kRows, 0, 0, groups_ * count);
    for (int d = 0; d < count; ++d) {
      for (long s = 0; s < rows_.steps(); ++s) {
        if (!inputs_inside_ && s % chunk_ == 0) add(Kind::kInputs, d, s, parts);
        add(Kind::kStep, d, s, parts);
        if (n_.cell == Cell::kGruBefore) add(Kind::kCandidate, d, s, parts);
      }
    }
  }

  void add(Kind kind, int direction, long step, int items) {
    phases_.push_back({kind, direction, step});
    counts_.push_back(items);
  }

  void divide(Pieces& pieces) {
    buffers_.resize(directions_.size());
    const bool all_blocks = n_.cell == Cell::kGruBefore;
    const long scratch_rows = n_.batch;
    for (Buffers& at : buffers_) {
      at.w = pieces.take(in_place_ ? 0 : n_.blocks() * n_.gates() * n_.in * kWidth);
      at.u = pieces.take(in_place_ ? 0 : n_.blocks() * n_.gates() * n_.hidden * kWidth);
      at.bias = pieces.take(in_place_ ? 0 : n_.gates() * n_.padded());
      at.bias_n = pieces.take(in_place_ ? 0 : n_.padded());
      at.zeros = pieces.take(kWidth);
      for (float*& h : at.h) h = pieces.take(n_.batch * n_.padded());
      at.c = pieces.take(n_.lstm() ? n_.batch * n_.padded() : 0);
      at.reset = pieces.take(all_blocks ? n_.batch * n_.padded() : 0);
      // Sums live from a product to the gate functions: one block of units at a time, for each row, or for each thread.
      const long places = all_blocks ? n_.blocks() : by_rows_ ? 1 : std::min<long>(threads_, n_.blocks());
      at.sums = pieces.take(places * n_.sums() * scratch_rows * kWidth);
      at.inputs = pieces.take(inputs_inside_ ? 0 : n_.blocks() * n_.gates() * std::min(chunk_, rows_.steps()) * n_.batch * kWidth);
    }
  }

  // What no step touches: rows of length 0 and outputs in the padding.
  void idle(const Direction& d) const {
    for (long i = 0; i < n_.batch; ++i) {
      const long b = rows_.batch_row(i);
      const long length = rows_.length(i);
      if (length == 0) {
        std::copy_n(d.h0 + b * n_.hidden, n_.hidden, d.h_last + b * n_.hidden);
        if (n_.lstm()) std::copy_n(d.c0 + b * n_.hidden, n_.hidden, d.c_last + b * n_.hidden);
      }
      std::fill_n(d.y + (b * n_.time + length) * n_.hidden, (n_.time - length) * n_.hidden, 0.0f);
    }
  }

  void work(const Phase& phase, int item) {
    const int parts = static_cast<int>(std::min<long>(threads_, n_.blocks()));
    const auto [from, to] = share(n_.blocks(), parts, item % parts);
    switch (phase.kind) {
      case Kind::kPack:
        return pack(item / threads_, item % threads_);
      case Kind::kRows:
        return carry(item % static_cast<int>(directions_.size()), item / static_cast<int>(directions_.size()));
      case Kind::kInputs:
        return project(phase.direction, 0, phase.step, from, to);
      case Kind::kStep:
        return step(phase.direction, 0, phase.step, from, to, item);
      case Kind::kCandidate:
        return candidate(phase.direction, 0, phase.step, from, to);
    }
  }

  void pack(int direction, int part) {
    const Direction& d = directions_[direction];
    Buffers& at = buffers_[direction];
    const auto [from, to] = share(n_.blocks(), threads_, part);
    pack_panels(n_, d.w, n_.in, 0, from, to, at.w);
    pack_panels(n_, d.u, n_.hidden, first_recurrent_sum(n_), from, to, at.u);
    for (long j = from; j < to; ++j) {
      for (long k = 0; k < kWidth; ++k) {
        const bool inside = k < n_.width(j);
        for (int g = 0; g < n_.gates(); ++g) {
          const long column = column_of_gate(n_, g) * n_.hidden + j * kWidth + k;
          at.bias[(j * n_.gates() + g) * kWidth + k] = inside && d.b != nullptr ? d.b[column] : 0.0f;
        }
        at.bias_n[j * kWidth + k] = inside && d.b_n != nullptr ? d.b_n[j * kWidth + k] : 0.0f;
      }
    }
    const auto [first, last] = share(n_.batch, threads_, part);
    begin(direction, first, last);
  }

  // What the first step of rows [first, last) starts from.
  void begin(int direction, long first, long last) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    for (long i = first; i < last; ++i) {
      const long b = rows_.batch_row(i);
      copy_padded(d.h0 + b * n_.hidden, n_.hidden, at.h[0] + i * n_.padded(), n_.padded());
      if (n_.lstm()) copy_padded(d.c0 + b * n_.hidden, n_.hidden, at.c + i * n_.padded(), n_.padded());
    }
    if (first == 0 && last > 0) std::fill_n(at.zeros, kWidth, 0.0f);
  }

  // Block j of the g-th gate, counted from `first_sum`, of a matrix [depth, gates * hidden].
  const float* weights(const float* matrix, const float* packed, long depth, int first_sum, long j, int g) const {
    if (in_place_) return matrix + column_of_gate(n_, first_sum + g) * n_.hidden + j * kWidth;
    return packed + (j * n_.gates() + g) * depth * kWidth;
  }

  const float* bias(const Direction& d, const Buffers& at, long j, int g) const {
    if (!in_place_) return at.bias + (j * n_.gates() + g) * kWidth;
    return d.b == nullptr ? at.zeros : d.b + column_of_gate(n_, g) * n_.hidden + j * kWidth;
  }

  const float* inner_bias(const Direction& d, const Buffers& at, long j) const {
    if (!in_place_) return at.bias_n + j * kWidth;
    return d.b_n == nullptr ? at.zeros : d.b_n + j * kWidth;
  }

  void product(long running, const float* const* rows, long depth, const Panel* panels, int count, long beyond = 0) const {
    const Left left{1, 0, depth};
    if (in_place_) return multiply_in_place(static_cast<int>(running), rows, left, panels, count, n_.gates() * n_.hidden);
    multiply(running, rows, left, panels, count, beyond);
  }

  // A group of rows, by one thread, from the first step to the last.
  void carry(int direction, int group) {
    for (long s = 0; s < rows_.steps(); ++s) {
      if (!inputs_inside_ && s % chunk_ == 0) project(direction, group, s, 0, n_.blocks());
      step(direction, group, s, 0, n_.blocks(), 0);
      if (n_.cell == Cell::kGruBefore) candidate(direction, group, s, 0, n_.blocks());
    }
  }

  // The input product of a chunk of steps of a group of rows, for blocks [from, to).
  void project(int direction, int group, long first_step, long from, long to) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long begin = rows_.start(group);
    thread_local std::vector<const float*> xs;
    xs.clear();
    for (long s = first_step; s < std::min(first_step + chunk_, rows_.steps()); ++s) {
      for (long i = begin; i < begin + rows_.running(group, s); ++i) {
        xs.push_back(d.x + (rows_.batch_row(i) * n_.time + rows_.position(i, s, d.reverse)) * n_.in);
      }
    }
    Panel panels[4];
    for (long j = from; j < to; ++j) {
      for (int g = 0; g < n_.gates(); ++g) {
        const long index = j * n_.gates() + g;
        panels[g] = {at.w + index * n_.in * kWidth, at.bias + index * kWidth, 0, inputs(direction, group, j, g)};
      }
      multiply(static_cast<long>(xs.size()), xs.data(), {1, 0, n_.in}, panels, n_.gates());
    }
  }

  float* inputs(int direction, int group, long block, int gate) const {
    const long rows = (block * n_.gates() + gate) * n_.batch + rows_.start(group);
    return buffers_[direction].inputs + rows * std::min(chunk_, rows_.steps()) * kWidth;
  }

  void step(int direction, int group, long s, long from, long to, int place) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long running = rows_.running(group, s);
    if (running == 0) return;
    const long begin = rows_.start(group);
    const long gate = rows_.count(group) * kWidth;  // from one sum to the next
    thread_local std::vector<const float*> xs, hs;
    thread_local std::vector<Row> places;
    xs.resize(running);
    hs.resize(running);
    places.resize(running);
    for (long i = 0; i < running; ++i) {
      places[i] = row_at(d, at, begin + i, s);
      const long position = rows_.position(begin + i, s, d.reverse);
      xs[i] = d.x + (rows_.batch_row(begin + i) * n_.time + position) * n_.in;
      hs[i] = at.h[s & 1] + (begin + i) * n_.padded();
    }
    const long offset = offset_in_chunk(group, s);
    const int first = first_recurrent_sum(n_);
    // With the reset gate before the product the candidate's part from the state comes later.
    const int skipped = n_.cell == Cell::kGruBefore ? 1 : 0;
    Panel panels[4];
    // Every other step from the last block to the first: it begins with the weights that the cache still holds of the step before.
    const bool backwards = s % 2 == 1;
    const long back = backwards ? -2 * n_.gates() * kWidth : 0;  // to the panels of the block before, a row of weights each
    for (long n = from; n < to; ++n) {
      const long j = backwards ? to - 1 - (n - from) : n;
      float* sums = sums_of(direction, group, n_.cell == Cell::kGruBefore ? j : place);
      for (int g = 0; g < n_.gates(); ++g) {
        panels[g] = {weights(d.w, at.w, n_.in, 0, j, g), bias(d, at, j, g), 0, sums + g * gate};
      }
      if (inputs_inside_) product(running, xs.data(), n_.in, panels, n_.gates(), back * n_.in);
      for (int g = 0; g < n_.gates(); ++g) {
        const int sum = first + g;
        float* out = sums + sum * gate;
        const float* start = out;
        if (!inputs_inside_) start = sum < n_.gates() ? inputs(direction, group, j, sum) + offset * kWidth : nullptr;
        panels[g] = {weights(d.u, at.u, n_.hidden, first, j, g), start, kWidth, out};
        if (sum == 3 && n_.gru()) panels[g].start = inner_bias(d, at, j), panels[g].start_stride = 0;
      }
      product(running, hs.data(), n_.hidden, panels + skipped, n_.gates() - skipped, back * n_.hidden);
      const float* candidate = sums;  // its part from the input
      if (!inputs_inside_ && n_.gru()) candidate = inputs(direction, group, j, 0) + offset * kWidth;
      switch (n_.cell) {
        case Cell::kTanh:
        case Cell::kRelu:
          rnn(places, j, sums);
          break;
        case Cell::kLstm:
          lstm(places, j, sums, gate);
          break;
        case Cell::kGruAfter:
          gru_after(places, j, sums, gate, candidate);
          break;
        case Cell::kGruBefore:
          gru_gates(places, j, sums, gate, at.reset + begin * n_.padded());
          break;
      }
    }
  }

  // With the reset gate before the product: the second product of a step, once r * h is complete.
  void candidate(int direction, int group, long s, long from, long to) {
    const Direction& d = directions_[direction];
    const Buffers& at = buffers_[direction];
    const long running = rows_.running(group, s);
    if (running == 0) return;
    const long begin = rows_.start(group);
    const long gate = rows_.count(group) * kWidth;
    thread_local std::vector<const float*> rs;
    thread_local std::vector<Row> places;
    rs.resize(running);
    places.resize(running);
    for (long i = 0; i < running; ++i) {
      rs[i] = at.reset + (begin + i) * n_.padded();
      places[i] = row_at(d, at, begin + i, s);
    }
    const long offset = offset_in_chunk(group, s);
    for (long j = from; j < to; ++j) {
      float* sums = sums_of(direction, group, j);
      const float* start = inputs_inside_ ? sums : inputs(direction, group, j, 0) + offset * kWidth;
      const Panel panel{weights(d.u, at.u, n_.hidden, 0, j, 0), start, kWidth, sums};
      product(running, rs.data(), n_.hidden, &panel, 1);
      gru_before(places, j, sums, gate);
    }
  }

  // Of the rows of step s, in the input products of its chunk.
  long offset_in_chunk(int group, long s) const {
    return inputs_inside_ ? 0 : rows_.before(group, s) - rows_.before(group, s / chunk_ * chunk_);
  }

  float* sums_of(int direction, int group, long place) const {
    const long rows = by_rows_ ? rows_.start(group) * (n_.cell == Cell::kGruBefore ? n_.blocks() : 1) : 0;
    return buffers_[direction].sums + n_.sums() * kWidth * (rows + place * rows_.count(group));
  }

  // Where one row is at one step; pointers to its first unit, null for what is not kept or not there.
  struct Row {
    const float* h;
    float *h_new, *c, *y, *h_last, *c_last, *saved;
  };

  Row row_at(const Direction& d, const Buffers& at, long i, long s) const {
    const long b = rows_.batch_row(i);
    const bool last = s + 1 == rows_.length(i);
    Row row;
    row.h = at.h[s & 1] + i * n_.padded();
    row.h_new = at.h[(s + 1) & 1] + i * n_.padded();
    row.c = n_.lstm() ? at.c + i * n_.padded() : nullptr;
    row.y = d.y + (b * n_.time + rows_.position(i, s, d.reverse)) * n_.hidden;
    row.h_last = last ? d.h_last + b * n_.hidden : nullptr;
    row.c_last = last && n_.lstm() ? d.c_last + b * n_.hidden : nullptr;
    row.saved = d.saved == nullptr ? nullptr : d.saved + (s * n_.batch + b) * n_.saved() * n_.hidden;
    return row;
  }

  // The same for half a block of units.
  struct Place {
    long count;  // of units that exist
    const float* h;
    float *h_new, *c, *y, *h_last, *c_last, *saved;
    long part;  // from one saved value to the next
  };

  S2S_INLINE static void put_state(const Place& p, Vector h) {
    store(p.h_new, h);  // the scratch rows are padded
    store(p.y, h, p.count);
    if (p.h_last != nullptr) store(p.h_last, h, p.count);
  }

  template <typename Each>
  S2S_INLINE void for_rows(const std::vector<Row>& rows, long j, const Each& each) const {
    const long block = j * kWidth, kept = j * kWidth * n_.saved(), width = n_.width(j);
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      for (int v = 0; v < 2; ++v) {
        const long unit = block + v * kLanes;
        Place p;
        p.count = width - v * kLanes;
        if (p.count <= 0) break;
        p.h = row.h + unit;
        p.h_new = row.h_new + unit;
        p.c = row.c == nullptr ? nullptr : row.c + unit;
        p.y = row.y + unit;
        p.h_last = row.h_last == nullptr ? nullptr : row.h_last + unit;
        p.c_last = row.c_last == nullptr ? nullptr : row.c_last + unit;
        p.saved = row.saved == nullptr ? nullptr : row.saved + kept + v * kLanes;
        p.part = width;
        each(p, static_cast<long>(i) * kWidth + v * kLanes);
      }
    }
  }

  void rnn(const std::vector<Row>& rows, long j, const float* sums) const {
    const bool rectified = n_.cell == Cell::kRelu;
    for_rows(rows, j, [&](const Place& p, long k) {
      const Vector z = load(sums + k);
      put_state(p, rectified ? relu(z) : tanh(z));
    });
  }

  void lstm(const std::vector<Row>& rows, long j, const float* sums, long gate) const {
    for_rows(rows, j, [&](const Place& p, long k) {
      Vector i, f, g, o;
      values(sigmoid_fraction(load(sums + k)), sigmoid_fraction(load(sums + gate + k)), i, f);
      values(tanh_fraction(load(sums + 2 * gate + k)), sigmoid_fraction(load(sums + 3 * gate + k)), g, o);
      const Vector c = f * load(p.c) + i * g;
      put_state(p, o * tanh(c));
      store(p.c, c);
      if (p.c_last != nullptr) store(p.c_last, c, p.count);
      if (p.saved != nullptr) {
        store(p.saved, i, p.count);
        store(p.saved + p.part, f, p.count);
        store(p.saved + 2 * p.part, g, p.count);
        store(p.saved + 3 * p.part, o, p.count);
        store(p.saved + 4 * p.part, c, p.count);
      }
    });
  }

  void gru_after(const std::vector<Row>& rows, long j, const float* sums, long gate, const float* candidate) const {
    for_rows(rows, j, [&](const Place& p, long k) {
      Vector r, z;
      values(sigmoid_fraction(load(sums + gate + k)), sigmoid_fraction(load(sums + 2 * gate + k)), r, z);
      const Vector inner = load(sums + 3 * gate + k);
      const Vector n = tanh(load(candidate + k) + r * inner);
      put_state(p, n + z * (load(p.h) - n));
      if (p.saved != nullptr) {
        store(p.saved, r, p.count);
        store(p.saved + p.part, z, p.count);
        store(p.saved + 2 * p.part, n, p.count);
        store(p.saved + 3 * p.part, inner, p.count);
      }
    });
  }

  void gru_gates(const std::vector<Row>& rows, long j, float* sums, long gate, float* reset) const {
    for_rows(rows, j, [&](const Place& p, long k) {
      Vector r, z;
      values(sigmoid_fraction(load(sums + gate + k)), sigmoid_fraction(load(sums + 2 * gate + k)), r, z);
      store(sums + 2 * gate + k, z);  // waits there for the candidate
      store(reset + k / kWidth * n_.padded() + j * kWidth + k % kWidth, r * load(p.h));
      if (p.saved != nullptr) {
        store(p.saved, r, p.count);
        store(p.saved + p.part, z, p.count);
      }
    });
  }

  void gru_before(const std::vector<Row>& rows, long j, const float* sums, long gate) const {
    for_rows(rows, j, [&](const Place& p, long k) {
      const Vector n = tanh(load(sums + k));
      const Vector z = load(sums + 2 * gate + k);
      put_state(p, n + z * (load(p.h) - n));
      if (p.saved != nullptr) store(p.saved + 2 * p.part, n, p.count);
    });
  }

  Sizes n_;
  std::vector<Direction> directions_;
  int threads_;
  bool in_place_;
  int groups_;
  Rows rows_;
  bool by_rows_;
  bool inputs_inside_;  // the input product is formed step by step
  long chunk_;
  std::vector<Phase> phases_;
  std::vector<int> counts_;
  std::vector<Buffers> buffers_;
};

}  // namespace s2s
