// The steps of cells whose units do not read each other, for one unit, and their transposes.
//
// `Number` is a float, or a vector of them with one unit in each lane. Whoever includes this has defined for it, in namespace
// s2s: `sigmoid`, `tanh`, `relu`, `step_function`, `reciprocal`, `least` of two, `finite`, `power_of_e` of what is not
// positive, and two functions at once, in place, which may share a division: `two_sigmoids(a, b)` and `sigmoid_and_tanh(a, b)`;
// where one of two is NaN so may be the other. S2S_UNIT says where functions run.
//
// A cell has kGates numbers z at each step, of the input alone; kWeights parameters w; kStates numbers s, of which the first
// kOutputs are put out. `step` makes s of after it out of s of before it. `pull` takes z, w, s of before it, and gradients ds of
// s after it; it leaves those of s before it in ds and those of z in dz, and adds those of w to dw. Where kPullReadsZ is false it
// does not look at z, and there need not be one.
#pragma once

#include "pass.h"

namespace s2s {

template <typename Number>
struct Activation {
  S2S_UNIT static Number of(Number x, bool relu_and_not_tanh) { return relu_and_not_tanh ? relu(x) : tanh(x); }
  // The derivative, by the value.
  S2S_UNIT static Number slope(Number y, bool relu_and_not_tanh) {
    return relu_and_not_tanh ? step_function(y) : Number{} + 1.0f - y * y;
  }
};

template <typename Number>
struct Rnn : Activation<Number> {
  static constexpr int kGates = 1, kWeights = 1, kStates = 1, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;
  using A = Activation<Number>;

  S2S_UNIT static void step(const Number* z, const Number* w, bool relu, Number* s) { s[0] = A::of(z[0] + w[0] * s[0], relu); }

  S2S_UNIT static void pull(const Number* z, const Number* w, bool relu, const Number* s, Number* ds, Number* dz, Number* dw) {
    dz[0] = ds[0] * A::slope(A::of(z[0] + w[0] * s[0], relu), relu);
    dw[0] = dw[0] + dz[0] * s[0];
    ds[0] = dz[0] * w[0];
  }
};

// s: h, c. z and w: i, f, g, o.
template <typename Number>
struct Lstm : Activation<Number> {
  static constexpr int kGates = 4, kWeights = 4, kStates = 2, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;
  using A = Activation<Number>;

  S2S_UNIT static void gates(const Number* z, const Number* w, bool relu, const Number* s, Number* a) {
    for (int k = 0; k < 4; ++k) a[k] = z[k] + w[k] * s[0];
    a[1] = sigmoid(a[1]), a[3] = sigmoid(a[3]);  // whose NaN is not to reach c
    if (relu) {
      a[0] = sigmoid(a[0]), a[2] = A::of(a[2], true);
    } else {
      sigmoid_and_tanh(a[0], a[2]);
    }
  }

  S2S_UNIT static void step(const Number* z, const Number* w, bool relu, Number* s) {
    Number a[4];
    gates(z, w, relu, s, a);
    s[1] = a[1] * s[1] + a[0] * a[2];
    s[0] = a[3] * A::of(s[1], relu);
  }

  S2S_UNIT static void pull(const Number* z, const Number* w, bool relu, const Number* s, Number* ds, Number* dz, Number* dw) {
    Number a[4];
    gates(z, w, relu, s, a);
    const Number i = a[0], f = a[1], g = a[2], o = a[3];
    const Number shown = A::of(f * s[1] + i * g, relu);
    const Number dc = ds[1] + ds[0] * o * A::slope(shown, relu);
    dz[0] = dc * g * i * (Number{} + 1.0f - i);
    dz[1] = dc * s[1] * f * (Number{} + 1.0f - f);
    dz[2] = dc * i * A::slope(g, relu);
    dz[3] = ds[0] * shown * o * (Number{} + 1.0f - o);
    Number dh = Number{};
    for (int k = 0; k < 4; ++k) {
      dh = dh + dz[k] * w[k];
      dw[k] = dw[k] + dz[k] * s[0];
    }
    ds[0] = dh, ds[1] = dc * f;
  }
};

// z: r, update, n; w: the same, and the bias of n's product where the reset gate acts after it.
template <typename Number>
struct GruAfter : Activation<Number> {
  static constexpr int kGates = 3, kWeights = 4, kStates = 1, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;
  using A = Activation<Number>;

