"""Beam search against one in plain Python, enumeration, and cases whose answer is known."""

import itertools
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from s2s_jax.decoding import beam as beam_module
from s2s_jax.decoding import beam_search, greedy
from s2s_jax.types import DecoderOutput
from tests.decoding.scripts import (
    END,
    PAD,
    START,
    Hypothesis,
    Script,
    assert_same,
    beginning,
    next_logs,
    penalised,
    script,
    script_step,
    slow_beam_search,
    weights_of,
)
from tests.samples import assert_close

B, T, V = 5, 7, 6
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)


def search(text, step=script_step, **options):
    """`beam_search` of a script."""
    rows, time = text.logits.shape[:2]
    options = {"beam_size": 3, "start": START, "end": END, "max_length": time, **options}
    return beam_search(step, None, jax.tree.map(jnp.asarray, text), beginning(rows), **options)


def slow(text, **options):
    """The same in plain Python, with the names of the options as there; per-row options are lists."""
    rows, time = text.logits.shape[:2]
    options = {"beam_size": 3, "max_length": time, **options}
    options.pop("time", None)
    options["ngram"] = options.pop("no_repeat_ngram_size", 0)
    prefixes, lengths = options.pop("prefixes", None), options.pop("prefix_lengths", None)
    expected = []
    for row in range(rows):
        own = {
            name: int(v[row]) if isinstance(v, np.ndarray) and name[:3] in ("min", "max") else v for name, v in options.items()
        }
        if prefixes is not None:
            own["prefix"] = list(prefixes[row][: prefixes.shape[1] if lengths is None else lengths[row]])
        expected.append(slow_beam_search(text, row, **own))
    return expected


OPTIONS = [  # of the same number of hypotheses, as each number is compiled for
    {},
    {"beam_size": 2, "n_best": 1},
    {"beam_size": 5, "n_best": 5},
    {"beam_size": 8, "n_best": 8, "max_length": 4},  # wider than the vocabulary
    {"n_best": 1, "length_penalty": "gnmt", "alpha": 5.0},
    {"length_penalty": "gnmt", "alpha": 0.6},
    {"length_penalty": "gnmt", "alpha": 5.0},
    {"length_penalty": "average", "alpha": 0.6},
    {"length_penalty": "average", "alpha": 5.0},
    {"min_length": 5},
    {"min_length": np.array([1, 7, 3, 0, 6]), "max_length": np.array([2, 7, 3, 5, 1]), "time": T},
    {"no_repeat_ngram_size": 1, "min_length": 4},
    {"no_repeat_ngram_size": 2, "min_length": 7},
    {"no_repeat_ngram_size": 3, "min_length": 7},
    {"banned": [4, 0]},
    {"banned": [END]},
    {"banned_prefixes": [[3], [4, 5], [4, 4, END], [END]]},
    {"prefixes": np.array([[3, 4], [5, END], [END, 9], [0, 0], [9, 9]]), "prefix_lengths": [2, 2, 1, 2, 0]},
    {"prefixes": np.array([[3], [5], [4], [0], [1]]), "banned": [3, 4], "no_repeat_ngram_size": 1},
    {"coverage_beta": 0.4},
    {"coverage_beta": 0.2, "source_mask": MASK, "length_penalty": "gnmt", "alpha": 0.9},
]


