"""Forecasts beside what came."""

import itertools

import numpy as np
import pytest

from s2s_jax import plots
from tests.plots.figures import drawn


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