  S2S_UNIT static void gates(const Number* z, const Number* w, bool relu, Number h, Number& r, Number& update, Number& inner,
                             Number& n) {
    r = z[0] + w[0] * h, update = z[1] + w[1] * h;
    two_sigmoids(r, update);
    inner = w[2] * h + w[3];
    n = A::of(z[2] + r * inner, relu);
  }

  S2S_UNIT static void step(const Number* z, const Number* w, bool relu, Number* s) {
    Number r, update, inner, n;
    gates(z, w, relu, s[0], r, update, inner, n);
    s[0] = (Number{} + 1.0f - update) * n + update * s[0];
  }

  S2S_UNIT static void pull(const Number* z, const Number* w, bool relu, const Number* s, Number* ds, Number* dz, Number* dw) {
    Number r, update, inner, n;
    gates(z, w, relu, s[0], r, update, inner, n);
    dz[2] = ds[0] * (Number{} + 1.0f - update) * A::slope(n, relu);
    dz[1] = ds[0] * (s[0] - n) * update * (Number{} + 1.0f - update);
    dz[0] = dz[2] * inner * r * (Number{} + 1.0f - r);
    const Number d_inner = dz[2] * r;
    ds[0] = ds[0] * update + dz[0] * w[0] + dz[1] * w[1] + d_inner * w[2];
    dw[0] = dw[0] + dz[0] * s[0], dw[1] = dw[1] + dz[1] * s[0];
    dw[2] = dw[2] + d_inner * s[0], dw[3] = dw[3] + d_inner;
  }
};

template <typename Number>
struct GruBefore : Activation<Number> {
  static constexpr int kGates = 3, kWeights = 3, kStates = 1, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;
  using A = Activation<Number>;

  S2S_UNIT static void gates(const Number* z, const Number* w, bool relu, Number h, Number& r, Number& update, Number& n) {
    r = z[0] + w[0] * h, update = z[1] + w[1] * h;
    two_sigmoids(r, update);
    n = A::of(z[2] + w[2] * (r * h), relu);
  }

  S2S_UNIT static void step(const Number* z, const Number* w, bool relu, Number* s) {
    Number r, update, n;
    gates(z, w, relu, s[0], r, update, n);
    s[0] = (Number{} + 1.0f - update) * n + update * s[0];
  }

  S2S_UNIT static void pull(const Number* z, const Number* w, bool relu, const Number* s, Number* ds, Number* dz, Number* dw) {
    Number r, update, n;
    gates(z, w, relu, s[0], r, update, n);
    dz[2] = ds[0] * (Number{} + 1.0f - update) * A::slope(n, relu);
    dz[1] = ds[0] * (s[0] - n) * update * (Number{} + 1.0f - update);
    const Number d_reset = dz[2] * w[2];  // of r * h
    dz[0] = d_reset * s[0] * r * (Number{} + 1.0f - r);
    ds[0] = ds[0] * update + d_reset * r + dz[0] * w[0] + dz[1] * w[1];
    dw[0] = dw[0] + dz[0] * s[0], dw[1] = dw[1] + dz[1] * s[0], dw[2] = dw[2] + dz[2] * (r * s[0]);
  }
};

// z: the gate, n.
template <typename Number>
struct MinGru {
  static constexpr int kGates = 2, kWeights = 0, kStates = 1, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;

  S2S_UNIT static void step(const Number* z, const Number*, bool, Number* s) {
    const Number share = sigmoid(z[0]);
    s[0] = (Number{} + 1.0f - share) * s[0] + share * z[1];
  }

