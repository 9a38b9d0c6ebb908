"""Learning curves of one seed and of several."""

import numpy as np
import pytest

from s2s_jax import plots
from tests.plots.figures import drawn, history, lines


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


def test_a_history_without_a_known_name_is_refused():
    with pytest.raises(ValueError, match="expected lines with train/loss or validation/loss, got loss, step"):
        plots.learning_curve([[{"step": 1, "loss": 0.5}]], (), "Title")
