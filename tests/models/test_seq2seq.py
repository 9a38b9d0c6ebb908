"""Both forms of the encoder-decoder: step by step as in training, greedy against a slow loop, PyTorch, Keras, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from s2s_jax import cells
from s2s_jax.decoding import greedy
from s2s_jax.models import Seq2Seq, decoder_step
from s2s_jax.models.seq2seq import AutoregressiveDecoder
from s2s_jax.training.checkpoint import named_variables
from s2s_jax.training.state import count_parameters
from tests import oracles
from tests.samples import CELLS, TOLERANCE, assert_close, cast, inputs_cell, random_like

B, S, T, V, E, H = 4, 5, 6, 7, 3, 6
PAD, START, END = 0, 1, 2
LENGTHS = np.array([3, 0, 5, 1], np.int32)
SOURCE = np.where(np.arange(S)[None] < LENGTHS[:, None], np.random.default_rng(0).integers(3, V, (B, S)), PAD).astype(np.int32)
INPUTS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
DECODERS = ("autoregressive", "repeat_vector")
decoders = pytest.mark.parametrize("decoder", DECODERS)


@functools.cache
def drawn(**options):
    """A model all of whose parameters are drawn. Not to be changed: the same options give the same model."""
    model = Seq2Seq(V, V, embedding_features=E, hidden_features=H, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 3)))


@functools.partial(jax.jit, static_argnums=(0,))
def _logits(graphdef, params, source, lengths, inputs):
    return nnx.merge(graphdef, params, copy=True)(source, lengths, inputs)


def logits_of(model, source=SOURCE, lengths=LENGTHS, inputs=INPUTS):
    return np.asarray(_logits(*nnx.split(model), source, lengths, inputs))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _greedy(graphdef, params, source, lengths, max_length):
    model = nnx.merge(graphdef, params, copy=True)
    context, state = model.start(source, lengths)
    return greedy(*decoder_step(model), context, state, start=START, end=END, max_length=max_length, pad=PAD)


def greedy_of(model, source=SOURCE, lengths=LENGTHS, max_length=T):
    return jax.tree.map(np.asarray, _greedy(*nnx.split(model), source, lengths, max_length))


VARIANTS = {
    "rnn": {"cell": cells.rnn},
    "lstm": {},
    "gru_two_layers": {"cell": cells.gru, "num_layers": 2},
    "lstm_two_layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "gru_both_ways": {"cell": cells.gru, "bidirectional": True},
    "rnn_two_layers_reversed_doubled": {"cell": cells.rnn, "num_layers": 2, "reverse_source": True, "double_source": True},
}


@decoders
@pytest.mark.parametrize("name", VARIANTS)
def test_step_by_step_equals_the_teacher_forced_pass(name, decoder):
    model = drawn(decoder=decoder, **VARIANTS[name])
    step, params = decoder_step(model)
    context, state = jax.jit(lambda: model.start(SOURCE, LENGTHS))()
    step, logits = jax.jit(step), []
    for t in range(T):
        state, at_t, _ = step(params, context, state, INPUTS[:, t])
        logits.append(at_t)
    assert_close(np.stack(logits, axis=1), logits_of(model), 1e-5)


def slow_greedy(model, source, lengths, max_length):
    """Runs the whole prefix through the teacher-forced pass again for each symbol."""
    batch_size = len(source)
    inputs = np.full((batch_size, max_length), START)
    tokens = np.full((batch_size, max_length), PAD)
    counts, scores, running = np.zeros(batch_size, int), np.zeros(batch_size), np.ones(batch_size, bool)
    for t in range(max_length):
        logits = logits_of(model, source, lengths, inputs)[:, t].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for b in np.flatnonzero(running):
            tokens[b, t] = logs[b].argmax()
            scores[b] += logs[b].max()
            counts[b] += 1
            running[b] = tokens[b, t] != END
            if t + 1 < max_length:
                inputs[b, t + 1] = tokens[b, t]
    return tokens, counts, scores, ~running


@decoders
@pytest.mark.parametrize("name", ["lstm", "gru_two_layers", "lstm_two_layers_both_ways"])
def test_greedy_equals_a_loop_that_starts_again_for_each_symbol(name, decoder):
    model = nnx.merge(*nnx.split(drawn(decoder=decoder, **VARIANTS[name])), copy=True)
    bias = model.decoder.output.bias
    source, lengths = np.tile(SOURCE, (6, 1)), np.tile(LENGTHS, 6)
    source = np.where(source == PAD, PAD, np.random.default_rng(5).integers(3, V, source.shape))
    for _ in range(200):  # until some rows end, and not all
        got = greedy_of(model, source, lengths, 8)
        if got.finished.any():
            break
        bias[...] = bias[...].at[END].add(0.05)
    assert 0 < got.finished.mean() < 1
    want = slow_greedy(model, source, lengths, 8)
    np.testing.assert_array_equal(got.tokens, want[0])
    np.testing.assert_array_equal(got.lengths, want[1])
    np.testing.assert_array_equal(got.finished, want[3])
    assert_close(got.scores, want[2], 1e-5)


def by_hand(change):
    """The source with each row's valid part changed, and the new lengths."""
    parts = [change(row[:n].tolist()) for row, n in zip(SOURCE, LENGTHS, strict=True)]
    longest = max(map(len, parts))
    padded = [part + [PAD] * (longest - len(part)) for part in parts]
    return np.array(padded, np.int32), np.array([len(part) for part in parts], np.int32)


