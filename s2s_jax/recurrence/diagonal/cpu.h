// The loops over time on a CPU, a vector of units at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../native/simd.h"
#include "../native/team.h"
#include "pass.h"

#define S2S_UNIT S2S_INLINE

namespace s2s {

S2S_INLINE Vector sigmoid(Vector x) { return sigmoid_fraction(x).value(); }
S2S_INLINE Vector reciprocal(Vector x) { return splat(1.0f) / x; }
S2S_INLINE Vector step_function(Vector x) { return x > splat(0.0f) ? splat(1.0f) : splat(0.0f); }
S2S_INLINE Vector finite(Vector x) { return clamp(x, -1e30f, 1e30f); }
S2S_INLINE Vector least(Vector a, Vector b) { return a < b ? a : b; }

S2S_INLINE Vector power_of_e(Vector x) {
  Vector power, fraction;
  exponential(clamp(x, -86.0f, 0.0f), power, fraction);
  return power * fraction + power;
}

S2S_INLINE void two_sigmoids(Vector& a, Vector& b) { values(sigmoid_fraction(a), sigmoid_fraction(b), a, b); }
S2S_INLINE void sigmoid_and_tanh(Vector& a, Vector& b) { values(sigmoid_fraction(a), tanh_fraction(b), a, b); }

}  // namespace s2s

#include "cells.h"

namespace s2s {

// What one thread does at a time: some rows, or some units of them.
struct Share {
  int64_t first_row, rows, first_unit, units;
};

// `with(t, row, valid)`, valid the steps of that row, for all steps of the rows, all rows of a step before the next: so memory is read in order.
template <typename With>
S2S_INLINE void each_step(const DiagonalSizes& n, const int32_t* lengths, const Share& share, bool back, const With& with) {
  for (int64_t k = 0; k < n.time; ++k) {
    for (int64_t row = share.first_row; row < share.first_row + share.rows; ++row) {
      const int64_t valid = lengths ? std::clamp<int64_t>(lengths[row], 0, n.time) : n.time;
      const int64_t t = k >= valid ? k : back ? valid - 1 - k : k;
      with(t, row, valid);
    }
  }
}

template <typename Cell>
void run(const DiagonalSizes& n, const DiagonalForward<float>& p, const Share& share) {
  const int64_t width = n.hidden, states = n.batch * width, end = share.first_unit + share.units;
  const int biases = n.rows > Cell::kWeights ? Cell::kGates : 0;
  each_step(n, p.lengths, share, n.reverse, [&](int64_t t, int64_t row, int64_t valid) {
    const int64_t at = t * n.batch + row;
    for (int64_t unit = share.first_unit; unit < end; unit += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, end - unit);
      Vector s[Cell::kStates], z[Cell::kGates], w[Cell::kWeights + 1];
      if (t >= valid) {
        for (int k = 0; k < Cell::kOutputs; ++k) store(p.y + (at * Cell::kOutputs + k) * width + unit, Vector{}, count);
        continue;
      }
      for (int k = 0; k < Cell::kStates; ++k) s[k] = load(p.last + k * states + row * width + unit, count);
      for (int k = 0; k < Cell::kGates; ++k) z[k] = load(p.z + (at * Cell::kGates + k) * width + unit, count);
      for (int k = 0; k < Cell::kWeights; ++k) w[k] = load(p.w + k * width + unit, count);
      for (int k = 0; k < biases; ++k) z[k] = z[k] + load(p.w + (Cell::kWeights + k) * width + unit, count);
      Cell::step(z, w, n.relu, s);
      for (int k = 0; k < Cell::kStates; ++k) store(p.last + k * states + row * width + unit, s[k], count);
      for (int k = 0; k < Cell::kOutputs; ++k) store(p.y + (at * Cell::kOutputs + k) * width + unit, s[k], count);
      if (Cell::kStates > Cell::kOutputs && p.c) store(p.c + at * width + unit, s[Cell::kStates - 1], count);
    }
  });
}