@pytest.mark.parametrize("early_stopping", ["exact", "enough"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "none")
def test_agrees_with_a_search_in_plain_python_that_knows_no_exact_stop(options, early_stopping):
    """That one goes on to the maximum length; or until enough have finished, where it is asked for that."""
    options = {"n_best": 3, "early_stopping": early_stopping, **options}
    for seed in range(4):
        text = script(B, T, V, seed=seed)
        assert_same(search(text, attention=weights_of, **options), text, slow(text, **options))


def test_rows_that_are_done_leave_the_batch_and_change_nothing(monkeypatch):
    monkeypatch.setattr(beam_module, "_WORTH_HALVING", 1)  # five rows, two, one
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    sizes = set()

    def step(params, context, state, tokens):  # one that nothing is compiled for
        sizes.add(len(tokens))
        return script_step(params, context, state, tokens)

    of_rows = {"coverage_beta", "min_length", "prefixes", "banned_prefixes"}
    left_out = {"max_length": np.array([0, 7, 3, 5, 0]), "time": T}
    # The last rows go on by themselves, and must still know what they have said.
    last = {
        "no_repeat_ngram_size": 1,
        "min_length": np.array([0, 0, 0, 4, 4]),
        "max_length": np.array([1, 2, 1, 7, 7]),
        "time": T,
    }
    for options in ({}, left_out, last, *(options for options in OPTIONS if of_rows & set(options))):
        text = script(B, T, V, seed=3)
        options = {"n_best": 3, **options}
        assert_same(search(text, step=step, attention=weights_of, **options), text, slow(text, **options))
    assert sizes == {5, 2, 1}


@hypothesis.given(st.integers(0, 10**6), st.floats(0, 3), st.floats(0, 2), st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_agrees_with_it_whatever_the_scripts_penalties_and_lengths(seed, alpha, beta, longest):
    text = script(B, T, V, seed=seed, scale=1 + seed % 4)
    how = {"n_best": 3, "length_penalty": "gnmt", "alpha": alpha, "coverage_beta": beta, "max_length": np.array(longest)}
    assert_same(search(text, attention=weights_of, time=T, **how), text, slow(text, **how))


@pytest.mark.parametrize("penalty", [{}, {"length_penalty": "average", "alpha": 5.0}, {"length_penalty": "gnmt", "alpha": 0.6}])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(penalty):
    text, size, longest = script(3, 3, 4, seed=9), 4, 3

    def complete(words):
        return END not in words[:-1] and (words[-1] == END or len(words) == longest)

    everything = [list(w) for n in range(1, longest + 1) for w in itertools.product(range(size), repeat=n) if complete(w)]
    expected = []
    for row in range(3):
        of_row = []
        for words in everything:
            logs = [next_logs(text, row, words[:t])[symbol] for t, symbol in enumerate(words)]
            of_row.append(Hypothesis(words, logs, penalised(text, row, words, logs, **penalty), words[-1] == END))
        expected.append(sorted(of_row, key=lambda one: (not one.finished, -one.score)))
    found = search(text, beam_size=64, n_best=len(everything) + 2, max_length=longest, **penalty)
    assert_same(found, text, expected)


def coarse_step(*arguments):
    done = script_step(*arguments)
    return done._replace(logits=jnp.round(done.logits).astype(jnp.bfloat16))


@pytest.mark.parametrize("options", [{}, {"banned": [3, 5], "min_length": np.array([1, 7, 3, 0, 6])}], ids=["free", "bound"])
@pytest.mark.parametrize("step", [script_step, coarse_step], ids=["float32", "bfloat16"])
def test_a_beam_of_one_is_greedy_without_a_length_penalty(options, step):
    """Among equal logits too, of which there are many where they are rounded."""
    for seed in range(3):
        text = script(B, T, V, seed=seed)
        how = {"start": START, "end": END, "max_length": T, **options}
        want = greedy(step, None, jax.tree.map(jnp.asarray, text), beginning(B), **how)
        found = search(text, step=step, beam_size=1, **options)
        for name in ("tokens", "lengths", "finished"):
            np.testing.assert_array_equal(getattr(found, name)[:, 0], getattr(want, name))
        np.testing.assert_array_equal(found.scores[:, 0], want.scores)
        np.testing.assert_array_equal(found.log_probs[:, 0], want.scores)


# What is finished, and when a row is done ------------------------------------------------------------------------------------


def written(*steps):
    """A script of one row whose probabilities by step and symbol before are given: [{before: {symbol: p}}, ...]."""
    logits = np.full((1, len(steps), V, V), -30.0, np.float32)
    for t, rules in enumerate(steps):
        for before, shares in rules.items():
            for symbol, share in shares.items():
                logits[0, t, before, symbol] = np.log(share)
            if sum(shares.values()) < 1 - 1e-9:  # the rest goes to the padding symbol
                logits[0, t, before, PAD] = np.log(1 - sum(shares.values()))
    return Script(logits, np.ones((1, len(steps), V, 2), np.float32))


def plain_step(params, context, state, tokens):
    """Without the state's shift, so that the probabilities are those written down."""
    rows = jnp.arange(tokens.shape[0])
    return DecoderOutput(state._replace(t=state.t + 1), context.logits[rows, state.t, tokens], ())


A, C, D = 3, 4, 5
TWO_WAYS = written(
    {START: {A: 0.5, C: 0.4, END: 0.1}},
    {A: {END: 0.3, D: 0.6, A: 0.1}, C: {END: 0.9, D: 0.1}},
    {A: {END: 1.0}, D: {END: 0.9, A: 0.1}, C: {END: 1.0}},
    {A: {END: 1.0}, D: {END: 1.0}, C: {END: 1.0}},
)


def texts(found, row=0):
    return [
        words[:length].tolist()
        for words, length in zip(np.asarray(found.tokens[row]), np.asarray(found.lengths[row]), strict=True)
    ]


@pytest.mark.parametrize(
    ("penalty", "want"),
    [
        # Probabilities 0.36, 0.27 and, of the last that ends with the second, 0.05.
        ({}, [[C, END], [A, D, END]]),
        ({"length_penalty": "average", "alpha": 0.6}, [[C, END], [A, D, END]]),  # -0.674 and -0.677
        ({"length_penalty": "average", "alpha": 0.7}, [[A, D, END], [C, END]]),  # -0.607 and -0.629
        ({"length_penalty": "average", "alpha": 5.0}, [[A, D, END], [A, A, END]]),  # -0.005, -0.012 and -0.032
        ({"length_penalty": "gnmt", "alpha": 0.6}, [[C, END], [A, D, END]]),  # -0.931 and -1.102
        ({"length_penalty": "gnmt", "alpha": 5.0}, [[A, D, END], [C, END]]),  # -0.311 and -0.473
    ],
)
def test_the_length_penalty_decides_between_those_that_have_finished(penalty, want):
    found = search(TWO_WAYS, plain_step, beam_size=2, n_best=2, early_stopping="enough", **penalty)
    assert texts(found) == want
    shares = {(C, END): 0.36, (A, D, END): 0.27, (A, A, END): 0.05}
    assert_close(found.log_probs[0], np.log([shares[tuple(words)] for words in want]), 1e-5)


def test_enough_have_finished_before_the_best_of_all_has():
    found = search(TWO_WAYS, plain_step, beam_size=2, n_best=2, length_penalty="average", alpha=5.0)
    assert texts(found) == [[A, D, A, END], [A, D, END]]  # -0.003 and -0.005
    # The means of the log probabilities are -0.51 and -0.31.
    text = written({START: {END: 0.6, A: 0.4}}, {A: {C: 1.0}}, {C: {END: 1.0}})
    for early_stopping, want in (("enough", [END]), ("exact", [A, C, END])):
        assert texts(search(text, plain_step, beam_size=1, length_penalty="average", early_stopping=early_stopping)) == [want]


def test_an_end_symbol_behind_the_first_k_is_not_finished():
    """At the first step the end symbol is third of a beam of two, and A C go on although four were looked at."""
    for beam_size, there in ((2, False), (3, True)):
        found = search(TWO_WAYS, plain_step, beam_size=beam_size, n_best=beam_size, early_stopping="enough")
        assert ([END] in texts(found)) == there


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_texts_that_end_too_early_do_not_end_the_search_before_the_one_that_the_model_is_sure_of(beam_size):
    text = written({START: {A: 0.97, END: 0.03}}, {A: {C: 0.97, END: 0.03}}, {C: {D: 0.97, END: 0.03}}, {D: {END: 1.0}})
    for penalty in ({}, {"length_penalty": "average"}):
        found = search(text, plain_step, beam_size=beam_size, n_best=beam_size, early_stopping="enough", **penalty)
        assert texts(found)[0] == [A, C, D, END]
        assert_close(found.log_probs[0, 0], 3 * np.log(0.97), 1e-5)


def test_the_end_symbol_first_is_a_hypothesis_of_length_one():
    text = written({START: {END: 0.7, A: 0.3}}, {A: {END: 1.0}})
    found = search(text, plain_step, beam_size=2, n_best=2)
    assert texts(found) == [[END], [A, END]]
    assert_close(found.scores[0], np.log([0.7, 0.3]), 1e-5)
    assert found.finished.all()


def test_what_is_cut_off_stands_behind_what_has_ended_however_good_it_is():
    text = written({START: {A: 0.9, END: 0.1}}, {A: {A: 0.95, C: 0.05}})
    found = search(text, plain_step, beam_size=3, n_best=3)
    assert texts(found) == [[END], [A, A], [A, C]]
    assert found.finished.tolist() == [[True, False, False]]
    assert_close(found.log_probs[0], np.log([0.1, 0.855, 0.045]), 1e-5)


def test_fewer_hypotheses_than_asked_for_are_said_to_be_missing():
    text = written({START: {END: 1.0}})
    text.logits[text.logits == -30] = -np.inf
    found = search(text, plain_step, beam_size=4, n_best=3)
    assert found.lengths.tolist() == [[1, 0, 0]]
    assert found.scores.tolist() == found.log_probs.tolist() == [[0, -np.inf, -np.inf]]
    assert found.finished.tolist() == [[True, False, False]]
    assert found.tokens[:, 1:].tolist() == [[[PAD], [PAD]]]


def steps_taken(text, **options):
    calls = []

    def step(*arguments):
        jax.debug.callback(lambda: calls.append(1))
        return script_step(*arguments)

    found = jax.block_until_ready(jax.jit(lambda: search(text, step=step, **options))())
    jax.effects_barrier()
    return len(calls), found


def test_stops_as_soon_as_nothing_that_runs_can_win_and_not_before():
    """Without a penalty: once what runs is no more probable than the best finished. With one, long ones may still win."""
    text = script(1, 30, V, seed=2)
    text.logits[..., END] = -4
    text.logits[:, 0, START] = 0
    text.logits[:, 0, START, END] = 3.0  # two thirds or so, which three steps of others cannot reach
    taken, found = steps_taken(text)
    assert_same(found, text, slow(text))
    assert texts(found) == [[END]]
    assert taken == 1
    longer, found = steps_taken(text, length_penalty="average", alpha=3.0)
    assert_same(found, text, slow(text, length_penalty="average", alpha=3.0))
    assert longer > taken


def test_a_row_that_is_done_does_not_stop_the_others_nor_change():
    text = script(B, T, V, seed=3)
    together = search(text, attention=weights_of, n_best=2)
    for row in range(B):
        alone = search(Script(*(leaf[row : row + 1] for leaf in text)), attention=weights_of, n_best=2)
        assert_close(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], together), alone, 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_hypothesis_of_nan_neither_wins_nor_runs_for_ever(bad):
    """As if its last symbol had none to follow it."""
    for seed in range(4):
        text = script(B, T, V, seed=seed)
        text.logits[:, 2, 3:] = bad  # after these symbols at the third step
        text.logits[0, 0] = bad  # from the beginning
        with np.errstate(invalid="ignore"):
            expected = slow(text, n_best=3)
        assert expected[0] == []
        assert_same(search(text, n_best=3), text, expected)
    nothing = text._replace(logits=np.full_like(text.logits, bad))
    assert steps_taken(nothing)[0] == 1


def test_where_a_beam_of_one_leaves_out_a_row_the_greedy_search_says_nan():
    text = script(B, T, V)
    text.logits[1, 2] = np.nan
    text.logits[2, 0] = -np.inf
    want = greedy(script_step, None, jax.tree.map(jnp.asarray, text), beginning(B), start=START, end=END, max_length=T)
    found = search(text, beam_size=1)
    missing = np.asarray(found.scores[:, 0]) == -np.inf
    np.testing.assert_array_equal(missing, np.isnan(want.scores))
    assert missing[2]
    assert not missing[[0, 3, 4]].any()


def test_nor_does_one_of_nan_weights_with_a_coverage_penalty():
    how = {"n_best": 3, "coverage_beta": 0.3}
    for seed in range(4):
        text = script(B, T, V, seed=seed)
        mute, blind = text.logits.copy(), text.weights.copy()
        mute[:, 2, 3:], blind[:, 2, 3:, 1] = np.nan, np.nan  # after these symbols at the third step
        mute[0, 0], blind[0, 0, :, 1] = np.nan, np.nan  # from the beginning
        with np.errstate(invalid="ignore"):
            expected = slow(text._replace(logits=mute), **how)
        found = search(text._replace(weights=blind), attention=weights_of, **how)
        assert_same(found, text, expected)
        assert found.scores[0].tolist() == found.log_probs[0].tolist() == [-np.inf] * 3
        unseen = np.tile([True, False, True, True], (B, 1))  # where the NaN stands
        assert_same(
            search(text._replace(weights=blind), source_mask=unseen, **how, attention=weights_of)._replace(attention=None),
            text,
            slow(text, source_mask=unseen, **how),
        )
    assert steps_taken(text._replace(weights=np.full_like(text.weights, np.nan)), attention=weights_of, **how)[0] == 1


def test_a_penalty_of_nan_leaves_nothing():
    """A traced one, as nobody can look at it."""
    text = script(B, T, V)
    # To the power of NaN a length of 1 is 1, but nothing ends here.
    found = jax.jit(lambda alpha: search(text, n_best=2, banned=[END], length_penalty="average", alpha=alpha))(np.nan)
    assert_same(found, text, [[]] * B)


# Shapes, dtypes, transformations ---------------------------------------------------------------------------------------------


def test_no_rows_one_step_and_a_row_of_no_steps():
    text = script(0, 4, V)
    found = search(text, n_best=2, attention=weights_of)
    assert found.tokens.shape == (0, 2, 4)
    assert found.attention.shape == (0, 2, 4, 4)
    text = script(3, 1, V)
    assert_same(search(text, n_best=3), text, slow(text, n_best=3))
    found = search(script(2, 4, V), max_length=np.array([0, 3]), n_best=2, length_penalty="average")
    assert found.tokens.shape == (2, 2, 3)
    assert found.lengths[0].tolist() == [0, 0]
    assert found.scores[0].tolist() == [-np.inf, -np.inf]


def test_a_vocabulary_smaller_than_the_beam():
    text = script(2, 4, 3, seed=1)
    assert_same(search(text, beam_size=6, n_best=6), text, slow(text, beam_size=6, n_best=6))


def test_half_precision_logits_add_up_in_float32():
    text = script(B, T, V, seed=1)
    halves = Script(np.asarray(jnp.asarray(text.logits, jnp.bfloat16).astype(jnp.float32)), text.weights)

    def step(params, context, state, tokens):
        done = plain_step(params, context, state, tokens)
        return done._replace(logits=done.logits.astype(jnp.bfloat16))

    assert_close(search(text, step=step, n_best=3), search(halves, step=plain_step, n_best=3), 1e-6)
    assert search(text, step=step).scores.dtype == jnp.float32


def test_the_same_under_jit_vmap_and_shard_map():
    text = jax.tree.map(jnp.asarray, script(8, T, V, seed=4))
    mask = jnp.asarray(np.tile([[1, 1, 1, 0], [1, 1, 1, 1]], (4, 1)), bool)
    prefixes = jnp.asarray([[3]] * 8)
    limits = jnp.asarray([7, 5, 3, 7, 7, 1, 2, 7])

    def found(text, mask, prefixes, limits):
        found = search(
            text, max_length=limits, time=T, n_best=2, attention=weights_of, coverage_beta=0.3, source_mask=mask,
            prefixes=prefixes, no_repeat_ngram_size=2, banned_prefixes=[[3, 4]], min_length=2, length_penalty="gnmt",
        )  # fmt: skip
        # There is no difference between two infinities.
        return jax.tree.map(lambda leaf: jnp.where(jnp.isneginf(leaf), 1e3, leaf), found)

    arguments = (text, mask, prefixes, limits)
    want = found(*arguments)
    assert_close(jax.jit(found)(*arguments), want, 1e-6)
    by_two = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), arguments)
    mapped = jax.vmap(found)(*by_two)
    assert_close(jax.tree.map(lambda leaf: leaf.reshape(8, *leaf.shape[2:]), mapped), want, 1e-6)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = jax.shard_map(found, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    assert_close(jax.jit(split)(*arguments), want, 1e-6)


def test_a_state_may_hold_random_keys():
    text = jax.tree.map(jnp.asarray, script(2, 4, V))

    def step(params, context, state, tokens):
        place, keys = state
        done = script_step(params, context, place, tokens)
        return done._replace(state=(done.state, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)))

    how = {"beam_size": 2, "start": START, "end": END, "max_length": 4}
    found = beam_search(step, None, text, (beginning(2), jax.random.split(jax.random.key(0), 2)), **how)
    assert_close(found, beam_search(script_step, None, text, beginning(2), **how), 0)


