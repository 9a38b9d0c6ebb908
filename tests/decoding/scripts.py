"""Decoders whose probabilities are written down, and a beam search over them in plain Python, to compare with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s2s_jax.types import DecoderOutput

PAD, START, END = 0, 1, 2


class Script(NamedTuple):
    """Logits and attention weights by row, step and the symbol before: [B, T, V, V] and [B, T, V, S]."""

    logits: np.ndarray
    weights: np.ndarray


def script(rows=5, time=7, vocabulary_size=6, source=4, seed=0, scale=2.0):
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=(rows, time, vocabulary_size, vocabulary_size)).astype(np.float32)
    weights = np.exp(2 * generator.normal(size=(rows, time, vocabulary_size, source)).astype(np.float32))
    return Script(logits, weights / weights.sum(-1, keepdims=True))


class Place(NamedTuple):
    """A state of two leaves; what a hypothesis reads shows in it whether it is the right one's."""

    t: jax.Array
    before: jax.Array


def script_step(params, context, state, tokens):
    rows = jnp.arange(tokens.shape[0])
    # The symbol before last decides with it: were the state another hypothesis', the logits would be.
    shift = 0.3 * (state.before[:, None] == jnp.arange(context.logits.shape[-1]))
    logits = context.logits[rows, state.t, tokens] + shift
    return DecoderOutput(Place(state.t + 1, tokens), logits, {"weights": context.weights[rows, state.t, tokens]})


def weights_of(aux):
    return aux["weights"]


def beginning(rows):
    return Place(jnp.zeros(rows, jnp.int32), jnp.full(rows, -1, jnp.int32))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def next_logs(script, row, text):
    """The log p of each symbol after a text."""
    before = ([-1, START, *text])[-2:]
    logits = script.logits[row, len(text), before[1]].astype(np.float64).copy()
    if text:
        logits[before[0]] += np.float64(np.float32(0.3))
    return log_softmax(logits)


def weights_after(script, row, text):
    """Attention weights of each step that says a text."""
    return np.stack([script.weights[row, t, before] for t, before in enumerate([START, *text[:-1]])])


def penalised(script, row, text, logs, *, length_penalty="none", alpha=1.0, coverage_beta=None, source_mask=None):
    score = sum(logs) / {"none": 1.0, "gnmt": ((5 + len(text)) / 6) ** alpha, "average": len(text) ** alpha}[length_penalty]
    if coverage_beta is not None:
        read = weights_after(script, row, text).astype(np.float64).sum(0)
        valid = slice(None) if source_mask is None else np.asarray(source_mask)[row]
        score += coverage_beta * np.log(np.minimum(read, 1))[valid].sum()
    return score


def may_say(text, symbol, *, min_length, ngram, banned, banned_prefixes, prefix):
    longer = [*text, symbol]
    if len(text) < len(prefix):
        return symbol == prefix[len(text)]
    if symbol in banned or (symbol == END and len(longer) < min_length) or longer in [list(p) for p in banned_prefixes]:
        return False
    ngrams = [tuple(longer[i : i + ngram]) for i in range(len(longer) - ngram + 1)] if ngram else []
    return not ngrams or ngrams[-1] not in ngrams[:-1]


class Hypothesis(NamedTuple):
    text: list
    logs: list
    score: float
    finished: bool


def slow_beam_search(
    script,
    row,
    *,
    beam_size,
    max_length,
    n_best=1,
    min_length=0,
    ngram=0,
    banned=(),
    banned_prefixes=(),
    prefix=(),
    early_stopping="exact",
    **penalties,
):
    """Goes on to the maximum length; with "enough" until K have finished, the most probable of all among them."""
    rules = {"min_length": min_length, "ngram": ngram, "banned": banned, "banned_prefixes": banned_prefixes, "prefix": prefix}
    running, finished, led = [([], [])] if max_length else [], [], False
    for _ in range(max_length):
        candidates = []
        for text, logs in running:
            nexts = next_logs(script, row, text)
            candidates += [
                ([*text, symbol], [*logs, value])
                for symbol, value in enumerate(nexts)
                if may_say(text, symbol, **rules) and value > -np.inf
            ]
        candidates.sort(key=lambda candidate: -sum(candidate[1]))
        candidates = candidates[: 2 * beam_size]
        finished += [candidate for candidate in candidates[:beam_size] if candidate[0][-1] == END]
        running = [candidate for candidate in candidates if candidate[0][-1] != END][:beam_size]
        led = led or (bool(candidates) and candidates[0][0][-1] == END)
        if early_stopping == "enough" and led and len(finished) >= beam_size:
            break
    found = []
    for done, hypotheses in ((True, finished), (False, running)):
        scored = [Hypothesis(text, logs, penalised(script, row, text, logs, **penalties), done) for text, logs in hypotheses]
        found += sorted(scored, key=lambda hypothesis: -hypothesis.score)
    return found[:n_best]


def assert_same(found, script, expected):
    """Arrays as `beam_search` returns them against one list of hypotheses for each row."""
    tokens, lengths, scores, log_probs, token_log_probs, finished, attention = jax.tree.map(np.asarray, tuple(found))
    rows, n_best, _ = tokens.shape
    assert len(expected) == rows
    for row in range(rows):
        for n in range(n_best):
            want = expected[row][n] if n < len(expected[row]) else Hypothesis([], [], -np.inf, False)
            length, where = len(want.text), f"row {row}, hypothesis {n}"
            assert tokens[row, n].tolist() == want.text + [PAD] * (tokens.shape[2] - length), where
            assert (lengths[row, n], finished[row, n]) == (length, want.finished), where
            np.testing.assert_allclose(scores[row, n], want.score, rtol=1e-5, atol=1e-5, err_msg=where)
            np.testing.assert_allclose(log_probs[row, n], sum(want.logs) if want.text else -np.inf, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(token_log_probs[row, n, :length], want.logs, rtol=1e-5, atol=1e-5, err_msg=where)
            assert not token_log_probs[row, n, length:].any()
            if attention is not None:
                if length:
                    np.testing.assert_array_equal(attention[row, n, :length], weights_after(script, row, want.text))
                assert not attention[row, n, length:].any()
