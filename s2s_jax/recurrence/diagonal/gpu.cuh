// The loops over time on a GPU: a thread for each unit of each row. What they wait for is memory, so that each thread reads some
// steps ahead of the one that it computes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../activations.cuh"
#include "pass.h"

#define S2S_UNIT __device__ __forceinline__

namespace s2s {

S2S_UNIT float relu(float x) { return x < 0.0f ? 0.0f : x; }
S2S_UNIT float step_function(float x) { return x > 0.0f ? 1.0f : 0.0f; }
S2S_UNIT float least(float a, float b) { return a < b ? a : b; }
S2S_UNIT float finite(float x) { return x < -1e30f ? -1e30f : x > 1e30f ? 1e30f : x; }
S2S_UNIT float power_of_e(float x) { return __expf(x); }
S2S_UNIT void two_sigmoids(float& a, float& b) { a = sigmoid(a), b = sigmoid(b); }
S2S_UNIT void sigmoid_and_tanh(float& a, float& b) { a = sigmoid(a), b = tanh(b); }

}  // namespace s2s

#include "cells.h"

namespace s2s {

constexpr int kThreads = 64;  // few, so that the blocks of a middling layer are on all multiprocessors
// Numbers that a thread reads ahead. A multiprocessor of an H200 has to have some 25 KB on their way (4.8 TB/s over 132 of them,
// 0.7 microseconds each), which is 50 float32 for each thread where there are 2^14 units in all.
constexpr int kAhead = 40;

S2S_UNIT float to_float(float x) { return x; }
S2S_UNIT float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
S2S_UNIT float to_float(__half x) { return __half2float(x); }
S2S_UNIT void put(float* at, float x) { *at = x; }
S2S_UNIT void put(__nv_bfloat16* at, float x) { *at = __float2bfloat16(x); }
S2S_UNIT void put(__half* at, float x) { *at = __float2half(x); }

// Which unit of which row a thread has.
struct Place {
  int64_t row, unit, states;  // `states`: numbers of one state of all rows
  int64_t valid;              // steps of the row
  bool exists;

  S2S_UNIT static Place of_thread(const DiagonalSizes& n, const int32_t* lengths) {
    const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    Place place = {at / n.hidden, at % n.hidden, n.batch * n.hidden, n.time, at < n.batch * n.hidden};
    if (place.exists && lengths) place.valid = max(int64_t(0), min(int64_t(lengths[place.row]), n.time));
    return place;
  }

  // Of number k of `count` at step t of a sequence [T, B, count * H].
  S2S_UNIT int64_t at(const DiagonalSizes& n, int64_t t, int k, int count) const {
    return ((t * n.batch + row) * count + k) * n.hidden + unit;
  }
  S2S_UNIT int64_t of_state(const DiagonalSizes& n, int k) const { return k * states + row * n.hidden + unit; }
};

template <typename Pass>
struct Arguments {
  DiagonalSizes n;
  Pass p;
};

// A unit's own numbers, and zeros for biases that there are not.
template <typename Cell>
S2S_UNIT void load_weights(const DiagonalSizes& n, const float* w, const Place& place, float (&own)[Cell::kWeights + 1],
                           float (&biases)[Cell::kGates]) {
#pragma unroll
  for (int k = 0; k < Cell::kWeights; ++k) own[k] = w[k * n.hidden + place.unit];
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) biases[k] = n.rows > Cell::kWeights ? w[(Cell::kWeights + k) * n.hidden + place.unit] : 0;
}

// Chunks of steps 0 to `valid` in turns: one is read while the one before it is computed. `read(into, from, whole)` and
// `compute(of, from, whole)` get a chunk's numbers, its first step, and whether all of its steps are there.
template <int kSteps, typename Chunk, typename Read, typename Compute>
S2S_UNIT void in_turns(int64_t valid, const Read& read, const Compute& compute) {
  Chunk even, odd;
  int64_t from = 0;
  if (valid >= 2 * kSteps) {
    read(even, 0, std::true_type());
    for (; from + 3 * kSteps <= valid; from += 2 * kSteps) {
      read(odd, from + kSteps, std::true_type());
      compute(even, from, std::true_type());
      read(even, from + 2 * kSteps, std::true_type());
      compute(odd, from + kSteps, std::true_type());
    }
    compute(even, from, std::true_type());
    from += kSteps;
  }
  for (; from < valid; from += kSteps) {
    read(odd, from, std::false_type());
    compute(odd, from, std::false_type());
  }
}

