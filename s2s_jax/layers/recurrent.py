"""Recurrent layers as Flax NNX modules: thin, over `s2s_jax.unroll_stack`.

A dropout key is an argument of the call: with a key the layer drops, without one it does not (evaluation).
"""

import warnings
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import check_key, check_rngs
from s2s_jax.layers.parameters import Parameters
from s2s_jax.recurrence.choice import Choice, check_how
from s2s_jax.recurrence.scan import cast_floating, check_step
from s2s_jax.recurrence.stack import MERGES, unroll_stack
from s2s_jax.recurrence.unroll import explain_backend
from s2s_jax.types import Cell, Inputs, Params, State, Unrolled


class RecurrentOptions(TypedDict, total=False):
    """The options of `Recurrent` that `RNN`, `LSTM` and `GRU` hand on."""

    num_layers: int
    bidirectional: bool
    reverse: bool
    merge: str
    residual: bool
    dropout: float
    input_dropout: float
    recurrent_dropout: float
    remat: int | None
    backend: str
    param_dtype: Any


def between_layers(dropout: float, num_layers: int) -> float:
    """The rate that `Recurrent` takes where a model has one for other places too: none where there is nothing between."""
    return dropout if num_layers > 1 else 0.0


class Recurrent(nnx.Module):
    """Any cell, in any number of layers, in one or both directions.

    Args:
      cell: from `s2s_jax.cells`, or your own.
      in_features, hidden_features: D and H.
      num_layers: how many layers; each reads the one below.
      bidirectional: a forward and a backward cell in each layer, merged by `merge`; see `s2s_jax.unroll_stack`.
      reverse: the backward direction alone. Not together with `bidirectional`.
      merge: "concat", "sum", "mean", "product" or "none".
      residual: adds a layer's input to its output, from the second layer on.
      dropout: rate on the outputs of each layer but the last, drawn anew at each position. With one layer it does nothing,
        and there is a warning.
      input_dropout: rate on the inputs of each layer, one mask for all time steps (variational: arXiv 1512.05287).
      recurrent_dropout: rate on the recurrent state where it enters a matrix product, one mask for all time steps. A cell
        of your own gets that mask as `context`, [B, width of the first array of its state], and has to apply it itself.
      remat, backend: see `s2s_jax.unroll`.
      param_dtype: dtype of the parameters. The dtype of the computation is that of the input.
      rngs: key `params` draws the parameters.

    Raises:
      TypeError: `cell` is no Cell, or `rngs` no `nnx.Rngs`.
      ValueError: an option out of its range.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        hidden_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        reverse: bool = False,
        merge: str = "concat",
        residual: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        remat: int | None = None,
        backend: str = "auto",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not isinstance(cell, Cell):  # before its init is called
            raise TypeError(f"cell: expected a Cell such as s2s_jax.cells.lstm, got {cell!r}")
        check_rngs(rngs)
        for name, value in (("in_features", in_features), ("hidden_features", hidden_features), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        for name, rate in (("dropout", dropout), ("input_dropout", input_dropout), ("recurrent_dropout", recurrent_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: expected a rate in [0, 1), got {rate}")
        if merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(MERGES)}, got {merge!r}")
        if bidirectional and reverse:
            raise ValueError("reverse: expected False with bidirectional=True, which runs backward too")
        check_how(backend, remat)
        if dropout and num_layers == 1:
            message = f"dropout: acts between layers, and there is one: at a rate of {dropout} nothing is dropped"
            warnings.warn(message, stacklevel=2)
        self.cell = cell
        self.directions = ("forward", "backward") if bidirectional else ("backward",) if reverse else ("forward",)
        self.merge = merge
        self.residual = residual
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.recurrent_dropout = recurrent_dropout
        self.remat = remat
        self.backend = backend

        layers = []
        features = in_features
        self.in_features = []
        for _ in range(num_layers):
            params = [cell.init(rngs.params(), features, hidden_features) for _ in self.directions]
            params = [cast_floating(p, param_dtype) for p in params]
            layers.append(nnx.List(Parameters(p) for p in params))
            self.in_features.append(features)
            self.step_features = _output_features(cell, params[0], features)
            features = self.step_features * (2 if bidirectional and merge == "concat" else 1)
        self.in_features = tuple(self.in_features)
        self.hidden_features = hidden_features
        self.out_features = features
        self.layers = nnx.List(layers)

    def __repr__(self) -> str:
        told = {
            "in_features": self.in_features[0],
            "hidden_features": self.hidden_features,
            "num_layers": len(self.in_features),
            "directions": self.directions,
        }
        return f"{type(self).__name__}(cell={_named(self.cell)}, {', '.join(f'{name}={it}' for name, it in told.items())})"

    def params(self) -> list[list[Params]]:
        """What `unroll_stack` takes: indexed by layer, then by direction."""
        return [[parameters() for parameters in layer] for layer in self.layers]

    def __call__(
        self,
        xs: Float[Array, "B T D"],
        states: Any = None,
        *,
        lengths: Int[Array, " B"] | None = None,
        key: Array | None = None,
    ) -> Unrolled:
        """Runs the stack over `xs`.

        Args:
          xs: [B, T, D].
          states: initial states, indexed by layer, then by direction, as returned; None for the cell's own.
          lengths: valid steps of each row; see `s2s_jax.unroll`.
          key: draws the dropout masks; without it nothing is dropped.

        Raises:
          TypeError: `key` is no key of JAX; and as `s2s_jax.unroll_stack`.
          ValueError: as `s2s_jax.unroll_stack`.

        Returns:
          `Unrolled(outputs, state)`: the outputs of the last layer [B, T, out_features] ([B, T, 2, H] with merge "none"),
          and `state[layer][direction]`.
        """
        masks, contexts = self._dropout_masks(xs, key)
        return unroll_stack(
            self.cell,
            self.params(),
            xs,
            states,
            lengths=lengths,
            contexts=contexts,
            dropout_masks=masks,
            directions=self.directions,
            merge=self.merge,
            residual=self.residual,
            remat=self.remat,
            backend=self.backend,
        )

    def step(self, x: Float[Array, "B D"], states: Any = None) -> Unrolled:
        """One step of the sequence, for streaming: `x` and the outputs are [B, ...], states as in a call.

        Raises:
          ValueError: the layer runs backward, which needs the whole sequence.
        """
        if self.directions != ("forward",):
            raise ValueError(f"step: expected a layer that runs forward only, got directions {self.directions}")
        done = self(jax.tree.map(lambda leaf: leaf[:, None], x), states)
        return Unrolled(jax.tree.map(lambda leaf: leaf[:, 0], done.outputs), done.state)

    def initial_states(self, batch_size: int, dtype: Any = jnp.float32) -> tuple[tuple[State, ...], ...]:
        """The states that a call without `states` on inputs of `dtype` starts from; in float32 if that is narrower."""
        dtype = jnp.promote_types(dtype, jnp.float32)
        return tuple(tuple(self.cell.initial_state(p, batch_size, dtype) for p in layer) for layer in self.params())

    def _dropout_masks(self, xs: Inputs, key: Array | None) -> tuple[Any, Any]:
        check_key(key)
        if key is None or not (self.dropout or self.input_dropout or self.recurrent_dropout):
            return None, None
        shape = jnp.shape(xs)
        if len(shape) != 3 or shape[-1] != self.in_features[0]:
            raise ValueError(f"xs: expected [B, T, {self.in_features[0]}], got {shape}")
        batch_size, time, _ = shape
        params = self.params()
        masks: list[Array | None] = []
        contexts: list[list[Array | None]] = []
        for layer, features in enumerate(self.in_features):
            *direction_keys, key, key_between, key_inputs = jax.random.split(key, 3 + len(self.directions))
            mask = None
            if self.dropout and layer > 0:
                mask = dropout_mask(key_between, self.dropout, (batch_size, time, features))
            if self.input_dropout:
                constant = dropout_mask(key_inputs, self.input_dropout, (batch_size, 1, features))
                mask = constant if mask is None else mask * constant
            masks.append(mask)
            contexts.append(
                [self._recurrent_mask(k, p, batch_size) for k, p in zip(direction_keys, params[layer], strict=True)]
            )
        return masks, contexts

    def _recurrent_mask(self, key: Array, params: Params, batch_size: int) -> Array | None:
        if not self.recurrent_dropout:
            return None
        state = jax.eval_shape(lambda params: self.cell.initial_state(params, batch_size, jnp.float32), params)
        return dropout_mask(key, self.recurrent_dropout, (batch_size, jax.tree.leaves(state)[0].shape[-1]))


@explain_backend.register
def _explain_layer(
    layer: Recurrent,
    xs: Float[Array, "B T D"],
    states: Any = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    key: Array | None = None,
) -> tuple[Choice, ...]:
    """`s2s_jax.explain_backend(layer, xs)`: the choice for each of its layers; arguments as of a call of the layer."""
    _, contexts = layer._dropout_masks(xs, key)
    found = []
    for k, (params, features) in enumerate(zip(layer.params(), layer.in_features, strict=True)):
        given: Any = xs if k == 0 else jax.ShapeDtypeStruct((*jnp.shape(xs)[:2], features), xs.dtype)
        found.append(
            explain_backend(
                layer.cell,
                params[0],  # both directions are alike in all that the choice looks at
                given,
                None if states is None else states[k][0],
                lengths=lengths,
                context=None if contexts is None else contexts[k][0],
                reverse=layer.directions[0] == "backward",
                remat=layer.remat,
                backend=layer.backend,
            )
        )
    return tuple(found)


class RNN(Recurrent):
    """Simple recurrent layer, `h' = activation(x w + h u + b)`; options as in `Recurrent` and `s2s_jax.cells.make_rnn`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation: cells.Activation = "tanh",
        bias: bool = True,
        recurrence: str = "dense",
        kernel_init: cells.Initializer = "glorot_uniform",
        recurrent_init: cells.Initializer = "orthogonal",
        bias_init: cells.Initializer = "zeros",
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        cell = cells.make_rnn(
            activation=activation,
            bias=bias,
            recurrence=recurrence,
            kernel_init=kernel_init,
            recurrent_init=recurrent_init,
            bias_init=bias_init,
        )
        super().__init__(cell, in_features, hidden_features, rngs=rngs, **options)


