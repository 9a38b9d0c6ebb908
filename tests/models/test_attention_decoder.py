"""The decoder with attention: against PyTorch's cells and plain equations, its step form, padding, and its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import attention as attentions
from s2s_jax import cells
from s2s_jax.decoding import greedy
from s2s_jax.models import Seq2Seq, decoder_step
from s2s_jax.models.attention_decoder import AttentionDecoder
from s2s_jax.models.encoder import Encoded
from s2s_jax.training.checkpoint import named_variables
from s2s_jax.training.state import count_parameters
from tests import oracles
from tests.samples import assert_close, inputs_cell, random_like

B, S, T, V, E, H = 4, 5, 6, 7, 3, 6
PAD, START, END = 0, 1, 2
LENGTHS = np.array([3, 0, 5, 1], np.int32)
VALID = np.arange(S)[None] < LENGTHS[:, None]
SOURCE = np.where(VALID, np.random.default_rng(0).integers(3, V, (B, S)), PAD).astype(np.int32)
INPUTS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
VARIANTS = {
    "plain": {},
    "fed": {"input_feeding": True},
    "first": {"query_layer": "first", "num_layers": 2, "cell": cells.gru},
    "first_of_three_fed": {"query_layer": "first", "num_layers": 3, "residual": True, "input_feeding": True},
    "both_ways_learned": {"bidirectional": True, "bridge": "learned", "cell": cells.gru, "attention": attentions.additive},
    "zero_tied_shared": {
        "bridge": "zero",
        "tied_embeddings": True,
        "shared_embeddings": True,
        "num_layers": 2,
        "residual": True,
    },
    "coverage": {"attention": attentions.make_additive(coverage=True), "cell": cells.rnn},
    "coverage_fed": {"attention": attentions.make_additive(coverage=True, location_filters=2), "input_feeding": True},
    "multi_head_doubled": {"attention": attentions.make_multi_head(2), "double_source": True, "reverse_source": True},
}
variants = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def drawn(**options):
    """A model all of whose parameters are drawn. Not to be changed: the same options give the same model."""
    model = Seq2Seq(V, V, embedding_features=E, hidden_features=H, decoder="attention", rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 3)))


@functools.partial(jax.jit, static_argnums=(0,))
def _forward(graphdef, params, source, lengths, inputs):
    model = nnx.merge(graphdef, params, copy=True)
    return model.decoder(*model.start(source, lengths), inputs)


def forward(model, source=SOURCE, lengths=LENGTHS, inputs=INPUTS):
    return jax.tree.map(np.asarray, _forward(*nnx.split(model), source, lengths, inputs))


@variants
def test_step_by_step_equals_the_teacher_forced_pass(name):
    model = drawn(**VARIANTS[name])
    want = forward(model)
    step, params = decoder_step(model)
    context, state = jax.jit(lambda: model.start(SOURCE, LENGTHS))()
    step = jax.jit(step)
    for t in range(T):
        state, logits, weights = step(params, context, state, INPUTS[:, t])
        assert_close(logits, want.logits[:, t], 1e-5)
        assert_close(weights, want.aux[:, t], 1e-5)
    assert_close(jax.tree.leaves(state), jax.tree.leaves(want.state), 1e-5)


def cell_of(p, path, gates):
    """PyTorch's cell with the parameters of a layer; ours has one bias, but for the reset gate's inner one of a GRU."""
    torch = oracles.oracle("torch")
    w, u = p[path + "w"], p[path + "u"]
    make = torch.nn.LSTMCell if gates == 4 else torch.nn.GRUCell
    layer = make(len(w), len(u), dtype=torch.float64)
    with torch.no_grad():
        layer.weight_ih.copy_(w.T)
        layer.weight_hh.copy_(u.T)
        layer.bias_ih.copy_(p[path + "b"])
        layer.bias_hh.zero_()
        if gates == 3:
            layer.bias_hh[2 * H :] = p[path + "b_n"]
    return layer


def slow(model, cell=cells.lstm, input_feeding=False, query_layer="last", num_layers=1, tied_embeddings=False, attention=None):
    """The decoder by PyTorch's cells and plain equations, row by row, in float64."""
    torch = oracles.oracle("torch")
    p = {name: torch.tensor(np.asarray(value, np.float64)) for name, value in named_variables(model).items()}
    encoded, states, _ = jax.tree.map(lambda x: np.asarray(x, np.float64), model.encoder(SOURCE, LENGTHS))
    gates = 4 if cell is cells.lstm else 3
    below = 1 if query_layer == "first" else num_layers
    paths = [f"decoder.below.layers.{n}.0." for n in range(below)]
    paths += [f"decoder.above.layers.{n}.0." for n in range(num_layers - below)]
    layers = [cell_of(p, path, gates) for path in paths]
    table = p["decoder.embedding.embedding"]
    score = {name: p.get(f"decoder.attention.parameters.{name}") for name in ("w", "w_query", "w_memory", "v")}
    logits, weights = np.zeros((B, T, V)), np.zeros((B, T, S))
    for b, length in enumerate(LENGTHS):
        memory = torch.tensor(encoded[b, :length])
        state = [jax.tree.map(lambda leaf, b=b: torch.tensor(leaf[b : b + 1]), of_layer[0]) for of_layer in states]
        attentional = torch.zeros(E if tied_embeddings else H, dtype=torch.float64)
        for t in range(T):
            x = table[int(INPUTS[b, t])]
            x = torch.cat([x, attentional]) if input_feeding else x
            for n, layer in enumerate(layers):
                with torch.no_grad():
                    new = layer(x[None], tuple(state[n]) if gates == 4 else state[n])
                state[n] = new
                x = (new[0] if gates == 4 else new)[0]
                if n == below - 1:
                    if attention is attentions.additive:
                        scores = torch.tanh(x @ score["w_query"] + memory @ score["w_memory"]) @ score["v"]
                    else:
                        scores = memory @ (x @ score["w"])
                    alpha = torch.softmax(scores, 0)
                    context = alpha @ memory  # of no row: zeros
                    x = x if query_layer == "last" else torch.cat([x, context])
            attentional = torch.tanh(torch.cat([x, context]) @ p["decoder.combine.kernel"])
            out = table.T if tied_embeddings else p["decoder.output.kernel"]
            logits[b, t] = attentional @ out + p["decoder.output.bias"]
            weights[b, t, :length] = alpha
    return logits, weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_feeding": True},
        {"cell": cells.gru},
        {"cell": cells.gru, "input_feeding": True, "attention": attentions.additive},
        {"num_layers": 2, "tied_embeddings": True},
        {"num_layers": 2, "query_layer": "first", "cell": cells.gru},
        {"num_layers": 3, "query_layer": "first", "input_feeding": True, "attention": attentions.additive},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_equals_plain_equations_around_pytorchs_cell(options):
    model = drawn(**options)
    logits, weights = slow(model, **options)
    got = forward(model)
    assert_close(got.logits, logits, 1e-5)
    assert_close(got.aux, weights, 1e-5)


