"""Batches as a pure function of seed and step: of arrays in memory, and of any source of examples, in length buckets."""

import contextlib
import copy
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from s2s_jax.data.buckets import bucket_of, padded_lengths, within
from s2s_jax.data.datasets.arrays import SavedArrays


class BatchShape(NamedTuple):
    """One of the shapes of a plan: how many rows, the length that each field is padded to, and its steps in an epoch."""

    rows: int
    lengths: dict[str, int]
    steps: int


class Usage(NamedTuple):
    """What a plan does with its source, the same in every epoch.

    Attributes:
      examples: in an epoch, each once.
      left_out: ids of the examples that are longer than the largest bucket.
      steps: of an epoch.
      filler_rows: rows of an epoch that hold no example.
      padding: share of all positions of the padded fields that hold no data, those of filler rows included.
      shapes: all there are; a jitted step compiles once for each.
    """

    examples: int
    left_out: np.ndarray
    steps: int
    filler_rows: int
    padding: float
    shapes: tuple[BatchShape, ...]

    def __str__(self) -> str:
        shapes = ", ".join(f"{shape.steps} of {[shape.rows, *shape.lengths.values()]}" for shape in self.shapes)
        left_out = f", {len(self.left_out)} too long and left out" if len(self.left_out) else ""
        return (
            f"{self.examples} examples{left_out}; batches in an epoch: {shapes}; "
            f"{self.padding:.1%} padding, {self.filler_rows} rows without an example"
        )


class _Bucket(NamedTuple):
    lengths: dict[str, int]
    rows: int
    ids: np.ndarray

    def positions(self) -> int:
        """That a row takes."""
        return sum(self.lengths.values()) if self.lengths else 1


class _Share(NamedTuple):
    """What becomes of a bucket's examples: how many stay, in how many steps, and which later bucket takes the others."""

    kept: int
    steps: int
    heir: int | None


