"""Forecasters: Keras' stack with the same weights, attention by hand, segments one after the other, paths of known units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.data.windows import Truth, Window
from s2s_jax.distributions import absolute_error
from s2s_jax.models.autoregressive_forecaster import AutoregressiveForecaster
from s2s_jax.models.forecaster import AttentionForecaster, RepeatVectorForecaster, Sizes
from s2s_jax.models.forecasts import forecast, loss_of
from s2s_jax.models.segment_forecaster import SegmentForecaster
from tests import oracles
from tests.samples import assert_close

B, L, H, C, F, K, S, P = 3, 8, 4, 2, 3, 2, 1, 2
SIZES = Sizes(C, H, F, K, S, P)


def window(sizes=SIZES, seed=0, batch_size=B):
    rng = np.random.default_rng(seed)
    shapes = [(L, sizes.series), (L, sizes.past_covariates), (sizes.horizon, sizes.future_covariates), (sizes.static,)]
    return Window(*(jnp.asarray(rng.normal(size=(batch_size, *shape)).astype(np.float32)) for shape in shapes))


def with_drawn_parameters(model, seed=1):
    """Biases that are not zero, too."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), nnx.state(model, nnx.Param))
    nnx.update(model, state)
    return model


MODELS = {
    "repeat vector": lambda sizes: RepeatVectorForecaster(sizes, 5, rngs=nnx.Rngs(0)),
    "attention": lambda sizes: AttentionForecaster(sizes, 5, num_layers=2, dropout=0.3, rngs=nnx.Rngs(0)),
    "segments": lambda sizes: SegmentForecaster(sizes, 6, segment=2, dropout=0.3, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_step_ahead_has_its_numbers_and_a_row_is_alone(name):
    model = with_drawn_parameters(MODELS[name](SIZES))
    given = window()
    raw = model(given)
    assert raw.shape == (B, H, C, P)
    for row in range(B):
        assert_close(model(Window(*(leaf[row : row + 1] for leaf in given)))[0], raw[row], 1e-5)
    empty = Window(*(leaf[:0] for leaf in given))
    assert model(empty).shape == (0, H, C, P)
    trained = [np.asarray(model(given, training=True, key=jax.random.key(key))) for key in (0, 0, 1)]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.any(trained[0] != trained[2])


@pytest.mark.parametrize("training", [False, True])
def test_the_repeat_vector_stack_is_that_of_keras(training):
    """Keras' own layers with weights of its own: GRU of relu, repeat vector, GRU of relu, batch norm, dense; no noise."""
    keras = oracles.oracle("keras")
    sizes = Sizes(series=1, horizon=5)
    theirs = keras.Sequential(
        [
            keras.Input((L, 1)),
            keras.layers.GRU(20, activation="relu"),
            keras.layers.RepeatVector(5),
            keras.layers.GRU(20, activation="relu", return_sequences=True),
            keras.layers.BatchNormalization(),
            keras.layers.TimeDistributed(keras.layers.Dense(1)),
        ]
    )
    rng = np.random.default_rng(0)
    weights = [0.3 * rng.normal(size=w.shape) + (w.shape == (20,)) for w in (np.asarray(v.value) for v in theirs.weights)]
    weights[-3] = np.abs(weights[-3]) + 0.5  # the moving variance
    theirs.set_weights(weights)
    ours = RepeatVectorForecaster(sizes, 20, noise=0.0, rngs=nnx.Rngs(0))
    for layer, (w, u, b) in ((ours.encoder, weights[:3]), (ours.decoder, weights[3:6])):
        set_gru(layer.layers[0][0], w, u, b)
    for target, value in zip((ours.norm.scale, ours.norm.bias, ours.norm.mean, ours.norm.var), weights[6:10], strict=True):
        target[...] = jnp.asarray(value, jnp.float32)
    ours.output.kernel[...], ours.output.bias[...] = (jnp.asarray(value, jnp.float32) for value in weights[10:])
    given = window(sizes)
    assert_close(ours(given, training=training)[..., 0], np.asarray(theirs(given.past, training=training)), 1e-4)


def set_gru(parameters, w, u, b):
    """Keras has the gates z, r, n; the second row of its biases is inside of the reset gate."""
    reordered = [np.concatenate([part[..., 20:40], part[..., :20], part[..., 40:]], -1) for part in (w, u, b)]
    w, u, (b, inner) = reordered
    b = b + np.concatenate([inner[:40], np.zeros(20)])
    for name, value in (("w", w), ("u", u), ("b", b), ("b_n", inner[40:])):
        getattr(parameters, name)[...] = jnp.asarray(value, jnp.float32)


def test_attention_looks_back_as_written():
    """Step by step in NumPy: additive scores, softmax, and the layer that joins; recurrences are those of PyTorch elsewhere."""
    model = with_drawn_parameters(AttentionForecaster(SIZES, 5, rngs=nnx.Rngs(0)))
    given = window()
    read = jnp.concatenate([given.past, given.past_covariates, jnp.repeat(given.static[:, None], L, 1)], -1)
    memory, states = model.encoder(read)
    ahead = np.broadcast_to((np.arange(H)[None, :, None] + 1) / H, (B, H, 1))
    known = np.concatenate([given.future_covariates, np.repeat(given.static[:, None], H, 1), ahead], -1).astype(np.float32)
    hidden, _ = model.decoder(known, states)
    memory, hidden, of = np.asarray(memory), np.asarray(hidden), model.attention.parameters()
    want = np.zeros((B, H, C, P))
    for row in range(B):
        for t in range(H):
            inner = np.tanh(memory[row] @ of.w_memory + hidden[row, t] @ of.w_query)
            scores = np.exp(inner @ of.v)
            context = (scores / scores.sum()) @ memory[row]
            joined = np.concatenate([hidden[row, t], context])
            combined = np.tanh(joined @ model.combine.kernel[...] + model.combine.bias[...])
            want[row, t] = (combined @ model.output.kernel[...] + model.output.bias[...]).reshape(C, P)
    assert_close(model(given), want, 1e-5)


@pytest.mark.parametrize("cell", [cells.gru, cells.lstm, cells.rnn], ids=["gru", "lstm", "rnn"])
def test_segments_are_read_in_turn_and_said_from_one_state(cell):
    model = with_drawn_parameters(SegmentForecaster(SIZES, 6, segment=2, cell=cell, rngs=nnx.Rngs(0)))
    given, params = window(), model.parameters()
    want = np.zeros((B, H, C, P))
    for row in range(B):
        for series in range(C):
            state = cell.initial_state(params, 1, jnp.float32)
            for start in range(0, L, 2):
                read = jax.nn.relu(model.embed(given.past[row : row + 1, start : start + 2, series]))
                state, _ = cell.step(params, state, cell.project(params, read), None)
            for place in range(H // 2):
                asked = jnp.concatenate([model.positions[...][place], model.series[...][series]])[None]
                _, said = cell.step(params, state, cell.project(params, asked), None)
                want[row, 2 * place : 2 * place + 2, series] = np.asarray(model.output(said)).reshape(2, P)
    assert_close(model(given), want, 1e-5)


def set_from_pytorch(parameters, w, u, b, inner):
    """A layer of its LSTM or GRU; both have the gates in our order, and the GRU's last inner bias is inside the reset gate."""
    hidden = u.shape[1]
    told = {"w": w.T, "u": u.T, "b": b + inner}
    if len(b) == 3 * hidden:
        told |= {"b": b + np.append(inner[: 2 * hidden], np.zeros(hidden)), "b_n": inner[2 * hidden :]}
    for name, value in told.items():
        getattr(parameters, name)[...] = jnp.asarray(value, jnp.float32)


@pytest.mark.parametrize("segment", [2, 4])
def test_segments_are_those_of_pytorch(segment):
    """SegRNN with PyTorch's layers and their own weights: the last value off, linear, GRU, embeddings of places and channels,
    linear, the last value on; and its loss.
    """
    torch = oracles.oracle("torch")
    nn, ahead, series = torch.nn, H // segment, 3
    torch.manual_seed(0)
    embed, gru, output = nn.Linear(segment, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, segment)
    places, channels = torch.randn(ahead, 3), torch.randn(series, 3)
    given = window(Sizes(series, H))
    future = np.random.default_rng(3).normal(size=(B, H, series)).astype(np.float32)
    past = torch.tensor(np.asarray(given.past))
    x = (past - past[:, -1:]).permute(0, 2, 1).reshape(B * series, L // segment, segment)
    with torch.no_grad():
        _, state = gru(torch.relu(embed(x)))
        asked = torch.cat([places.expand(series, ahead, 3), channels[:, None].expand(series, ahead, 3)], -1)
        asked = asked.expand(B, series, ahead, 6).reshape(B * series * ahead, 1, 6)
        said, _ = gru(asked, state.repeat_interleave(ahead, 1))
        want = output(said[:, 0]).reshape(B, series, H).permute(0, 2, 1) + past[:, -1:]
        want_loss = nn.functional.l1_loss(want, torch.tensor(future)).item()
    ours = SegmentForecaster(Sizes(series, H), 6, segment=segment, rngs=nnx.Rngs(0))
    for layer, theirs in ((ours.embed, embed), (ours.output, output)):
        layer.kernel[...], layer.bias[...] = theirs.weight.detach().numpy().T, theirs.bias.detach().numpy()
    ours.positions[...], ours.series[...] = places.numpy(), channels.numpy()
    set_from_pytorch(ours.parameters, *(leaf.detach().numpy() for leaf in gru.parameters()))
    found = forecast(ours, absolute_error, given, jax.random.key(0), window_scaling="last", samples=1)
    assert_close(found.mean, want.numpy(), 1e-5)
    truth = Truth(jnp.asarray(future), jnp.ones(future.shape, bool), jnp.ones(given.past.shape, bool))
    assert loss_of(ours, absolute_error, given, truth, window_scaling="last").value() == pytest.approx(want_loss, rel=1e-5)


AR_SIZES = Sizes(C, H, K, K, S, P)


def autoregressive(**options):
    return with_drawn_parameters(AutoregressiveForecaster(AR_SIZES, 5, rngs=nnx.Rngs(0), **options))


def autoregressive_of_pytorch(kind, features=P):
    """Ours, and two layers of PyTorch's LSTM or GRU below its linear layer, with the same weights."""
    torch = oracles.oracle("torch")
    torch.manual_seed(0)
    recurrent = getattr(torch.nn, kind.upper())(C + K + S, 5, num_layers=2, batch_first=True)
    output = torch.nn.Linear(5, C * features)
    for leaf in (*recurrent.parameters(), *output.parameters()):
        torch.nn.init.normal_(leaf, std=0.6)  # as drawn by PyTorch a second layer hardly hears of what the first one reads
    sizes = AR_SIZES._replace(features=features)
    ours = AutoregressiveForecaster(sizes, 5, cell=cells.BY_NAME[kind], num_layers=2, rngs=nnx.Rngs(0))
    weights = [leaf.detach().numpy() for leaf in recurrent.parameters()]
    for number, (layer,) in enumerate(ours.recurrent.layers):
        set_from_pytorch(layer, *weights[4 * number : 4 * number + 4])
    ours.output.kernel[...], ours.output.bias[...] = output.weight.detach().numpy().T, output.bias.detach().numpy()

    def theirs(values, window, states=None, begin=1):
        """Raw numbers of the steps from `begin` on, each behind one of these values, and the states after them."""
        known = np.concatenate([window.past_covariates, window.future_covariates], 1)[:, begin : begin + values.shape[1]]
        static = np.repeat(np.asarray(window.static)[:, None], values.shape[1], 1)
        read = torch.tensor(np.concatenate([values, known, static], -1).astype(np.float32))
        with torch.no_grad():
            hidden, states = recurrent(read, states)
            return output(hidden).reshape(*values.shape, features).numpy(), states

    return ours, theirs


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_autoregressive_model_is_that_of_pytorch(kind):
    """True values before each step; and a path, each step of which reads what was drawn of the one before."""
    ours, theirs = autoregressive_of_pytorch(kind)
    given = window(AR_SIZES)
    future = np.random.default_rng(4).normal(size=(B, H, C)).astype(np.float32)
    want, _ = theirs(np.concatenate([given.past, future], 1)[:, :-1], given)
    assert_close(ours(given, jnp.asarray(future)), want, 1e-5)

    path = ours.paths(given, lambda raw, key: (raw[..., 0] - raw[..., 1], 10 * raw[..., 0]), jax.random.key(0), count=1)[0]
    _, states = theirs(given.past[:, :-1], given)
    value = np.asarray(given.past[:, -1:])
    for t in range(H):
        raw, states = theirs(value, given, states, begin=L + t)
        assert_close(path[:, t], 10 * raw[:, 0, :, 0], 1e-4)
        value = raw[..., 0] - raw[..., 1]


def test_a_step_reads_the_value_before_and_what_is_known_of_itself():
    model, given = autoregressive(num_layers=2), window(AR_SIZES)
    future = jnp.asarray(np.random.default_rng(4).normal(size=(B, H, C)).astype(np.float32))
    raw = model(given, future)
    assert raw.shape == (B, L + H - 1, C, P)
    jacobian = jax.jacobian(lambda past, future: model(given._replace(past=past), future)[0].sum((1, 2)), argnums=(0, 1))
    of_values = np.concatenate([leaf[:, 0].any(-1) for leaf in map(np.asarray, jacobian(given.past, future))], axis=1)
    np.testing.assert_array_equal(of_values, np.tril(np.ones((L + H - 1, L + H)), 0))
    of_known = jax.jacobian(lambda known: model(given._replace(future_covariates=known), future)[0].sum((1, 2)))
    seen = np.asarray(of_known(given.future_covariates))[:, 0].any(-1)
    np.testing.assert_array_equal(seen, np.tril(np.ones((L + H - 1, H)), -(L - 1)))


def test_paths_go_on_from_what_was_drawn():
    """A head that adds noise of its own key: each path is that of the teacher-forced model on its own values."""
    model, given = autoregressive(num_layers=2), window(AR_SIZES)

    def draw(raw, key):
        value = raw[..., 0] + jax.random.normal(key, raw.shape[:-1])
        return value, 1000 * value

    paths = np.asarray(jax.jit(lambda given, key: model.paths(given, draw, key, count=5))(given, jax.random.key(0))) / 1000
    assert paths.shape == (5, B, H, C)
    keys = jax.random.split(jax.random.key(0), H)
    raw = np.stack([np.asarray(model(given, path))[:, L - 1 :] for path in paths])
    for t in range(H):
        assert_close(paths[:, :, t], draw(raw[:, :, t], keys[t])[0], 1e-5)
    assert np.std(paths, axis=0).min() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentForecaster(SIZES, 5, segment=2, rngs=nnx.Rngs(0)), "hidden_features: expected an even number, got 5"),
        (lambda: SegmentForecaster(SIZES, 6, segment=3, rngs=nnx.Rngs(0)), "segment: expected one that the horizon 4"),
        (
            lambda: SegmentForecaster(SIZES, 6, segment=2, rngs=nnx.Rngs(0))(
                window()._replace(past=jnp.ones((B, 7, C)), past_covariates=jnp.ones((B, 7, F)))
            ),
            "past: expected a length that is a multiple of the segment 2, got 7",
        ),
        (lambda: AutoregressiveForecaster(SIZES, 5, rngs=nnx.Rngs(0)), "past_covariates: expected as many as are known ahead"),
        (lambda: autoregressive()(window(AR_SIZES), jnp.ones((B, H + 1, C))), r"future: expected \[3, 4, 2\], got \[3, 5, 2\]"),
        (
            lambda: MODELS["attention"](SIZES)(window()._replace(static=jnp.ones((B, 2)))),
            r"static: expected \[3, 1\], got \[3, 2\]",
        ),
        (
            lambda: MODELS["attention"](SIZES)(window()._replace(past=jnp.ones((B, L + 1, C)))),
            rf"past, past_covariates: expected the same number of steps, got {L + 1} and {L}",
        ),
        (
            lambda: MODELS["attention"](SIZES)(window()._replace(past=jnp.ones((B, L)))),
            rf"past: expected \[batch, steps, {C}\], got \[{B}, {L}\]",
        ),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
