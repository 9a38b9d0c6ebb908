// The way back along time: from the gradients of outputs and last state to those of z, and of the first state.
//
// The vector that the blocks exchange is the gradient of each gate's recurrent part, `hidden` for each of them. The gradient of
// the weights is made of z's and of the states by whoever calls, in one product over all steps.

#pragma once

#include "layer.cuh"

namespace s2s {

template <typename Element>
struct BackwardChain {
  const Element* w;      // of the layer above this one, where there is one: [H, gates * H]
  const Element* u;      // [H, gates * H]
  const float* h_0;      // [B, H]
  const float* c_0;      // LSTM: [B, H]
  const Element* y;      // [T, B, H]
  const Element* saved;  // [T, B, kSaved * H]
  const float* c;        // LSTM: [T, B, H]
  const Element* dy;     // [T, B, H], or null where only the layer above reads y
  const float* dh_last;  // [B, H]
  const float* dc_last;  // LSTM: [B, H]
  Element* dz;           // [T, B, gates * H]
  float* dh_0;           // [B, H]
  float* dc_0;           // LSTM: [B, H]
  int reverse;
};

// What a step back reads of one unit.
template <typename Cell>
struct Read {
  float dy, y, before;  // `before`: c of the LSTM before the step, h of the GRU
  float saved[Cell::kSaved > 0 ? Cell::kSaved : 1];
};

// The same as it is in memory: to convert a number is to wait for it.
template <typename Cell, typename Element>
struct Asked {
  Element dy, y, saved[Cell::kSaved > 0 ? Cell::kSaved : 1];  // `y`: after the step of the RNN, before that of the GRU
  float state;  // LSTM: c before the step; GRU: h before the first step

  __device__ Read<Cell> read(bool first) const {
    Read<Cell> read = {to_float(dy), to_float(y), Cell::kMemory || first ? state : to_float(y)};
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) read.saved[k] = to_float(saved[k]);
    return read;
  }
};

// What it makes: gradients of z, and of what the weights multiply; they differ in the GRU.
template <typename Cell>
struct Made {
  float dz[Cell::kGates], recurrent[Cell::kGates];
};

// `dh` and `dc` come as the gradients of the state after the step, and leave as those of the state before it, without what
// comes by way of the weights. `c` comes and leaves likewise: as the way there had it, for the saved gates are rounded.
__device__ inline Made<RNN> step_back(RNN, const Read<RNN>& in, int relu, float& dh, float&, float&) {
  const float dz = dh * slope(in.y, relu);
  dh = 0.0f;
  return {{dz}, {dz}};
}

__device__ inline Made<LSTM> step_back(LSTM, const Read<LSTM>& in, int relu, float& dh, float& dc, float& c) {
  const float i = in.saved[0], f = in.saved[1], g = in.saved[2], o = in.saved[3];
  const float shown = activated(c, relu);
  dc += dh * o * slope(shown, relu);
  const float di = dc * g * i * (1.0f - i), df = dc * in.before * f * (1.0f - f);
  const float dg = dc * i * slope(g, relu), d_o = dh * shown * o * (1.0f - o);
  dh = 0.0f, dc *= f, c = in.before;
  return {{di, df, dg, d_o}, {di, df, dg, d_o}};
}

__device__ inline Made<GRU> step_back(GRU, const Read<GRU>& in, int relu, float& dh, float&, float&) {
  const float r = in.saved[0], update = in.saved[1], n = in.saved[2], inner = in.saved[3];
  const float dn = dh * (1.0f - update) * slope(n, relu), d_update = dh * (in.before - n) * update * (1.0f - update);
  const float dr = dn * inner * r * (1.0f - r);
  dh *= update;
  return {{dr, d_update, dn}, {dr, d_update, dn * r}};
}

// Numbers of the state in a thread, and a product that leaves registers for them; `_held` of plan.py has the same numbers.
template <int kRowTiles, int kBatchTiles>
constexpr int kBackwardMost = ceil_div(16 * kRowTiles * 8 * kBatchTiles, kThreads);
template <typename Cell, typename Element, int kRowTiles, int kBatchTiles>
using BackwardProduct = Product<Element, kRowTiles, kBatchTiles,
                                (Cell::kStacked ? 172 : 194) - 24 * kBackwardMost<kRowTiles, kBatchTiles>>;

