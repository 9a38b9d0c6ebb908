"""The language model: against layers of PyTorch, step by step as in one pass, in search, and where it is wrong to call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.decoding import greedy
from s2s_jax.models import LanguageModel, decoder_step
from tests import oracles
from tests.samples import assert_close, assert_equal, random_like

B, T, V, E, H = 3, 6, 7, 4, 5
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)
CELLS = {"rnn": cells.rnn, "lstm": cells.lstm, "gru": cells.gru}


def drawn(cell="gru", **options):
    model = LanguageModel(V, embedding_features=E, hidden_features=H, cell=CELLS[cell], rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 3)))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_agrees_with_layers_of_pytorch(name, num_layers):
    model = drawn(name, num_layers=num_layers)
    states = random_like(model.initial_states(B), 5)
    xs = np.asarray(model.encoder.embedding.embedding[...])[TOKENS]
    weights = (np.zeros((B, T, H)), states)  # of a gradient that nobody asks for
    want = oracles.torch_stack(CELLS[name], model.encoder.recurrent.params(), xs, states, None, weights).done
    state, logits, _ = model(None, states, TOKENS)
    assert_close(logits, want.outputs @ np.asarray(model.output.kernel[...]) + np.asarray(model.output.bias[...]), 1e-5)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(want.state), 1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_step_by_step_equals_one_pass(name):
    model = drawn(name, num_layers=2)
    step, params = decoder_step(model)
    state, logits = model.initial_states(B), []
    for t in range(T):
        state, at_t, _ = step(params, None, state, TOKENS[:, t])
        logits.append(at_t)
    whole = model(None, model.initial_states(B), TOKENS)
    assert_close(np.stack(logits, axis=1), whole.logits, 1e-5)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(whole.state), 1e-5)


def test_a_symbol_is_seen_by_later_logits_only():
    model = drawn(num_layers=2)
    before = model(None, model.initial_states(B), TOKENS).logits
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % V
    after = model(None, model.initial_states(B), changed).logits
    assert_equal(after[:, :3], before[:, :3])
    assert np.all(np.any(np.asarray(after != before)[:, 3:], axis=-1))


def test_greedy_search_goes_on_with_the_most_probable_symbol():
    model = drawn("lstm")
    found = greedy(*decoder_step(model), None, model.initial_states(B), start=1, end=V - 1, max_length=T)
    read = np.full((B, 1), 1)
    for t in range(T):
        logits = np.asarray(model(None, model.initial_states(B), jnp.asarray(read)).logits[:, -1])
        running = ~(read[:, 1:] == V - 1).any(axis=1)
        assert_equal(np.asarray(found.tokens)[running, t], logits.argmax(-1)[running])
        read = np.concatenate([read, logits.argmax(-1)[:, None]], axis=1)


def test_a_key_turns_dropout_on():
    model, plain = drawn(dropout=0.5), drawn()
    one, again, other, none = (
        model(None, model.initial_states(B), TOKENS, key=key).logits
        for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1), None)
    )
    assert_equal(one, again)
    assert np.any(np.asarray(one != other))
    assert_equal(none, plain(None, plain.initial_states(B), TOKENS).logits)


def test_a_batch_without_rows_and_a_text_without_symbols():
    model = drawn("lstm")
    assert model(None, model.initial_states(0), jnp.zeros((0, T), jnp.int32)).logits.shape == (0, T, V)
    state, logits, _ = model(None, model.initial_states(B), jnp.zeros((B, 0), jnp.int32))
    assert logits.shape == (B, 0, V)
    assert_equal(state, model.initial_states(B))


def test_a_context_and_symbols_outside_the_vocabulary_are_refused():
    model = drawn()
    with pytest.raises(ValueError, match=r"context: expected None in a language model, got \(3, 2\)"):
        model(np.zeros((B, 2)), model.initial_states(B), TOKENS)
    with pytest.raises(ValueError, match="source: expected"):
        model(None, model.initial_states(B), np.full((B, T), V))
