"""From each value to a distribution of the next, and paths drawn step by step (DeepAR: Salinas et al., arXiv 1704.04110)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax import cells
from s2s_jax.data.windows import Window
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.models.forecaster import Sizes
from s2s_jax.types import Cell


class AutoregressiveForecaster(nnx.Module):
    """One recurrent stack over past and future:

        h_t = recurrent([y_t-1; what is known of step t], h_t-1),  raw_t = W h_t + b

    In training y are true values, and every step of the window but the first is predicted; a forecast draws paths.

    Args:
      sizes: see `Sizes`; as many past as future covariates, since what is read of a step must be known ahead.
      hidden_features, cell, num_layers: of the stack.
      dropout: rate between layers and before the output layer.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: covariates that are not known ahead.
    """

    def __init__(
        self,
        sizes: Sizes,
        hidden_features: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if sizes.past_covariates != sizes.future_covariates:
            expected = f"as many as are known ahead, {sizes.future_covariates}"
            raise ValueError(f"past_covariates: expected {expected}, got {sizes.past_covariates}")
        self.sizes = sizes
        self.dropout = Dropout(dropout)
        self.recurrent = Recurrent(
            cell,
            sizes.series + sizes.future_covariates + sizes.static,
            hidden_features,
            num_layers=num_layers,
            dropout=between_layers(dropout, num_layers),
            rngs=rngs,
        )
        self.output = nnx.Linear(self.recurrent.out_features, sizes.series * sizes.features, rngs=rngs)

    def __call__(
        self, window: Window, future: Float[Array, "B H C"], *, training: bool = False, key: Array | None = None
    ) -> Float[Array, "B L+H-1 C P"]:
        """Raw numbers of every step of past and future but the first, given the true values before; a key turns dropout on."""
        self.sizes.check(window)
        if future.shape != (len(window.past), self.sizes.horizon, self.sizes.series):
            expected = [len(window.past), self.sizes.horizon, self.sizes.series]
            raise ValueError(f"future: expected {expected}, got {list(future.shape)}")
        values = jnp.concatenate([window.past, future], axis=1)[:, :-1]
        known = jnp.concatenate([window.past_covariates, window.future_covariates], axis=1)[:, 1:]
        key_recurrent, key_output = split_key(key)
        hidden, _ = self.recurrent(_beside(values, known, window.static), key=key_recurrent)
        return self.sizes.split(self.output(self.dropout(hidden, key=key_output)))

    def paths(
        self, window: Window, draw: Callable[[Array, Array], tuple[Array, Array]], key: Array, *, count: int = 100
    ) -> Float[Array, "S B H C"]:
        """Futures drawn step by step, each from what was drawn before.

        Args:
          window: what is known.
          draw: `(raw [S, B, C, P], key) -> (read, said)`, both [S, B, C]: what the next step reads, in units of `window.past`
            and rounded to its dtype, and what is given back as it is.
          key: of all that is drawn.
          count: S, how many for each row.
        """
        self.sizes.check(window)
        batch_size, _, series = window.past.shape
        _, states = self.recurrent(_beside(window.past[:, :-1], window.past_covariates[:, 1:], window.static))
        states, static = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), (states, window.static))
        last = jnp.concatenate([window.past[:, -1]] * count)

        def advance(carry: tuple[Any, Array], at: tuple[Array, Array]) -> tuple[tuple[Any, Array], Array]:
            states, value = carry
            known, key = at
            joined = jnp.concatenate([value, jnp.concatenate([known] * count), static], axis=-1)
            hidden, states = self.recurrent.step(joined, states)
            raw = self.output(hidden).reshape(count, batch_size, series, self.sizes.features)
            read, said = draw(raw, key)
            return (states, read.astype(value.dtype).reshape(value.shape)), said

        steps = jnp.swapaxes(window.future_covariates, 0, 1), jax.random.split(key, self.sizes.horizon)
        _, drawn = jax.lax.scan(advance, (states, last), steps)
        return drawn.transpose(1, 2, 0, 3)


def _beside(values: Array, known: Array, static: Array) -> Float[Array, "B T D"]:
    repeated = jnp.broadcast_to(static[:, None], (len(static), values.shape[1], static.shape[1]))
    return jnp.concatenate([values, known, repeated], axis=-1)
