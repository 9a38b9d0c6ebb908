"""Length buckets: the few lengths that examples are padded to."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def field_lengths(
    source: Any, fields: Sequence[str], transform: Callable[[Any], Mapping[str, Any]] | None = None
) -> dict[str, np.ndarray]:
    """{field: lengths [N]} of every example's fields, for `Batches`; reads the whole source once."""
    examples = (source[number] if transform is None else transform(source[number]) for number in range(len(source)))
    measured = [[len(example[field]) for field in fields] for example in examples]
    return dict(zip(fields, np.array(measured, np.int32).reshape(-1, len(fields)).T, strict=True))


def length_buckets(lengths: Any, count: int) -> list[int]:
    """The `count` lengths to pad the `lengths` [N] to that need the least padding; fewer where fewer differ.

    Dynamic programming over the lengths that differ; of more than 512, every n-th.

    Raises:
      ValueError: no lengths, or a count below 1.
    """
    different, counts = np.unique(np.asarray(lengths), return_counts=True)
    if not len(different) or count < 1:
        raise ValueError(f"lengths, count: expected at least one of each, got {len(different)} lengths and count {count}")
    every = math.ceil(len(different) / 512)
    considered = np.arange(len(different))[::-every][::-1]  # the largest among them
    ends, examples = different[considered], np.cumsum(counts)[considered]
    # Positions in a bucket that ends at the length of the column, where the bucket before ends at that of the row.
    size = len(ends)
    positions = np.where(np.triu(np.ones((size, size), bool), 1), ends * (examples - examples[:, None]), np.inf)
    least, before = ends * examples.astype(float), []
    for _ in range(1, min(count, size)):
        totals = least[:, None] + positions
        before.append(totals.argmin(0))
        least = totals.min(0)
    chosen = [size - 1]
    for of_end in reversed(before):
        chosen.append(int(of_end[chosen[-1]]))
    return [int(ends[place]) for place in reversed(chosen)]


def padded_lengths(
    lengths: Mapping[str, np.ndarray], count: int, buckets: Sequence[int | Mapping[str, int]] | None
) -> list[dict[str, int]]:
    """The buckets as {field: padded length}; one, of the longest example, where none are given.

    Raises:
      ValueError: lengths that are not `count` integers from 0, or buckets that do not go up or are of other fields.
    """
    for field, values in lengths.items():
        if values.shape != (count,) or values.dtype.kind not in "iu" or (count and values.min() < 0):
            raise ValueError(
                f"lengths: expected {count} integers, none below 0, for {field!r}, got {values.dtype} {list(values.shape)}"
            )
    if buckets is None:
        return [{field: int(values.max(initial=0)) for field, values in lengths.items()}]
    if not lengths:
        raise ValueError("buckets: expected lengths with them, got none")
    padded = [dict(bucket) if isinstance(bucket, Mapping) else dict.fromkeys(lengths, bucket) for bucket in buckets]
    going_up = all(
        all(low[field] <= high[field] for field in low) and low != high
        for low, high in itertools.pairwise(padded)
        if set(low) == set(high)
    )
    if not padded or any(set(bucket) != set(lengths) for bucket in padded) or not going_up:
        raise ValueError(f"buckets: expected lengths of {list(lengths)} that go up, got {list(buckets)}")
    return padded


def bucket_of(lengths: Mapping[str, np.ndarray], count: int, padded: list[dict[str, int]]) -> np.ndarray:
    """For each example the first bucket that holds it; the number of buckets where none does."""
    holds = np.ones((len(padded) + 1, count), bool)
    for row, bucket in zip(holds, padded, strict=False):
        for field, values in lengths.items():
            row &= values <= bucket[field]
    return holds.argmax(0)
