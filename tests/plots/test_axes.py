"""What figures have in common."""

from s2s_jax import plots
from tests.plots.figures import drawn, history


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


def test_the_title_of_a_long_file_name_is_within_the_figure():
    figure = plots.marked_text(list("ab"), [1.0, 0.0], title="a_long_name_" * 9 + ".csv", label="nats")
    drawn(figure)
    box = figure.axes[0].title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
