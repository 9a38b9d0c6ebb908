"""Character n-grams as a decoder step: tables on the device that say how probable each symbol is after those before."""

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from s2s_jax.types import Context, DecoderOutput


class NGrams(NamedTuple):
    """An automaton whose nodes are the contexts seen in training; node 0 stands at the beginning of a text.

    Attributes:
      log_probs: of each symbol in each context.
      following: the node that a symbol leads to.
    """

    log_probs: Float[Array, "N V"]
    following: Int[Array, "N V"]


def fit_ngrams(texts: Iterable[Sequence[int]], vocabulary_size: int, *, order: int, end: int = 0) -> NGrams:
    """Counts n-grams up to `order` and interpolates them as Witten and Bell do (Chen & Goodman 1998, section 2.5):

        p(c | h) = (count(h c) + kinds(h) p(c | h')) / (count(h) + kinds(h))

    where h' is h without its oldest symbol, kinds(h) how many different symbols were seen after h, and p of the empty context
    falls back to 1 / V.

    Args:
      texts: symbols, without an end; each begins anew and ends with `end`, which is counted too.
      vocabulary_size: V. The tables take 8 V bytes for each different context of up to order - 1 symbols.
      order: the longest n-gram.
      end: the symbol that no text holds; with CTC, the blank.

    Returns:
      `NGrams`, the `params` of `ngram_step`.

    Raises:
      ValueError: an order below 1, no texts, one that is not of integers, a symbol outside the vocabulary, or a text with
        the end symbol in it.
    """
    if order < 1:
        raise ValueError(f"order: expected at least 1, got {order}")
    if not 0 <= end < vocabulary_size:
        raise ValueError(f"end: expected a symbol from 0 to {vocabulary_size - 1}, got {end}")
    counts: dict[tuple[int, ...], Counter[int]] = {(): Counter()}
    number = -1
    for number, text in enumerate(texts):
        try:
            symbols = [operator.index(symbol) for symbol in text]
        except TypeError as error:
            raise ValueError(f"texts: expected sequences of integers, got {text!r} in text {number}") from error
        if wrong := [symbol for symbol in symbols if not 0 <= symbol < vocabulary_size or symbol == end]:
            raise ValueError(
                f"texts: expected symbols from 0 to {vocabulary_size - 1} but {end}, got {wrong[0]} in text {number}"
            )
        # One end before the text too: what it begins with is not what follows anything.
        symbols = [end, *symbols, end]
        for at in range(1, len(symbols)):
            for start in range(max(0, at - order + 1), at + 1):
                counts.setdefault(tuple(symbols[start:at]), Counter())[symbols[at]] += 1
    if number < 0:
        raise ValueError("texts: expected at least one, got none")

    beginning: tuple[int, ...] = (end,) if order > 1 else ()
    contexts = sorted(counts, key=lambda context: (context != beginning, len(context)))
    nodes = {context: node for node, context in enumerate(contexts)}
    probabilities = np.zeros((len(contexts), vocabulary_size))
    following = np.full((len(contexts), vocabulary_size), nodes[()], np.int32)
    for context in sorted(contexts, key=len):  # the shorter ones first: the longer fall back to them
        node, seen = nodes[context], counts[context]
        shorter = nodes[context[1:]]
        row = len(seen) * (probabilities[shorter] if context else np.full(vocabulary_size, 1 / vocabulary_size))
        row[list(seen)] += list(seen.values())
        probabilities[node] = row / (sum(seen.values()) + len(seen))
        # Behind a symbol stands the longest context that was seen: a longer one, or that behind the shorter one.
        following[node] = following[shorter]
        for symbol in seen:
            following[node, symbol] = nodes.get((*context, symbol), following[node, symbol])
    following[:, end] = 0  # the next text
    return NGrams(jnp.asarray(np.log(probabilities), jnp.float32), jnp.asarray(following))


def ngram_step(params: NGrams, context: Context, state: Int[Array, " B"], tokens: Int[Array, " B"]) -> DecoderOutput:
    """A `DecoderStep`: `state` is the node of each row (zeros at first), the start symbol the end symbol of `fit_ngrams`."""
    state = params.following[state, tokens]
    return DecoderOutput(state, params.log_probs[state], None)
