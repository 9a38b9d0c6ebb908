// Matrix products, tile by tile in registers: rows of activations by panels of weights.
//
// A panel is [K][kWidth], contiguous, or kWidth columns of a matrix in place. A tile of up to kAccumulators vectors stays in
// registers while K runs.
#pragma once

#include <algorithm>

#include "simd.h"

namespace s2s {

// The left operand: row m at k = (o, i) is rows[m][o * outer_stride + i], with o < outer and i < inner.
struct Left {
  long outer = 1;
  long outer_stride = 0;
  long inner = 0;
};

// One panel of the right operand, what its tile starts from, and where it goes; rows of `out` are kWidth apart.
struct Panel {
  const float* weights;
  const float* start;
  long start_stride;  // 0: the same for all rows
  float* out;
};

// `ahead` is where the next panels are that this tile has to fetch, `pace` floats at each k: weights that only the last level of
// the cache holds would otherwise hold up the first tile of each panel. In place, rows of weights are `pitch` apart instead.
template <int M, int N, bool kInPlace>
__attribute__((noinline)) void tile(const float* const* rows, Left left, const Panel* panels, long row, long ahead, long pace,
                                    long pitch) {
  const long apart = kInPlace ? pitch : kWidth;
  // With AVX2 one row takes longer with a fetch for every two loads than without, in the L2 and beyond.
  constexpr bool kAhead = !kInPlace && (M > 1 || kLanes != 8);
  Vector sums[M][N][2];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const float* start = panels[n].start + row * panels[n].start_stride;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      sums[m][n][0] = load(start + m * panels[n].start_stride);
      sums[m][n][1] = load(start + m * panels[n].start_stride + kLanes);
    }
  }
  const float* a[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) a[m] = rows[row + m];
  const float* b[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) b[n] = panels[n].weights;
  const float* next[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) next[n] = panels[n].weights + ahead;
  for (long o = 0; o < left.outer; ++o) {
    for (long k = 0; k < left.inner; ++k) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Vector b0 = load(b[n] + k * apart);
        const Vector b1 = load(b[n] + k * apart + kLanes);
        if constexpr (kAhead) __builtin_prefetch(next[n] + k * pace, 0, 2);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const Vector value = splat(a[m][k]);
          sums[m][n][0] += value * b0;
          sums[m][n][1] += value * b1;
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) a[m] += left.outer_stride;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) b[n] += left.inner * apart, next[n] += left.inner * pace;
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      store(panels[n].out + (row + m) * kWidth, sums[m][n][0]);
      store(panels[n].out + (row + m) * kWidth + kLanes, sums[m][n][1]);
    }
  }
}

constexpr int kTileRows = kAccumulators / 2;
constexpr int kInPlaceRows = 4;  // at most: weights that are used for more of them are better arranged

// How many panels a tile of so many rows takes at once: few rows alone would wait for the latency of the additions.
constexpr int panels_at_once(int rows) { return std::clamp(kTileRows / rows, 1, 4); }

template <int M, int N, bool kInPlace>
void tile_of(const float* const* rows, Left left, const Panel* panels, long row, int count, int panel_count, long ahead, long pace,
             long pitch) {
  if constexpr (M > 0) {
    if (count == M) {
      if constexpr (N > 1) {
        if (panel_count < N) {
          return tile_of<M, N - 1, kInPlace>(rows, left, panels, row, count, panel_count, ahead, pace, pitch);
        }
      }
      return tile<M, N, kInPlace>(rows, left, panels, row, ahead, pace, pitch);
    }
    constexpr int fewer = M > 1 ? panels_at_once(M - 1) : 1;
    tile_of<M - 1, fewer, kInPlace>(rows, left, panels, row, count, panel_count, ahead, pace, pitch);
  }
}

// out = start + left * weights for every panel. `beyond`: how many floats further than right behind these panels the next ones are
// that a call like this one will want.
inline void multiply(long row_count, const float* const* rows, Left left, const Panel* panels, long panel_count, long beyond = 0) {
  if (row_count <= 0) return;
  const long tiles = (row_count + kTileRows - 1) / kTileRows;
  const int widest = static_cast<int>((row_count + tiles - 1) / tiles);
  const long size = left.outer * left.inner * kWidth;  // of a panel; the tiles share the fetching of those that lie behind it
  const long pace = std::max<long>(1, kWidth / tiles);
  for (long p = 0; p < panel_count;) {
    const long groups = (panel_count - p + panels_at_once(widest) - 1) / panels_at_once(widest);
    const int at_once = static_cast<int>((panel_count - p + groups - 1) / groups);
    const long ahead = at_once * size + (p + at_once < panel_count ? 0 : beyond);
    for (long t = 0, row = 0; t < tiles; ++t) {
      const int count = static_cast<int>(row_count / tiles + (t < row_count % tiles ? 1 : 0));
      tile_of<kTileRows, 1, false>(rows, left, panels + p, row, count, at_once, ahead + size * t / tiles, pace, 0);
      row += count;
    }
    p += at_once;
  }
}

// The same, of at most kInPlaceRows rows, with weights in place: from one row of them to the next it is `pitch` floats.
inline void multiply_in_place(int row_count, const float* const* rows, Left left, const Panel* panels, int panel_count, long pitch) {
  if (row_count <= 0) return;
  for (int p = 0; p < panel_count;) {
    const int at_once = std::min(panels_at_once(row_count), panel_count - p);
    tile_of<kInPlaceRows, panels_at_once(kInPlaceRows), true>(rows, left, panels + p, 0, row_count, at_once, 0, 0, pitch);
    p += at_once;
  }
}

// A piece of a gradient of weights: out[m] += sum over k of left[k][m] * right[k], with `left` packed as [K][M]. The sum over k is
// formed by itself: each product added to what hundreds of pieces have left in `out` would lose its last digits there.
template <int M>
__attribute__((noinline)) void outer_tile(long depth, const float* left, const float* right, float* out) {
  Vector sums[M][2] = {};
  for (long k = 0; k < depth; ++k) {
    const Vector b0 = load(right + k * kWidth);
    const Vector b1 = load(right + k * kWidth + kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vector value = splat(left[k * M + m]);
      sums[m][0] += value * b0;
      sums[m][1] += value * b1;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    store(out + m * kWidth, load(out + m * kWidth) + sums[m][0]);
    store(out + m * kWidth + kLanes, load(out + m * kWidth + kLanes) + sums[m][1]);
  }
}

template <int M>
void outer_tile_of(int count, long depth, const float* left, const float* right, float* out) {
  if constexpr (M > 0) {
    if (count == M) return outer_tile<M>(depth, left, right, out);
    outer_tile_of<M - 1>(count, depth, left, right, out);
  }
}

// Columns of a packed left operand are in blocks of kTileRows; block m starts at m * kTileRows * depth.
inline void accumulate(long columns, long depth, const float* packed, const float* right, float* out) {
  for (long m = 0; m < columns; m += kTileRows) {
    const long count = columns - m < kTileRows ? columns - m : kTileRows;
    outer_tile_of<kTileRows>(static_cast<int>(count), depth, packed + m * depth, right, out + m * kWidth);
  }
}

// Packs row k of a left operand [depth][columns] for `accumulate`.
inline void pack_row(const float* row, long columns, long depth, long k, float* packed) {
  long m = 0;
  for (; m + kTileRows <= columns; m += kTileRows) {
    __builtin_memcpy(packed + m * depth + k * kTileRows, row + m, kTileRows * sizeof(float));
  }
  for (long i = 0; i < columns - m; ++i) packed[m * depth + k * (columns - m) + i] = row[m + i];
}

}  // namespace s2s