@decoders
@pytest.mark.parametrize(
    ("option", "change"),
    [
        ({"reverse_source": True}, lambda row: row[::-1]),
        ({"double_source": True}, lambda row: row + row),
        ({"reverse_source": True, "double_source": True}, lambda row: (row + row)[::-1]),
    ],
    ids=["reversed", "doubled", "reversed and doubled"],
)
def test_a_changed_source_equals_the_source_changed_by_hand(option, change, decoder):
    model, plain = drawn(decoder=decoder, **option), drawn(decoder=decoder)
    assert_close(logits_of(model), logits_of(plain, *by_hand(change)), 1e-5)
    other = np.abs(logits_of(model) - logits_of(plain))
    assert other[1].max() < 1e-5  # a source of length 0 cannot be changed
    assert np.all(other.max(axis=(1, 2))[[0, 2]] > 1e-3)
    # Without lengths, all of it is the source.
    everything, full = np.maximum(SOURCE, 3), np.full(B, S)
    assert_close(logits_of(model, everything, None), logits_of(model, everything, full), 1e-5)


@decoders
@pytest.mark.parametrize("name", ["lstm_two_layers_both_ways", "rnn_two_layers_reversed_doubled"])
def test_more_padding_and_what_stands_in_it_change_nothing(name, decoder):
    model = drawn(decoder=decoder, **VARIANTS[name])
    want = logits_of(model)
    assert np.all(np.isfinite(want))  # a source of length 0 is among them
    wider = np.pad(SOURCE, ((0, 0), (0, 3)))
    assert_close(logits_of(model, wider), want, 1e-5)
    other = np.where(np.arange(S + 3)[None] < LENGTHS[:, None], wider, V - 1)
    assert_close(logits_of(model, other), want, 1e-5)


@decoders
def test_gradients_of_an_empty_source_are_finite(decoder):
    graphdef, params = nnx.split(drawn(decoder=decoder))
    nothing = np.zeros(B, np.int32)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(_logits(graphdef, p, SOURCE, nothing, INPUTS) ** 2)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert not np.any(gradients["encoder"]["embedding"]["embedding"][...])


