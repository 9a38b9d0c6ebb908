"""Recurrence over segments of a window instead of its points: SegRNN (Lin et al., arXiv 2308.11200)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax import cells
from s2s_jax.data.windows import Window
from s2s_jax.layers.keys import check_rngs
from s2s_jax.layers.parameters import Parameters
from s2s_jax.layers.regularization import Dropout
from s2s_jax.models.forecaster import Sizes
from s2s_jax.recurrence.unroll import unroll
from s2s_jax.types import Cell


class SegmentForecaster(nnx.Module):
    """Each series by itself: its window in segments of W steps, read one after the other; and all segments ahead at once.

        x_s = relu(W_i segment_s + b_i),  h = the state behind the last segment
        raw_m = W_o step(h, [position_m; series_c]) + b_o   for each of the H / W segments ahead

    The segments ahead do not depend on each other: they are one step from the same state, each with the embedding of its place
    and of its series (section 4.2, "PMF"). What the state gives to that step is worked out once for all of them. Nothing but
    the series is read.

    SegRNN also takes the last value off its window and adds it to what it says (section 4.2). That is done outside, as with
    any model: by `loss_of` and `forecast` with `window_scaling="last"`, without which this is another model.

    Embedding, output layer and the embeddings of places and series are drawn as PyTorch draws them, for it is so that SegRNN is
    trained; its cell is `make_gru(kernel_init="uniform", recurrent_init="uniform", bias_init="uniform")`.

    Args:
      sizes: see `Sizes`.
      hidden_features: width of the segments' embedding and of the state; even.
      segment: W steps; the horizon is a multiple of it, and so is every window's length.
      cell: any; its first output is what is decoded.
      dropout: rate before the output layer.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an odd width, or a horizon that is no multiple of the segment.
    """

    def __init__(
        self,
        sizes: Sizes,
        hidden_features: int,
        *,
        segment: int,
        cell: Cell = cells.gru,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if hidden_features < 2 or hidden_features % 2:
            raise ValueError(f"hidden_features: expected an even number, got {hidden_features}")
        if segment < 1 or sizes.horizon % segment:
            raise ValueError(f"segment: expected one that the horizon {sizes.horizon} is a multiple of, got {segment}")
        self.sizes, self.segment, self.cell = sizes, segment, cell
        self.dropout = Dropout(dropout)
        self.embed = _linear(segment, hidden_features, rngs)
        self.parameters = Parameters(cell.init(rngs.params(), hidden_features, hidden_features))
        normal = jax.nn.initializers.normal(1.0)
        ahead = sizes.horizon // segment
        self.positions = nnx.Param(normal(rngs.params(), (ahead, hidden_features // 2), jnp.float32))
        self.series = nnx.Param(normal(rngs.params(), (sizes.series, hidden_features // 2), jnp.float32))
        out_features = jax.eval_shape(
            lambda: unroll(cell, self.parameters(), jnp.zeros((1, 1, hidden_features))).outputs
        ).shape[-1]
        self.output = _linear(out_features, segment * sizes.features, rngs)

    def __call__(self, window: Window, *, training: bool = False, key: Array | None = None) -> Float[Array, "B H C P"]:
        """Raw numbers of every step ahead; a key turns dropout on.

        Raises:
          ValueError: a window whose length is no multiple of the segment.
        """
        self.sizes.check(window)
        batch_size, length, series = window.past.shape
        if length % self.segment or not length:
            raise ValueError(f"past: expected a length that is a multiple of the segment {self.segment}, got {length}")
        params, dtype = self.parameters(), window.past.dtype
        segments = jnp.swapaxes(window.past, 1, 2).reshape(batch_size * series, length // self.segment, self.segment)
        _, state = unroll(self.cell, params, jax.nn.relu(self.embed(segments)))
        ahead = len(self.positions[...])
        places = jnp.concatenate(
            [
                jnp.broadcast_to(self.positions[...], (series, ahead, self.positions.shape[1])),
                jnp.broadcast_to(self.series[...][:, None], (series, ahead, self.series.shape[1])),
            ],
            axis=-1,
        ).astype(dtype)
        # [C, M, ...] to [M, B * C, ...]: the same for each row of the batch.
        asked = jax.vmap(functools.partial(self.cell.project, params))(places)
        asked = jax.tree.map(lambda z: _for_each_row(z, batch_size), asked)
        _, said = jax.vmap(lambda z: self.cell.step(params, state, z, None))(asked)
        raw = self.output(self.dropout(said.astype(dtype), key=key))
        raw = raw.reshape(ahead, batch_size, series, self.segment, self.sizes.features)
        return raw.transpose(1, 0, 3, 2, 4).reshape(batch_size, self.sizes.horizon, series, self.sizes.features)


def _linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Weights and biases uniform within ±1 / sqrt(in_features)."""
    limit = in_features**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return nnx.Linear(in_features, out_features, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def _for_each_row(z: Float[Array, "C M *Z"], batch_size: int) -> Float[Array, "M BC *Z"]:
    z = jnp.swapaxes(z, 0, 1)
    return jnp.broadcast_to(z[:, None], (len(z), batch_size, *z.shape[1:])).reshape(
        len(z), batch_size * z.shape[1], *z.shape[2:]
    )
