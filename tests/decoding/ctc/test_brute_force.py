"""Loss, gradient, alignment, prefix beam and greedy reading, against every alignment of 5 frames, 3 symbols and a blank."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.ctc import ctc_frames
from s2s_jax.decoding.ctc import ctc_align, ctc_beam_search, ctc_greedy
from s2s_jax.losses import ctc_loss
from tests.decoding.ctc.paths import all_labels, all_paths, drawn, read, texts_of

MOST = 5
# Up to three symbols and the blank, which is the first, the last, or in the middle.
CASES = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0)]
cases = pytest.mark.parametrize(("size", "blank"), CASES)


def of_all_labels(size, blank):
    """Frames of each length from 0 to 5 with each label, in one batch whose padding holds NaN and a wrong symbol."""
    rng = np.random.default_rng(size)
    logits, log_probs = drawn(rng, MOST + 1, MOST, size)
    rows = [(time, label) for time in range(MOST + 1) for label in all_labels(MOST, size, blank)]
    lengths = np.array([time for time, _ in rows])
    label_lengths = np.array([len(label) for _, label in rows])
    labels = np.full((len(rows), MOST), 77)
    for row, (_, label) in zip(labels, rows, strict=True):
        row[: len(label)] = label
    frames = np.where((np.arange(MOST) < lengths[:, None])[..., None], logits[lengths], np.nan)
    exact = [log_probs[time, :time] for time in range(MOST + 1)]
    return rows, exact, frames, lengths, labels, label_lengths


@cases
def test_loss_is_the_sum_over_all_alignments(size, blank):
    rows, exact, frames, lengths, labels, label_lengths = of_all_labels(size, blank)
    texts = [texts_of(log_probs, blank) for log_probs in exact]
    want = np.array([-texts[time].get(label, -np.inf) for time, label in rows])
    assert np.isinf(want).any() or size == 1
    for unfit, instead in (("infinite", np.inf), ("drop", 0.0)):
        nats, fits = ctc_loss(frames, lengths, labels, label_lengths, blank=blank, unfit=unfit)
        np.testing.assert_array_equal(fits, np.isfinite(want))
        np.testing.assert_allclose(nats, np.where(np.isfinite(want), want, instead), rtol=1e-5, atol=1e-5)


@cases
def test_gradient_is_that_of_the_sum_over_all_alignments(size, blank):
    rows, exact, frames, lengths, labels, label_lengths = of_all_labels(size, blank)

    def total(frames):
        nats, fits = ctc_loss(frames, lengths, labels, label_lengths, blank=blank, unfit="infinite")
        return jnp.sum(jnp.where(fits, nats, 0))

    gradient = np.asarray(jax.jit(jax.grad(total))(frames))
    # d/dx of -log p = softmax - E[how often each symbol is said | the alignments that read so].
    said = [{} for _ in exact]
    for time, log_probs in enumerate(exact):
        for path, log_prob in all_paths(log_probs):
            whole, counts = said[time].setdefault(read(path, blank), (0.0, np.zeros((time, size))))
            counts[np.arange(time), list(path)] += np.exp(log_prob)
            said[time][read(path, blank)] = whole + np.exp(log_prob), counts
    for (time, label), got in zip(rows, gradient, strict=True):
        whole, counts = said[time].get(label, (0.0, None))
        want = np.exp(exact[time]) - counts / whole if whole else np.zeros((time, size))
        np.testing.assert_allclose(got[:time], want, atol=1e-5)
        assert not np.any(got[time:])


@cases
def test_alignment_is_the_most_probable_one(size, blank):
    rows, exact, frames, lengths, labels, label_lengths = of_all_labels(size, blank)
    found = jax.tree.map(np.asarray, ctc_align(frames, lengths, labels, label_lengths, blank=blank))
    best = [{} for _ in exact]
    for time, log_probs in enumerate(exact):
        for path, log_prob in all_paths(log_probs):
            text = read(path, blank)
            if log_prob > best[time].get(text, (-np.inf,))[0]:
                best[time][text] = log_prob, path
    for row, (time, label) in enumerate(rows):
        log_prob, path = best[time].get(label, (-np.inf, None))
        assert found.fits[row] == (path is not None)
        np.testing.assert_allclose(found.log_probs[row], log_prob, atol=1e-5, rtol=1e-5)
        if path is None:
            assert (found.positions[row] == -1).all()
            assert not found.ends[row].any()
            continue
        said = [blank if position < 0 else label[position] for position in found.positions[row, :time]]
        assert tuple(said) == path
        assert (found.positions[row, time:] == -1).all()
        for n in range(MOST):
            frames_of = np.flatnonzero(found.positions[row] == n)
            if n >= len(label):
                assert (found.starts[row, n], found.ends[row, n], found.confidences[row, n]) == (0, 0, 0)
                continue
            assert (found.starts[row, n], found.ends[row, n]) == (frames_of[0], frames_of[-1] + 1)
            confidence = np.exp(max(exact[time][t, label[n]] for t in frames_of))
            assert found.confidences[row, n] == pytest.approx(confidence, rel=1e-5)


@cases
def test_a_beam_as_wide_as_there_are_texts_finds_them_all(size, blank):
    _, exact, *_ = of_all_labels(size, blank)
    logits = drawn(np.random.default_rng(size), MOST + 1, MOST, size)[0]
    lengths = np.arange(MOST + 1)
    logits = np.where((np.arange(MOST) < lengths[:, None])[..., None], logits, np.nan)
    texts = [texts_of(log_probs, blank) for log_probs in exact]
    width = max(map(len, texts)) + 2
    found = ctc_beam_search(logits, lengths, blank=blank, beam_size=width, n_best=width, pad=9)
    for row, want in enumerate(texts):
        assert listed(found, row) == pytest.approx(want, rel=1e-5, abs=1e-5)
        scores = np.asarray(found.scores[row])
        assert (np.diff(scores[: len(want)]) <= 0).all()
        assert (scores[len(want) :] == -np.inf).all()
        np.testing.assert_array_equal(found.lengths[row, len(want) :], 0)
        assert (np.asarray(found.tokens[row])[np.arange(MOST) >= np.asarray(found.lengths[row])[:, None]] == 9).all()


def listed(found, row):
    """Texts and log probabilities; one that stands there twice fails."""
    lengths, log_probs = np.asarray(found.lengths[row]), np.asarray(found.log_probs[row])
    texts = [tuple(tokens[:length].tolist()) for tokens, length in zip(np.asarray(found.tokens[row]), lengths, strict=True)]
    exists = log_probs > -np.inf
    kept = [text for text, there in zip(texts, exists, strict=True) if there]
    assert len(kept) == len(set(kept))
    return dict(zip(kept, log_probs[exists].tolist(), strict=True))


@cases
def test_greedy_reads_the_most_probable_alignment(size, blank):
    _, exact, frames, lengths, *_ = of_all_labels(size, blank)
    found = jax.tree.map(np.asarray, ctc_greedy(frames, lengths, blank=blank, pad=9))
    for row, time in enumerate(lengths):
        path, log_prob = max(all_paths(exact[time]), key=lambda of: of[1])
        text = read(path, blank)
        assert tuple(found.tokens[row, : found.lengths[row]]) == text
        assert (found.tokens[row, found.lengths[row] :] == 9).all()
        assert found.log_probs[row] == pytest.approx(log_prob, rel=1e-5, abs=1e-6)
        at = 0
        for n, (symbol, run) in enumerate((s, r) for s, r in runs(path) if s != blank):
            assert (found.starts[row, n], found.ends[row, n]) == run
            assert run[0] >= at
            at = run[1]
            confidence = np.exp(max(exact[time][t, symbol] for t in range(*run)))
            assert found.confidences[row, n] == pytest.approx(confidence, rel=1e-5)
        for padded in (found.starts, found.ends, found.confidences):
            assert not padded[row, len(text) :].any()


def runs(path):
    """(symbol, (first frame, frame behind the last)) of each run of equal symbols."""
    at = 0
    for symbol, frames in itertools.groupby(path):
        length = len(list(frames))
        yield symbol, (at, at + length)
        at += length


def silent():
    """Of two rows the second has a frame that can say nothing at all; beside them the alignments that each row can take."""
    logits, exact = drawn(np.random.default_rng(1), 2, 3, 4)
    logits[1, 1] = exact[1, 1] = -np.inf
    paths = [[(path, log_prob) for path, log_prob in all_paths(row) if log_prob > -np.inf] for row in exact]
    assert (len(paths[0]), len(paths[1])) == (4**3, 0)
    return logits, paths[0]


@pytest.mark.parametrize("blank", [0, 2])
def test_no_alignment_passes_a_frame_that_says_nothing(blank):
    logits, paths = silent()
    path, log_prob = max((of for of in paths if read(of[0], blank) == (1,)), key=lambda of: of[1])
    found = jax.tree.map(np.asarray, ctc_align(logits, None, np.array([[1], [1]]), np.array([1, 1]), blank=blank))
    np.testing.assert_allclose(found.log_probs, [log_prob, -np.inf], rtol=1e-5)
    assert found.fits.all()
    np.testing.assert_array_equal(found.positions, [np.where(np.array(path) == 1, 0, -1), [-1] * 3])
    assert not any(leaf[1].any() for leaf in (found.starts, found.ends, found.confidences))


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_reads_nothing_where_a_frame_says_nothing(blank):
    logits, paths = silent()
    path, log_prob = max(paths, key=lambda of: of[1])
    found = jax.tree.map(np.asarray, ctc_greedy(logits, blank=blank, pad=9))
    np.testing.assert_allclose(found.log_probs, [log_prob, -np.inf], rtol=1e-5)
    assert tuple(found.tokens[0, : found.lengths[0]]) == read(path, blank)
    assert found.lengths.tolist() == [len(read(path, blank)), 0]
    assert (found.tokens[1] == 9).all()
    assert not any(leaf[1].any() for leaf in (found.starts, found.ends, found.confidences))
    best = ctc_beam_search(logits, blank=blank, beam_size=4)  # as prefix beam search does
    assert (float(best.log_probs[1, 0]), int(best.lengths[1, 0])) == (-np.inf, 0)


@cases
def test_frames_that_a_label_needs(size, blank):
    rows, _, _, _, labels, label_lengths = of_all_labels(size, blank)
    fewest = {}
    for time in range(2 * MOST):
        if size**time > 300_000:
            break
        for path in itertools.product(range(size), repeat=time):
            fewest.setdefault(read(path, blank), time)
    got = np.asarray(ctc_frames(labels, label_lengths))
    for (_, label), frames in zip(rows, got, strict=True):
        assert frames == fewest.get(label, frames)
        assert frames <= max(0, 2 * len(label) - 1)
