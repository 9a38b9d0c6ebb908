"""Cross entropy as sum and count, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.losses import classification, cross_entropy
from tests import oracles
from tests.samples import assert_close

N, T, V = 4, 6, 5


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(N, T, V))).astype(np.float32)
    return logits, rng.integers(V, size=(N, T)), rng.random((N, T)) < 0.6


def value_and_gradient(logits, targets, mask, **options):
    def loss(logits):
        nats = cross_entropy(logits, targets, mask, **options)
        return nats.total, nats.count

    (total, count), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    return np.asarray(total), np.asarray(count), np.asarray(gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "whole"])
def test_agrees_with_pytorch(masked, smoothing):
    torch = oracles.oracle("torch")
    logits, targets, mask = drawn()
    theirs = torch.tensor(logits.astype(np.float64), requires_grad=True)
    wanted = np.where(mask, targets, -100) if masked else targets
    options = {"reduction": "sum", "label_smoothing": smoothing}
    loss = torch.nn.functional.cross_entropy(theirs.reshape(-1, V), torch.tensor(wanted).reshape(-1), **options)
    loss.backward()
    total, count, gradient = value_and_gradient(logits, targets, mask if masked else None, label_smoothing=smoothing)
    assert_close(total, loss.item(), 1e-6)
    assert count == (mask.sum() if masked else N * T)
    assert_close(gradient, theirs.grad.numpy(), 1e-5)


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_what_stands_in_the_padding_reaches_nothing(what):
    logits, targets, mask = drawn()
    want = value_and_gradient(logits, targets, mask)
    # Targets that are in no vocabulary, too.
    got = value_and_gradient(np.where(mask[..., None], logits, what), np.where(mask, targets, 10**6), mask)
    assert_close(got, want, 0)


def test_without_a_valid_position_there_is_nothing_to_divide():
    logits, targets, mask = drawn()
    total, count, gradient = value_and_gradient(np.full_like(logits, np.nan), targets, np.zeros_like(mask))
    assert (total, count) == (0, 0)
    assert not np.any(gradient)
    assert np.isnan(cross_entropy(logits, targets, jnp.zeros_like(mask)).value())


def test_closed_forms():
    targets = np.arange(V)
    even = cross_entropy(jnp.full((V, V), 7.0), targets)
    assert even.value() == pytest.approx(np.log(V), rel=1e-6)
    assert cross_entropy(100.0 * jnp.eye(V), targets).value() == 0
    gradient = jax.grad(lambda x: cross_entropy(x, targets).total)(jnp.zeros((V, V)))
    assert_close(gradient, 1 / V - np.eye(V), 1e-6)


def test_half_precision_is_summed_in_float32():
    logits = jnp.zeros((5000, V), jnp.bfloat16)
    nats = cross_entropy(logits, jnp.zeros(5000, int))
    assert nats.total.dtype == jnp.float32
    assert nats.value() == pytest.approx(np.log(V), rel=1e-5)


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (3, 1), (1, 1, 1, 1)])
def test_parts_of_unequal_size_add_up_to_the_whole(sizes):
    logits, targets, mask = drawn()
    ends = np.cumsum(sizes)
    parts = [cross_entropy(logits[e - n : e], targets[e - n : e], mask[e - n : e]) for n, e in zip(sizes, ends, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.value() == pytest.approx(cross_entropy(logits, targets, mask).value(), rel=1e-6)


@pytest.mark.parametrize(
    ("targets", "mask", "message"),
    [
        ((N, T - 1), None, r"targets: expected shape \(4, 6\), got \(4, 5\)"),
        ((N,), None, r"targets: expected shape \(4, 6\), got \(4,\)"),
        ((N, T), (N, T + 1), r"mask: expected shape \(4, 6\), got \(4, 7\)"),
        ((N, T), (N,), r"mask: expected shape \(4, 6\), got \(4,\)"),
    ],
)
def test_shapes_that_do_not_match_are_refused(targets, mask, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(jnp.zeros((N, T, V)), jnp.zeros(targets, int), None if mask is None else jnp.ones(mask, bool))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_out_of_its_range_is_named(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\), got"):
        cross_entropy(*drawn(), label_smoothing=smoothing)


def test_what_tells_of_a_classifier_is_loss_and_accuracy_of_the_valid_rows():
    rng = np.random.default_rng(7)
    logits, labels = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    mask = np.array([True, True, False, True, False, True])
    told = classification(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    assert set(told) == {"loss", "accuracy"}
    right = (logits.argmax(1) == labels)[mask]
    assert (float(told["accuracy"].total), float(told["accuracy"].count)) == (right.sum(), 4)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    assert float(told["loss"].value()) == pytest.approx(nats[mask].mean(), rel=1e-5)
    assert float(classification(jnp.asarray(logits), jnp.asarray(labels))["loss"].count) == 6
