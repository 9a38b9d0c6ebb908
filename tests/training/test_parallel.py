"""Data-parallel training against one device: eight virtual CPU devices, and two processes on loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from s2s_jax.training.parallel import OwnRows, data_mesh, local, replicate, split_batch
from tests.samples import assert_close
from tests.training.test_loop import BATCHES, WithNorm, fit_small, norm_loss, run_in, small_model

ROOT = Path(__file__).parents[2]


def losses(run):
    return [(line["step"], line["train/loss"]) for line in run.history() if "train/loss" in line]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "average_decay": 0.9}], ids=["plain", "accumulated"])
def test_eight_devices_give_the_losses_of_one(tmp_path, options):
    one, eight = run_in(tmp_path / "one"), run_in(tmp_path / "eight")
    batches = (
        BATCHES
        if not options
        else lambda step: jax.tree.map(lambda *rows: np.concatenate(rows), BATCHES(step), BATCHES(step + 1))
    )
    want = fit_small(small_model(), batches=batches, steps=20, run=one, log_every=1, **options)
    got = fit_small(small_model(), batches=batches, steps=20, run=eight, log_every=1, mesh=data_mesh(), **options)
    assert data_mesh().size == 8
    np.testing.assert_allclose(losses(eight), losses(one), rtol=1e-5)
    assert len(losses(one)) == 20
    assert_close(local(got.state.params), want.state.params, 1e-4)
    assert len(jax.tree.leaves(got.state.params)[0].sharding.device_set) == 8
    assert len(jax.tree.leaves(got.model.output.kernel[...])[0].sharding.device_set) == 1


def test_batch_statistics_are_those_of_the_whole_batch():
    want = fit_small(WithNorm(), loss=norm_loss, steps=5).model
    got = fit_small(WithNorm(), loss=norm_loss, steps=5, mesh=data_mesh()).model
    assert_close(got.norm.mean[...], want.norm.mean[...], 1e-5)
    assert_close(got.norm.var[...], want.norm.var[...], 1e-5)


def test_a_run_saved_on_eight_devices_goes_on_on_one(tmp_path):
    run = run_in(tmp_path)
    fit_small(small_model(), steps=10, run=run, checkpoint_every=10, mesh=data_mesh())
    got = fit_small(small_model(), steps=20, run=run, checkpoint_every=10)
    assert_close(got.state.params, fit_small(small_model(), steps=20).state.params, 1e-4)


def test_rows_that_devices_cannot_share_are_refused():
    mesh = data_mesh()
    with pytest.raises(ValueError, match="batch: expected a number of rows that 8 devices can share, got 12"):
        split_batch({"xs": np.zeros((12, 3))}, mesh)


def test_what_is_replicated_comes_back(tmp_path):
    tree = {"x": np.arange(6.0, dtype=np.float32), "key": jax.random.key(3)}
    back = local(replicate(tree, data_mesh()))
    assert_close(back["x"], tree["x"], 0)
    assert np.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))


PROGRAM = """
import sys
import time
from pathlib import Path
import jax
from s2s_jax.training.parallel import OwnRows, data_mesh
process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, process)
from s2s_jax.training.loop import Goal
from s2s_jax.data.pipeline import Batches
from tests.training.test_loop import BATCHES, DATA, fit_small, run_in, small_model
mesh = data_mesh()
assert (mesh.size, len(mesh.local_devices)) == (4, 2)
"""

TWICE = """
half = Batches(DATA, 8, seed=5).of_process(process, 2)
evaluate = lambda model: {"bias": float(model.output.bias[...][0])}
options = dict(run=run_in(folder), log_every=1, mesh=mesh, checkpoint_every=10, evaluate=evaluate, evaluate_every=10)
fit_small(small_model(), batches=half, steps=10, **options)
trained = fit_small(small_model(), batches=half, steps=20, **options)
print("bias", float(trained.model.output.bias[...][0]))
"""

# Each process has an evaluation of its own: by that of process 1 training would end at once. Its numbers need all bits.
STOPPED = """
asked, run = [0], run_in(folder)
pause = 0 if run.has_checkpoints() else 0.05  # time for the signal, in the first sitting

