"""Greedy search on decoders whose logits are written down, against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding import greedy
from s2s_jax.types import DecoderOutput
from tests.samples import assert_close

PAD, START, END = 0, 1, 2
V = 5


def script_step(params, context, state, tokens):
    """Reads the logits of step t from a table [B, T, V]; they do not depend on the symbols before."""
    return DecoderOutput(state + 1, jnp.take_along_axis(context, state[:, None, None], axis=1)[:, 0], ())


def markov_step(params, context, state, tokens):
    """Logits from a table [V, V], the row that of the symbol before, and the sum of all symbols so far."""
    state = state + tokens
    return DecoderOutput(state, jnp.asarray(params)[tokens] + jnp.sin(state[:, None] * jnp.arange(1.0, V + 1)), ())


def search(table, **options):
    table = jnp.asarray(table, jnp.float32)
    options = {"start": START, "end": END, "max_length": table.shape[1], **options}
    return greedy(script_step, None, table, jnp.zeros(len(table), jnp.int32), **options)


def scripted(texts, time=None, seed=0):
    """Logits under which each row says its text."""
    time = time or max(map(len, texts))
    table = np.random.default_rng(seed).normal(size=(len(texts), time, V)).astype(np.float32)
    for row, text in zip(table, texts, strict=True):
        for t, symbol in enumerate(text):
            row[t, symbol] = 5 + t
    return table


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_ends_at_the_end_symbol_and_pads_behind_it():
    texts = [[3, 4, END, 4, 4], [END, 3, 3, 3, 3], [4, 4, 4, 4, END], [3, 3, 3, 3, 3], [3, END, END, 4, 3]]
    table = scripted(texts)
    found = search(table)
    assert found.tokens.tolist() == [[3, 4, 2, 0, 0], [2, 0, 0, 0, 0], [4, 4, 4, 4, 2], [3, 3, 3, 3, 3], [3, 2, 0, 0, 0]]
    assert found.lengths.tolist() == [3, 1, 5, 5, 2]
    assert found.finished.tolist() == [True, True, True, False, True]
    taken = np.take_along_axis(log_softmax(table), np.array(texts)[..., None], axis=-1)[..., 0]
    assert_close(found.scores, np.array([row[:n].sum() for row, n in zip(taken, found.lengths, strict=True)]), 1e-5)
    assert (found.tokens.dtype, found.lengths.dtype, found.scores.dtype) == (jnp.int32, jnp.int32, jnp.float32)


def test_another_padding_symbol_and_another_end():
    found = search(scripted([[3, 4, END], [END, 3, 3]]), end=4, pad=7)
    assert found.tokens.tolist() == [[3, 4, 7], [END, 3, 3]]
    assert found.finished.tolist() == [True, False]


def counting(step):
    """`step`, and a list that grows each time the device runs it."""
    calls = []

    def counted(params, context, state, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return step(params, context, state, tokens)

    return counted, calls


@pytest.mark.parametrize(
    ("texts", "steps"), [([[3, END], [END]], 2), ([[END], [END]], 1), ([[3] * 9, [END]], 9), ([[3, 3, 3, END], [3, END]], 4)]
)
def test_stops_when_every_row_has_ended(texts, steps):
    table = jnp.asarray(scripted(texts, time=9))
    step, calls = counting(script_step)
    state = jnp.zeros(2, jnp.int32)
    found = jax.jit(lambda: greedy(step, None, table, state, start=START, end=END, max_length=9))()
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(calls) == steps
    assert int(found.lengths.max()) == steps


def test_reads_the_symbol_before_and_begins_with_the_start_symbol():
    table = np.full((V, V), -9.0)
    for before, after in [(START, 4), (4, 3), (3, 0), (0, END)]:
        table[before, after] = 9
    found = greedy(markov_step, table, None, jnp.zeros(1, jnp.int32), start=START, end=END, max_length=6)
    assert found.tokens.tolist() == [[4, 3, 0, END, PAD, PAD]]


def test_a_row_does_not_depend_on_the_others():
    """The state of an ended row stands still, and what ends later is not disturbed by it."""
    table = np.random.default_rng(3).normal(size=(V, V)).astype(np.float32)
    states = jnp.arange(40, dtype=jnp.int32)
    options = {"start": START, "end": END, "max_length": 12}
    together = greedy(markov_step, table, None, states, **options)
    assert 0 < np.mean(together.finished) < 1
    alone = [greedy(markov_step, table, None, states[b : b + 1], **options) for b in range(0, 40, 7)]
    for b, one in zip(range(0, 40, 7), alone, strict=True):
        assert_close(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], together), one, 1e-6)


@pytest.mark.parametrize("text", [[3], [END]])
def test_one_step_at_most(text):
    found = search(scripted([text]), max_length=1)
    assert found.tokens.tolist() == [text]
    assert found.lengths.tolist() == [1]
    assert found.finished.tolist() == [text == [END]]


def test_equals_the_best_of_all_sequences_where_steps_are_independent():
    """There the most probable sequence is the most probable symbol of each step; the end symbol never is one of them."""
    table = np.random.default_rng(0).normal(size=(6, 4, V)).astype(np.float32)
    table[..., END] = -5
    found = search(table)
    logs = log_softmax(table)
    for b in range(6):
        scores = {text: sum(logs[b, t, s] for t, s in enumerate(text)) for text in itertools.product(range(V), repeat=4)}
        best = max(scores, key=scores.get)
        assert tuple(found.tokens[b].tolist()) == best
        assert abs(float(found.scores[b]) - scores[best]) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_path_of_greatest_conditional_probabilities_by_enumeration(seed):
    """Of all sequences, the one in which every prefix's next symbol is the most probable after that prefix."""
    table = np.random.default_rng(seed).normal(size=(V, V)).astype(np.float32)
    longest = 4

    def conditional(prefix):
        before = [START, *prefix]
        return log_softmax(table[before[-1]] + np.sin(sum(before) * np.arange(1.0, V + 1)))

    def complete(text):
        return END not in text[:-1] and (len(text) == longest or text[-1] == END)

    texts = [text for n in range(1, longest + 1) for text in itertools.product(range(V), repeat=n) if complete(text)]
    (path,) = [text for text in texts if all(conditional(text[:t]).argmax() == s for t, s in enumerate(text))]
    found = greedy(markov_step, table, None, jnp.zeros(1, jnp.int32), start=START, end=END, max_length=longest)
    assert tuple(found.tokens[0, : int(found.lengths[0])].tolist()) == path
    assert abs(float(found.scores[0]) - sum(conditional(path[:t])[s] for t, s in enumerate(path))) < 1e-5
    assert bool(found.finished[0]) == (path[-1] == END)