def test_a_second_call_compiles_nothing():
    """Other penalties, lengths, and banned symbols as many as before included."""
    beam_module._search.clear_cache()
    for seed, alpha, banned in ((0, 0.6, [3]), (1, 1.5, [4])):
        text = script(B, T, V, seed=seed)
        how = {"length_penalty": "gnmt", "alpha": alpha, "banned": banned, "banned_prefixes": [[banned[0], 5]]}
        search(
            text, attention=weights_of, coverage_beta=alpha / 2, max_length=np.full(B, T - seed), time=T, min_length=2, **how
        )
    assert beam_module._search._cache_size() == 1


def test_weights_of_any_shape_come_back_as_a_tree():
    text = script(B, T, V)
    found = search(
        text, attention=lambda aux: {"heads": jnp.stack([aux["weights"]] * 2, axis=1), "sum": aux["weights"].sum(-1)}
    )
    assert found.attention["heads"].shape == (B, 1, T, 2, 4)
    assert found.attention["sum"].shape == (B, 1, T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: expected a positive number, got 0"),
        ({"n_best": 4}, "n_best: expected a number from 1 to beam_size = 3, got 4"),
        ({"n_best": 0}, "n_best: expected a number from 1 to beam_size = 3, got 0"),
        ({"start": V}, "start: expected a symbol from 0 to 5, got 6"),
        ({"end": -1}, "end: expected a symbol from 0 to 5, got -1"),
        ({"max_length": 0}, "max_length: expected a positive number, got 0"),
        ({"max_length": np.array([1, 2])}, r"max_length: expected shape \[B\] = \(5,\), got \(2,\)"),
        ({"max_length": np.arange(4, 9), "time": 7}, "max_length: expected values from 0 to T = 7, got 8 in row 4"),
        ({"time": 0}, "time: expected a positive number, got 0"),
        ({"min_length": 8}, "min_length: expected a number from 0 to 7, the most steps, got 8"),
        ({"length_penalty": "wu"}, "length_penalty: expected one of none, gnmt, average, got 'wu'"),
        ({"alpha": -1.0}, "alpha: expected a number from 0, got -1.0"),
        ({"alpha": float("nan")}, "alpha: expected a number from 0, got nan"),
        ({"coverage_beta": 0.1}, "attention: expected a function of aux with coverage_beta, got None"),
        ({"coverage_beta": -0.1, "attention": weights_of}, "coverage_beta: expected a number from 0, got -0.1"),
        ({"coverage_beta": 0.1, "attention": lambda aux: aux["weights"].sum(1)}, r"attention: expected weights \[5, S\]"),
        ({"coverage_beta": 0.1, "attention": lambda aux: aux}, r"with coverage_beta, got \{'weights': \(5, 4\)\}"),
        ({"attention": lambda aux: aux["weights"].sum(0)}, r"attention: expected arrays \[5, \.\.\.\], got \[\(4,\)\]"),
        (
            {"coverage_beta": 0.1, "attention": weights_of, "source_mask": np.ones((5, 3), bool)},
            r"source_mask: expected bool \(5, 4\), as the attention weights are, got bool \(5, 3\)",
        ),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected 0 or more, got -1"),
        ({"banned": [6]}, "banned: expected ids from 0 to 5, got 6"),
        ({"banned": range(6)}, "banned: expected that a symbol is left at each step, got 6 of 6 banned"),
        (
            {"banned": [0, 1, 3, 4, 5], "min_length": 2},
            "banned: expected that a symbol is left at each step, got 5 of 6 banned",
        ),
        ({"banned_prefixes": [[3], []]}, "banned_prefixes: expected at least one symbol in each, got an empty one"),
        ({"banned_prefixes": [[7]]}, "banned_prefixes: expected ids from 0 to 5, got 7"),
        ({"prefixes": np.array([[1]])}, r"prefixes: expected \[5, P\], got \(1, 1\)"),
        ({"prefixes": np.full((5, 1), 6)}, "prefixes: expected ids from 0 to 5, got 6"),
        (
            {"prefixes": np.full((5, 1), 3), "prefix_lengths": [1, 1, 2, 0, 0]},
            "prefix_lengths: expected values from 0 to T = 1",
        ),
        ({"prefix_lengths": [1] * 5}, "prefix_lengths: expected None without prefixes"),
        (
            {"prefixes": np.full((5, 5), 3), "max_length": 3},
            "prefixes: expected at most as many symbols as max_length, 3, got 5 in row 0",
        ),
        (
            {"prefixes": np.full((5, 4), 3), "prefix_lengths": [0, 3, 1, 4, 4], "max_length": np.array([0, 3, 4, 2, 1])},
            "prefixes: expected at most as many symbols as max_length, 2, got 4 in row 3",
        ),
        (
            {
                "prefixes": np.array([[3, 4, END], [END, 3, 3], [3, END, 5], [3, 3, 3], [3, 3, 3]]),
                "prefix_lengths": [3, 1, 3, 3, 3],
            },
            "prefixes: expected the end symbol 2 nowhere but last, got it as symbol 2 of 3 in row 2",
        ),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        search(script(B, T, V), **options)


def test_prefixes_are_checked_as_far_as_they_are_known():
    """Inside of `jax.jit` too; of traced ones, what comes behind the limit or an end symbol is cut off."""
    text = script(B, T, V)
    long, past_end, whole = np.full((B, 5), 3), np.array([[3, END, 5]] * B), np.full(B, 3)
    for options, message in (
        ({"prefixes": long, "max_length": 3}, "at most as many symbols as max_length, 3, got 5 in row 0"),
        ({"prefixes": past_end}, "the end symbol 2 nowhere but last, got it as symbol 2 of 3 in row 0"),
        ({"prefixes": past_end + 4 * (past_end == 5)}, "ids from 0 to 5, got 9"),
    ):
        with pytest.raises(ValueError, match=f"prefixes: expected {message}"):
            jax.jit(lambda options=options: search(text, **options))()
    with pytest.raises(ValueError, match="max_length, 3, got 5 in row 0"):  # their number is known
        jax.jit(lambda prefixes: search(text, prefixes=prefixes, max_length=3))(long)
    for traced, known, want in (
        ({"prefixes": past_end}, {}, [3, END]),
        ({"prefix_lengths": whole}, {"prefixes": past_end}, [3, END]),
        ({"prefix_lengths": whole + 2}, {"prefixes": long, "max_length": 3}, [3, 3, 3]),
        ({"max_length": whole - 1}, {"prefixes": long, "time": T}, [3, 3]),
    ):
        found = jax.jit(lambda traced, known=known: search(text, **traced, **known))(traced)
        assert texts(found) == [want]
    left_out = search(text, prefixes=np.array([[END, END], *[[3, 3]] * (B - 1)]), max_length=np.array([0, 2, 3, 4, 5]))
    assert texts(left_out) == [[]]
    assert texts(left_out, 1) == [[3, 3]]


def test_a_traced_limit_needs_to_be_told_the_time():
    with pytest.raises(ValueError, match="time: expected a number, as max_length has one for each row and is traced, got None"):
        jax.jit(lambda limits: search(script(B, T, V), max_length=limits))(jnp.full(B, 3))
    with pytest.raises(ValueError, match="state: expected arrays with a leading batch axis, got none"):
        beam_search(script_step, None, None, (), beam_size=2, start=START, end=END, max_length=3)


def test_with_x64_too():
    code = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from s2s_jax.decoding import beam_search
table = jnp.log(jnp.array([[0.0, 0.2, 0.5, 0.3], [0.1, 0.1, 0.6, 0.2], [0.1, 0.7, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]]) + 1e-9)
step = lambda params, context, state, tokens: (state, table[tokens], None)
found = beam_search(step, None, None, jnp.zeros((3, 1)), beam_size=2, n_best=2, start=0, end=1, max_length=4, pad=3)
print(found.tokens[:, 0].tolist(), found.scores.dtype)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[0] == f"{[[2, 1, 3, 3]] * 3} float64"


@pytest.mark.parametrize("widths", [("float32", "float64"), ("float64", "float32"), ("float32", "bfloat16")])
def test_weights_may_be_wider_or_narrower_than_logits(float64, widths):
    text, how = script(B, T, V), {"n_best": 3, "coverage_beta": 0.3}

    def step(*arguments):
        state, logits, aux = script_step(*arguments)
        return DecoderOutput(state, logits.astype(widths[0]), {"weights": aux["weights"].astype(widths[1])})

    found = search(text, step=step, attention=weights_of, **how)
    assert (found.scores.dtype, found.attention.dtype) == widths
    if widths[1] == "bfloat16":
        text = text._replace(weights=np.asarray(jnp.asarray(text.weights, "bfloat16").astype("float32")))
    assert_same(found._replace(attention=None), text, slow(text, **how))