@variants
def test_padding_reaches_nothing(name):
    model = drawn(**VARIANTS[name])
    got = forward(model)
    wider = np.concatenate([SOURCE, np.full((B, 3), V + 5, np.int32)], axis=1)
    assert_close(forward(model, wider).logits, got.logits, 1e-6)
    doubled = 2 if VARIANTS[name].get("double_source") else 1
    assert not got.aux[
        np.broadcast_to((np.arange(doubled * S)[None] >= doubled * LENGTHS[:, None])[:, None], got.aux.shape)
    ].any()
    assert np.isfinite(got.logits).all()
    for b in np.flatnonzero(LENGTHS):
        alone = forward(model, SOURCE[b : b + 1, : LENGTHS[b]], None, INPUTS[b : b + 1])
        assert_close(alone.logits, got.logits[b : b + 1], 1e-5)


@variants
def test_gradients_reach_every_parameter_and_no_nan(name):
    graphdef, params = nnx.split(drawn(**VARIANTS[name]))

    @jax.jit
    @jax.grad
    def gradients(params):
        model = nnx.merge(graphdef, params, copy=True)
        logits = model(SOURCE, LENGTHS, INPUTS, key=jax.random.key(0))
        return jnp.sum(jnp.sin(logits))

    for path, leaf in nnx.to_flat_state(gradients(params)):
        assert np.isfinite(leaf[...]).all(), path
        assert np.asarray(leaf[...]).any(), path


