"""Texts whose characters stand on colours."""

from s2s_jax import plots
from tests.plots.figures import drawn


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


def test_a_text_of_which_nothing_mattered_has_no_scale():
    figure = plots.marked_text(list("ab"), [1e-9, 0.0], title="", label="nats")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "no symbol mattered"
