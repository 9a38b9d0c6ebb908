"""Characters that no font has."""

import numpy as np

from s2s_jax import plots
from tests.plots.figures import drawn


def test_a_character_that_no_font_has_is_a_small_box_where_its_number_has_no_room():
    figure = plots.marked_text(["a", "\U000f0000"], [1.0, 0.0], title="", label="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "\u25ab"]
    figure = plots.read_line(np.ones((32, 200)), ["\U000f0000"], [(0, 20)], [1.0], title="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["\u25ab"]
    drawn(figure)