class LSTM(Recurrent):
    """Long short-term memory; options as in `Recurrent` and `s2s_jax.cells.make_lstm`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        projection: int | None = None,
        peepholes: bool = False,
        layer_norm: bool = False,
        activation: cells.Activation = "tanh",
        bias: bool = True,
        forget_bias: float = 1.0,
        recurrence: str = "dense",
        memory: int | None = None,
        kernel_init: cells.Initializer = "glorot_uniform",
        recurrent_init: cells.Initializer = "orthogonal",
        bias_init: cells.Initializer = "zeros",
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        cell = cells.make_lstm(
            projection=projection,
            peepholes=peepholes,
            layer_norm=layer_norm,
            activation=activation,
            bias=bias,
            forget_bias=forget_bias,
            recurrence=recurrence,
            memory=memory,
            kernel_init=kernel_init,
            recurrent_init=recurrent_init,
            bias_init=bias_init,
        )
        super().__init__(cell, in_features, hidden_features, rngs=rngs, **options)


class GRU(Recurrent):
    """Gated recurrent unit; options as in `Recurrent` and `s2s_jax.cells.make_gru`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        reset: str = "after",
        activation: cells.Activation = "tanh",
        bias: bool = True,
        recurrence: str = "dense",
        memory: int | None = None,
        kernel_init: cells.Initializer = "glorot_uniform",
        recurrent_init: cells.Initializer = "orthogonal",
        bias_init: cells.Initializer = "zeros",
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        cell = cells.make_gru(
            reset=reset,
            activation=activation,
            bias=bias,
            recurrence=recurrence,
            memory=memory,
            kernel_init=kernel_init,
            recurrent_init=recurrent_init,
            bias_init=bias_init,
        )
        super().__init__(cell, in_features, hidden_features, rngs=rngs, **options)


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """0 with probability `rate`, else 1 / (1 - rate), so that the mean stays; in float32 at least, as bfloat16 rounds that."""
    return jax.random.bernoulli(key, 1 - rate, shape).astype(jnp.promote_types(dtype, jnp.float32)) / (1 - rate)


def _output_features(cell: Cell, params: Params, in_features: int) -> int:
    """How wide the outputs of a cell are: its own business, so it is asked."""

    def outputs(params: Params, x: Array) -> Any:
        state = cell.initial_state(params, 1, x.dtype)
        return check_step(cell.step(params, state, cell.project(params, x), None), state)[1]

    y = jax.eval_shape(outputs, params, jax.ShapeDtypeStruct((1, in_features), jnp.float32))
    if jax.tree.structure(y) != jax.tree.structure(0) or y.ndim != 2:
        raise ValueError(f"cell.step: expected one array y [B, H] in a layer, got {y}")
    return y.shape[-1]


def _named(cell: Cell) -> str:
    """A cell of this package by its name, and by what it has other than the plain one; any other by its step."""
    spec: Any = cell.spec
    if not cells.is_built_in(spec):
        return getattr(cell.step, "__qualname__", repr(cell.step))
    options = [f"{field}={value!r}" for field, value in spec._asdict().items() if value != spec._field_defaults[field]]
    return f"{spec.name}({', '.join(options)})" if options else spec.name
