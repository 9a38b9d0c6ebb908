"""The words that a search may say, as a tree of their symbols on the device."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Lexicon(NamedTuple):
    """A tree of words; node 0 stands before a word.

    Attributes:
      following: the node that a symbol leads to; -1 where no word goes on so.
      ends: whether a text may end at each node.
    """

    following: Int[Array, "N V"]
    ends: Bool[Array, " N"]


def make_lexicon(
    words: Iterable[Sequence[int]], vocabulary_size: int, *, separators: Sequence[int] = (), blank: int = 0
) -> Lexicon:
    """A tree of words, any number of which may follow each other with separators between them.

    Args:
      words: symbols of each.
      vocabulary_size: V. The tables take 4 V bytes for each different beginning of a word.
      separators: symbols such as the space, that may be said at the beginning of a text, behind a word, and repeatedly.
        Without any, a text is one word or empty.
      blank: the symbol that says nothing, and so stands in no text.

    Raises:
      ValueError: no words, a symbol outside the vocabulary, a word with a separator or the blank in it, or the blank as a
        separator.
    """
    separate = set(map(int, separators))
    said = set(range(vocabulary_size)) - {blank}
    of_words = said - separate
    tree: list[dict[int, int]] = [{}]
    ends = [True]
    number = -1
    for number, word in enumerate(words):
        node = 0
        for symbol in map(int, word):
            if symbol not in of_words:
                wanted = f"symbols from 0 to {vocabulary_size - 1} that are no separators and not the blank, {blank}"
                raise ValueError(f"words: expected {wanted}, got {symbol} in word {number}")
            if symbol not in tree[node]:
                tree[node][symbol] = len(tree)
                tree.append({})
                ends.append(False)
            node = tree[node][symbol]
        ends[node] = True
    if number < 0:
        raise ValueError("words: expected at least one, got none")
    for symbol in separate:
        if symbol not in said:
            wanted = f"symbols from 0 to {vocabulary_size - 1} but the blank, {blank}"
            raise ValueError(f"separators: expected {wanted}, got {symbol}")
    following = np.full((len(tree), vocabulary_size), -1, np.int32)
    for node, children in enumerate(tree):
        following[node, list(children)] = list(children.values())
        if ends[node]:
            following[node, list(separate)] = 0
    return Lexicon(jnp.asarray(following), jnp.asarray(ends))
