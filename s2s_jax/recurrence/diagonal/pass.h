// What a call is about: sizes, and where the arrays are; float32 but for outputs and gradients of sequences, which are narrow
// where the products before and after are.
#pragma once

#include <cstdint>

namespace s2s {

// `rows` of w: the cell's kWeights, and kGates more where it has biases, which are added to z. Of gates, outputs and states as
// many as the arrays have.
struct DiagonalSizes {
  int64_t time, batch, hidden, rows, gates, outputs, states;
  bool relu, reverse;
};

template <typename Element>
struct DiagonalForward {
  const int32_t* lengths;  // [B], or null
  const float* z;          // [T, B, gates * H]
  const float* w;          // [rows, H]
  const float* first;      // [states, B, H]
  Element* y;              // [T, B, outputs * H], zero behind the lengths
  float* last;             // [states, B, H]
  float* c;                // [T, B, H], the state after a step that is not put out; null where nobody asks, or there is none
};

template <typename Element>
struct DiagonalBackward {
  const int32_t* lengths;
  const float *z, *w, *first;  // z null where the cell does not read it
  const Element* y;
  const float* c;
  const Element* dy;       // [T, B, outputs * H]
  const float* d_last;     // [states, B, H]
  Element* dz;             // [T, B, gates * H], zero behind the lengths
  float *d_first, *dw;     // [states, B, H], and [B, rows, H]
};

}  // namespace s2s
