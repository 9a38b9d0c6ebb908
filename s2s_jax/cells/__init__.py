"""Recurrent cells as pure functions, and the cached factories that make their variants.

The factories return the same object for the same options, so that nothing that is jitted over a cell is traced twice.
"""

from typing import Any, Literal

from s2s_jax.cells.gated import Activation as Activation
from s2s_jax.cells.gated import GRUParams as GRUParams
from s2s_jax.cells.gated import GRUSpec as GRUSpec
from s2s_jax.cells.gated import LSTMParams as LSTMParams
from s2s_jax.cells.gated import LSTMSpec as LSTMSpec
from s2s_jax.cells.gated import RNNParams as RNNParams
from s2s_jax.cells.gated import RNNSpec as RNNSpec
from s2s_jax.cells.gated import gru as gru
from s2s_jax.cells.gated import lstm as lstm
from s2s_jax.cells.gated import make_gru as make_gru
from s2s_jax.cells.gated import make_lstm as make_lstm
from s2s_jax.cells.gated import make_rnn as make_rnn
from s2s_jax.cells.gated import rnn as rnn
from s2s_jax.cells.linear import LRUParams as LRUParams
from s2s_jax.cells.linear import LRUSpec as LRUSpec
from s2s_jax.cells.linear import LRUState as LRUState
from s2s_jax.cells.linear import MinGRUParams as MinGRUParams
from s2s_jax.cells.linear import MinGRUSpec as MinGRUSpec
from s2s_jax.cells.linear import MinLSTMParams as MinLSTMParams
from s2s_jax.cells.linear import MinLSTMSpec as MinLSTMSpec
from s2s_jax.cells.linear import lru as lru
from s2s_jax.cells.linear import make_lru as make_lru
from s2s_jax.cells.linear import make_min_gru as make_min_gru
from s2s_jax.cells.linear import make_min_lstm as make_min_lstm
from s2s_jax.cells.linear import min_gru as min_gru
from s2s_jax.cells.linear import min_lstm as min_lstm
from s2s_jax.cells.parameters import Initializer as Initializer
from s2s_jax.types import Cell as Cell
from s2s_jax.types import LSTMState as LSTMState


def is_built_in(spec: Any) -> bool:
    """Whether it is the spec of a cell made here, whose parameters and inputs are known; not of a cell of one's own."""
    return isinstance(spec, RNNSpec | LSTMSpec | GRUSpec | MinGRUSpec | MinLSTMSpec | LRUSpec)


Name = Literal["rnn", "lstm", "gru", "diagonal_lstm", "diagonal_gru", "min_gru", "min_lstm", "lru"]
BY_NAME: dict[Name, Cell] = {  # for those who choose by a flag
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "diagonal_lstm": make_lstm(recurrence="diagonal"),
    "diagonal_gru": make_gru(recurrence="diagonal"),
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "lru": lru,
}
