"""What is measured of the backend `diagonal`, at small sizes."""

import json

import pytest

from experiments.benchmark import diagonal as part
from experiments.benchmark.__main__ import main
from s2s_jax.recurrence.diagonal import build

SHAPE = (2, 6, 20)


@pytest.fixture(autouse=True)
def _compiled():
    assert build.why_not("cpu") is None


@pytest.mark.parametrize("name", part.CELLS)
def test_bytes_are_those_of_the_arrays(name):
    """float32; of an LSTM c as well, of an LRU two states and no biases."""
    batch, steps, hidden = SHAPE
    numbers = batch * steps * hidden
    gates, outputs, kept = {
        "min_gru": (2, 1, 0),
        "min_lstm": (3, 1, 0),
        "lru": (2, 2, 0),
        "diagonal_lstm": (4, 1, 1),
        "diagonal_gru": (3, 1, 0),
    }[name]
    of = part.passes(name, SHAPE, "float32")
    forward = gates + outputs + kept
    read = forward - gates if name == "lru" else forward  # whose way back does not look at z
    assert of.bytes == {"forward": 4 * numbers * forward, "backward": 4 * numbers * (read + outputs + gates)}
    y, _, _ = of.calls["forward"]()
    assert y.shape == (steps, batch, outputs * hidden)
    assert part.copy(of.bytes["forward"])().nbytes * 2 == of.bytes["forward"]


def test_it_checks_before_it_times(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(part, "SHAPES", {"cpu": (SHAPE,)})
    path = tmp_path / "figures.json"
    main(["diagonal", "--seconds", "0.01", "--json", str(path), "--platform", "cpu"])
    rows = json.loads(path.read_text())["passes"]
    both = [(cell, way) for cell in part.CELLS for way in ("forward", "backward")]
    assert [(row["cell"], row["pass"]) for row in rows] == [*both, ("affine", "solve")]
    assert all(0 <= row["difference"] < 1e-5 and row["share_of_copy"] > 0 for row in rows)
    linear = [row for row in rows if "associative_scan_over_it" in row]
    for way in ("forward", "backward"):
        assert [row["cell"] for row in linear if row["pass"] == way] == ["min_gru", "min_lstm", "lru"]
    assert [row["cell"] for row in linear if row["pass"] == "solve"] == ["affine"]
    assert "2, 6, 20          min_gru        forward" in capsys.readouterr().out


def test_a_wrong_pass_would_be_told(monkeypatch):
    from s2s_jax.recurrence.diagonal.calls import Call

    right = Call.forward
    monkeypatch.setattr(Call, "forward", lambda *given: tuple(1.001 * each for each in right(*given)))
    assert part.difference("min_gru", (2, 6, 21), "float32") > 5e-4


def test_where_nothing_is_compiled_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "why_not", lambda platform: "no C++ compiler was found")
    with pytest.raises(ValueError, match="diagonal: nothing to measure: no C"):
        main(["diagonal", "--json", str(tmp_path / "figures.json"), "--platform", "cpu"])


def test_the_recurrence_that_it_is_set_beside():
    a, b = part.factors_and_terms((1, 3, 1))
    alone, (states, gradients) = (call() for call in part.associative((1, 3, 1)).values())
    want = [float(b[0, 0, 0])]
    for t in (1, 2):
        want.append(float(a[t, 0, 0]) * want[-1] + float(b[t, 0, 0]))
    for got in (alone, states):
        assert got[:, 0, 0].tolist() == pytest.approx(want)
    # Of the sum of a_t s_t: by b_2 it moves by a_2, by a_2 by what came before, s_1, times a_2.
    assert float(gradients[1][2, 0, 0]) == pytest.approx(float(a[2, 0, 0]))
    assert float(gradients[0][2, 0, 0]) == pytest.approx(float(a[2, 0, 0]) * want[1])
