"""Networks over characters: sizes as published, against PyTorch with the same weights, and padding that changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.models.character_networks import CharacterCNN, CharacterCRNN, SequenceStage, VeryDeepCNN
from s2s_jax.training.state import count_parameters
from s2s_jax.types import Unrolled
from tests import oracles
from tests.samples import assert_close

V, CLASSES = 9, 3
LENGTHS = np.array([20, 9, 3, 1, 0])
TOKENS = np.random.default_rng(0).integers(0, V, (len(LENGTHS), 20)).astype(np.int32)


def shaken(model):
    """With biases and statistics that are not those of the start."""
    graphdef, state = nnx.split(model)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.uniform(next(keys), leaf.shape), state))


def small(kind, **options):
    if kind == "cnn":
        return CharacterCNN(V, CLASSES, features=6, hidden_features=7, max_length=29, stddev=0.3, rngs=nnx.Rngs(0), **options)
    if kind.startswith("deep"):
        sizes = {"embedding_features": 3, "width": 2, "k": 2, "hidden_features": 7}
        return VeryDeepCNN(V, CLASSES, **sizes, shortcuts=kind.endswith("links"), rngs=nnx.Rngs(0), **options)
    stages = (SequenceStage(5, 3, 2), SequenceStage(6, 5, 3))
    sizes = {"embedding_features": 3, "stages": stages, "hidden_features": 4, "cell": cells.gru}
    return CharacterCRNN(V, CLASSES, **sizes, rngs=nnx.Rngs(0), **options)


KINDS = ["cnn", "deep", "deep, links", "recurrent"]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_neither_logits_nor_gradients(kind):
    graphdef, params, rest = nnx.split(shaken(small(kind)), nnx.Param, ...)

    @functools.partial(jax.jit, compiler_options=oracles.FAST_TO_COMPILE)
    def run(params, tokens, lengths):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(tokens, lengths)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, has_aux=True)(params)

    of_params, logits = run(params, TOKENS, LENGTHS)
    wider = np.pad(TOKENS, ((0, 0), (0, 5)))
    wider = np.where(np.arange(25) < LENGTHS[:, None], wider, V - 1)
    of_params_wider, logits_wider = run(params, wider, LENGTHS)
    assert_close((of_params_wider, logits_wider), (of_params, logits), 1e-5)
    model = jax.jit(nnx.merge(graphdef, params, rest), compiler_options=oracles.FAST_TO_COMPILE)
    for row, n in ((1, 9), (3, 1)):
        alone = model(TOKENS[row : row + 1, :n], LENGTHS[row : row + 1])
        assert_close(alone[0], logits[row], 1e-5)
    assert np.std(np.asarray(logits), axis=0).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_training_counts_valid_positions_and_a_key_turns_dropout_on(kind):
    wider = np.pad(TOKENS, ((0, 0), (0, 5)), constant_values=V - 1)
    graphdef, state = nnx.split(shaken(small(kind, dropout=0.4)))

    @functools.partial(jax.jit, static_argnames="training", compiler_options=oracles.FAST_TO_COMPILE)
    def run(tokens, key=None, training=False):
        model = nnx.merge(graphdef, state, copy=True)
        logits = model(tokens, LENGTHS, training=training, key=key)
        return logits, nnx.state(model, nnx.BatchStat)

    assert_close(*(jax.tree.map(np.asarray, run(tokens, training=True)) for tokens in (wider, TOKENS)), 1e-4)
    # Batch norm sees in training what it will see later: no dropout stands before it.
    assert_close(*(jax.tree.map(np.asarray, run(TOKENS, key, True)[1]) for key in (jax.random.key(0), None)), 1e-6)
    one, again, other = (np.asarray(run(TOKENS, jax.random.key(key))[0]) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_the_character_cnn_is_pytorchs():
    """Of texts as long as the network reads, so that nothing is padded; PyTorch's layers, put together by hand."""
    torch = oracles.oracle("torch")
    model = shaken(small("cnn"))
    tokens = np.random.default_rng(2).integers(0, V, (2, 29))
    x = torch.nn.functional.one_hot(torch.tensor(tokens[:, ::-1].copy()), V).double().transpose(1, 2)  # from its end
    for number, convolution in enumerate(model.convolutions):
        kernel = torch.tensor(np.asarray(convolution.kernel[...], np.float64)).permute(2, 1, 0)
        bias = torch.tensor(np.asarray(convolution.bias[...], np.float64))
        x = torch.relu(torch.nn.functional.conv1d(x, kernel, bias, padding=kernel.shape[-1] // 2))
        if number in (0, 1, 5):
            x = torch.nn.functional.max_pool1d(x, 3, ceil_mode=True)
    x = x.transpose(1, 2).reshape(2, -1)
    for number, layer in enumerate(model.dense):
        x = torch.relu(x) if number else x
        x = x @ torch.tensor(np.asarray(layer.kernel[...], np.float64)) + torch.tensor(np.asarray(layer.bias[...], np.float64))
    assert_close(model(tokens), x.numpy(), 1e-4)


def test_the_very_deep_cnn_is_pytorchs():
    torch = oracles.oracle("torch")
    model = shaken(small("deep, links"))

    def tensor(variable):
        return torch.tensor(np.asarray(variable[...], np.float64))

    def convolved(layer, x, relu=True):
        kernel = tensor(layer.kernel).permute(2, 1, 0)
        x = torch.nn.functional.conv1d(x, kernel, padding=kernel.shape[-1] // 2)
        if layer.norm is None:
            return x + tensor(layer.bias)[:, None]
        norm = [tensor(one) for one in (layer.norm.mean, layer.norm.var, layer.norm.scale, layer.norm.bias)]
        x = torch.nn.functional.batch_norm(x, *norm, eps=layer.norm.epsilon)
        return torch.relu(x) if relu else x

    x = convolved(model.first, tensor(model.embedding.embedding)[torch.tensor(TOKENS).long()].transpose(1, 2), relu=False)
    for number, stage in enumerate(model.stages):
        if number:
            x = torch.nn.functional.max_pool1d(torch.nn.functional.pad(x, (0, 1 + x.shape[-1] % 2), value=-9e9), 3, 2)
        for block in stage:
            around = x if block.link is None else convolved(block.link, x, relu=False)
            x = torch.relu(convolved(block.second, convolved(block.first, x), relu=False) + around)
    # Of equal values, and ReLU gives many zeros, the first are kept; PyTorch's topk takes any.
    places = torch.sort(x, descending=True, stable=True).indices[..., :2].sort().values
    x = torch.gather(x, 2, places).transpose(1, 2).reshape(len(TOKENS), -1)
    for number, layer in enumerate(model.dense):
        x = (torch.relu(x) if number else x) @ tensor(layer.kernel) + tensor(layer.bias)
    assert_close(model(TOKENS), x.numpy(), 1e-4)


def test_convolutions_below_recurrence_are_pytorchs():
    """Each text alone and as long as it is, so that no padding is in PyTorch's convolutions; recurrence by its layer."""
    torch = oracles.oracle("torch")
    stages = (SequenceStage(5, 3, 2), SequenceStage(6, 5, 3))
    sizes = {"embedding_features": 3, "stages": stages, "hidden_features": 4}
    model = shaken(CharacterCRNN(V, CLASSES, **sizes, rngs=nnx.Rngs(0)))

    def tensor(variable):
        return torch.tensor(np.asarray(variable[...], np.float64))

    frames = np.zeros((len(LENGTHS), 4, 6))
    lengths = np.ceil(np.ceil(LENGTHS / 2) / 3).astype(int)
    for row, length in enumerate(LENGTHS):
        x = tensor(model.embedding.embedding)[torch.tensor(TOKENS[row : row + 1, :length]).long()].transpose(1, 2)
        for layer, stage in zip(model.convolutions, stages, strict=True) if length else ():
            kernel = tensor(layer.kernel).permute(2, 1, 0)
            norm = [tensor(one) for one in (layer.norm.mean, layer.norm.var, layer.norm.scale, layer.norm.bias)]
            x = torch.nn.functional.conv1d(x, kernel, padding=stage.size // 2)
            x = torch.relu(torch.nn.functional.batch_norm(x, *norm, eps=layer.norm.epsilon))
            x = torch.nn.functional.max_pool1d(x, stage.pool, ceil_mode=True)
        if length:
            frames[row, : lengths[row]] = x[0].T.numpy()
    params = model.recurrent.params()
    states = [[cells.lstm.initial_state(p, len(LENGTHS), jnp.float32) for p in layer] for layer in params]
    weights = Unrolled(np.zeros((len(LENGTHS), 4, 8)), states)  # of gradients, which nobody asks for here
    done = oracles.torch_stack(cells.lstm, params, frames, states, lengths, weights, model.recurrent.directions).done
    mean = done.outputs.sum(1) / np.maximum(lengths, 1)[:, None]
    expected = mean @ tensor(model.output.kernel).numpy() + tensor(model.output.bias).numpy()
    logits = jax.jit(model, compiler_options=oracles.FAST_TO_COMPILE)(TOKENS, LENGTHS)
    assert_close(logits, expected, 1e-4)


def test_the_end_of_a_text_stands_where_the_dense_layers_look_first():
    """Texts that end alike differ in what is behind, however long they are: the first place sees less than 90 symbols."""
    model = shaken(CharacterCNN(V, CLASSES, features=4, hidden_features=5, max_length=200, stddev=0.3, rngs=nnx.Rngs(0)))
    end = np.random.default_rng(5).integers(0, V, (1, 90))
    longer = np.concatenate([np.full((1, 35), 2), end], axis=1)
    seen = [np.asarray(_maps(model, tokens)) for tokens in (end, longer)]
    assert_close(seen[1][:, 0], seen[0][:, 0], 1e-5)
    assert np.abs(seen[1] - seen[0]).max() > 1e-3


def _maps(model, tokens):
    """What the first dense layer reads, as [B, places, features]."""
    read = []
    layer, model.dense[0] = model.dense[0], lambda x: read.append(x) or layer(x)
    try:
        model(tokens)
    finally:
        model.dense[0] = layer
    return read[0].reshape(len(tokens), model.places, -1)


def test_depths_are_numbers_of_convolutions():
    for depth in (9, 17, 29):
        model = jax.eval_shape(lambda depth=depth: nnx.state(VeryDeepCNN(V, CLASSES, depth=depth, rngs=nnx.Rngs(0)), nnx.Param))
        kernels = [path for path, _ in nnx.to_flat_state(model) if path[-1] == "kernel" and path[0] != "dense"]
        assert len(kernels) == depth


def test_the_character_cnn_has_as_many_parameters_as_its_layers_need():
    model = CharacterCNN(70, 4, rngs=nnx.Rngs(0))
    assert model.places == 38  # 1,014 through three poolings of 3
    dense = 38 * 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 4 + 4
    convolutions = 70 * 7 * 256 + 256 * 256 * (7 + 4 * 3) + 6 * 256
    assert count_parameters(model) == dense + convolutions


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_and_narrow_numbers(kind):
    model = small(kind)
    assert model(TOKENS[:0], LENGTHS[:0]).shape == (0, CLASSES)
    assert np.isfinite(np.asarray(model(TOKENS[:, :0], np.zeros(5, int)))).all()
    graphdef, state = nnx.split(model)
    narrow = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    assert narrow(TOKENS, LENGTHS).dtype == jnp.bfloat16
    assert_close(np.asarray(narrow(TOKENS, LENGTHS), np.float32), np.asarray(model(TOKENS, LENGTHS)), 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small("cnn")(np.zeros((1, 30), int)), "tokens: expected at most max_length = 29 positions, got 30"),
        (lambda: small("deep")(np.full((1, 3), V)), f"tokens: expected ids from 0 to {V - 1}, got {V}"),
        (lambda: small("recurrent")(np.zeros(3, int)), r"tokens: expected \[B, T\], got \(3,\)"),
        (lambda: small("deep", depth=10), r"depth: expected one of \[9, 17, 29\], got 10"),
        (lambda: small("recurrent", pooling="sum"), "pooling: expected"),
        (lambda: CharacterCRNN(V, CLASSES, stages=(), rngs=nnx.Rngs(0)), "stages: expected at least one, got none"),
        (
            lambda: CharacterCRNN(V, CLASSES, stages=[SequenceStage(3, 3, 0)], rngs=nnx.Rngs(0)),
            "pool: expected a positive number",
        ),
        (lambda: CharacterCNN(V, CLASSES, features=0, rngs=nnx.Rngs(0)), "features: expected a positive number, got 0"),
        (lambda: VeryDeepCNN(0, CLASSES, rngs=nnx.Rngs(0)), "vocabulary_size: expected a positive number, got 0"),
        (lambda: VeryDeepCNN(V, CLASSES, width=0, rngs=nnx.Rngs(0)), "width: expected a positive number, got 0"),
        (lambda: small("deep")(TOKENS, LENGTHS[:3]), r"lengths: expected shape \[B\] = \(5,\), got \(3,\)"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