@decoders
def test_start_takes_the_encoders_final_states(decoder):
    model = drawn(decoder=decoder, num_layers=2, bidirectional=True)
    encoded = model.encoder(SOURCE, LENGTHS)
    context, state = model.start(SOURCE, LENGTHS)
    summed = [jax.tree.map(jnp.add, *of_layer) for of_layer in encoded.states]
    if decoder == "autoregressive":
        assert context is None
        assert_close(state, tuple((s,) for s in summed), 1e-6)
    else:
        assert_close(context, summed[-1].h, 1e-6)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))


# Teacher forcing -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 4))
def _forced(graphdef, params, inputs, key, share):
    return nnx.merge(graphdef, params, copy=True)(SOURCE, LENGTHS, inputs, key=key, teacher_forcing=share)


def forced(model, share, key=0, inputs=INPUTS):
    return np.asarray(_forced(*nnx.split(model), inputs, jax.random.key(key), share))


def test_teacher_forcing_one_is_the_plain_pass_and_zero_the_own_feed():
    model = drawn()
    assert_close(forced(model, 1.0), logits_of(model), 1e-6)
    own = forced(model, 0.0, inputs=np.where(np.arange(T) == 0, START, INPUTS))
    # Fed with its own most probable symbols, whatever the truth is.
    fed = np.concatenate([np.full((B, 1), START), own.argmax(-1)[:, :-1]], axis=1)
    assert_close(own, logits_of(model, inputs=fed), 1e-5)
    found = greedy_of(model)
    for b, n in enumerate(found.lengths):
        assert own[b, :n].argmax(-1).tolist() == found.tokens[b, :n].tolist()


def test_teacher_forcing_in_between_reads_the_truth_at_the_drawn_share():
    """Which input was read shows in the logits: exactly one choice of inputs explains them."""
    model, share, time = drawn(), 0.7, 40
    inputs = np.random.default_rng(2).integers(3, V, (B, time))
    truth, chances = 0, 0
    step, params = decoder_step(model)
    step = jax.jit(step)
    for key in range(5):
        logits = forced(model, share, key, inputs)
        own = np.concatenate([inputs[:, :1], logits.argmax(-1)[:, :-1]], axis=1)
        context, state = model.start(SOURCE, LENGTHS)
        for t in range(time):
            with_truth = step(params, context, state, inputs[:, t])
            with_own = step(params, context, state, own[:, t])
            is_truth = np.abs(np.asarray(with_truth.logits) - logits[:, t]).max(-1) < 1e-4
            is_own = np.abs(np.asarray(with_own.logits) - logits[:, t]).max(-1) < 1e-4
            assert np.all(is_truth | is_own)
            if t == 0:
                assert np.all(is_truth)  # the start symbol is always read
            else:
                told_apart = inputs[:, t] != own[:, t]
                truth, chances = truth + np.sum(is_truth & told_apart), chances + np.sum(told_apart)
            fed = np.where(is_truth, inputs[:, t], own[:, t])
            state = step(params, context, state, fed).state
    assert chances > 300
    assert abs(truth / chances - share) < 5 * np.sqrt(share * (1 - share) / chances)


@decoders
def test_a_key_turns_dropout_on(decoder):
    model, plain = drawn(decoder=decoder, dropout=0.5, recurrent_dropout=0.2), drawn(decoder=decoder)
    assert_close(logits_of(model), logits_of(plain), 1e-6)
    assert np.any(forced(model, 1.0, 0) != forced(model, 1.0, 1))
    assert_close(forced(model, 1.0, 0), forced(model, 1.0, 0), 0)
    assert_close(forced(plain, 1.0), logits_of(plain), 1e-6)