@pytest.mark.parametrize("name", ["plain", "fed", "zero_tied_shared"])
def test_scheduled_sampling_with_the_truth_alone_equals_teacher_forcing(name):
    model = drawn(**VARIANTS[name])
    run = jax.jit(lambda share: model(SOURCE, LENGTHS, INPUTS, key=jax.random.key(0), teacher_forcing=share))
    assert_close(run(1.0), forward(model).logits, 1e-5)
    assert np.abs(run(0.0) - forward(model).logits).max() > 1e-2


@variants
def test_greedy_equals_a_loop_over_the_whole_prefix(name):
    model = drawn(**VARIANTS[name])
    step, params = decoder_step(model)
    found = jax.jit(lambda: greedy(step, params, *model.start(SOURCE, LENGTHS), start=START, end=END, max_length=5))()
    inputs = np.full((B, 5), START, np.int32)
    for t in range(5):
        best = forward(model, inputs=inputs).logits[:, t].argmax(-1)
        running = np.asarray(found.lengths) > t
        np.testing.assert_array_equal(np.asarray(found.tokens)[running, t], best[running])
        if t < 4:
            inputs[:, t + 1] = best


def test_embeddings_are_shared_and_tied():
    plain = {"num_layers": 2, "residual": True}
    alone, shared, tied, both = (
        drawn(**plain, shared_embeddings=shared, tied_embeddings=tied) for tied in (False, True) for shared in (False, True)
    )
    assert shared.encoder.embedding is shared.decoder.embedding
    assert count_parameters(shared) == count_parameters(alone) - V * E
    # a_t is E wide then, and the output matrix gone: W_c loses (H - E) columns.
    assert count_parameters(tied) == count_parameters(alone) - H * V - 2 * H * (H - E)
    assert count_parameters(both) == count_parameters(tied) - V * E
    logits = forward(tied).logits
    changed = nnx.merge(*nnx.split(tied), copy=True)
    table = changed.decoder.embedding.embedding
    table[...] = table[...].at[3].add(1.0)
    unread = np.cumsum(INPUTS == 3, axis=1) == 0  # until symbol 3 is read, nothing but its own logit changes
    apart = np.abs(forward(changed).logits - logits)[unread]
    assert apart[:, 3].max() > 1e-3
    assert np.delete(apart, 3, axis=1).max() < 1e-6


def test_dropout_is_seeded_and_off_without_a_key():
    model = drawn(dropout=0.5, recurrent_dropout=0.5, num_layers=2, input_feeding=True)
    run = jax.jit(lambda key: model(SOURCE, LENGTHS, INPUTS, key=key))
    one, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    assert_close(model(SOURCE, LENGTHS, INPUTS), forward(drawn(num_layers=2, input_feeding=True)).logits, 1e-5)


