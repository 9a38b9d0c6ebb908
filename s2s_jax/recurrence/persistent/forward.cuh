// A layer along time: from the projected inputs z [T, B, gates * H] to outputs, last state, and what the way back needs.

#pragma once

#include "layer.cuh"

namespace s2s {

template <typename Element>
struct ForwardChain {
  const float* z;       // [T, B, gates * H], biases included; of a layer above another the biases alone, [gates * H]
  const Element* w;     // of a layer above another: [H, gates * H]
  const Element* u;     // [H, gates * H]
  const float* b_n;     // GRU: [H], or null
  const float* h_0;     // [B, H]
  const float* c_0;     // LSTM: [B, H]
  Element* y;           // [T, B, H]
  float* h_last;        // [B, H]
  float* c_last;        // LSTM: [B, H]
  Element* saved;       // [T, B, kSaved * H], or null where no way back follows
  float* c;             // LSTM, with `saved`: [T, B, H] after each step
  int reverse;
};

// What a unit is before it is activated, in and around: one number for each gate.
template <typename Cell>
struct Gates {
  float recurrent[Cell::kGates];
  float z[Cell::kGates];
};

// New state from the old one; what is saved of it.
__device__ inline void step(RNN, const Gates<RNN>& in, float, int relu, float& h, float&, float (&)[1]) {
  h = activated(in.z[0] + in.recurrent[0], relu);
}

__device__ inline void step(LSTM, const Gates<LSTM>& in, float, int relu, float& h, float& c, float (&saved)[4]) {
  const float i = sigmoid(in.z[0] + in.recurrent[0]), f = sigmoid(in.z[1] + in.recurrent[1]);
  const float g = activated(in.z[2] + in.recurrent[2], relu), o = sigmoid(in.z[3] + in.recurrent[3]);
  c = f * c + i * g;
  h = o * activated(c, relu);
  saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
}

__device__ inline void step(GRU, const Gates<GRU>& in, float b_n, int relu, float& h, float&, float (&saved)[4]) {
  const float r = sigmoid(in.z[0] + in.recurrent[0]), update = sigmoid(in.z[1] + in.recurrent[1]);
  const float inner = in.recurrent[2] + b_n, n = activated(in.z[2] + r * inner, relu);
  h = (1.0f - update) * n + update * h;
  saved[0] = r, saved[1] = update, saved[2] = n, saved[3] = inner;
}

// Numbers of the state in a thread, and a product that leaves registers for them; `_held` of plan.py has the same numbers.
template <typename Cell, int kRowTiles, int kBatchTiles>
constexpr int kForwardMost = ceil_div(16 * kRowTiles / Cell::kParts * 8 * kBatchTiles, kThreads);
template <typename Cell, typename Element, int kRowTiles, int kBatchTiles>
using ForwardProduct = Product<Element, kRowTiles, kBatchTiles,
                               (Cell::kStacked ? 136 : 186) -
                                   (8 + 2 * Cell::kGates) * kForwardMost<Cell, kRowTiles, kBatchTiles>>;

template <typename Cell, typename Element, int kRowTiles, int kBatchTiles>
__global__ void __launch_bounds__(kThreads, 1) forward(const Arguments<Cell, ForwardChain<Element>> a) {
  using Step = ForwardProduct<Cell, Element, kRowTiles, kBatchTiles>;
  using Kind = typename Cell::Kind;
  constexpr int kGates = Cell::kGates, kSaved = Cell::kSaved;
  constexpr int kMost = kForwardMost<Cell, kRowTiles, kBatchTiles>;
  const Sizes& n = a.sizes;
  const ForwardChain<Element>& d = a.chains[blockIdx.z];
  const int first_unit = int(blockIdx.x) * n.units;
  const bool above = Cell::kStacked && blockIdx.z > 0;  // another layer, whose output this one reads

  // Row of the weights: part * units + unit.
  Step product(ceil_div(n.hidden, kChunk<Element>), 1, n.units, above ? 2 : 1);
  const Element* weights = Cell::kStacked && product.of_other() ? d.w : d.u;
  product.load([&](int row, int chunk, int element) {
    const int part = row / n.units, unit = first_unit + row % n.units, from = chunk * kChunk<Element> + element;
    const int gate = gate_of<Cell>(part, product.of_other());
    const bool there = (part < Cell::kParts) & (gate >= 0) & (unit < n.hidden) & (from < n.hidden);
    return only_if(there, weights + size_t(from) * kGates * n.hidden + size_t(gate) * n.hidden + unit);
  });
  const int read_team = Cell::kStacked && product.of_other() ? team_of(int(blockIdx.z) - 1) : team();

  const int steps = longest(n, a.lengths, Step::kBatch);
  Place places[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) places[i] = Place(n, a.lengths, Step::kBatch, threadIdx.x + i * kThreads);
  float h[kMost], c[kMost], b_n[kMost], z[kMost][kGates];
  const auto position = [&](int s) { return d.reverse ? steps - 1 - s : s; };
  const auto ask_for = [&](int s, float (&z)[kMost][kGates]) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        const bool there = s < steps && position(s) < p.length;
        z[i][gate] = there ? d.z[above ? gate * n.hidden + p.unit : p.at(n, position(s), kGates, gate)] : 0.0f;
      }
    }
  };
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const Place& p = places[i];
    const size_t at = p.mine ? p.at(n, 0, 1, 0) : 0;
    h[i] = p.mine ? d.h_0[at] : 0.0f;
    c[i] = p.mine && Cell::kMemory ? d.c_0[at] : 0.0f;
    b_n[i] = p.mine && d.b_n != nullptr ? d.b_n[p.unit] : 0.0f;
    if (p.mine) *place<Element>(a.exchange.buffer(team(), 0), Step::kBatch, 1, 0, p.unit, p.row) = operand<Element>(h[i]);
  }
  ask_for(0, z);
  a.exchange.publish(0);

  for (int s = 0; s < steps; ++s) {
    float next[kMost][kGates], saved[kMost][kSaved > 0 ? kSaved : 1];
    ask_for(s + 1, next);  // a step ahead: it comes from far
    product.run(a.exchange, read_team, Cell::kStacked && product.of_other() ? s + 1 : s);
    __syncthreads();
    const int t = position(s);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
      if (t < p.length) {
        Gates<Kind> in;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          in.recurrent[gate] = product.sum(gate * n.units + p.local, p.row);
          in.z[gate] = z[i][gate];
        }
        if (Cell::kParts > kGates) in.z[kGates - 1] += product.sum(kGates * n.units + p.local, p.row);
        step(Kind(), in, b_n[i], n.relu, h[i], c[i], saved[i]);
      }
      if (p.mine) {
        *place<Element>(a.exchange.buffer(team(), s + 1), Step::kBatch, 1, 0, p.unit, p.row) = operand<Element>(h[i]);
      }
    }
    a.exchange.publish(s + 1);
    // What nobody waits for.
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const Place& p = places[i];
      if (p.mine) {
        const bool valid = t < p.length;
        d.y[p.at(n, t, 1, 0)] = from_float<Element>(valid ? h[i] : 0.0f);
        if (kSaved > 0 && d.saved != nullptr) {
#pragma unroll
          for (int k = 0; k < kSaved; ++k) d.saved[p.at(n, t, kSaved, k)] = from_float<Element>(valid ? saved[i][k] : 0.0f);
          if (Cell::kMemory) d.c[p.at(n, t, 1, 0)] = valid ? c[i] : 0.0f;
        }
      }
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) z[i][gate] = next[i][gate];
    }
  }

#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    const Place& p = places[i];
    if (!p.mine) continue;
    d.h_last[p.at(n, 0, 1, 0)] = h[i];
    if (Cell::kMemory) d.c_last[p.at(n, 0, 1, 0)] = c[i];
    for (int t = steps; t < n.time; ++t) {  // where every row of the tile is padded
      d.y[p.at(n, t, 1, 0)] = from_float<Element>(0.0f);
      if (kSaved > 0 && d.saved != nullptr) {
        for (int k = 0; k < kSaved; ++k) d.saved[p.at(n, t, kSaved, k)] = from_float<Element>(0.0f);
        if (Cell::kMemory) d.c[p.at(n, t, 1, 0)] = 0.0f;
      }
    }
  }
}

}  // namespace s2s