class Batches:
    """The batch of each step from a source of examples, in length buckets, as a pure function of the step.

    An epoch holds every example exactly once: those of a bucket are shuffled and cut into batches, and the batches of all
    buckets are shuffled. What does not fill its last batch goes to the next bucket that holds it, if an epoch has fewer
    positions by that; else the rows left are filled with zeros (their length is 0), and `batch["mask"]` is False
    there. Nothing is carried to the next epoch, so that each one, and so an evaluation, is exact. The orders depend on seed
    and epoch only.

    A batch is a dict: each field of the examples [rows, ...]; `<field>_lengths` int32 [rows] for each field of `lengths`, which
    is padded on the right with zeros to the length of the bucket; and `mask` bool [rows].

    Args:
      source: random access to examples, `len(source)` and `source[i]`, a dict; or a dict of arrays [N, ...].
      batch_size: rows of a batch; or give `tokens`.
      seed: of the orders; None keeps the order of the source within each bucket, shortest bucket first.
      lengths: {field: lengths [N]} of the fields whose first axis varies; of arrays, how much of each row counts.
      buckets: lengths to pad to, each a number or {field: number}; by default one, of the longest example. An example goes to
        the first that holds all of its fields, or to a later one, to fill a batch. None may be within one before it, and the
        last is the longest in every field.
      tokens: rows of a batch times its longest padded field, at most.
      transform: `example -> example` of numbers and arrays. It must be a function of the example alone.
      multiple_of: what the rows that `tokens` gives are rounded down to a multiple of: a number of devices.
      overlong: whether an example longer than the largest bucket is an error, or left out and reported by `usage`.

    Raises:
      ValueError: an argument out of its range; an example that is too long, by its id. From a call: an example that cannot be
        read or transformed or that is not as long as `lengths` says, by source and id.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int | None = None,
        *,
        seed: int | None,
        lengths: Mapping[str, Any] | None = None,
        buckets: Sequence[int | Mapping[str, int]] | None = None,
        tokens: int | None = None,
        transform: Callable[[Any], Mapping[str, Any]] | None = None,
        multiple_of: int = 1,
        overlong: Literal["error", "leave out"] = "error",
    ):
        self._lengths = {field: np.asarray(values) for field, values in (lengths or {}).items()}
        self._source: Any = _Arrays(source, self._lengths) if isinstance(source, Mapping) else source
        self._name = f"{source.name}, split {source.split}" if hasattr(source, "split") else type(source).__name__
        self._transform = transform
        self._seed = seed
        self._shard = (0, 1)  # index and count of the processes
        if overlong not in ("error", "leave out"):
            raise ValueError(f"overlong: expected 'error' or 'leave out', got {overlong!r}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed: expected 0 or more, or None, got {seed}")
        if (batch_size is None) == (tokens is None):
            raise ValueError(f"batch_size, tokens: expected one of the two, got {batch_size} and {tokens}")
        for name, number in (("batch_size", batch_size), ("tokens", tokens), ("multiple_of", multiple_of)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: expected a positive number, got {number}")
        padded = padded_lengths(self._lengths, len(self._source), buckets)
        number_of = bucket_of(self._lengths, len(self._source), padded)
        self._left_out = np.flatnonzero(number_of == len(padded))
        if len(self._left_out) and overlong == "error":
            first = int(self._left_out[0])
            has = {field: int(values[first]) for field, values in self._lengths.items()}
            more = f"; {len(self._left_out)} examples are too long" if len(self._left_out) > 1 else ""
            raise ValueError(f"lengths: expected at most {padded[-1]}, got {has} of example {first}{more}")
        self._buckets: list[_Bucket] = []
        for number, by_field in enumerate(padded):
            longest = max(by_field.values(), default=1)
            rows = batch_size or (tokens or 0) // max(longest, 1) // multiple_of * multiple_of
            ids = np.flatnonzero(number_of == number)
            if rows < 1:
                raise ValueError(f"tokens: expected enough for {multiple_of} rows of length {longest}, got {tokens}")
            if len(ids):
                self._buckets.append(_Bucket(by_field, rows, ids))
        if not self._buckets:
            raise ValueError(f"source: expected at least one example, got none of {len(self._source)}")
        self._shares = _shared_out(self._buckets)
        self.steps_per_epoch = sum(share.steps for share in self._shares)
        self._plan = functools.lru_cache(maxsize=2)(self._planned)

    def of_process(self, index: int, count: int) -> "Batches":
        """The rows of each batch that are those of one of `count` processes; no other examples are read.

        All processes together have the batch that one would have.

        Raises:
          ValueError: a batch whose rows so many processes cannot share evenly.
        """
        if not 0 <= index < count:
            raise ValueError(f"index, count: expected 0 <= index < count, got {index} and {count}")
        for bucket, share in zip(self._buckets, self._shares, strict=True):
            if share.steps and bucket.rows % count:
                raise ValueError(f"count: expected one that divides the {bucket.rows} rows of a batch, got {count}")
        own = copy.copy(self)
        own._shard = (index, count)
        return own

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0."""
        bucket, ids = self._at(step)
        own = self._own(bucket, ids)
        if not len(own):  # rows of zeros, but of what shape and type an example must tell
            return self._collated(bucket, ids[:1], self._examples(ids[:1]), counted=0)
        return self._collated(bucket, own, self._examples(own), counted=len(own))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches of the first epoch, one after the other; with `seed=None` what an evaluation goes through."""
        return map(self, range(self.steps_per_epoch))

    def ids(self, step: int) -> np.ndarray:
        """Places in the source of the rows of a batch, those of all processes, int64 [rows]; -1 for a row that holds none."""
        bucket, ids = self._at(step)
        return np.concatenate([ids, np.full(bucket.rows - len(ids), -1)])

    def iterate(
        self, first_step: int = 0, last_step: int | None = None, *, threads: int = 2, ahead: int = 8
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of the steps from `first_step` to before `last_step` (None: without end), the same as by calling.

        Grain makes them in `threads` threads, up to `ahead` of them before they are asked for. Arrays that need no transform
        are cut up when they are asked for, which costs next to nothing; and so is everything where Grain is not installed.
        """
        grain = None
        if self._transform is not None or not isinstance(self._source, _Arrays | SavedArrays):
            with contextlib.suppress(ImportError):
                import grain
        if grain is None:
            yield from map(self, itertools.count(first_step) if last_step is None else range(first_step, last_step))
            return
        steps = grain.MapDataset.range(first_step, sys.maxsize if last_step is None else last_step)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        batches = iter(steps.map(self).to_iter_dataset(options))
        try:
            yield from batches
        finally:
            batches.close()  # or its threads go on

    def usage(self) -> Usage:
        """What the plan does with the source: padding, shapes, what is left out. The plan tells it; nothing is read."""
        shares = zip(self._buckets, self._shares, strict=True)
        shapes = tuple(BatchShape(bucket.rows, bucket.lengths, share.steps) for bucket, share in shares if share.steps)
        kept = np.concatenate([bucket.ids for bucket in self._buckets])
        positions = sum(shape.steps * shape.rows * (sum(shape.lengths.values()) if self._lengths else 1) for shape in shapes)
        data = sum(int(values[kept].sum()) for values in self._lengths.values()) if self._lengths else len(kept)
        return Usage(
            examples=len(kept),
            left_out=self._left_out,
            steps=self.steps_per_epoch,
            filler_rows=sum(shape.steps * shape.rows for shape in shapes) - len(kept),
            padding=1 - data / positions if positions else 0.0,
            shapes=shapes,
        )

    def _planned(self, epoch: int) -> list[tuple[_Bucket, np.ndarray]]:
        rng = None if self._seed is None else np.random.default_rng((self._seed, epoch))
        batches = []
        inherited: list[list[np.ndarray]] = [[] for _ in self._buckets]
        for bucket, share, more in zip(self._buckets, self._shares, inherited, strict=True):
            ids = np.sort(np.concatenate([*more, bucket.ids]))
            ids = ids if rng is None else rng.permutation(ids)
            batches += [
                (bucket, ids[start : min(start + bucket.rows, share.kept)]) for start in range(0, share.kept, bucket.rows)
            ]
            if share.heir is not None:
                inherited[share.heir].append(ids[share.kept :])
        return batches if rng is None else [batches[place] for place in rng.permutation(len(batches))]

    def _at(self, step: int) -> tuple[_Bucket, np.ndarray]:
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[place]

    def _own(self, bucket: _Bucket, ids: np.ndarray) -> np.ndarray:
        index, processes = self._shard
        rows = bucket.rows // processes
        return ids[index * rows : (index + 1) * rows]

    def _examples(self, ids: np.ndarray) -> list[Mapping[str, Any]]:
        examples = self._read_together(ids.tolist()) or [self._read(int(number)) for number in ids]
        if self._transform is None:
            return examples
        return [self._transformed(int(number), example) for number, example in zip(ids, examples, strict=True)]

    def _read_together(self, numbers: list[int]) -> list[Any] | None:
        """By Grain's name for it, where the source has that; None too where one of them fails, to be named by itself."""
        try:
            return self._source.__getitems__(numbers)
        except Exception:
            return None

    def _read(self, number: int) -> Any:
        try:
            return self._source[number]
        except Exception as error:
            raise ValueError(f"{self._name}, example {number}: cannot be read ({error})") from error

    def _transformed(self, number: int, example: Any) -> Mapping[str, Any]:
        assert self._transform is not None
        try:
            return self._transform(example)
        except Exception as error:
            raise ValueError(f"{self._name}, example {number}: the transform failed ({error!r})") from error

    def _collated(
        self, bucket: _Bucket, ids: np.ndarray, examples: list[Mapping[str, Any]], counted: int
    ) -> dict[str, np.ndarray]:
        rows = bucket.rows // self._shard[1]
        like = {field: np.asarray(value) for field, value in examples[0].items()}
        made = {"mask", *(f"{field}_lengths" for field in self._lengths)}
        if not set(self._lengths) <= set(like) or made & set(like):
            expected = f"examples with {list(self._lengths)} and without {sorted(made)}"
            raise ValueError(f"{self._name}: expected {expected}, got the fields {list(like)}")
        for field, array in like.items():
            if array.dtype.kind not in "biufc":
                kind = type(examples[0][field]).__name__
                raise ValueError(f"{self._name}: expected numbers in {field!r}, got {kind}; give a transform")
        batch = {}
        for field, array in like.items():
            shape = (bucket.lengths[field], *array.shape[1:]) if field in self._lengths else array.shape
            batch[field] = np.zeros((rows, *shape), array.dtype)
        for row, (number, example) in enumerate(zip(ids[:counted], examples, strict=False)):
            if example.keys() != like.keys():
                raise ValueError(f"{self._name}, example {number}: expected the fields {list(like)}, got {list(example)}")
            for field, array in like.items():
                value, shape = np.asarray(example[field]), array.shape
                if field in self._lengths:
                    shape = int(self._lengths[field][number]), *shape[1:]
                if value.shape != shape or value.dtype != array.dtype:
                    raise ValueError(
                        f"{self._name}, example {number}: expected {field!r} to be {array.dtype} {list(shape)}, "
                        f"got {value.dtype} {list(value.shape)}"
                    )
                batch[field][(row, *map(slice, shape))] = value
        filled = np.arange(rows) < counted
        for field, values in self._lengths.items():
            batch[f"{field}_lengths"] = np.zeros(rows, np.int32)
            batch[f"{field}_lengths"][:counted] = values[ids[:counted]]
        return {**batch, "mask": filled}


