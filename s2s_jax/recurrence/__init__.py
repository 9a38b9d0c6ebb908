"""Carrying cells along time."""

from s2s_jax.recurrence.parallel import Newton as Newton
from s2s_jax.recurrence.stack import unroll_stack as unroll_stack
from s2s_jax.recurrence.unroll import explain_backend as explain_backend
from s2s_jax.recurrence.unroll import unroll as unroll
from s2s_jax.recurrence.unroll import unroll_in_parallel as unroll_in_parallel
from s2s_jax.recurrence.unroll import unroll_with_history as unroll_with_history