template <typename Cell, typename Element>
__global__ void __launch_bounds__(kThreads) forward(Arguments<DiagonalForward<Element>> a) {
  constexpr int kGates = Cell::kGates, kOutputs = Cell::kOutputs, kSteps = kAhead / kGates;
  struct Chunk {
    float z[kSteps][kGates];
  };
  const DiagonalSizes& n = a.n;
  const Place place = Place::of_thread(n, a.p.lengths);
  if (!place.exists) return;
  float s[Cell::kStates], w[Cell::kWeights + 1], biases[kGates];
  load_weights<Cell>(n, a.p.w, place, w, biases);
#pragma unroll
  for (int k = 0; k < Cell::kStates; ++k) s[k] = a.p.first[place.of_state(n, k)];

  // Where the first step stands, and how far it is from one to the next.
  const int64_t start = n.reverse ? place.valid - 1 : 0, step = n.reverse ? -place.states : place.states;
  const float* z = a.p.z + place.at(n, start, 0, kGates);
  Element* y = a.p.y + place.at(n, start, 0, kOutputs);
  float* c = Cell::kStates > kOutputs && a.p.c ? a.p.c + place.at(n, start, 0, 1) : nullptr;
  const auto read = [&](Chunk& into, int64_t from, auto whole) {
    const float* at = z + from * step * kGates;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int k = 0; k < kGates; ++k) {
        if (decltype(whole)::value || from + i < place.valid) into.z[i][k] = at[i * step * kGates + k * n.hidden];
      }
    }
  };
  const auto compute = [&](Chunk& of, int64_t from, auto whole) {
    Element* at = y + from * step * kOutputs;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (!decltype(whole)::value && from + i >= place.valid) break;
#pragma unroll
      for (int k = 0; k < kGates; ++k) of.z[i][k] += biases[k];
      Cell::step(of.z[i], w, n.relu, s);
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) put(at + i * step * kOutputs + k * n.hidden, s[k]);
      if (c) c[(from + i) * step] = s[Cell::kStates - 1];
    }
  };
  in_turns<kSteps, Chunk>(place.valid, read, compute);
  for (int64_t t = place.valid; t < n.time; ++t) {
    for (int k = 0; k < kOutputs; ++k) put(a.p.y + place.at(n, t, k, kOutputs), 0.0f);
  }
#pragma unroll
  for (int k = 0; k < Cell::kStates; ++k) a.p.last[place.of_state(n, k)] = s[k];
}

template <typename Cell, typename Element>
__global__ void __launch_bounds__(kThreads) backward(Arguments<DiagonalBackward<Element>> a) {
  constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kOutputs = Cell::kOutputs;
  constexpr int kRead = kStates + kOutputs + (Cell::kPullReadsZ ? kGates : 0), kSteps = kAhead / kRead;
  struct Chunk {  // as it is in memory: to convert a number is to wait for it
    float z[kSteps][kGates], c[kSteps];
    Element y[kSteps][kOutputs], dy[kSteps][kOutputs];
  };
  const DiagonalSizes& n = a.n;
  const Place place = Place::of_thread(n, a.p.lengths);
  if (!place.exists) return;
  float first[kStates], ds[kStates], w[Cell::kWeights + 1], dw[Cell::kWeights + 1] = {}, biases[kGates], db[kGates] = {};
  load_weights<Cell>(n, a.p.w, place, w, biases);
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    first[k] = a.p.first[place.of_state(n, k)];
    ds[k] = a.p.d_last[place.of_state(n, k)];
  }

  // From the step that was last on; the state before a step is that after the one which is next here.
  const int64_t start = n.reverse ? 0 : place.valid - 1, step = n.reverse ? place.states : -place.states;
  const int64_t gates_at = place.at(n, start, 0, kGates), outputs_at = place.at(n, start, 0, kOutputs);
  const auto read = [&](Chunk& into, int64_t from, auto whole) {
    const int64_t gates = gates_at + from * step * kGates, outputs = outputs_at + from * step * kOutputs;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (decltype(whole)::value || from + i < place.valid) {
#pragma unroll
        for (int k = 0; k < kGates && Cell::kPullReadsZ; ++k) into.z[i][k] = a.p.z[gates + i * step * kGates + k * n.hidden];
#pragma unroll
        for (int k = 0; k < kOutputs; ++k) into.dy[i][k] = a.p.dy[outputs + i * step * kOutputs + k * n.hidden];
      }
      if (from + i + 1 < place.valid) {
#pragma unroll
        for (int k = 0; k < kOutputs; ++k) into.y[i][k] = a.p.y[outputs + (i + 1) * step * kOutputs + k * n.hidden];
        if (kStates > kOutputs) into.c[i] = a.p.c[place.at(n, start, 0, 1) + (from + i + 1) * step];
      }
    }
  };
  const auto compute = [&](Chunk& of, int64_t from, auto whole) {
    Element* at = a.p.dz + gates_at + from * step * kGates;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (!decltype(whole)::value && from + i >= place.valid) break;
      const bool begins = from + i + 1 == place.valid;
      float z[kGates] = {}, dz[kGates], s[kStates];
#pragma unroll
      for (int k = 0; k < kGates && Cell::kPullReadsZ; ++k) z[k] = of.z[i][k] + biases[k];
#pragma unroll
      for (int k = 0; k < kStates; ++k) s[k] = begins ? first[k] : k < kOutputs ? to_float(of.y[i][k % kOutputs]) : of.c[i];
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) ds[k] += to_float(of.dy[i][k]);
      Cell::pull(z, w, n.relu, s, ds, dz, dw);
#pragma unroll
      for (int k = 0; k < kGates; ++k) {
        put(at + i * step * kGates + k * n.hidden, dz[k]);
        db[k] += dz[k];
      }
    }
  };
  in_turns<kSteps, Chunk>(place.valid, read, compute);
  for (int64_t t = place.valid; t < n.time; ++t) {
    for (int k = 0; k < kGates; ++k) put(a.p.dz + place.at(n, t, k, kGates), 0.0f);
  }
  float* of_row = a.p.dw + place.row * n.rows * n.hidden + place.unit;
#pragma unroll
  for (int k = 0; k < kStates; ++k) a.p.d_first[place.of_state(n, k)] = ds[k];
#pragma unroll
  for (int k = 0; k < Cell::kWeights; ++k) of_row[k * n.hidden] = dw[k];
#pragma unroll
  for (int k = 0; k < kGates; ++k) {
    if (n.rows > Cell::kWeights) of_row[(Cell::kWeights + k) * n.hidden] = db[k];
  }
}

}  // namespace s2s