template <typename Cell, typename Element, int kRowTiles, int kBatchTiles>
__global__ void __launch_bounds__(kThreads, 1) backward(const Arguments<Cell, BackwardChain<Element>> a) {
  using Step = BackwardProduct<Cell, Element, kRowTiles, kBatchTiles>;
  using Kind = typename Cell::Kind;
  constexpr int kGates = Cell::kGates, kParts = Cell::kParts, kSaved = Cell::kSaved;
  constexpr int kMost = kBackwardMost<kRowTiles, kBatchTiles>;
  const Sizes& n = a.sizes;
  const BackwardChain<Element>& d = a.chains[blockIdx.z];
  const int first_unit = int(blockIdx.x) * n.units;
  const bool below = Cell::kStacked && blockIdx.z + 1 < gridDim.z;  // another layer, which reads the output of this one

  // Row of the weights: a unit, whose state the gates of all units read.
  Step product(ceil_div(n.hidden, kChunk<Element>) * kParts, kParts, n.units, below ? 2 : 1);
  const Element* weights = Cell::kStacked && product.of_other() ? d.w : d.u;
  product.load([&](int row, int chunk, int element) {
    const int unit = first_unit + row, by = chunk / kParts * kChunk<Element> + element;
    const int gate = gate_of<Cell>(chunk % kParts, product.of_other());
    const bool there = (gate >= 0) & (row < n.units) & (unit < n.hidden) & (by < n.hidden);
    return only_if(there, weights + size_t(unit) * kGates * n.hidden + size_t(gate) * n.hidden + by);
  });
  const int read_team = Cell::kStacked && product.of_other() ? team_of(int(blockIdx.z) + 1) : team();

  const int steps = longest(n, a.lengths, Step::kBatch);
  Place places[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) places[i] = Place(n, a.lengths, Step::kBatch, threadIdx.x + i * kThreads);
  // The steps of the way there from the last to the first.
  const auto position = [&](int s) { return d.reverse ? s : steps - 1 - s; };
  const auto before = [&](int t) { return d.reverse ? t + 1 : t - 1; };
  const auto is_first = [&](const Place& p, int t) { return before(t) < 0 || before(t) >= p.length; };
  const auto ask_for = [&](int s, Asked<Kind, Element> (&asked)[kMost]) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
      asked[i] = Asked<Kind, Element>{};
      const int t = position(s);
      if (s >= steps || t >= p.length) continue;
      if (!Cell::kStacked || d.dy != nullptr) asked[i].dy = d.dy[p.at(n, t, 1, 0)];
      if (kSaved == 0) asked[i].y = d.y[p.at(n, t, 1, 0)];
#pragma unroll
      for (int k = 0; k < kSaved; ++k) asked[i].saved[k] = d.saved[p.at(n, t, kSaved, k)];
      if (Cell::kMemory) {
        asked[i].state = is_first(p, t) ? d.c_0[p.at(n, 0, 1, 0)] : d.c[p.at(n, before(t), 1, 0)];
      } else if (kSaved > 0 && is_first(p, t)) {
        asked[i].state = d.h_0[p.at(n, 0, 1, 0)];
      } else if (kSaved > 0) {
        asked[i].y = d.y[p.at(n, before(t), 1, 0)];
      }
    }
  };
  float dh[kMost], dc[kMost], c[kMost];
  Asked<Kind, Element> asked[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const Place& p = places[i];
    dh[i] = p.mine ? d.dh_last[p.at(n, 0, 1, 0)] : 0.0f;
    dc[i] = p.mine && Cell::kMemory ? d.dc_last[p.at(n, 0, 1, 0)] : 0.0f;
    c[i] = p.length > 0 && Cell::kMemory ? d.c[p.at(n, d.reverse ? 0 : p.length - 1, 1, 0)] : 0.0f;
  }
  ask_for(0, asked);
  a.exchange.publish(0);  // of zeros: nothing comes from behind the last step

  for (int s = 0; s < steps; ++s) {
    Asked<Kind, Element> next[kMost];
    Made<Kind> made[kMost];
    ask_for(s + 1, next);  // a step ahead: it comes from far
    product.run(a.exchange, read_team, Cell::kStacked && product.of_other() ? s + 1 : s);
    __syncthreads();
    const int t = position(s);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
      made[i] = Made<Kind>{};
      if (!p.mine) continue;
      dh[i] += product.sum(p.local, p.row);
      if (t < p.length) {
        const Read<Kind> read = asked[i].read(is_first(p, t));
        dh[i] += read.dy;
        made[i] = step_back(Kind(), read, n.relu, dh[i], dc[i], c[i]);
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float of_part = part < kGates ? made[i].recurrent[part] : made[i].dz[kGates - 1];
        *place<Element>(a.exchange.buffer(team(), s + 1), Step::kBatch, kParts, part, p.unit, p.row) = operand<Element>(of_part);
      }
    }
    a.exchange.publish(s + 1);
    // What nobody waits for.
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
      if (p.mine) {
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) d.dz[p.at(n, t, kGates, gate)] = from_float<Element>(made[i].dz[gate]);
      }
      asked[i] = next[i];
    }
  }

  product.run(a.exchange, read_team, steps, !(Cell::kStacked && product.of_other()));
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const Place& p = places[i];
    if (!p.mine) continue;
    d.dh_0[p.at(n, 0, 1, 0)] = dh[i] + product.sum(p.local, p.row);
    if (Cell::kMemory) d.dc_0[p.at(n, 0, 1, 0)] = dc[i];
    for (int t = steps; t < n.time; ++t) {  // where every row of the tile is padded
      for (int gate = 0; gate < kGates; ++gate) d.dz[p.at(n, t, kGates, gate)] = from_float<Element>(0.0f);
    }
  }
}

}  // namespace s2s
