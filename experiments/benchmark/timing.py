"""Timing in turns, and what is said about the times: medians, ratios and their spread, geometric means."""

import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)
SHORT = 0.06  # seconds; several calls under it are one sample
WARMED = 0.25  # seconds; calls under it have one before them that does not count
AGREE = 1.2  # samples agree whose greatest is at most so many times the least
OUTVOTED = 5  # of so many samples the median is right where two were disturbed, by another guest of the same host for instance


class Plan(NamedTuple):
    """How long to time a row: rounds from `least` to `most`, and no new one after `seconds`; then so many calls of ours.

    Where the samples of anybody do not agree, at least `OUTVOTED` rounds, if `most` allows.
    """

    seconds: float
    least: int
    most: int
    in_a_row: int = 0


class Ratio(NamedTuple):
    """Peer over ours: of the medians, and the quartiles of the ratios within each round."""

    value: float
    low: float
    high: float


def interleaved(
    time_of: Mapping[Name, Callable[[int, bool], Sequence[float]]], plan: Plan, seed: int = 0
) -> dict[Name, list[float]]:
    """Seconds of each round, by name. In a round each is called once, or as often as fills `SHORT`; the order changes.

    `time_of[name](calls, warm)` returns seconds of so many calls; all have run before. A sample is their median. Whoever
    comes first after a pause finds cold caches and sleeping threads, which whoever trains finds once; so there is one call
    before that does not count, but where calls are so long that it makes no difference.
    """
    rng, names = random.Random(seed), list(time_of)
    calls, warm = dict.fromkeys(names, 1), dict.fromkeys(names, True)
    samples: dict[Name, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    rounds = 0
    while rounds < plan.most and (
        rounds < plan.least
        or time.perf_counter() - start < plan.seconds
        or (rounds < OUTVOTED and any(max(taken) > AGREE * min(taken) for taken in samples.values()))
    ):
        rng.shuffle(names)
        for name in names:
            # A pool of threads spins for a while before it sleeps, and would take time from the next one.
            time.sleep(0.004)
            sample = statistics.median(time_of[name](calls[name], warm[name]))
            calls[name], warm[name] = max(1, min(50, round(SHORT / max(sample, 1e-6)))), sample < WARMED
            if rounds == 0 and calls[name] > 1:  # it was not known that it is short
                sample = statistics.median(time_of[name](calls[name], True))
            samples[name].append(sample)
        rounds += 1
    return samples


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Ratio:
    value = statistics.median(peer) / statistics.median(ours)
    rounds = [p / o for p, o in zip(peer, ours, strict=True)]
    if len(rounds) < 2:
        return Ratio(value, value, value)
    low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(value, low, high)


def tail(seconds: Sequence[float]) -> float:
    """99th percentile over median."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[-1] / statistics.median(seconds)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each peer, cell and part: geometric mean and least of the ratios, and the shape of the least."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["cell"], row["part"], row["peer"]), []).append(row)
    told = []
    for (cell, part, peer), group in groups.items():
        least = min(group, key=lambda row: row["ratio"])
        mean = geometric_mean([row["ratio"] for row in group])
        one = {"cell": cell, "part": part, "peer": peer, "shapes": len(group), "mean": mean}
        told.append({**one, "least": least["ratio"], "least_at": least["shape"]})
    return told
