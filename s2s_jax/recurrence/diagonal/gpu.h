// What the calls of XLA ask of the kernels.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "pass.h"

namespace s2s {

// Starts a pass on the stream. Returns why it cannot.
template <typename Element>
std::string start(int64_t cell, const DiagonalSizes& n, const DiagonalForward<Element>& pass, cudaStream_t stream);
template <typename Element>
std::string start(int64_t cell, const DiagonalSizes& n, const DiagonalBackward<Element>& pass, cudaStream_t stream);

}  // namespace s2s
