"""Recurrent sequence models in JAX: cells carried along time by one function, decoding, and thin Flax modules over them."""

from s2s_jax import cells as cells
from s2s_jax.recurrence import explain_backend as explain_backend
from s2s_jax.recurrence import unroll as unroll
from s2s_jax.recurrence import unroll_in_parallel as unroll_in_parallel
from s2s_jax.recurrence import unroll_stack as unroll_stack
from s2s_jax.recurrence import unroll_with_history as unroll_with_history
from s2s_jax.types import Cell as Cell
from s2s_jax.types import DecoderOutput as DecoderOutput
from s2s_jax.types import DecoderStep as DecoderStep
from s2s_jax.types import LSTMState as LSTMState
from s2s_jax.types import Unrolled as Unrolled
from s2s_jax.types import UnrolledHistory as UnrolledHistory
