"""How sure a score of some texts is: the same score of samples that are drawn from them."""

from collections.abc import Mapping, Sequence

import numpy as np

from s2s_jax.text_metrics import TextCounts

ByGroup = dict[tuple[str, str], np.ndarray]


def bootstrap(
    counts: Mapping[str, TextCounts], groups: Mapping[str, np.ndarray], *, samples: int = 1000, seed: int = 0
) -> ByGroup:
    """{(system, group): float [1 + samples]}: the score of a system on a group of texts, then on each sample of the group.

    A sample is as many texts drawn with replacement, the same ones for all systems, so that what is above another can be told
    by the difference of two rows (paired bootstrap: Koehn 2004, W04-3250, section 5). Groups are drawn each by itself.

    Args:
      counts: of each system, on the same texts.
      groups: numbers of texts, by name.
      samples: how many.
      seed: of the draws.

    Raises:
      ValueError: a group without texts, or less than one sample.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    rng, values = np.random.default_rng(seed), {}
    for group, numbers in groups.items():
        size = len(numbers)
        if not size:
            raise ValueError(f"groups: expected at least one text in each, got none in {group!r}")
        times = np.vstack([np.ones(size, np.int64), rng.multinomial(size, np.full(size, 1 / size), samples)])
        for system, of_texts in counts.items():
            values[system, group] = of_texts.value(times @ of_texts.counts[numbers])
    return values


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of what stands behind the first value: its percentiles 2.5 and 97.5."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(low), float(high)


def length_groups(lengths: Sequence[int], count: int = 5) -> dict[str, np.ndarray]:
    """{"3 to 5": which texts}, `count` groups of about as many texts, those of one length together, the shortest first.

    Args:
      lengths: of each text; of the sources, say.
      count: how many groups at most.

    Raises:
      ValueError: all lengths are the same.
    """
    values = np.asarray(lengths)
    parts = np.array_split(np.sort(values), min(count, len(values)))
    tops = sorted({int(part[-1]) for part in parts})
    if len(tops) < 2:
        raise ValueError(f"lengths: expected different ones, got none but {tops[0]}")
    groups, least = {}, int(values.min())
    for top in tops:
        groups[f"{least} to {top}" if least < top else str(top)] = np.flatnonzero((values >= least) & (values <= top))
        least = top + 1
    return groups
