"""How far a training is, by a clock that the test turns."""

import pytest

from s2s_jax.training import progress
from s2s_jax.training.progress import Progress


@pytest.mark.parametrize("done", [0, 200])
def test_the_rate_leaves_out_what_comes_before_the_first_line(monkeypatch, capsys, done):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    told = Progress(done + 400, done)
    now[0] += 50  # compiling, and ten steps
    assert told.show(done + 10, 1.0) == pytest.approx(10 / 50)
    now[0] += 20
    assert told.show(done + 110, 1.0) == pytest.approx(100 / 20)
    now[0] += 40
    assert told.show(done + 310, 1.0) == pytest.approx(300 / 60)
    assert capsys.readouterr().out.splitlines()[-1] == f"step {done + 310}/{done + 400}  loss 1.0000  5.0 steps/s  18 s left"
