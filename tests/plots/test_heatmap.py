"""Heat maps have every value and label."""

import itertools

import numpy as np

from s2s_jax import plots
from tests.plots.figures import drawn


def test_a_heat_map_has_every_label_and_value():
    values = np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    figure = plots.heatmap(values, ["ja", "$"], ["été", "да", "$x"], xlabel="source", ylabel="translation", title="Weights")
    drawn(figure)
    axes, bar = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["été", "да", r"\$x"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ja", r"\$"]
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), bar.get_ylabel()) == (
        "source",
        "translation",
        "Weights",
        "weight",
    )


def test_a_heat_map_of_a_long_text_fits_a_page_and_its_labels_do_not_touch():
    figure = plots.heatmap(np.zeros((3, 200)), ["a"] * 3, ["word"] * 200, xlabel="x", ylabel="y", title="t")
    drawn(figure)
    assert max(figure.get_size_inches()) <= 19
    labels = figure.axes[0].get_xticklabels()
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_a_heat_map_knows_any_script_or_says_the_number():
    figure = plots.heatmap([[1.0, 0.0]], ["\U000f0000"], ["漢", "שלום"], xlabel="x", ylabel="y", title="t")
    drawn(figure)  # a character without a glyph would be a warning, which is an error here
    axes = figure.axes[0]
    assert axes.get_yticklabels()[0].get_text() == "U+F0000"
    assert axes.get_xticklabels()[0].get_text() in ("漢", "U+6F22")
    assert axes.get_xticklabels()[1].get_text() == "שלום"
