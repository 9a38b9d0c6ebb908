// Activations on a GPU, by its own instructions, whose errors are some units in the last place: exact division and exponential
// have branches, around which nothing is reordered, and in a recurrence whatever comes next waits for them.
#pragma once

namespace s2s {

__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + __expf(-x)); }

__device__ __forceinline__ float tanh(float x) {
  const float power = __expf(-2.0f * fabsf(x)), square = x * x;
  const float small = x * (1.0f + square * (square * (2.0f / 15.0f) - 1.0f / 3.0f));  // of which 1 - power would keep few digits
  return fabsf(x) < 0.1f ? small : copysignf(__fdividef(1.0f - power, 1.0f + power), x);
}

}  // namespace s2s
