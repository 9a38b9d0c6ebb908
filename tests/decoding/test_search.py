"""Greedy search and sampling on decoders whose logits are written down, against enumeration."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding import beam_search, greedy, sample, score_reference
from s2s_jax.decoding import search as search_module
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
    tables = [scripted([[3, END, 4], [4, 4, END]], seed=seed) for seed in range(3)]
    search(tables[0])
    compiled = search_module._unfold._cache_size()
    for table in tables:
        assert_close(jax.jit(search)(table), search(table), 1e-6)
    assert search_module._unfold._cache_size() == compiled


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda state, logits: (state, logits), "step: expected the three values state, logits, aux, got 2 values"),
        (lambda state, logits: logits, "step: expected the three values state, logits, aux, got ShapeDtypeStruct"),
        (
            lambda state, logits: ((state, state), logits, ()),
            r"step: expected the state first, of shapes \(3,\), got \(\(3,\), \(3,\)\)",
        ),
        (lambda state, logits: (logits, state, ()), r"step: expected the state first, of shapes \(3,\), got \(3, 5\)"),
        (
            lambda state, logits: (state.astype(jnp.bfloat16), logits, ()),
            "step: expected state of the dtype that it is given in, float32, got bfloat16",
        ),
        (lambda state, logits: (state, logits[0], ()), r"step: expected logits \[3, V\] second, got"),
        (lambda state, logits: (state, None, ()), r"step: expected logits \[3, V\] second, got None"),
    ],
)
@pytest.mark.parametrize("search", ["greedy", "sample", "beam_search", "score_reference"])
def test_a_step_that_gives_something_else_is_named(search, given, message):
    with pytest.raises(ValueError, match=message):
        entry(search, None, jnp.zeros(3), lambda params, context, state, tokens: given(state, jnp.zeros((len(tokens), V))))


def of_nothing(params, context, state, tokens):
    """A step that reads neither context nor state."""
    return DecoderOutput(state, jnp.zeros((len(tokens), V)), ())


def entry(name, context, state, step=of_nothing):
    """One of the four ways to run a step."""
    how = {"start": START, "end": END, "max_length": 3}
    return {
        "greedy": lambda: greedy(step, None, context, state, **how),
        "sample": lambda: sample(step, None, context, state, jax.random.key(0), **how),
        "beam_search": lambda: beam_search(step, None, context, state, beam_size=2, **how),
        "score_reference": lambda: score_reference(step, None, context, state, np.full((3, 2), END), start=START),
    }[name]()


@pytest.mark.parametrize("name", ["greedy", "sample", "beam_search", "score_reference"])
def test_every_leaf_of_state_and_context_has_an_axis_of_the_same_rows(name):
    rows, others, scalar = np.zeros((3, 1)), np.zeros((7, 1)), np.float32(2)
    keys = jax.random.split(jax.random.key(0), 3)
    entry(name, {"memory": rows, "keys": keys, "none": None}, (rows, np.zeros(3), keys))
    shared = "; what rows share is for params"
    for context, state, message in (
        (None, (), "state: expected arrays with a leading batch axis, got none"),
        (None, scalar, "state: expected [B, ...], got ()"),
        (None, (scalar, rows), "state[0]: expected [B, ...], got ()"),
        (None, (rows, np.zeros((2, 1))), "state[1]: expected [3, ...], got (2, 1)"),
        (None, {"h": rows, "steps": 0}, "state['steps']: expected [3, ...], got ()"),
        (others, rows, f"context: expected [3, ...], got (7, 1){shared}"),
        (scalar, rows, f"context: expected [3, ...], got (){shared}"),
        ({"keys": rows, "values": others}, rows, f"context['values']: expected [3, ...], got (7, 1){shared}"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            entry(name, context, state)


@pytest.mark.parametrize("min_length", [0, 3, 4, np.array([4, 0, 2, 3, 1, 4])])
@pytest.mark.parametrize("banned", [[], [3, 0]])
def test_takes_the_most_probable_of_those_that_may_be_said(min_length, banned):
    table = np.random.default_rng(6).normal(size=(6, 4, V)).astype(np.float32)
    table[:, :2, END] += 2
    found = search(table, min_length=min_length, banned=banned)
    logs = log_softmax(table)
    for row, least in enumerate(np.broadcast_to(min_length, 6)):
        words = []
        while len(words) < 4 and END not in words:
            forbidden = [*banned, *([END] if len(words) + 1 < least else [])]
            words.append(max(set(range(V)) - set(forbidden), key=lambda s: table[row, len(words), s]))
        assert found.tokens[row, : int(found.lengths[row])].tolist() == words
        assert abs(float(found.scores[row]) - sum(logs[row, t, s] for t, s in enumerate(words))) < 1e-5


def test_draws_only_what_may_be_said_and_scores_it_by_the_model():
    table = jnp.asarray(np.random.default_rng(6).normal(size=(200, 4, V)), jnp.float32)
    how = {"start": START, "end": END, "max_length": 4, "min_length": 3, "banned": [3]}
    found = sample(script_step, None, table, jnp.zeros(200, jnp.int32), jax.random.key(0), top_k=4, **how)
    tokens = np.asarray(found.tokens)
    assert not np.any(tokens == 3)
    assert set(np.asarray(found.lengths)) == {3, 4}
    said = np.arange(4) < np.asarray(found.lengths)[:, None]
    gains = np.take_along_axis(log_softmax(table), tokens[..., None], axis=-1)[..., 0]
    assert_close(found.scores, (gains * said).sum(-1), 1e-5)


@pytest.mark.parametrize("vocabulary_size", [V, 2000])  # of few symbols and of many
def test_where_nothing_is_left_to_say_a_row_goes_on_no_further_and_its_score_is_nan(vocabulary_size):
    """Rows: the banned symbol alone is possible, the end alone but too early, NaN, no symbol at all; and one that goes on."""
    table = np.full((5, 4, vocabulary_size), -np.inf, np.float32)
    table[:, 0, 3] = 0  # the first step says 3 in all rows
    table[0, 1:, 0], table[1, 1:, END], table[2, 1:] = 0, 0, np.nan
    table[4, 1, 4] = table[4, 2, END] = 0
    how = {"start": START, "end": END, "max_length": 4, "pad": PAD, "banned": [0], "min_length": 3}
    given = script_step, None, jnp.asarray(table), jnp.zeros(5, jnp.int32)
    for found in (
        greedy(*given, **how),
        sample(*given, jax.random.key(0), **how),
        sample(*given, jax.random.key(0), top_p=0.5, **how),
    ):
        assert found.tokens.tolist() == [[3, PAD, PAD, PAD]] * 4 + [[3, 4, END, PAD]]
        assert found.lengths.tolist() == [1] * 4 + [3]
        assert found.finished.tolist() == [False] * 4 + [True]
        np.testing.assert_array_equal(found.scores, [np.nan] * 4 + [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"banned": [V]}, "banned: expected ids from 0 to 4, got 5"),
        ({"banned": range(V)}, "banned: expected that a symbol is left at each step, got 5 of 5 banned"),
        ({"min_length": 4}, "min_length: expected a number from 0 to 3, the most steps, got 4"),
    ],
)
def test_constraints_that_nothing_can_meet_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        search(scripted([[3, 3, END]]), **options)


# Sampling --------------------------------------------------------------------------------------------------------------------


def allowed(logits, temperature, top_k, top_p):
    """The distribution that a symbol is drawn from, one symbol after the other."""
    scaled = [value / temperature for value in logits]
    order = sorted(range(V), key=lambda symbol: -scaled[symbol])
    kept = order[: top_k or V]
    whole = sum(np.exp(scaled[symbol]) for symbol in kept)
    if top_p is not None:
        total, enough = 0.0, []
        for symbol in kept:
            if total < top_p:
                enough.append(symbol)
            total += np.exp(scaled[symbol]) / whole
        kept = enough
    weights = np.array([np.exp(scaled[symbol]) if symbol in kept else 0.0 for symbol in range(V)])
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, None, None), (2.0, 3, None), (1.0, 1, None), (1.0, None, 0.7), (1.5, 4, 0.8), (1.0, None, 1e-6)],
)
def test_symbols_are_drawn_from_the_distribution_that_is_left(temperature, top_k, top_p):
    """20,000 first symbols and, of those rows, second ones that depend on the first."""
    rows = 20_000
    transitions = np.random.default_rng(1).normal(size=(V, V)).astype(np.float32) * 1.5
    state = jnp.zeros(rows, jnp.int32)
    found = sample(
        lambda params, context, state, tokens: DecoderOutput(state, params[tokens], ()),
        jnp.asarray(transitions), None, state, jax.random.key(0), start=START, end=END, max_length=2, pad=PAD,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    tokens, scores = np.asarray(found.tokens), np.asarray(found.scores)
    want = allowed(transitions[START], temperature, top_k, top_p)
    counts = np.bincount(tokens[:, 0], minlength=V)
    assert np.all(counts[want == 0] == 0)
    assert np.all(np.abs(counts / rows - want) <= 5 * np.sqrt(want * (1 - want) / rows) + 1e-9)
    for first in range(V):
        of_first = tokens[tokens[:, 0] == first, 1]
        if first == END:
            assert np.all(of_first == PAD)
        elif len(of_first) > 100:
            want = allowed(transitions[first], temperature, top_k, top_p)
            share = np.bincount(of_first, minlength=V) / len(of_first)
            assert np.all(np.abs(share - want) <= 5 * np.sqrt(want * (1 - want) / len(of_first)) + 1e-9)
    logs = log_softmax(transitions)
    by_hand = logs[START, tokens[:, 0]] + np.where(tokens[:, 0] == END, 0, logs[tokens[:, 0], tokens[:, 1]])
    assert_close(scores, by_hand, 1e-5)
    assert np.array_equal(np.asarray(found.lengths), np.where(tokens[:, 0] == END, 1, 2))


def kept_by_brute_force(logits, top_k, top_p):
    """For each row the set of symbols that may be drawn, of a table [B, V]; equal ones in their order."""
    kept = []
    for row in logits.astype(np.float64):
        order = np.argsort(-row, kind="stable")[: top_k or len(row)]
        shares = np.exp(row[order] - row[order].max())
        sums = np.cumsum(shares / shares.sum())
        needed = len(order) if top_p in (None, 1.0) else 1 + int(np.sum(sums < top_p - 1e-9))
        kept.append({int(symbol) for symbol in order[:needed] if row[symbol] > -np.inf})
    return kept


TIES = np.log(
    np.array(
        [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [1, 2, 2, 1, 2, 2, 1, 1],
            [4, 1, 0, 4, 0, 4, 4, 1],
            [0, 0, 3, 0, 3, 0, 0, 0],
            [1, 2, 3, 4, 5, 6, 7, 8],
            [0, 0, 0, 0, 0, 0, 0, 5],
        ]
    ).clip(1e-300)
)
TIES[TIES < -600] = -np.inf


def first_symbols(logits, rows=400, **options):
    """For each row of logits [B, V] the symbols that are drawn first, of `rows` draws."""
    table = jnp.repeat(jnp.asarray(logits, jnp.float32), rows, axis=0)[:, None]
    state = jnp.zeros(len(table), jnp.int32)
    found = sample(script_step, None, table, state, jax.random.key(0), start=START, end=END, max_length=1, **options)
    return [set(drawn.tolist()) for drawn in np.asarray(found.tokens).reshape(len(logits), rows)]


@pytest.mark.parametrize("top_k", [None, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("top_p", [None, 0.1, 0.45, 0.7, 0.9, 1.0])
def test_of_equally_probable_symbols_no_more_than_asked_for_stay(top_k, top_p):
    assert first_symbols(TIES, top_k=top_k, top_p=top_p) == kept_by_brute_force(TIES, top_k, top_p)


def test_the_symbols_before_are_enough_where_they_sum_up_to_top_p_itself():
    assert first_symbols(TIES[:1], top_p=0.5) == [{0, 1, 2, 3}]  # eight of 1/8 each, without rounding


def test_top_p_of_one_keeps_what_is_behind_a_sum_that_rounds_to_one():
    logits = jnp.asarray(6 * np.random.default_rng(0).normal(size=(1, 1000)), jnp.float32)
    np.testing.assert_array_equal(search_module._cut(logits, None, jnp.float32(1)), logits)


def test_cut_sampling_is_the_same_under_jit_and_vmap_and_lets_gradients_of_the_scores_through():
    how = {"start": START, "end": END, "max_length": 1, "top_k": 3}
    keys = jax.random.split(jax.random.key(5), 4)
    logits = jnp.asarray(TIES[[0, 1, 4]], jnp.float32)

    def drawn(logits, key, top_p=0.8):
        table = logits[:, None]
        return sample(script_step, None, table, jnp.zeros(len(table), jnp.int32), key, top_p=top_p, **how)

    one_by_one = [drawn(logits, key) for key in keys]
    mapped = jax.jit(jax.vmap(drawn, in_axes=(None, 0)))(logits, keys)
    for number, one in enumerate(one_by_one):
        assert_close(tuple(leaf[number] for leaf in mapped), tuple(one), 1e-6)
    assert_close(tuple(jax.jit(drawn)(logits, keys[0], jnp.float32(0.8))), tuple(one_by_one[0]), 1e-6)
    # Loops of unknown length have forward derivatives only; that of a log softmax is known.
    tangent = jnp.asarray(np.random.default_rng(0).normal(size=logits.shape), jnp.float32)
    _, slope = jax.jvp(lambda logits: drawn(logits, keys[0]).scores, (logits,), (tangent,))
    chosen = np.asarray(one_by_one[0].tokens)[:, 0]
    shares = np.exp(log_softmax(logits))
    want = np.asarray(tangent)[np.arange(3), chosen] - (shares * np.asarray(tangent)).sum(-1)
    assert_close(slope, want, 1e-5)


def test_the_key_decides_and_one_symbol_is_greedy():
    table = jnp.asarray(np.random.default_rng(3).normal(size=(6, 8, V)), jnp.float32)
    how = {"start": START, "end": END, "max_length": 8}

    def drawn(key, **options):
        return sample(script_step, None, table, jnp.zeros(6, jnp.int32), jax.random.key(key), **how, **options)

    assert_close(tuple(drawn(1)), tuple(drawn(1)), 0)
    assert np.any(np.asarray(drawn(1).tokens) != np.asarray(drawn(2).tokens))
    assert_close(tuple(drawn(1, top_k=1)), tuple(search(table)), 0)
    assert_close(tuple(drawn(1, temperature=1e-4)), tuple(search(table)), 1e-6)


def test_another_temperature_compiles_nothing_new():
    table = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, V)), jnp.float32)
    how = {"start": START, "end": END, "max_length": 3}
    traced = []

    def step(params, context, state, tokens):
        traced.append(1)
        return script_step(params, context, state, tokens)

    counts = []
    for temperature, top_p in ((1.0, 0.9), (0.3, 0.2)):
        sample(step, None, table, jnp.zeros(2, jnp.int32), jax.random.key(0), temperature=temperature, top_p=top_p, **how)
        counts.append(len(traced))
    assert counts[1] - counts[0] <= 1  # the look at the size of the vocabulary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature: expected a number above 0, got nan"),
        ({"top_k": 0}, "top_k: expected 1 to 5, got 0"),
        ({"top_k": 6}, "top_k: expected 1 to 5, got 6"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p: expected a number above 0 and at most 1, got 1.1"),
    ],
)
def test_what_nothing_can_be_drawn_from_is_refused(options, message):
    table = jnp.zeros((2, 3, V))
    with pytest.raises(ValueError, match=message):
        sample(script_step, None, table, jnp.zeros(2, jnp.int32), jax.random.key(0), start=1, end=2, max_length=3, **options)
