"""Pictures, and lines as they were read."""

import io

import numpy as np
import pytest

from s2s_jax import plots
from tests.plots.figures import drawn


@pytest.mark.parametrize("count", [0, 1, 9])
def test_images_stand_in_rows_each_with_its_title(count):
    pictures = [np.full((4, 4), number) for number in range(count)]
    figure = plots.images(pictures, [f"title {number}" for number in range(count)], title="All", columns=8)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == [f"title {number}" for number in range(count)]
    assert all(np.array_equal(axis.images[0].get_array(), picture) for axis, picture in zip(shown, pictures, strict=True))
    assert {axis.title.get_color() for axis in shown} <= {"black"}
    figure = plots.images(pictures, ["x"] * count, title="All", right=[number % 2 == 0 for number in range(count)])
    colors = [axis.title.get_color() for axis in figure.axes if axis.images]
    assert colors == ["tab:green" if number % 2 == 0 else "tab:red" for number in range(count)]
    file = io.BytesIO()
    figure.savefig(file)


def test_a_line_as_it_was_read():
    picture = np.random.default_rng(0).random((32, 200))
    spans, sure = [(0, 20), (20, 60), (60, 70), (150, 200)], [1.0, 0.5, 0.0, 0.9]
    figure = plots.read_line(picture, ["ſ", " ", "\u0301", "$"], spans, sure, title="Title")
    above = figure.axes[0]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in above.patches]
    assert bars == spans
    assert [text.get_text() for text in above.texts] == ["ſ", "\u2423", "\u25cc\u0301", r"\$"]
    assert len({bar.get_facecolor() for bar in above.patches}) == 4
    drawn(figure)


def test_a_long_line_goes_on_below_and_a_short_one_keeps_its_shape():
    for width, rows in ((20, 1), (448, 1), (900, 3)):
        spans = [(start, start + 10) for start in range(0, width, 10)]
        picture = np.arange(32.0 * width).reshape(32, width)
        figure = plots.read_line(picture, ["a"] * len(spans), spans, [0.5] * len(spans), title="Title")
        drawn(figure)
        shown = [axis for axis in figure.axes if axis.images]
        assert len(shown) == rows
        np.testing.assert_array_equal(np.concatenate([axis.images[0].get_array() for axis in shown], axis=1), picture)
        assert max(figure.get_size_inches()) < 16
        for axis in shown:
            box, (first, last) = axis.get_window_extent(), axis.get_xlim()
            assert (box.width / (last - first)) / (box.height / 32) == pytest.approx(1, rel=0.02)
        bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for axis in figure.axes for bar in axis.patches]
        assert bars == spans
        for above, below in zip(figure.axes[: 2 * rows : 2], shown, strict=True):
            assert above.get_window_extent().x0 == pytest.approx(below.get_window_extent().x0, abs=1)
            assert above.get_xlim() == below.get_xlim()
            assert all(bar.get_x() + 5 <= above.get_xlim()[1] for bar in above.patches)


def test_a_line_of_which_nothing_was_read_is_a_picture_alone():
    figure = plots.read_line(np.ones((32, 200)), [], [], [], title="Title")
    (axis,) = figure.axes
    assert axis.images
