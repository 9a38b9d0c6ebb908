"""Columns as a sequence: logits beside PyTorch, padding, dropout, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.data.vocabulary import START, Characters
from s2s_jax.layers import Backbone, Stage
from s2s_jax.models import CRNN, ColumnEncoder, PictureToText
from tests import oracles
from tests.layers.test_convolution import moved, torch_maps
from tests.samples import assert_close

STAGES = (Stage(3, 1, (2, 2)), Stage(4, 1, (2, 2)))
WIDTHS = np.array([37, 22, 9, 3, 0])
ALPHABET = Characters("abc")


def backbone():
    return Backbone(1, STAGES, rngs=nnx.Rngs(0))


def crnn(cell=cells.lstm):
    return CRNN(backbone(), 8, 6, len(ALPHABET), cell=cell, rngs=nnx.Rngs(1))


def with_decoder(**options):
    encoder = ColumnEncoder(backbone(), 8, 6, rngs=nnx.Rngs(1))
    return PictureToText(encoder, len(ALPHABET), 5, rngs=nnx.Rngs(2), **options)


def pictures(width=37):
    return np.random.default_rng(0).random((5, 8, width, 1)).astype(np.float32)


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru], ids=["lstm", "gru"])
def test_a_padded_line_gives_the_logits_of_the_line_alone(cell):
    model, x = crnn(cell), pictures()
    padded = np.where((np.arange(37) < WIDTHS[:, None])[:, None, :, None], x, np.nan)
    logits, lengths = model(padded, WIDTHS)
    np.testing.assert_array_equal(lengths, WIDTHS // 4)
    for row, width in enumerate(WIDTHS):
        if lengths[row]:
            alone, _ = model(x[row : row + 1, :, :width])
            assert_close(logits[row, : lengths[row]], alone[0], 1e-5)


def test_columns_keep_their_place():
    # What changes in the last columns of a picture changes the frames there most; a frame is a column of all rows.
    model = crnn()
    jacobian = jax.jacobian(lambda x: model.encoder.backbone(x).features[0].sum((0, 2)))(pictures()[:1])
    for frame in range(9):
        seen = np.flatnonzero(np.any(np.asarray(jacobian[frame, 0]) != 0, axis=(0, 2)))
        assert 4 * frame - 3 <= seen.min()
        assert seen.max() <= 4 * frame + 6


@pytest.mark.parametrize("input_feeding", [False, True])
def test_the_decoder_reads_a_padded_line_as_the_line_alone(input_feeding):
    model, x = with_decoder(input_feeding=input_feeding), pictures()
    inputs = np.array([[START, 3, 4], [START, 4, 4], [START, 5, 3], [START, 3, 3], [START, 4, 5]])
    padded = np.where((np.arange(37) < WIDTHS[:, None])[:, None, :, None], x, np.inf)
    logits = model(padded, WIDTHS, inputs)
    assert np.isfinite(logits).all()
    for row, width in enumerate(WIDTHS[:3]):
        assert_close(logits[row], model(x[row : row + 1, :, :width], None, inputs[row : row + 1])[0], 1e-5)


def test_training_moves_statistics_and_draws_dropout_by_the_key():
    model, x = CRNN(backbone(), 8, 6, len(ALPHABET), dropout=0.5, rngs=nnx.Rngs(1)), pictures()
    before = jax.tree.map(np.asarray, jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
    once = model(x, WIDTHS, training=True, key=jax.random.key(0)).logits
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert all(np.any(a != np.asarray(b)) for a, b in zip(before, after, strict=True))
    again = model(x, WIDTHS, training=True, key=jax.random.key(0)).logits
    np.testing.assert_array_equal(once, again)
    assert np.any(np.asarray(once) != np.asarray(model(x, WIDTHS, training=True, key=jax.random.key(1)).logits))


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru], ids=["lstm", "gru"])
def test_logits_agree_with_pytorch(cell):
    """Columns of the maps with their rows one below the other, both directions along them, and a matrix."""
    backbone = moved(Backbone(1, STAGES, rngs=nnx.Rngs(0)))
    model, x = CRNN(backbone, 8, 6, len(ALPHABET), cell=cell, num_layers=2, rngs=nnx.Rngs(1)), pictures()
    model.output.bias[...] = np.arange(len(ALPHABET))
    recurrent = model.encoder.recurrent
    biases = nnx.state(recurrent, lambda path, value: isinstance(value, nnx.Param) and value.ndim == 1)
    assert len(jax.tree.leaves(biases)) == 4 * (1 + (cell is cells.gru))  # those of the GRU's reset gates too
    nnx.update(recurrent, jax.tree.map(lambda leaf: jnp.linspace(-1, 0.5, leaf.size), biases))
    logits, lengths = nnx.jit(lambda model, *rows: model(*rows))(model, x, WIDTHS)
    for row, width in enumerate(WIDTHS[:2]):
        maps = torch_maps(backbone, x[row, :, :width])
        frames = maps.swapaxes(0, 1).reshape(1, maps.shape[1], -1).astype(np.float32)
        states = recurrent.initial_states(1, jnp.float32)
        weights = jax.eval_shape(recurrent, frames, states)
        weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape), weights)
        outputs = oracles.torch_stack(
            *(recurrent.cell, jax.tree.map(np.asarray, recurrent.params()), frames, states, None, weights, recurrent.directions)
        ).done.outputs[0]
        want = outputs @ np.asarray(model.output.kernel[...]) + np.arange(len(ALPHABET))
        assert lengths[row] == len(want)
        assert_close(logits[row, : len(want)], want.astype(np.float32), 1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="height: expected one of which rows are left"):
        ColumnEncoder(backbone(), 3, 6, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"pictures: expected \[B, 8, W, 1\]"):
        crnn()(jnp.ones((1, 9, 20, 1)))
