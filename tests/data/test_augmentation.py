"""Lines changed by chance: each part alone by hand, and what all of them must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from s2s_jax.data.augmentation import FADED, augmented_lines

WIDTHS = np.array([90, 40, 1, 0, 120])


def ink(seed=0, channels=1):
    return jax.random.uniform(jax.random.key(seed), (5, 16, 120, channels))


def test_changes_depend_on_the_key_alone():
    x, key = ink(), jax.random.key(0)
    first, widths = augmented_lines(x, WIDTHS, key)
    again, _ = jax.jit(augmented_lines)(x, WIDTHS, key)
    np.testing.assert_allclose(first, again, atol=1e-4)
    other, _ = augmented_lines(x, WIDTHS, jax.random.key(1))
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0.1
    assert first.shape == x.shape
    assert np.asarray(first).min() >= 0
    assert np.asarray(first).max() <= 1
    assert widths.dtype == jnp.int32
    assert (np.abs(np.asarray(widths) - WIDTHS) <= 0.15 * WIDTHS + 1).all()
    assert widths[4] <= 120
    assert widths[3] == 0


def test_rows_are_changed_each_in_its_own_way():
    x = jnp.broadcast_to(ink()[:1], (5, 16, 120, 1))
    changed, _ = augmented_lines(x, np.full(5, 100), jax.random.key(0))
    assert len({np.asarray(row).tobytes() for row in changed}) == 5


def test_nothing_stands_behind_the_new_widths_and_nothing_comes_from_behind_the_old():
    mask = (np.arange(120) < WIDTHS[:, None])[:, None, :, None]
    want, widths = augmented_lines(jnp.where(mask, ink(), 0), WIDTHS, jax.random.key(2))
    got, _ = augmented_lines(jnp.where(mask, ink(), jnp.nan), WIDTHS, jax.random.key(2))
    np.testing.assert_array_equal(got, want)
    assert not np.any(np.where((np.arange(120) < np.asarray(widths)[:, None])[:, None, :, None], 0, got))


def test_a_strength_of_zero_changes_nothing():
    mask = (np.arange(120) < WIDTHS[:, None])[:, None, :, None]
    got, widths = augmented_lines(ink(), WIDTHS, jax.random.key(0), strength=0.0)
    np.testing.assert_array_equal(widths, WIDTHS)
    np.testing.assert_allclose(got, np.where(mask, ink(), 0), atol=1e-5)


@pytest.mark.parametrize("strength", [-0.1, FADED, 8.0, np.nan])
def test_a_strength_that_would_leave_no_picture_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength: expected a number from 0 to below 3\.33, got"):
        augmented_lines(ink(), WIDTHS, jax.random.key(0), strength=strength)


def test_channels_are_moved_together():
    x = jnp.broadcast_to(ink(), (5, 16, 120, 1)).repeat(3, axis=-1)
    got, _ = augmented_lines(x, WIDTHS, jax.random.key(0), strength=1.0)
    spread = np.asarray(got).max(-1) - np.asarray(got).min(-1)
    assert spread.max() < 0.5  # noise alone


def only(monkeypatch, x, *parts, widths=None):
    """Lines changed at full strength where each number that is drawn changes nothing, but for those of the parts.

    A part is the number of its draw and where between `minval` and `maxval` it falls, 0 to 1; in order: width, height, move,
    slant, pen, gamma, paleness, noise. "normal" is what all normal numbers are, those of bends and noise; or those of bends.
    """
    shares = dict(parts)
    calls = iter(range(8))
    neutral = (0.5, 1.0, 0.5, 0.5, 0.5, (1.0 - 0.7) / 0.7, 1.0, 0.0)

    def uniform(key, shape, minval, maxval):
        number = next(calls)
        return jnp.full(shape, minval + shares.get(number, neutral[number]) * (maxval - minval))

    monkeypatch.setattr(jax.random, "uniform", uniform)
    normal = shares.get("normal", 0.0)
    of_bends = np.shape(normal)
    monkeypatch.setattr(jax.random, "normal", lambda _, shape: jnp.full(shape, normal if of_bends in ((), shape) else 0.0))
    widths = np.full(len(x), x.shape[2]) if widths is None else widths
    return tuple(map(np.asarray, augmented_lines(jnp.asarray(x), widths, jax.random.key(0))))


def drawn():
    return np.random.default_rng(0).random((1, 9, 40, 1)).astype(np.float32)


def test_each_part_alone(monkeypatch):
    """By slices of the picture in NumPy, with the greatest value that each can take, the others off."""
    x = drawn()

    def changed(*parts):
        return only(monkeypatch, x, *parts)[0][0, ..., 0]

    y = x[0, ..., 0]
    np.testing.assert_allclose(changed(), y, atol=1e-5)
    np.testing.assert_allclose(changed((2, 1.0))[:-1], y[1:], atol=1e-5)  # moved by a row
    slanted = changed((3, 1.0))  # 0.15 columns for each row from the middle one
    np.testing.assert_allclose(slanted[4], y[4], atol=1e-5)
    np.testing.assert_allclose(slanted[8, :-1], 0.4 * y[8, :-1] + 0.6 * y[8, 1:], atol=1e-5)
    np.testing.assert_allclose(slanted[0, 1:], 0.4 * y[0, 1:] + 0.6 * y[0, :-1], atol=1e-5)
    neighbours = np.stack([y[:-1, :-1], y[:-1, 1:], y[1:, :-1]])
    np.testing.assert_allclose(changed((4, 1.0))[:-1, :-1], neighbours.max(0), atol=1e-5)  # wider
    np.testing.assert_allclose(changed((4, 0.0))[:-1, :-1], neighbours.min(0), atol=1e-5)  # thinner
    np.testing.assert_allclose(changed((4, 0.7)), y, atol=1e-5)  # within the half that stays
    np.testing.assert_allclose(changed((5, 1.0)), y**1.4, atol=1e-5)
    np.testing.assert_allclose(changed((6, 0.0)), 0.7 * y, atol=1e-5)
    bent = changed(("normal", 2.0))  # 2 rows and 3 columns everywhere, as the coarse shifts are equal
    np.testing.assert_allclose(bent[:-2, :-3], y[2:, 3:], atol=1e-5)


def test_bends_are_smooth_between_the_places_that_they_are_drawn_for(monkeypatch):
    """By SciPy's linear interpolation, once of shifts that all differ and once of the picture at the shifted places."""
    height, width = 21, 120
    x = np.random.default_rng(1).random((1, height, width, 1)).astype(np.float32)
    coarse = 1.5 * np.random.default_rng(2).normal(size=(3, 7, 2))  # some are beyond 2, the most that counts
    changed, _ = only(monkeypatch, x, ("normal", coarse[None]))

    # Each of the drawn shifts stands in the middle of its part of the picture; beyond the outer ones they stay the same.
    rows, columns = np.mgrid[:height, :width].astype(float)
    middles = (rows + 0.5) * 3 / height - 0.5, (columns + 0.5) * 7 / width - 0.5
    down, right = (
        np.clip(ndimage.map_coordinates(coarse[..., axis], middles, order=1, mode="nearest"), -2, 2) for axis in range(2)
    )
    assert down.max() == 2
    want = ndimage.map_coordinates(x[0, ..., 0], (rows + down, columns + 1.5 * right), order=1, mode="grid-constant")
    np.testing.assert_allclose(changed[0, ..., 0], want, atol=1e-4)


def test_noise_alone(monkeypatch):
    x = np.full((1, 9, 40, 1), 0.5, np.float32)
    noisy, _ = only(monkeypatch, x, (7, 1.0), ("normal", 1.0))
    np.testing.assert_allclose(noisy[0, :-1, :-2], 0.55, atol=1e-5)


@pytest.mark.parametrize(("share", "width"), [(1.0, 46), (0.0, 34)])
def test_a_picture_follows_its_new_width(monkeypatch, share, width):
    x = np.zeros((1, 9, 80, 1), np.float32)
    x[:, :, 30:40] = 1  # the last columns of 40
    changed, widths = only(monkeypatch, x, (0, share), widths=np.array([40]))
    assert widths.tolist() == [width]
    assert changed[0, 4, :, 0].sum() == pytest.approx(10 * width / 40, abs=1)
    assert changed[0, 4, width - 2, 0] == pytest.approx(1, abs=1e-4)
    assert changed[0, 4, round(30 * width / 40) - 2, 0] == pytest.approx(0, abs=1e-4)