@pytest.mark.parametrize("decoder", ["autoregressive", "repeat_vector"])
def test_input_dropout_is_one_mask_for_all_steps_on_both_sides(decoder):
    """What ones become where the cell only hands them on; each of two layers drops half of them."""
    options = {"decoder": decoder, "cell": inputs_cell, "num_layers": 2, "input_dropout": 0.5}
    model = Seq2Seq(30, 30, embedding_features=30, hidden_features=30, rngs=nnx.Rngs(0), **options)
    model.encoder.embedding.embedding[...] = jnp.ones((30, 30))
    model.decoder.output.kernel[...] = jnp.eye(30)
    context = jnp.ones((20, 30))
    if decoder == "autoregressive":
        context, model.decoder.embedding.embedding[...] = None, jnp.ones((30, 30))
    symbols, state = jnp.zeros((20, 15), int), model.decoder.initial_states(20, jnp.float32)
    for part in (
        lambda key: model.encoder(symbols, key=key).outputs,
        lambda key: model.decoder(context, state, symbols, key=key).logits,
    ):
        assert np.all(np.asarray(part(None)) == 1)
        seen = np.asarray(part(jax.random.key(0)))
        assert set(np.unique(seen)) == {0, 4}
        assert np.all(seen == seen[:, :1])
        assert len({tuple(row) for row in seen[:, 0]}) == 20
        assert abs(np.mean(seen[:, 0] > 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 600)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"decoder": "other"}, {}, "decoder: expected one of autoregressive, repeat_vector, attention, got 'other'"),
        ({"dropout": 1.0}, {}, "rate: expected a rate in|dropout: expected a rate in"),
        ({"input_dropout": -0.1}, {}, "input_dropout: expected a rate in"),
        ({"num_layers": 0}, {}, "num_layers: expected a positive number, got 0"),
        ({}, {"teacher_forcing": 1.5}, "teacher_forcing: expected a probability, got 1.5"),
        ({}, {"teacher_forcing": jnp.float32(1.5)}, "teacher_forcing: expected a probability, got 1.5"),
        ({}, {"teacher_forcing": -0.1}, "teacher_forcing: expected a probability, got -0.1"),
        ({}, {"teacher_forcing": 0.5}, "key: expected one with teacher_forcing below 1, got None"),
        ({}, {"source_lengths": np.array([S + 1, 0, 0, 0])}, "lengths: expected values from 0 to T = 5, got 6 in row 0"),
        ({}, {"source_lengths": np.array([1, 2])}, r"lengths: expected shape \[B\] = \(4,\), got \(2,\)"),
        ({}, {"source": SOURCE[0]}, r"source: expected \[B, T\], got \(5,\)"),
        ({}, {"source": SOURCE[..., None]}, r"source: expected \[B, T\], got \(4, 5, 1\)"),
        ({}, {"target_inputs": INPUTS[:3]}, r"tokens: expected \[4, T\], got \(3, 6\)"),
        ({}, {"target_inputs": INPUTS[0]}, r"tokens: expected \[4, T\], got \(6,\)"),
        ({}, {"target_inputs": INPUTS + V}, r"tokens: expected ids from 0 to 6, got"),
        ({"decoder": "repeat_vector"}, {"target_inputs": INPUTS + V}, r"tokens: expected ids from 0 to 6, got"),
        ({"decoder": "repeat_vector"}, {"target_inputs": INPUTS[:3]}, r"tokens: expected \[4, T\], got \(3, 6\)"),
        ({"decoder": "repeat_vector", "cell": CELLS["counting"]}, {}, "cell: expected a state that is one array .* got dict"),
    ],
)
def test_bad_input_is_named(options, call, message):
    with pytest.raises(ValueError, match=message):
        drawn(**options)(**{"source": SOURCE, "source_lengths": LENGTHS, "target_inputs": INPUTS, **call})


@decoders
def test_tokens_are_integers(decoder):
    with pytest.raises(TypeError, match="tokens: expected integers, got dtype float"):
        drawn(decoder=decoder)(SOURCE, LENGTHS, INPUTS * 0.5)


