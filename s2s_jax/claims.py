"""Claims about scores of systems on groups of texts, and what the bootstrap says of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from s2s_jax.bootstrap import ByGroup, interval


class Claim(NamedTuple):
    """That a sum is above zero; each term a factor, a model, and "all" texts, the "shortest" or the "longest" group.

    Attributes:
      of: what is summed up, the "score" or the "loss".
    """

    metric: str
    says: str
    source: str
    of: str
    terms: Sequence[tuple[float, str, str]]


def judged(claim: Claim, values: ByGroup, groups: Sequence[str], least: float = 0.0) -> dict[str, Any]:
    """The claim's number, its interval, and what they say about it.

    Args:
      claim: one of them.
      values: scores or losses, as the claim wants them, of `bootstrap`.
      groups: from the shortest to the longest.
      least: where all values that the claim speaks of are below it, nothing was learned that could be compared.
    """
    named = {"all": "all", "shortest": groups[0], "longest": groups[-1]}
    terms = [(factor, values[name, named[group]]) for factor, name, group in claim.terms]
    numbers = np.sum([factor * value for factor, value in terms], axis=0)
    low, high = interval(numbers)
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "cannot be told"
    if max(value[0] for _, value in terms) < least:
        verdict = "cannot be told"
    told = {"metric": claim.metric, "says": claim.says, "source": claim.source, "of": claim.of, "value": float(numbers[0])}
    return {**told, "low": low, "high": high, "verdict": verdict}


def verdicts(claims: Sequence[Mapping[str, Any]], perfect: float) -> str:
    """A line for each claim, with its number and interval: scores in hundredths of a perfect one, losses in nats."""
    lines = []
    for claim in claims:
        factor, places = (100 / perfect, 1) if claim["of"] == "score" else (1, 3)
        value, low, high = (f"{factor * claim[name]:+.{places}f}" for name in ("value", "low", "high"))
        told = f"{value:>7} ({low} to {high})"
        lines.append(f"{claim['verdict']:<15} {claim['of']:<6} {claim['says']:<36}{told:<27}{claim['source']}")
    return "\n".join(lines)
