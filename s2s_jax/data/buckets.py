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


def power_of_two(length: int, least: int = 16) -> int:
    """To pad a length to that nothing is known of: a power of two, so that a jitted function is compiled a few times."""
    return max(least, 1 << max(length - 1, 0).bit_length())


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


def field_buckets(lengths: Mapping[str, Any], count: int) -> list[dict[str, int]]:
    """At most `count` buckets {field: length} for examples of several lengths (of source and target, say), with little padding.

    The last holds every example. To it the best of all buckets is added, one after the other, and then each in turn is moved
    to where it is best, until none is better elsewhere: few positions of all fields together, not the fewest of all choices.
    Of more than 2,048 examples that differ every n-th is looked at, and of two fields' lengths up to 64 each. No randomness.

    Raises:
      ValueError: no field, fields of different numbers of examples, no example, or a count below 1.
    """
    sizes = {field: len(values) for field, values in lengths.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()) or count < 1:
        raise ValueError(f"lengths, count: expected fields of as many lengths, at least one of each, got {sizes} and {count}")
    different, counts = np.unique(np.stack([np.asarray(values) for values in lengths.values()], 1), axis=0, return_counts=True)
    last = different.max(0)
    every = math.ceil(len(different) / 2048)
    different, counts = different[::every], counts[::every]
    ends = []
    for values in map(np.unique, different.T):
        number = min(len(values), max(2, int(4096 ** (1 / len(sizes)))))
        ends.append(values[np.linspace(0, len(values) - 1, number).astype(int)])
    ways = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(sizes))
    # Positions [ways, examples] that an example takes in a bucket; infinite where that does not hold it.
    holds = (different <= ways[:, None]).all(-1)
    positions = np.where(holds, ways.sum(1, keepdims=True), np.inf).astype(np.float32)
    in_last = np.full(len(different), last.sum(), np.float32)

    def best_beside(chosen: list[int]) -> tuple[float, int]:
        others = np.minimum(in_last, positions[chosen].min(0, initial=np.inf))
        totals = np.minimum(others, positions) @ counts
        return float(totals.min()), int(totals.argmin())

    chosen: list[int] = []
    least = float(in_last @ counts)
    for _ in range(count - 1):
        least, way = best_beside(chosen)
        chosen.append(way)
    moved = True
    while moved:
        moved = False
        for place in range(len(chosen)):
            total, way = best_beside(chosen[:place] + chosen[place + 1 :])
            if total < least:
                chosen[place], least, moved = way, total, True
    used = {chosen[place] for place in np.vstack([positions[chosen], in_last]).argmin(0) if place < len(chosen)}
    buckets = {tuple(map(int, bucket)) for bucket in (*ways[sorted(used)], last)}
    return [dict(zip(sizes, bucket, strict=True)) for bucket in sorted(buckets, key=lambda bucket: (sum(bucket), bucket))]


def with_room_for(buckets: Sequence[Mapping[str, int]], lengths: Mapping[str, Any]) -> list[dict[str, int]]:
    """The buckets, and where the last one is too short for some of the `lengths` {field: [N]} one more that holds all of them.

    So a validation or test split goes through the shapes of training, and nothing of it is left out.
    """
    padded = [dict(bucket) for bucket in buckets]
    longest = {field: max(padded[-1][field], int(np.max(values, initial=0))) for field, values in lengths.items()}
    return padded if longest == padded[-1] else [*padded, longest]


def padded_lengths(
    lengths: Mapping[str, np.ndarray], count: int, buckets: Sequence[int | Mapping[str, int]] | None
) -> list[dict[str, int]]:
    """The buckets as {field: padded length}; one, of the longest example, where none are given.

    Raises:
      ValueError: lengths that are not `count` integers from 0, or buckets of other fields, within an earlier one, or longer
        than the last.
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
    if not padded or any(set(bucket) != set(lengths) for bucket in padded):
        raise ValueError(f"buckets: expected lengths of {list(lengths)} that go up, got {list(buckets)}")
    # One within an earlier one would never be used, and only of a last one that holds all can it be said what is too long.
    of_no_use = any(within(high, low) for low, high in itertools.combinations(padded, 2))
    if of_no_use or not all(within(bucket, padded[-1]) for bucket in padded):
        raise ValueError(
            f"buckets: expected lengths of {list(lengths)} that go up, got {list(buckets)}; none may be within one before it, "
            f"and the last is the longest in every field"
        )
    return padded


def within(small: Mapping[str, int], large: Mapping[str, int]) -> bool:
    """Whether a bucket is at most as long as another in every field."""
    return all(small[field] <= large[field] for field in small)


def bucket_of(lengths: Mapping[str, np.ndarray], count: int, padded: list[dict[str, int]]) -> np.ndarray:
    """For each example the first bucket that holds it; the number of buckets where none does."""
    holds = np.ones((len(padded) + 1, count), bool)
    for row, bucket in zip(holds, padded, strict=False):
        for field, values in lengths.items():
            row &= values <= bucket[field]
    return holds.argmax(0)
