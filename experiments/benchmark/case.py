"""What is measured: a recurrent layer of one cell and shape, its weights and inputs, and how much arithmetic it is."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from s2s_jax import cells

COMMON = ("lstm", "gru", "rnn")  # that every library has
_BY_NAME: dict[Any, Any] = cells.BY_NAME
CELLS: dict[str, Any] = {name: _BY_NAME[name] for name in dict.fromkeys((*COMMON, *_BY_NAME))}
PARTS = ("forward", "forward+grad")

# As in the tables that recurrent layers are usually judged by: two large, pixels, tiny, one row, few rows.
SMALL = (
    (64, 50, 512, 512),
    (64, 128, 128, 256),
    (128, 784, 1, 128),
    (32, 64, 32, 64),
    (1, 200, 256, 256),
    (8, 200, 128, 512),
)
# Where the best backend is another one: hardly a step, or very many.
SHORT_AND_LONG = (
    (1, 1, 256, 256),
    (4, 1, 128, 128),
    (64, 1, 512, 512),
    (32, 2, 128, 128),
    (8, 2, 1024, 1024),
    (16, 1024, 256, 256),
    (1, 4096, 128, 128),
)
COMPARED = (64, 128, 128, 256)  # where RNN, LSTM and GRU are set beside each other
STACK = (32, 200, 256, 256)
STREAM = (1, 200, 256, 256)  # so many steps, one in each call


class Kind(NamedTuple):
    """How many layers, whether in both directions, whether over sequences whose mean length is half of T; and in words."""

    layers: int = 1
    both: bool = False
    ragged: bool = False
    words: str = ""


KINDS = {
    "layer": Kind(),
    "stack": Kind(2, True, True, ", 2 layers, 2 directions, lengths T to 1"),
    "streaming": Kind(words=", streaming"),  # T calls of one step each, the state handed on from one to the next
    "both": Kind(both=True, words=", 2 directions"),
    "ragged": Kind(ragged=True, words=", lengths T to 1"),
    "deep": Kind(4, words=", 4 layers"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell at one shape (B, T, D, H); `kind` is one of `KINDS`."""

    cell: str
    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    kind: str = "layer"

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS[:1] if self.kind == "streaming" else PARTS

    @property
    def common(self) -> bool:
        return self.cell in COMMON

    @property
    def layers(self) -> int:
        return KINDS[self.kind].layers

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if KINDS[self.kind].both else ("forward",)

    @property
    def lengths(self) -> np.ndarray | None:
        """Longest first, which is how PyTorch packs them without sorting."""
        batch, time, _, _ = self.shape
        return np.linspace(time, 1, batch).round().astype(np.int32) if KINDS[self.kind].ragged else None

    @property
    def prepared(self) -> int:
        """How many inputs to go round among, so that no call finds the last one's in the cache; two where they are large."""
        batch, time, features, hidden = self.shape
        return 3 if batch * time * max(features, hidden) <= 2**24 else 2

    def params(self, inner_bias: bool = True) -> tuple[tuple[Any, ...], ...]:
        """Weights [layer][direction] as NumPy arrays in our NamedTuples, float32; no bias is zero, but b_n on demand."""
        hidden = self.shape[3]
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> np.ndarray:
            return (rng.uniform(-1, 1, shape) / math.sqrt(hidden)).astype(np.float32)

        def one(number: int, width: int) -> Any:
            cell = CELLS[self.cell]
            if not self.common:  # as they begin: not any number is a decay
                drawn = jax.tree.map(np.asarray, cell.init(jax.random.key(number), width, hidden))
                return drawn._replace(b=draw(*drawn.b.shape)) if hasattr(drawn, "b") else drawn
            gates = cell.spec.gates
            w, u, b = draw(width, gates * hidden), draw(hidden, gates * hidden), draw(gates * hidden)
            return params_of(self.cell, w, u, b, draw(hidden) * inner_bias)

        return tuple(tuple(one(number, width) for number in range(len(self.directions))) for width in self._widths)

    @property
    def _widths(self) -> list[int]:
        """Of each layer's input."""
        return [self.shape[2], *[self.shape[3] * len(self.directions)] * (self.layers - 1)]

    def inputs(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k-th input [B, T, D] and the gradient [B, T, directions·H] that comes back to its outputs, float32."""
        batch, time, features, hidden = self.shape
        rng = np.random.default_rng(k + 1)
        # Uniform on (-1, 1): drawing normal numbers would take longer than the slow peers do.
        xs = rng.random((batch, time, features), np.float32) * 2 - 1
        return xs, rng.random((batch, time, hidden * len(self.directions)), np.float32) * 2 - 1

    def operations(self, part: str) -> float:
        """Floating-point operations of the products: 2 for each weight and step, and twice that again for the gradients."""
        batch, time, _, hidden = self.shape
        steps = batch * time if self.lengths is None else int(self.lengths.sum())

        def weights(width: int) -> int:
            drawn = jax.eval_shape(lambda: CELLS[self.cell].init(jax.random.key(0), width, hidden))
            return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(drawn) if len(leaf.shape) == 2)

        forward = 2.0 * steps * sum(map(weights, self._widths)) * len(self.directions)
        return forward * (3 if part == "forward+grad" else 1)


def params_of(cell: str, w: Any, u: Any, b: Any, b_n: Any = None) -> Any:
    """The parameters of a common cell, or their gradients; `b_n` is for the GRU alone, and None where a peer has none."""
    if cell == "gru":
        return cells.GRUParams(w, u, b, b_n)
    return (cells.LSTMParams if cell == "lstm" else cells.RNNParams)(w, u, b)


def grid(
    name: str,
    dtype: str,
    chosen_cells: tuple[str, ...],
    shapes: tuple[tuple[int, int, int, int], ...] = (),
    kinds: tuple[str, ...] = (),
) -> list[Case]:
    """The cases of a grid, or those of the shapes or kinds given; RNN only where the three cells are compared."""
    kinds = kinds or (("layer", "stack", "streaming") if name == "full" and not shapes else ("layer",))
    layers = list(SMALL)
    if name == "full":
        layers += [(b, t, h, h) for t in (50, 200, 784) for h in (64, 128, 256, 512) for b in (1, 8, 32, 128)]
        layers += SHORT_AND_LONG
    of_kind = {"layer": layers, "stack": [STACK], "streaming": [STREAM]}
    chosen = [(shape, kind) for kind in kinds for shape in dict.fromkeys(shapes or of_kind[kind])]
    cases = [Case(cell, shape, dtype, kind) for shape, kind in chosen for cell in chosen_cells]
    return [c for c in cases if c.cell != "rnn" or shapes or (c.shape, c.kind) == (COMPARED, "layer")]
