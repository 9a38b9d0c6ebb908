"""Brute force: every alignment of a few frames, one by one."""

import itertools

import numpy as np


def read(path, blank=0):
    """An alignment as a text: equal neighbours are one, and blanks are nothing."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def all_paths(log_probs):
    """(alignment, log probability) of each of the V^T alignments of frames [T, V], in float64."""
    time, vocabulary_size = log_probs.shape
    for path in itertools.product(range(vocabulary_size), repeat=time):
        yield path, float(sum(log_probs[t, symbol] for t, symbol in enumerate(path)))


def texts_of(log_probs, blank=0):
    """Each text that can be read, with its log probability."""
    found = {}
    for path, log_prob in all_paths(log_probs):
        text = read(path, blank)
        found[text] = np.logaddexp(found.get(text, -np.inf), log_prob)
    return found


def all_labels(time, vocabulary_size, blank=0):
    """All labels of up to `time` symbols, those that do not fit `time` frames too."""
    symbols = [symbol for symbol in range(vocabulary_size) if symbol != blank]
    for length in range(time + 1):
        yield from itertools.product(symbols, repeat=length)


def drawn(rng, *shape):
    """Logits, and their log softmax in float64."""
    logits = (2 * rng.normal(size=shape)).astype(np.float32)
    exact = logits.astype(np.float64)
    return logits, exact - np.log(np.sum(np.exp(exact), axis=-1, keepdims=True))
