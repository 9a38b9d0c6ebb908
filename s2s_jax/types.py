"""The two protocols that everything else speaks, a cell and a decoder step, and the values that come back."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int

Params = Any  # a NamedTuple of arrays
State = Any  # an array or a NamedTuple of arrays, each with a leading batch axis
Context = Any  # a pytree of arrays with a leading batch axis, constant in time
Inputs = Any  # one array or a pytree of arrays, each [B, T, ...]


class Cell(NamedTuple):
    """A recurrent cell: four pure functions, carried along time by `s2s_jax.unroll`.

    Attributes:
      init: `(key, in_features, hidden_features) -> params`, a NamedTuple of arrays.
      initial_state: `(params, batch_size, dtype) -> state`, an array or a NamedTuple of arrays [B, ...].
      project: `(params, x) -> z`, the part that needs no state; `x` is [B, D], one position of the input.
      step: `(params, state, z, context) -> (state, y)`, the serial part; rows of the batch do not mix. `context` is what
        was given to `unroll`; layers with recurrent dropout give a mask [B, H].
      spec: hashable description that a backend matches on; None for a cell of your own. One whose `linear_by_unit` is True
        promises that each number of a unit's new state is a sum of that unit's numbers (of all leaves of the state, which
        are of one shape), times weights that do not depend on the state, and of what does not either.
    """

    init: Callable[[Array, int, int], Params]
    initial_state: Callable[[Params, int, Any], State]
    project: Callable[[Params, Any], Any]
    step: Callable[[Params, State, Any, Context], tuple[State, Any]]
    spec: Hashable = None


class LSTMState(NamedTuple):
    """Hidden output `h` [B, H] (or [B, P] with a projection) and cell memory `c` [B, H]."""

    h: Float[Array, "B H"]
    c: Float[Array, "B C"]


class Unrolled(NamedTuple):
    """Outputs at every position, [B, T, H] (exactly zero in the padding), and the state after the last valid step."""

    outputs: Any
    state: State


class UnrolledHistory(NamedTuple):
    """As `Unrolled`, with every state in between: each leaf [B, T + 1, ...], the initial state included."""

    outputs: Any
    state: State
    states: State


class DecoderOutput(NamedTuple):
    """State after the step, logits over the vocabulary, and whatever else the decoder tells (attention weights, say)."""

    state: State
    logits: Float[Array, "... V"]
    aux: Any


class DecoderStep(Protocol):
    """One step of a decoder as a pure function; training, greedy, sampling and beam search all call this one."""

    def __call__(self, params: Params, context: Context, state: State, tokens: Int[Array, " B"], /) -> DecoderOutput: ...