@decoders
@pytest.mark.parametrize("size", ["source_vocabulary_size", "target_vocabulary_size", "embedding_features", "hidden_features"])
def test_sizes_are_positive(decoder, size):
    sizes = {"source_vocabulary_size": V, "target_vocabulary_size": V, "embedding_features": E, "hidden_features": H}
    with pytest.raises(
        ValueError, match=f"{size.split('_', 1)[1] if 'vocabulary' in size else size}: expected a positive number, got 0"
    ):
        Seq2Seq(**{**sizes, size: 0}, decoder=decoder, rngs=nnx.Rngs(0))


@decoders
@pytest.mark.parametrize("narrow", ["bfloat16", "float64"])
def test_parameters_of_another_dtype_compute_in_it(decoder, narrow):
    """As training with bfloat16 does: all of the pass in the dtype that the parameters were cast to."""
    want = logits_of(drawn(decoder=decoder))
    with jax.enable_x64(narrow == "float64"):
        graphdef, params = nnx.split(drawn(decoder=decoder))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, narrow), params)
        got = _logits(graphdef, params, SOURCE, LENGTHS, INPUTS)
        assert got.dtype == narrow
        assert_close(np.asarray(got, np.float64), np.asarray(want, np.float64), 0.05 if narrow == "bfloat16" else 1e-5)


@decoders
def test_scheduled_sampling_and_greedy_under_shard_map(decoder):
    """Eight devices, four rows each."""
    model = drawn(decoder=decoder)
    graphdef, params = nnx.split(model)
    source, lengths, inputs = (np.tile(x, (8, *[1] * (x.ndim - 1))) for x in (SOURCE, LENGTHS, INPUTS))

    def both(params, source, lengths, inputs):
        model = nnx.merge(graphdef, params, copy=True)
        logits = model(source, lengths, inputs, key=jax.random.key(0), teacher_forcing=0.0)
        context, state = model.start(source, lengths)
        return logits, greedy(*decoder_step(model), context, state, start=START, end=END, max_length=T, pad=PAD)

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])
    split = P("batch")
    sharded = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=(P(), split, split, split), out_specs=split))
    got, want = sharded(params, source, lengths, inputs), jax.jit(both)(params, source, lengths, inputs)
    assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), TOLERANCE["float32"])


# PyTorch and Keras -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_layers", "reverse"), [(1, True), (2, False)], ids=["one layer reversed", "two layers"])
def test_agrees_with_an_encoder_decoder_in_pytorch(num_layers, reverse, dtype):
    torch = oracles.oracle("torch")
    model = drawn(num_layers=num_layers, reverse_source=reverse)
    weights = np.random.default_rng(9).normal(size=(B, T, V)).astype(np.float32)
    graphdef, params = nnx.split(model)
    params = cast(jax.tree.map(np.asarray, params), dtype)
    model = nnx.merge(graphdef, params)
    graphdef, params = nnx.split(model)

    @jax.jit
    def ours(params):
        def loss(params):
            logits = _logits(graphdef, params, SOURCE, LENGTHS, INPUTS)
            return jnp.sum(logits * weights.astype(dtype)), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = ours(params)
    named = named_variables(nnx.merge(graphdef, params))
    theirs = {k: torch.tensor(np.asarray(v[...], np.float64), requires_grad=True) for k, v in named.items()}

    encoder, decoder = (torch.nn.LSTM(E, H, num_layers, batch_first=True, dtype=torch.float64) for _ in range(2))

    def lstm_weights(side):
        given = {}
        for k in range(num_layers):
            prefix = f"{side}.recurrent.layers.{k}.0"
            w, u, b = (theirs[f"{prefix}.{name}"] for name in "wub")
            given |= {f"weight_ih_l{k}": w.T, f"weight_hh_l{k}": u.T, f"bias_ih_l{k}": b, f"bias_hh_l{k}": torch.zeros_like(b)}
        return given

    source, lengths = by_hand(lambda row: row[::-1]) if reverse else (SOURCE, LENGTHS)
    kept = torch.tensor(np.flatnonzero(lengths))  # PyTorch packs no empty row
    embedded = torch.nn.functional.embedding(torch.tensor(source), theirs["encoder.embedding.embedding"])[kept]
    packed = torch.nn.utils.rnn.pack_padded_sequence(embedded, torch.tensor(lengths)[kept], True, False)
    _, end = torch.func.functional_call(encoder, lstm_weights("encoder"), (packed,))
    start = tuple(torch.zeros(num_layers, B, H, dtype=torch.float64).index_copy(1, kept, part) for part in end)
    embedded = torch.nn.functional.embedding(torch.tensor(INPUTS), theirs["decoder.embedding.embedding"])
    hidden, _ = torch.func.functional_call(decoder, lstm_weights("decoder"), (embedded, start))
    want = torch.nn.functional.linear(hidden, theirs["decoder.output.kernel"].T, theirs["decoder.output.bias"])
    (want * torch.tensor(weights.astype(np.float64))).sum().backward()

    assert_close(np.asarray(logits), want.detach().numpy(), TOLERANCE[dtype])
    of_ours = {k: np.asarray(v[...]) for k, v in named_variables(nnx.merge(graphdef, gradients)).items()}
    assert_close(of_ours, {k: v.grad.numpy() for k, v in theirs.items()}, TOLERANCE[dtype])