def slow(step):
    asked.append(step)
    time.sleep(pause)
    return BATCHES(step)

evaluate = lambda model: {"score": 0.1 + asked[-1] if process == 0 else -asked[-1]}

options = dict(goal=Goal("score", greater=True, patience=2, keep=3), evaluate=evaluate, evaluate_every=4)
options |= dict(run=run, log_every=10, mesh=mesh, checkpoint_every=50)
fit_small(small_model(), batches=OwnRows(slow, process, 2), steps=100, **options)
"""


def two_processes(program, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"  # the last one counts
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM + program, str(k), str(port), str(folder)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for k in range(2)
    ]  # fmt: skip


def end_of(started):
    """What they told, and how they ended; none of them may outlive the test."""
    try:
        told = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return told, [process.returncode for process in started]


def test_two_processes_give_the_losses_of_one_device(tmp_path):
    told, ended = end_of(two_processes(TWICE, tmp_path / "two"))
    assert ended == [0, 0], "\n".join(told)
    one = run_in(tmp_path / "one")
    want = fit_small(small_model(), steps=20, run=one, log_every=1)
    got = run_in(tmp_path / "two")
    np.testing.assert_allclose(losses(got), losses(one), rtol=1e-5)
    biases = [float(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("bias")]
    assert biases[0] == biases[1]
    assert biases[0] == pytest.approx(float(want.model.output.bias[...][0]), rel=1e-4)
    assert json.loads((got.folder / "config.json").read_text())["steps"] == 25


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on(tmp_path):
    """To the one that does not write; and evaluations that differ end nothing."""
    run, started = run_in(tmp_path / "two"), two_processes(STOPPED, tmp_path / "two")
    deadline = time.monotonic() + 120
    while run.steps() <= 10 and all(process.poll() is None for process in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    told, ended = end_of(started)
    assert ended == [128 + signal.SIGTERM] * 2, "\n".join(told)
    stops = [re.search(r"Stopped at step (\d+) and saved; the same command goes on from there", text) for text in told]
    assert all(stops), "\n".join(told)
    stopped = int(stops[0].group(1))
    assert 10 < stopped < 100
    assert int(stops[1].group(1)) == stopped
    told, ended = end_of(two_processes(STOPPED, tmp_path / "two"))
    assert ended == [0, 0], "\n".join(told)
    assert all(f"Goes on from the checkpoint of step {stopped}." in text for text in told)
    one = run_in(tmp_path / "one")
    fit_small(small_model(), steps=100, run=one, log_every=10)
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)
    assert len(losses(one)) == 10
    scores = [(line["step"], line["validation/score"]) for line in run.history() if "validation/score" in line]
    assert scores == [(step, 0.1 + (step - 1)) for step in range(4, 101, 4)]
    assert [path.name for path in sorted((run.folder / "best").iterdir())] == [
        f"step-{k:08}.safetensors" for k in (92, 96, 100)
    ]


def test_own_rows_put_together_are_the_batch():
    class Named:
        def __call__(self, step):
            return BATCHES(step)

        def ids(self, step):
            return [step]

    parts = [OwnRows(Named(), index, 4) for index in range(4)]
    for step, together in zip(range(3, 6), zip(*(part.iterate(3) for part in parts), strict=True), strict=False):
        assert_close(jax.tree.map(lambda *rows: np.concatenate(rows), *together), BATCHES(step), 0)
        assert_close(parts[1](step), together[1], 0)
    assert parts[2].ids(7) == [7]
    assert not hasattr(OwnRows(BATCHES, 0, 2), "ids")
    with pytest.raises(ValueError, match="batch: expected a number of rows that 3 processes can share, got 8"):
        OwnRows(BATCHES, 0, 3)(0)