class _Arrays:
    """The examples of arrays [N, ...] in memory, each without its padding."""

    def __init__(self, arrays: Mapping[str, Any], lengths: Mapping[str, np.ndarray]):
        self._arrays = {field: np.asarray(array) for field, array in arrays.items()}
        self._count = _count(self._arrays)
        self._lengths = lengths

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return {
            field: array[number][: self._lengths[field][number]] if field in self._lengths else array[number]
            for field, array in self._arrays.items()
        }


def _shared_out(buckets: Sequence[_Bucket]) -> list[_Share]:
    """Of the plan that moves nothing and the one that moves what a longer row costs less than filling up, the shorter one."""

    def positions(shares: list[_Share]) -> int:
        return sum(share.steps * bucket.rows * bucket.positions() for share, bucket in zip(shares, buckets, strict=True))

    return min((_shares(buckets, moving) for moving in (False, True)), key=positions)


def _shares(buckets: Sequence[_Bucket], moving: bool) -> list[_Share]:
    counts = [len(bucket.ids) for bucket in buckets]
    shares = []
    for place, bucket in enumerate(buckets):
        full, rest = divmod(counts[place], bucket.rows)
        heir = next((later for later in range(place + 1, len(buckets)) if within(bucket.lengths, buckets[later].lengths)), None)
        if moving and rest and heir is not None:
            longer = rest * (buckets[heir].positions() - bucket.positions())
            if longer < (bucket.rows - rest) * bucket.positions():
                counts[heir] += rest
                shares.append(_Share(full * bucket.rows, full, heir))
                continue
        shares.append(_Share(counts[place], full + bool(rest), None))
    return shares


def _count(arrays: Any) -> int:
    counts = {len(array) for array in jax.tree.leaves(arrays)}
    if len(counts) != 1:
        raise ValueError(f"arrays: expected one number of examples, got {sorted(counts)}")
    (count,) = counts
    if count == 0:
        raise ValueError("arrays: expected at least one example, got none")
    return count