def test_compiles_once_and_agrees_with_the_call_outside_of_jit():
    traced = []

    @jax.jit
    def found(table):
        traced.append(1)
        return search(table)

    for seed in range(3):
        table = scripted([[3, END, 4], [4, 4, END]], seed=seed)
        assert_close(found(table), search(table), 1e-6)
    assert len(traced) == 1


def test_scores_of_half_precision_logits_add_up_in_float32():
    table = scripted([[3] * 50])

    def step(params, context, state, tokens):
        done = script_step(params, context, state, tokens)
        return done._replace(logits=done.logits.astype(jnp.bfloat16))

    found = greedy(step, None, jnp.asarray(table), jnp.zeros(1, jnp.int32), start=START, end=END, max_length=50)
    rounded = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float64)
    assert_close(found.scores, log_softmax(rounded)[:, np.arange(50), 3].sum(-1), 1e-5)


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (jnp.zeros(1, jnp.int32), {"max_length": 0}, "max_length: expected a positive number, got 0"),
        (jnp.zeros(1, jnp.int32), {"max_length": -3}, "max_length: expected a positive number, got -3"),
        ((), {}, "state: expected arrays with a leading batch axis, got none"),
        (jnp.zeros(1, jnp.int32), {"start": V}, "start: expected a symbol from 0 to 4, got 5"),
        (jnp.zeros(1, jnp.int32), {"end": -1}, "end: expected a symbol from 0 to 4, got -1"),
    ],
)
def test_bad_input_is_named(state, options, message):
    with pytest.raises(ValueError, match=message):
        greedy(markov_step, jnp.zeros((V, V)), None, state, **{"start": START, "end": END, "max_length": 4, **options})