def test_the_repeat_vector_form_agrees_with_keras():
    keras = oracles.oracle("keras")
    model = drawn(decoder="repeat_vector")
    named = {k: v[...] for k, v in named_variables(model).items()}
    theirs = keras.Sequential(
        [
            keras.Input((S,), dtype="int32"),
            keras.layers.Embedding(V, E),
            keras.layers.LSTM(H),
            keras.layers.RepeatVector(T),
            keras.layers.LSTM(H, return_sequences=True),
            keras.layers.Dense(V),
        ]
    )
    order = ["encoder.embedding.embedding"]
    order += [f"{side}.recurrent.layers.0.0.{name}" for side in ("encoder", "decoder") for name in "wub"]
    order += ["decoder.output.kernel", "decoder.output.bias"]
    assert sorted(order) == sorted(named)
    theirs.set_weights([np.asarray(named[name]) for name in order])
    source = np.maximum(SOURCE, 3)
    rest = [v.value for v in theirs.non_trainable_variables]
    want, _ = theirs.stateless_call([v.value for v in theirs.trainable_variables], rest, source)
    assert_close(logits_of(model, source, None), np.asarray(want), 1e-5)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * V * E + 2 * 4 * H * (E + H + 1) + V * (H + 1)),
        ({"decoder": "repeat_vector"}, V * E + 4 * H * (E + H + 1) + 4 * H * (H + H + 1) + V * (H + 1)),
        (
            {"cell": cells.gru, "num_layers": 2},
            2 * V * E + 2 * (3 * H * (E + H + 1) + 3 * H * (2 * H + 1) + 2 * H) + V * (H + 1),
        ),
        ({"cell": cells.rnn, "bidirectional": True}, 2 * V * E + 3 * H * (E + H + 1) + V * (H + 1)),
    ],
    ids=["lstm", "repeat_vector", "gru_two_layers", "rnn_both_ways"],
)
def test_number_of_parameters(options, count):
    assert count_parameters(drawn(**options)) == count


def test_rngs_and_keys_are_checked_where_models_take_them():
    sizes = {"embedding_features": 3, "hidden_features": 4}
    for make in (Seq2Seq, AutoregressiveDecoder):
        arguments = (9, 9) if make is Seq2Seq else (9,)
        with pytest.raises(TypeError, match=r"rngs: expected flax.nnx.Rngs, such as nnx.Rngs\(0\), got 0"):
            make(*arguments, **sizes, rngs=0)
    ids = np.full((2, 3), 4, np.int32)
    with pytest.raises(TypeError, match=r"key: expected one such as jax.random.key\(0\), or None, got 0"):
        Seq2Seq(9, 9, **sizes, rngs=nnx.Rngs(0))(ids, None, ids, key=0)