def shown(query_layer, **rates):
    """Which values masks of dropout have left, with input feeding and a cell that only hands its inputs on.

    Returned are those of the queries, [embeddings; a_t-1], and those of the logits, as they are from the third step on. Half of
    a_t is 1 whatever was dropped; in the other half stands what the top layer hands on of the first half of a_t-1.
    """
    rows, F = 20, 16
    options = {"input_feeding": True, "query_layer": query_layer, "cell": inputs_cell, "num_layers": 2, **rates}
    decoder = AttentionDecoder(F, F, F, memory_features=2 * F, attention=attentions.dot, rngs=nnx.Rngs(0), **options)
    decoder.embedding.embedding[...] = jnp.ones((F, F))
    decoder.output.kernel[...] = jnp.eye(F)
    half = np.arange(F // 2)
    kernel = jnp.zeros(decoder.combine.kernel.shape).at[-2 * F :, half].set(10)  # the context, whose values have a sum of 1
    decoder.combine.kernel[...] = kernel.at[F + half, F // 2 + half].set(10)
    memory = jnp.broadcast_to(jnp.eye(2 * F), (rows, 2 * F, 2 * F))
    context, state = decoder.start(Encoded(memory, decoder.initial_states(rows, jnp.float32), None))
    _, logits, weights = decoder(context, state, jnp.zeros((rows, 20), int), key=jax.random.key(0))
    # Weights are the softmax of the query: the least are those of its zeros.
    queries = np.asarray(weights > weights.min(axis=-1, keepdims=True))
    return (
        queries[:, 2:, :F],
        queries[:, 2:, F : F + F // 2],
        np.asarray(logits != 0)[:, 2:, half],
        np.asarray(logits != 0)[:, 2:, F // 2 :],
    )


def is_constant(kept):
    return np.all(kept == kept[:, :1])


def is_half(kept):
    return abs(np.mean(kept) - 0.5) < 5 * np.sqrt(0.25 / kept.size)


def test_with_input_feeding_dropout_between_layers_has_one_mask_for_all_steps_and_others_one_for_each():
    embeddings, between, output, _ = shown("last", dropout=0.5)
    assert is_constant(between)
    assert is_half(between[:, 0])
    for drawn_anew in (embeddings, output):
        assert np.any(drawn_anew[:, 1:] != drawn_anew[:, :-1], axis=(0, 2)).all()
    assert is_half(output)
    # Where the first layer makes the query, nothing but the mask of embeddings is in it, and that between is in the logits.
    embeddings, fed, output, both = shown("first", dropout=0.5)
    assert fed.all()
    assert is_half(embeddings)
    assert is_half(output)
    assert not is_constant(embeddings)
    assert not is_constant(output)
    assert is_half(both.any(axis=1))  # the others are dropped at every step


@pytest.mark.parametrize("query_layer", ["last", "first"])
def test_input_dropout_has_one_mask_for_all_steps(query_layer):
    embeddings, fed, output, of_top = shown(query_layer, input_dropout=0.5)
    for kept in (embeddings, fed, of_top):
        assert is_constant(kept)
        assert 0.1 < np.mean(kept[:, 0]) < 0.6
    assert output.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "other"}, "decoder: expected one of autoregressive, repeat_vector, attention, got 'other'"),
        (
            {"decoder": "autoregressive", "input_feeding": True},
            "input_feeding: expected none with the decoder 'autoregressive'",
        ),
        ({"decoder": "autoregressive", "attention": attentions.dot}, "attention: expected none with"),
        ({"decoder": "repeat_vector", "bridge": "zero"}, "bridge: expected none with the decoder 'repeat_vector'"),
        ({"query_layer": "middle"}, "query_layer: expected one of last, first, got 'middle'"),
        ({"query_layer": "first"}, 'num_layers: expected at least 2 with query_layer="first", got 1'),
        ({"bridge": "other"}, "bridge: expected one of last, zero, learned, got 'other'"),
        ({"attention": attentions.dot, "bidirectional": True}, "query_features: expected as many as memory_features"),
        ({"shared_embeddings": True, "target": 9}, "shared_embeddings: expected one vocabulary, got two of 7 and 9 symbols"),
    ],
)
def test_errors_name_what_was_expected(options, message):
    options = {"decoder": "attention", **options}
    with pytest.raises(ValueError, match=message):
        Seq2Seq(V, options.pop("target", V), embedding_features=E, hidden_features=H, rngs=nnx.Rngs(0), **options)