template <typename Cell>
void run(const DiagonalSizes& n, const DiagonalBackward<float>& p, const Share& share) {
  const int64_t width = n.hidden, states = n.batch * width, end = share.first_unit + share.units;
  const int biases = n.rows > Cell::kWeights ? Cell::kGates : 0;
  each_step(n, p.lengths, share, !n.reverse, [&](int64_t t, int64_t row, int64_t valid) {
    const int64_t at = t * n.batch + row, t_before = n.reverse ? t + 1 : t - 1, before = t_before * n.batch + row;
    const bool begins = t_before < 0 || t_before >= valid;
    float* of_row = p.dw + row * n.rows * width;
    for (int64_t unit = share.first_unit; unit < end; unit += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, end - unit);
      Vector s[Cell::kStates], ds[Cell::kStates], z[Cell::kGates], dz[Cell::kGates];
      Vector w[Cell::kWeights + 1], dw[Cell::kWeights + 1];
      if (t >= valid) {
        for (int k = 0; k < Cell::kGates; ++k) store(p.dz + (at * Cell::kGates + k) * width + unit, Vector{}, count);
        continue;
      }
      for (int k = 0; k < Cell::kStates; ++k) {
        const float* from = begins               ? p.first + k * states + row * width
                            : k < Cell::kOutputs ? p.y + (before * Cell::kOutputs + k) * width
                                                 : p.c + before * width;
        s[k] = load(from + unit, count);
        ds[k] = load(p.d_first + k * states + row * width + unit, count);
        if (k < Cell::kOutputs) ds[k] = ds[k] + load(p.dy + (at * Cell::kOutputs + k) * width + unit, count);
      }
      for (int k = 0; k < Cell::kGates; ++k) {
        z[k] = Cell::kPullReadsZ ? load(p.z + (at * Cell::kGates + k) * width + unit, count) : Vector{};
      }
      for (int k = 0; k < Cell::kWeights; ++k) {
        w[k] = load(p.w + k * width + unit, count);
        dw[k] = load(of_row + k * width + unit, count);
      }
      for (int k = 0; k < biases; ++k) z[k] = z[k] + load(p.w + (Cell::kWeights + k) * width + unit, count);
      Cell::pull(z, w, n.relu, s, ds, dz, dw);
      for (int k = 0; k < Cell::kStates; ++k) store(p.d_first + k * states + row * width + unit, ds[k], count);
      for (int k = 0; k < Cell::kGates; ++k) store(p.dz + (at * Cell::kGates + k) * width + unit, dz[k], count);
      for (int k = 0; k < Cell::kWeights; ++k) store(of_row + k * width + unit, dw[k], count);
      for (int k = 0; k < biases; ++k) {
        float* db = of_row + (Cell::kWeights + k) * width + unit;
        store(db, load(db, count) + dz[k], count);
      }
    }
  });
}

// Where the sums begin: the state, which the loop keeps in its results, and its gradient.
template <typename Cell>
void begin(const DiagonalSizes& n, const DiagonalForward<float>& p) {
  std::copy_n(p.first, Cell::kStates * n.batch * n.hidden, p.last);
}

template <typename Cell>
void begin(const DiagonalSizes& n, const DiagonalBackward<float>& p) {
  std::copy_n(p.d_last, Cell::kStates * n.batch * n.hidden, p.d_first);
  std::fill_n(p.dw, n.batch * n.rows * n.hidden, 0.0f);
}

// All of a pass, its rows shared out among threads, or its units where there are fewer rows; false where the arrays are not a
// cell's.
template <typename Pass, typename Schedule>
bool run_pass(int64_t cell, const DiagonalSizes& n, const Pass& p, int64_t threads, const Schedule& schedule) {
  constexpr int64_t kWorthAThread = 1 << 12;  // units times steps
  bool known_so = false;
  const bool known_at_all = with_cell<Vector>(cell, [&](auto known) {
    using Cell = decltype(known);
    if (!(known_so = is_of<Cell>(n))) return;
    begin<Cell>(n, p);
    const int64_t vectors = (n.hidden + kLanes - 1) / kLanes, work = n.time * n.batch * n.hidden / kWorthAThread;
    const bool by_rows = n.batch >= threads;
    const int64_t parts = std::clamp<int64_t>(std::min(work, by_rows ? n.batch : vectors), 1, threads);
    const auto part = [&](int64_t, int i) {
      Share share = {0, n.batch, 0, n.hidden};
      if (by_rows) {
        share.first_row = n.batch * i / parts;
        share.rows = n.batch * (i + 1) / parts - share.first_row;
      } else {
        share.first_unit = vectors * i / parts * kLanes;
        share.units = std::min(vectors * (i + 1) / parts * kLanes, n.hidden) - share.first_unit;
      }
      run<Cell>(n, p, share);
    };
    run_phases({static_cast<int>(parts)}, static_cast<int>(threads), part, schedule);
  });
  return known_at_all && known_so;
}

}  // namespace s2s
