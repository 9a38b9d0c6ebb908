"""Two processes that want to train in one folder."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_jax.training.lock import try_lock
from tests.training.test_loop import BATCHES, fit_small, run_in, small_model

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from s2s_jax.training.lock import try_lock
with try_lock(Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(300)
"""


def is_free(path):
    with try_lock(path) as free:
        return free


def test_a_folder_in_use_is_refused_and_a_killed_process_lets_it_go(tmp_path):
    run = run_in(tmp_path)
    before = (run.folder / "config.json").read_text()
    command = [sys.executable, "-c", HOLDS, str(run.folder / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "True\n"
            with pytest.raises(
                ValueError, match=r"task.default: another process trains there; wait for its end, or give another"
            ):
                run_in(tmp_path, seed=3)
            with pytest.raises(ValueError, match="another process trains there"):
                fit_small(small_model(), steps=2, run=run, checkpoint_every=1)
        finally:
            process.send_signal(signal.SIGKILL)
    assert (run.folder / "config.json").read_text() == before
    assert not run.has_checkpoints()
    run_in(tmp_path, seed=3)


def test_the_folder_is_locked_while_training_lasts_and_no_longer(tmp_path):
    run, free = run_in(tmp_path), []

    def batches(step):
        free.append(is_free(run.folder / "lock"))
        return BATCHES(step)

    with run.locked():
        fit_small(small_model(), batches=batches, steps=2, run=run)
        assert not is_free(run.folder / "lock")
    assert set(free) == {False}
    assert is_free(run.folder / "lock")
    fit_small(small_model(), batches=batches, steps=2, run=run)
    assert set(free) == {False}
    assert is_free(run.folder / "lock")
    with pytest.raises(ValueError, match="steps: expected at least 2"):
        fit_small(small_model(), steps=1, run=run)
    assert is_free(run.folder / "lock")
