"""Figures: that what is drawn is what was given. How they look is for eyes."""

import io
import itertools

import matplotlib.image
import numpy as np
import pytest

from s2s_jax import plots


def history(seed, metric="accuracy"):
    training = [{"step": step, "train/loss": 2.0 / step + seed} for step in (10, 20, 30)]
    return [
        *training,
        *({"step": step, "validation/loss": 1.0 + seed, f"validation/{metric}": 0.2 * seed} for step in (15, 30)),
    ]


def lines(axes):
    return {line.get_label(): np.array(line.get_data()).T.tolist() for line in axes.get_lines()}


def drawn(figure):
    """The picture as it would be written; not blank."""
    file = io.BytesIO()
    figure.savefig(file, dpi=50)
    file.seek(0)
    picture = matplotlib.image.imread(file)
    assert picture.std() > 0.01
    return picture


def test_the_learning_curve_of_one_seed():
    figure = plots.learning_curve([history(1)], ["accuracy"], "Title")
    above, below = figure.axes
    assert lines(above) == {"training": [[10, 1.2], [20, 1.1], [30, 2.0 / 30 + 1]], "validation": [[15, 2.0], [30, 2.0]]}
    assert lines(below) == {"accuracy": [[15, 0.2], [30, 0.2]]}
    assert (above.get_title(), above.get_yscale(), below.get_xlabel()) == ("Title", "log", "step")
    assert not above.collections
    drawn(figure)


def test_the_learning_curve_of_several_seeds_is_their_mean_in_a_band():
    short = [line for line in history(4) if line["step"] <= 15]  # a seed that stopped early
    figure = plots.learning_curve([history(0), history(2), short], ["accuracy"], "Title")
    above, below = figure.axes
    got = lines(above)["training, mean of up to 3 seeds"]
    assert got == pytest.approx(np.array([[10, 2.2], [20, 1.1], [30, 2 / 30 + 1]]))
    assert lines(below)["accuracy, mean of up to 3 seeds"] == pytest.approx(np.array([[15, 0.4], [30, 0.2]]))
    (band,) = below.collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(15, 0), (15, 0.8), (30, 0), (30, 0.4)} == corners
    drawn(figure)


def test_metrics_that_nobody_measured_take_no_room():
    assert len(plots.learning_curve([history(1)], ["exact_match"], "Title").axes) == 1
    assert len(plots.learning_curve([[]], ["accuracy"], "Title").axes) == 1
    drawn(plots.learning_curve([[]], [], "A run of no steps"))


def test_error_rates_that_fall_far_have_a_logarithmic_axis():
    rates = [{"step": step, "validation/cer": rate} for step, rate in ((1, 0.8), (2, 0.2), (3, 0.06))]
    below = plots.learning_curve([[*rates, {"step": 1, "train/loss": 1.0}]], ["cer"], "Title").axes[-1]
    assert (below.get_yscale(), below.get_ylim()) == ("log", (0.8 * 0.06, 1.1))
    assert [tick.get_text() for tick in below.get_yticklabels()] == ["5 %", "10 %", "20 %", "50 %", "100 %"]
    for last in (0.3, 0.0):
        rates[-1]["validation/cer"] = last
        assert plots.learning_curve([rates], ["cer"], "Title").axes[-1].get_yscale() == "linear"


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


def test_a_marked_text_shows_every_character_on_its_colour():
    figure = plots.marked_text(list("ab $é" + "x" * 8), [0.5, -1, *[0.0] * 11], title="Title", label="nats", columns=4)
    (axes, bar) = figure.axes
    shown = axes.images[0].get_array()
    assert shown.shape == (4, 4)
    assert shown.flatten().tolist() == [0.5, -1, *[0.0] * 14]
    assert axes.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.texts][:5] == ["a", "b", "", r"\$", "é"]
    assert (axes.get_title(), bar.get_ylabel()) == ("Title", "nats")
    drawn(figure)
    assert plots.marked_text(list("ab"), [0.0, 0.0], title="", label="").axes[0].images[0].get_array().shape == (1, 2)


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


def test_a_character_that_no_font_has_is_a_small_box_where_its_number_has_no_room():
    figure = plots.marked_text(["a", "\U000f0000"], [1.0, 0.0], title="", label="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "\u25ab"]
    figure = plots.read_line(np.ones((32, 200)), ["\U000f0000"], [(0, 20)], [1.0], title="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["\u25ab"]
    drawn(figure)


def test_a_text_of_which_nothing_mattered_has_no_scale():
    figure = plots.marked_text(list("ab"), [1e-9, 0.0], title="", label="nats")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "no symbol mattered"


@pytest.mark.parametrize("days", [20, 103])
def test_dates_stand_apart(days):
    dates = np.datetime64("2020-01-20") + np.arange(days)
    numbers = np.arange(days - 7.0)
    panel = {"dates": dates, "history": numbers, "mean": np.zeros(7), "truth": None, "interval": None, "title": "OT"}
    figure = plots.forecasts([panel], title="Title")
    drawn(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(boxes) > 2
    assert all(left.x1 + 20 < right.x0 for left, right in itertools.pairwise(boxes))  # in pixels, of a hundred to the inch


def ticks(axis):
    """The labels of an axis that are within what it shows."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize(("last", "at_least"), [(0.54, 2), (0.1, 3), (1e-4, 3)])
def test_numbers_along_a_logarithmic_axis_are_plain(last, at_least):
    rows = [{"step": step, "train/loss": loss} for step, loss in enumerate([0.6, last], start=1)]
    figure = plots.learning_curve([rows], [], "Title")
    drawn(figure)
    told = ticks(figure.axes[0].yaxis)
    assert len(told) >= at_least
    assert all(float(text) for text in told)
    assert not any(label.get_text() for label in figure.axes[0].yaxis.get_minorticklabels())
    assert all(text.isdecimal() for text in ticks(figure.axes[0].xaxis))


def test_a_legend_lies_over_nothing_and_one_line_has_none():
    figure = plots.learning_curve([history(1)], ["accuracy"], "Title")
    drawn(figure)
    above, below = figure.axes
    assert above.get_legend().get_window_extent().x0 >= above.get_window_extent().x1
    assert below.get_legend() is None
    assert below.get_ylabel() == "validation accuracy"
    both = [{"step": 1, "validation/cer": 0.5, "validation/wer": 0.6}]
    assert plots.learning_curve([both], ["cer", "wer"], "Title").axes[-1].get_legend() is not None
    options = {"xlabel": "x", "ylabel": "CER", "title": "Title", "fractions": True}
    assert plots.lines({"cer": [0.1]}, {"cer": [(0.0, 0.2)]}, ["1"], **options).axes[0].get_legend() is None


@pytest.mark.parametrize(("high", "top"), [(0.07, 0.077), (0.6, 0.66), (0.99, 1.03), (0.0, 1.03)])
def test_an_axis_of_rates_is_as_long_as_they_need(high, top):
    options = {"xlabel": "x", "ylabel": "CER", "title": "Title", "fractions": True}
    figure = plots.lines({"cer": [high / 2]}, {"cer": [(0.0, high)]}, ["1 to 5"], **options)
    assert figure.axes[0].get_ylim()[1] == pytest.approx(top)


def test_the_title_of_a_long_file_name_is_within_the_figure():
    figure = plots.marked_text(list("ab"), [1.0, 0.0], title="a_long_name_" * 9 + ".csv", label="nats")
    drawn(figure)
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


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
