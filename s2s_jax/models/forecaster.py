"""From a window of the past to raw numbers of every step ahead at once: encoder and decoder, with attention or without.

What the raw numbers mean is said by a head of `s2s_jax.distributions`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax import attention as attentions
from s2s_jax import cells
from s2s_jax.data.windows import Window
from s2s_jax.layers.attention import Attention
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import BatchNorm, Dropout, GaussianNoise
from s2s_jax.types import Cell


class Sizes(NamedTuple):
    """Of a window and of what is said of it; see `Window`. `features` are the raw numbers of each value."""

    series: int
    horizon: int
    past_covariates: int = 0
    future_covariates: int = 0
    static: int = 0
    features: int = 1

    def check(self, window: Window) -> None:
        """Raises a ValueError where a window is of other sizes."""
        if window.past.ndim != 3:
            raise ValueError(f"past: expected [batch, steps, {self.series}], got {list(window.past.shape)}")
        batch_size, length = window.past.shape[:2]
        if window.past_covariates.ndim == 3 and window.past_covariates.shape[1] != length:  # no size says which is right
            steps = f"{length} and {window.past_covariates.shape[1]}"
            raise ValueError(f"past, past_covariates: expected the same number of steps, got {steps}")
        wanted = (
            (batch_size, length, self.series),
            (batch_size, length, self.past_covariates),
            (batch_size, self.horizon, self.future_covariates),
            (batch_size, self.static),
        )
        for name, shape, leaf in zip(Window._fields, wanted, window, strict=True):
            if leaf.shape != shape:
                raise ValueError(f"{name}: expected {list(shape)}, got {list(leaf.shape)}")

    def split(self, raw: Float[Array, "B T O"]) -> Float[Array, "B T C P"]:
        """What a layer says of each step, by series."""
        return raw.reshape(*raw.shape[:2], self.series, self.features)


def past_of(window: Window) -> Float[Array, "B L D"]:
    """All that is known of each step of the past, side by side."""
    return jnp.concatenate([window.past, window.past_covariates, _repeated(window.static, window.past.shape[1])], axis=-1)


def future_of(window: Window) -> Float[Array, "B H D"]:
    """All that is known of each step ahead, and how far ahead it is, from above 0 to 1."""
    batch_size, horizon, _ = window.future_covariates.shape
    ahead = jnp.broadcast_to((jnp.arange(horizon, dtype=window.past.dtype)[:, None] + 1) / horizon, (batch_size, horizon, 1))
    return jnp.concatenate([window.future_covariates, _repeated(window.static, horizon), ahead], axis=-1)


def _repeated(static: Float[Array, "B S"], times: int) -> Float[Array, "B T S"]:
    return jnp.broadcast_to(static[:, None], (len(static), times, static.shape[1]))


class RepeatVectorForecaster(nnx.Module):
    """The stack of Keras' tutorials: noise, a recurrent layer, its last output at every step ahead, a second layer over these,
    batch norm, and a linear layer for each step.

    What is known ahead, if anything, is set beside what is repeated.

    Args:
      sizes: see `Sizes`.
      hidden_features: width of both layers.
      cell: of both; Keras' is `cells.make_gru(activation="relu")`.
      noise: deviation of the Gaussian noise on what is read in training.
      rngs: key `params` draws the parameters.
    """

    def __init__(
        self,
        sizes: Sizes,
        hidden_features: int,
        *,
        cell: Cell = cells.make_gru(activation="relu"),  # noqa: B008 (the same object for the same options)
        noise: float = 0.01,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        self.sizes = sizes
        self.noise = GaussianNoise(noise)
        self.encoder = Recurrent(cell, sizes.series + sizes.past_covariates + sizes.static, hidden_features, rngs=rngs)
        features = self.encoder.out_features + sizes.future_covariates
        self.decoder = Recurrent(cell, features, hidden_features, rngs=rngs)
        self.norm = BatchNorm(self.decoder.out_features)
        self.output = nnx.Linear(self.decoder.out_features, sizes.series * sizes.features, rngs=rngs)

    def __call__(self, window: Window, *, training: bool = False, key: Array | None = None) -> Float[Array, "B H C P"]:
        """Raw numbers of every step ahead; a key turns noise on, and `training` the statistics of the batch."""
        self.sizes.check(window)
        outputs, _ = self.encoder(self.noise(past_of(window), key=key))
        repeated = _repeated(outputs[:, -1], self.sizes.horizon)
        hidden, _ = self.decoder(jnp.concatenate([repeated, window.future_covariates], axis=-1))
        return self.sizes.split(self.output(self.norm(hidden, training=training)))


class AttentionForecaster(nnx.Module):
    """A recurrent encoder of the past, and a recurrent decoder that reads what is known ahead and looks back by attention.

        h_t = recurrent([what is known of step t; t / H], h_t-1), from the encoder's final states
        raw_t = W_o tanh(W_c [h_t; sum_s alpha_ts m_s])

    No step reads what was said of the one before, so that all of them are made at once, and no error is carried on.

    Args:
      sizes: see `Sizes`.
      hidden_features, cell, num_layers: of encoder and decoder.
      attention: from `s2s_jax.attention`, or your own.
      dropout: rate between layers, on what the attention reads and before the output layer.
      rngs: key `params` draws the parameters.
    """

    def __init__(
        self,
        sizes: Sizes,
        hidden_features: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        attention: attentions.Attention = attentions.additive,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        self.sizes = sizes
        self.dropout = Dropout(dropout)
        stack: dict[str, Any] = {"num_layers": num_layers, "dropout": between_layers(dropout, num_layers), "rngs": rngs}
        known = sizes.series + sizes.past_covariates + sizes.static
        self.encoder = Recurrent(cell, known, hidden_features, **stack)
        self.decoder = Recurrent(cell, sizes.future_covariates + sizes.static + 1, hidden_features, **stack)
        queries, memory = self.decoder.out_features, self.encoder.out_features
        self.attention = Attention(attention, queries, memory, hidden_features, rngs=rngs)
        self.combine = nnx.Linear(queries + self.attention.out_features, hidden_features, rngs=rngs)
        self.output = nnx.Linear(hidden_features, sizes.series * sizes.features, rngs=rngs)

    def __call__(self, window: Window, *, training: bool = False, key: Array | None = None) -> Float[Array, "B H C P"]:
        """Raw numbers of every step ahead; a key turns dropout on. It has no statistics that `training` would turn on."""
        self.sizes.check(window)
        keys = split_key(key, 4)
        outputs, states = self.encoder(past_of(window), key=keys[0])
        memory = self.attention.prepare(self.dropout(outputs, key=keys[1]))
        hidden, _ = self.decoder(future_of(window), states, key=keys[2])
        read = self.attention(memory, hidden).context
        combined = jnp.tanh(self.combine(jnp.concatenate([hidden, read], axis=-1)))
        return self.sizes.split(self.output(self.dropout(combined, key=keys[3])))