  S2S_UNIT static void pull(const Number* z, const Number*, bool, const Number* s, Number* ds, Number* dz, Number*) {
    const Number share = sigmoid(z[0]), keep = Number{} + 1.0f - share;
    dz[0] = ds[0] * (z[1] - s[0]) * share * keep;
    dz[1] = ds[0] * share;
    ds[0] = ds[0] * keep;
  }
};

// z: i, f, g. The share that stays is s(f) / (s(f) + s(i)) = (1 + e^-i) / (1 + e^-i + 1 + e^-f); top and bottom times e^m, where
// m is the least of i, f and 0, no power overflows and they are never both 0, however far the gates are shut.
template <typename Number>
struct MinLstm {
  static constexpr int kGates = 3, kWeights = 0, kStates = 1, kOutputs = 1;
  static constexpr bool kPullReadsZ = true;

  // What stays and what comes, which sum to 1, and the parts of them that move with i and with f.
  struct Shares {
    Number stays, comes, by_i, by_f;
  };

  S2S_UNIT static Shares shares(const Number* z) {
    const Number of_i = finite(z[0]), of_f = finite(z[1]), m = least(least(of_i, of_f), Number{});
    const Number one = power_of_e(m), i = power_of_e(m - of_i), f = power_of_e(m - of_f);
    const Number inverse = reciprocal(one + i + one + f);
    return {(one + i) * inverse, (one + f) * inverse, i * inverse, f * inverse};
  }

  S2S_UNIT static void step(const Number* z, const Number*, bool, Number* s) {
    const Shares of = shares(z);
    s[0] = of.stays * s[0] + of.comes * z[2];
  }

  S2S_UNIT static void pull(const Number* z, const Number*, bool, const Number* s, Number* ds, Number* dz, Number*) {
    const Shares of = shares(z);
    const Number d_stays = ds[0] * (s[0] - z[2]);
    dz[0] = Number{} - d_stays * of.comes * of.by_i;
    dz[1] = d_stays * of.stays * of.by_f;
    dz[2] = ds[0] * of.comes;
    ds[0] = ds[0] * of.stays;
  }
};

// A complex number, multiplied by w at each step; z and s: real and imaginary parts.
template <typename Number>
struct Lru {
  static constexpr int kGates = 2, kWeights = 2, kStates = 2, kOutputs = 2;
  static constexpr bool kPullReadsZ = false;

  S2S_UNIT static void step(const Number* z, const Number* w, bool, Number* s) {
    const Number re = w[0] * s[0] - w[1] * s[1] + z[0];
    s[1] = w[0] * s[1] + w[1] * s[0] + z[1];
    s[0] = re;
  }

  S2S_UNIT static void pull(const Number*, const Number* w, bool, const Number* s, Number* ds, Number* dz, Number* dw) {
    dz[0] = ds[0], dz[1] = ds[1];
    dw[0] = dw[0] + dz[0] * s[0] + dz[1] * s[1];
    dw[1] = dw[1] + dz[1] * s[0] - dz[0] * s[1];
    ds[0] = w[0] * dz[0] + w[1] * dz[1];
    ds[1] = w[0] * dz[1] - w[1] * dz[0];
  }
};

// Whether arrays of those sizes are a cell's.
template <typename Cell>
bool is_of(const DiagonalSizes& n) {
  return n.gates == Cell::kGates && n.outputs == Cell::kOutputs && n.states == Cell::kStates &&
         (n.rows == Cell::kWeights || n.rows == Cell::kWeights + Cell::kGates);
}

// Calls `with(Cell<Number>{})` for the cell of that number; __init__.py has the same numbers.
template <typename Number, typename With>
bool with_cell(int64_t number, const With& with) {
  switch (number) {
    case 0: return with(Rnn<Number>{}), true;
    case 1: return with(Lstm<Number>{}), true;
    case 2: return with(GruAfter<Number>{}), true;
    case 3: return with(GruBefore<Number>{}), true;
    case 4: return with(MinGru<Number>{}), true;
    case 5: return with(MinLstm<Number>{}), true;
    case 6: return with(Lru<Number>{}), true;
    default: return false;
  }
}

}  // namespace s2s
