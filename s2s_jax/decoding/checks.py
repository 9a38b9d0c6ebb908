"""What the searches demand of their arguments."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from s2s_jax.decoding.constraints import Prefixes
from s2s_jax.masks import check_ids, check_lengths, length_mask
from s2s_jax.types import Context, DecoderOutput, DecoderStep, Params, State


class Symbols(NamedTuple):
    """What is fixed when a search is compiled."""

    start: int
    end: int
    pad: int
    time: int  # steps at most, and width of what comes back
    dtype: Any  # of the scores


def check_rows(context: Context, state: State) -> int:
    """B, the leading axis that every leaf of state and context must have."""
    leaves = jax.tree.leaves(state)
    if not leaves:
        raise ValueError("state: expected arrays with a leading batch axis, got none")
    rows = np.shape(leaves[0])[:1]  # of a scalar none, which is then the first to be refused
    for name, tree, hint in (("state", state, ""), ("context", context, "; what rows share is for params")):
        for path, leaf in jax.tree.leaves_with_path(tree):
            shape = np.shape(leaf)
            if not shape or shape[:1] != rows:
                expected = f"[{rows[0] if rows else 'B'}, ...]"
                raise ValueError(f"{name}{jax.tree_util.keystr(path)}: expected {expected}, got {shape}{hint}")
    return rows[0]


def check_step(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    batch_size: int,
    start: int,
    end: int,
    time: int,
    pad: int,
) -> tuple[Symbols, DecoderOutput]:
    """What is fixed when the search is compiled, and the shapes that a step gives."""
    start, end, pad = map(operator.index, (start, end, pad))
    first = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    given = jax.eval_shape(step, params, context, state, first)
    if not isinstance(given, tuple | list) or len(given) != len(DecoderOutput._fields):
        what = f"{len(given)} values" if isinstance(given, tuple | list) else type(given).__name__
        raise ValueError(f"step: expected the three values {', '.join(DecoderOutput._fields)}, got {what}; aux may be ()")
    output = DecoderOutput(*given)
    shapes, expected = (jax.tree.map(np.shape, tree) for tree in (output.state, state))
    if shapes != expected:
        raise ValueError(f"step: expected the state first, of shapes {expected}, got {shapes}")
    for (path, new), old in zip(
        jax.tree.leaves_with_path(output.state), jax.tree.leaves(jax.eval_shape(lambda: state)), strict=True
    ):
        if new.dtype != old.dtype:  # it goes round in a loop
            where = f"state{jax.tree_util.keystr(path)}"
            raise ValueError(f"step: expected {where} of the dtype that it is given in, {old.dtype}, got {new.dtype}")
    if getattr(output.logits, "shape", ())[:-1] != (batch_size,):
        raise ValueError(f"step: expected logits [{batch_size}, V] second, got {output.logits}")
    vocabulary_size = output.logits.shape[-1]
    for name, symbol in (("start", start), ("end", end)):
        if not 0 <= symbol < vocabulary_size:
            raise ValueError(f"{name}: expected a symbol from 0 to {vocabulary_size - 1}, got {symbol}")
    return Symbols(start, end, pad, time, jnp.promote_types(output.logits.dtype, jnp.float32)), output


def check_max_length(max_length: int) -> int:
    max_length = operator.index(max_length)
    if max_length < 1:
        raise ValueError(f"max_length: expected a positive number, got {max_length}")
    return max_length


def check_limits(max_length: int | Array, time: int | None, batch_size: int) -> tuple[int, Int[Array, " B"]]:
    """T, and how many steps each row may take."""
    limits: Any = max_length
    if np.ndim(limits) == 0:
        if isinstance(limits, jax.core.Tracer):
            raise ValueError("max_length: expected a number, or one for each row with `time`, got a traced scalar")
        limits = check_max_length(limits)
        time = limits if time is None else operator.index(time)
        limits = np.full(batch_size, limits, np.int32)
    elif time is None:
        if isinstance(limits, jax.core.Tracer):
            raise ValueError("time: expected a number, as max_length has one for each row and is traced, got None")
        time = int(np.max(limits, initial=1))
    if time < 1:
        raise ValueError(f"time: expected a positive number, got {time}")
    return time, check_lengths(limits, batch_size, time, "max_length")


def check_min_length(min_length: int | Array, batch_size: int, time: int) -> Int[Array, " B"] | None:
    if np.ndim(min_length) == 0 and not isinstance(min_length, jax.core.Tracer):
        min_length = operator.index(min_length)
        if not 0 <= min_length <= time:
            raise ValueError(f"min_length: expected a number from 0 to {time}, the most steps, got {min_length}")
        return jnp.full(batch_size, min_length, jnp.int32) if min_length > 1 else None
    return check_lengths(min_length, batch_size, time, "min_length")


def check_banned(banned: Sequence[int], vocabulary_size: int, end: int, min_length: Array | None) -> Int[Array, " R"] | None:
    symbols = np.asarray(banned, None if len(banned) else int)
    if symbols.ndim != 1:
        raise ValueError(f"banned: expected a list of symbols, got shape {symbols.shape}")
    check_ids(symbols, vocabulary_size, "banned")
    if not symbols.size:
        return None
    mask = np.zeros(vocabulary_size, bool)
    mask[symbols] = True
    left = np.count_nonzero(~mask) - (min_length is not None and not mask[end])
    if not left:
        raise ValueError(f"banned: expected that a symbol is left at each step, got {symbols.size} of {vocabulary_size} banned")
    return jnp.asarray(np.flatnonzero(mask), jnp.int32)


def check_banned_prefixes(banned: Sequence[Sequence[int]], vocabulary_size: int) -> Prefixes | None:
    if not len(banned):
        return None
    lengths = np.array([len(prefix) for prefix in banned], np.int32)
    if not lengths.all():
        raise ValueError(
            "banned_prefixes: expected at least one symbol in each, got an empty one, with which everything begins"
        )
    symbols = np.zeros((len(banned), lengths.max()), np.int32)
    for row, prefix in zip(symbols, banned, strict=True):
        check_ids(np.asarray(prefix), vocabulary_size, "banned_prefixes")
        row[: len(prefix)] = prefix
    return Prefixes(jnp.asarray(symbols), jnp.asarray(lengths))


def check_prefixes(
    prefixes: Any, lengths: Any, batch_size: int, vocabulary_size: int, end: int, max_length: int | Array
) -> Prefixes | None:
    if prefixes is None:
        if lengths is not None:
            raise ValueError("prefix_lengths: expected None without prefixes")
        return None
    if not isinstance(prefixes, jax.Array):
        prefixes = np.asarray(prefixes)
    if prefixes.ndim != 2 or prefixes.shape[0] != batch_size:
        raise ValueError(f"prefixes: expected [{batch_size}, P], got {prefixes.shape}")
    most = prefixes.shape[1]
    given = np.full(batch_size, most) if lengths is None else lengths
    lengths = check_lengths(given, batch_size, most, "prefix_lengths")
    if not most:
        return None
    mask = length_mask(lengths, most)
    known = _known(given)
    check_ids(prefixes, vocabulary_size, "prefixes", mask if known is None else np.arange(most) < known[:, None])
    if known is not None:
        _check_room(_known(prefixes), known, end, _known(max_length))
    return Prefixes(jnp.where(mask, jnp.asarray(prefixes), 0).astype(jnp.int32), lengths)


def _known(values: Any) -> np.ndarray | None:
    """None where they are traced. What is computed of them under `jax.jit` is traced even if they are not."""
    return None if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)) else np.asarray(values)


def _check_room(prefixes: np.ndarray | None, lengths: np.ndarray, end: int, limits: np.ndarray | None) -> None:
    """Raises where a search would stop inside of a prefix."""
    if limits is not None:
        limits = np.broadcast_to(limits, lengths.shape)
        lengths = np.where(limits > 0, lengths, 0)  # a row that is left out says nothing
        for row in np.flatnonzero(lengths > limits)[:1]:
            came = f"{lengths[row]} in row {row}"
            raise ValueError(f"prefixes: expected at most as many symbols as max_length, {limits[row]}, got {came}")
    if prefixes is not None:
        for row, t in np.argwhere((prefixes == end) & (np.arange(prefixes.shape[1]) < lengths[:, None] - 1))[:1]:
            came = f"it as symbol {t + 1} of {lengths[row]} in row {row}"
            raise ValueError(f"prefixes: expected the end symbol {end} nowhere but last, got {came}")
