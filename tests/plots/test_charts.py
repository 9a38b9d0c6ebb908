"""Charts show the numbers that were given."""

import pytest

from s2s_jax import plots
from tests.plots.figures import drawn, lines


@pytest.mark.parametrize(("labels", "values"), [(["a"], [0.1, 0.2]), (["a", "b"], [0.1, 12.0]), (["a"], [float("nan")])])
def test_bars_are_of_fractions_one_for_each_label(labels, values):
    with pytest.raises(ValueError, match=f"values: expected {len(labels)} fractions from 0 to 1"):
        plots.bars(labels, values, xlabel="x", ylabel="y", title="Title")


def test_curves_have_no_place_for_zero():
    with pytest.raises(ValueError, match=r"values\['a'\]: expected numbers above 0, got 0"):
        plots.curves({"a": {1.0: 2.0, 2.0: 0}}, xlabel="x", ylabel="y", title="Title")


def test_a_spread_has_a_dot_for_each_value_and_says_what_it_shows():
    by_name = {"b": {10: [0.2, 0.4], 1000: [0.6]}, "a": {10: [0.1]}, "c": {10: [0.3, 0.5], 1000: [0.6, 0.8]}}
    figure = plots.spread(by_name, xlabel="x", ylabel="y", title="Title")
    (axes,) = figure.axes
    drawn_lines = lines(axes)
    assert list(drawn_lines) == ["a", "b, 1 to 2 seeds", "c, 2 seeds"]
    assert drawn_lines["b, 1 to 2 seeds"] == [[10, pytest.approx(0.3)], [1000, 0.6]]
    assert len({(line.get_color(), line.get_marker()) for line in axes.get_lines()}) == 3
    assert len({line.get_marker() for line in axes.get_lines()}) == 3
    dots = [
        points.get_offsets().tolist()
        for points in axes.collections
        if len(points.get_offsets()) and hasattr(points, "get_sizes") and len(points.get_sizes())
    ]
    assert sorted(map(len, dots)) == [3, 4]
    told = axes.get_legend().get_title().get_text()
    assert "line: mean over seeds" in told
    assert "band: from the lowest seed to the highest" in told
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "1,000"]
    assert axes.get_xscale() == "log"
    drawn(figure)


def test_a_spread_of_single_runs_speaks_of_no_band():
    figure = plots.spread({"a": {10: [0.1], 100: [0.2]}}, xlabel="x", ylabel="y", title="Title")
    assert figure.axes[0].get_legend().get_title().get_text() == ""
    assert not figure.axes[0].collections


@pytest.mark.parametrize("fractions", [True, False])
def test_lines_go_through_their_values_and_bars_from_end_to_end_of_the_intervals(fractions):
    values, intervals = {"b": [0.9, 0.2], "a": [0.9, 0.8]}, {"b": [(0.8, 1.0), (0.1, 0.3)], "a": [(0.7, 0.95), (0.75, 0.9)]}
    places = ["1 to 5", "6 to 9"]
    figure = plots.lines(values, intervals, places, xlabel="x", ylabel="y", title="Title", fractions=fractions)
    (axes,) = figure.axes
    drawn_lines = lines(axes)
    assert list(drawn_lines) == ["b", "a"]
    for name, bars in zip(values, axes.collections, strict=True):
        across, heights = zip(*drawn_lines[name], strict=True)
        assert list(heights) == values[name]
        assert across == pytest.approx([0, 1], abs=0.1)
        ends = [tuple(map(tuple, path.vertices.tolist())) for path in bars.get_paths()]
        assert ends == [((place, low), (place, high)) for place, (low, high) in zip(across, intervals[name], strict=True)]
    assert drawn_lines["b"][0] != drawn_lines["a"][0]  # as high, and yet both to be seen
    assert len({line.get_marker() for line in axes.get_lines()}) == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == places
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Title", "x", "y")
    assert axes.get_ylim()[0] <= 0
    assert axes.yaxis.get_major_formatter()(0.5).endswith("%") == fractions
    drawn(figure)


def test_bars_say_their_value():
    figure = plots.bars(["1", "2"], [0.5, 1.0], xlabel="x", ylabel="y", title="Title")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, 1.0]
    assert [text.get_text() for text in axes.texts] == ["50.0%", "100.0%"]
    drawn(figure)


@pytest.mark.parametrize(("high", "top"), [(0.07, 0.077), (0.6, 0.66), (0.99, 1.03), (0.0, 1.03)])
def test_an_axis_of_rates_is_as_long_as_they_need(high, top):
    options = {"xlabel": "x", "ylabel": "CER", "title": "Title", "fractions": True}
    figure = plots.lines({"cer": [high / 2]}, {"cer": [(0.0, high)]}, ["1 to 5"], **options)
    assert figure.axes[0].get_ylim()[1] == pytest.approx(top)


def test_curves_go_through_their_points_on_logarithmic_axes():
    figure = plots.curves({"a": {10: 1.0, 100: 20.0}, "b": {100: 0.5}}, xlabel="steps", ylabel="milliseconds", title="t")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    first, second = axes.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([10, 100], [1.0, 20.0])
    assert list(second.get_xdata()) == [100]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100"]
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1  # beside the data
