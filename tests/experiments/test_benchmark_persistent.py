"""What is measured of the backend `persistent` on a GPU, as far as a CPU can tell; its kernels run here as in its own tests."""

import json
import math
import re
import subprocess

import pytest

from experiments.benchmark import exchange
from experiments.benchmark import persistent as part
from experiments.benchmark.__main__ import Config, main
from experiments.benchmark.case import Case
from experiments.benchmark.pool import Failed, Patience, Process
from experiments.benchmark.worker import Worker
from s2s_jax.recurrence import cuda, persistent
from s2s_jax.recurrence.persistent import build, plan
from tests.recurrence import cuda_on_cpu
from tests.recurrence.scripts import script

SHAPE = (3, 5, 4, 8)
SMALL = plan.Device(8, 232448)


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    monkeypatch.setattr(persistent, "_why_not_here", lambda directions: None)
    monkeypatch.setattr(build, "load", lambda cell, dtype: cuda_on_cpu.load(cell, dtype, SMALL))
    for name in ("best", "gains_by_stacking"):  # which other divisions put something else in the place of
        monkeypatch.setattr(plan, name, getattr(plan, name))


KINDS = ("layer", "both", "deep")


class Here:
    """A worker in this process, asked as one in another would be."""

    def __init__(self, name):
        self.worker = Worker(name, "cpu", "persistent", "persistent")

    def ask(self, method, *arguments):
        return 1e12 if method == "rate" else getattr(self.worker, method)(*arguments)


class OnePool:
    """In the place of `Pool`; `made` counts them.

    In the second the peer "scan" fails at whatever it is asked, in the third it computes something else in both directions.
    """

    made = 0

    def __init__(self, peers, *_):
        type(self).made += 1
        self.workers = {name: Here(name) for name in peers}
        if type(self).made == 2:
            self.workers["scan"].ask = self.fail
        if type(self).made == 3:
            self.scan, self.workers["scan"] = self.workers["scan"], self

    def ask(self, method, *arguments):
        told = self.scan.ask(method, *arguments)
        if method == "build" and arguments[0].kind == "both":
            told[1]["forward"]["outputs"] = 1 + told[1]["forward"]["outputs"]
        return told

    def fail(self, method, *arguments):
        raise Failed("CUDA error: an illegal memory access was encountered")

    def __exit__(self, *_):
        pass


def test_without_a_gpu_it_says_so_at_once(tmp_path):
    with pytest.raises(ValueError, match="persistent: expected an NVIDIA GPU to measure on, and JAX finds the platform cpu"):
        main(["persistent", "--platform", "cpu", "--json", str(tmp_path / "figures.json")])
    with pytest.raises(ValueError, match="dtype: expected it with recurrence and diagonal only"):
        main(["persistent", "--platform", "cpu", "--dtype", "bfloat16"])


def test_from_end_to_end(kernels_on_cpu, monkeypatch, tmp_path, capsys):
    """With tiny cases; who fails costs its own rows and the processes, which are started anew, who differs its rows alone."""
    cases = tuple(Case("lstm", SHAPE, kind=kind) for kind in KINDS)
    monkeypatch.setattr(part, "CASES", cases)
    monkeypatch.setattr(part, "BESIDE", ("scan",))
    monkeypatch.setattr(part, "Pool", OnePool)
    monkeypatch.setattr(OnePool, "made", 1)
    monkeypatch.setattr(build, "build", lambda *_, seconds: tmp_path)
    monkeypatch.setattr(exchange, "build_library", lambda seconds: tmp_path)
    times = iter([0.5, "too large"])
    monkeypatch.setattr(exchange, "microseconds", lambda path, every, _: dict.fromkeys(every, next(times)))
    path = tmp_path / "figures.json"
    part.run(Config(seconds=0.01), "gpu", path)
    found = json.loads(path.read_text())
    rows = [*found["rows"], *found["further_rows"]]
    assert {(row["kind"], row["peer"]) for row in rows} == {
        *((kind, peer) for kind in KINDS for peer in ("division 2", "division 3")),
        ("deep", "scan"),
    }
    assert all(row["difference"] < 1e-5 and row["backend"] == "persistent" for row in rows)
    assert [(one["peer"], "differs from ours" in one["why"]) for one in found["refused"]] == [("scan", False), ("scan", True)]
    assert OnePool.made == 3
    layer = next(row for row in rows if (row["kind"], row["part"]) == ("layer", "forward"))
    assert layer["floor_ms"] == pytest.approx(1e3 * (5 * 0.5e-6 + 2 * 3 * 5 * 4 * 32 / 1e12), rel=1e-3)
    assert re.search(r"forward\+grad +division 2", capsys.readouterr().out)
    monkeypatch.setattr(part, "CASES", cases[:1])
    part.run(Config(seconds=0.01), "gpu", path)  # the exchange cannot be measured: all else is
    assert not json.loads(path.read_text())["refused"]


def test_what_is_not_built_and_what_the_time_does_not_suffice_for_is_left_out(kernels_on_cpu, monkeypatch, tmp_path, capsys):
    """And the end is reached: without anything that is waited for, and without the exchange."""

    def built(cell, dtype, seconds):
        assert seconds == 0
        if cell == "GRU":
            raise RuntimeError("nvcc failed with 1")
        return tmp_path

    def too_late(seconds):
        raise subprocess.TimeoutExpired("nvcc", seconds)

    monkeypatch.setattr(build, "build", built)
    monkeypatch.setattr(exchange, "build_library", too_late)
    monkeypatch.setattr(part, "CASES", (Case("gru", SHAPE), Case("lstm", SHAPE)))
    monkeypatch.setattr(part, "IN_ALL", 0.0)
    path = tmp_path / "figures.json"
    part.run(Config(seconds=0.01), "gpu", path)
    assert [(one["cell"], one["why"]) for one in json.loads(path.read_text())["refused"]] == [
        ("gru", "its kernels are not built"),
        ("lstm", "left out: 0 s are over"),
    ]
    assert "All figures are in" in capsys.readouterr().out


def test_a_division_that_the_plan_has_not_is_left_out(monkeypatch):
    """And not another one measured under its name."""
    small, case = plan.Device(8, 40000), Case("lstm", (16, 5, 128, 128), "bfloat16")
    monkeypatch.setattr(build, "load", lambda cell, dtype: build.Loaded(small, None))
    for name in ("best", "gains_by_stacking"):
        monkeypatch.setattr(plan, name, getattr(plan, name))
    peers = part.peers("gpu", "persistent")
    layer = part.layer_of(case, small)
    assert [len(plan.splits(layer, way, small)) for way in build.PASSES] == [2, 6]
    assert [peers[name].takes(case, "gpu") for name in ("division 2", "division 3")] == [True, False]
    peers["division 3"].build(case, "gpu")
    assert plan.best(layer, "forward", small) is None


@pytest.mark.parametrize("before", [None, "layer"], ids=str)
def test_a_division_of_a_stack_is_one_of_a_stack(before, kernels_on_cpu, monkeypatch):
    """Whatever the process has divided before."""
    device, shape = cuda_on_cpu.HOPPER, (3, 5, 64, 64)
    monkeypatch.setattr(build, "load", lambda cell, dtype: build.Loaded(device, None))
    peer, stack = part.peers("gpu", "persistent")["division 2"], Case("lstm", shape, kind="deep")
    layer = part.layer_of(stack, device)
    assert (layer.chains, layer.steps) == (4, 5)
    if before is not None:
        peer.build(Case("lstm", shape, kind=before), "gpu")
    peer.build(stack, "gpu")
    assert part.layer_of(stack, device) == layer
    one = layer._replace(chains=1, steps=0)
    for of, place in ((layer, 1), (one, 0)):
        assert plan.best(of, "forward", device) == plan.splits(of, "forward", device)[place]


def test_all_that_run_on_jax_are_beside_it():
    assert {"torch", "jax cudnn", "flax linen", "flax nnx", "scan"} <= set(part.peers("gpu", "persistent"))


@pytest.mark.parametrize("patience", [Patience(0.01), Patience(600.0, 0.0)], ids=["of_one_answer", "of_all"])
def test_a_process_that_does_not_answer_is_ended(patience):
    process = Process("scan", part.peers("cpu", "persistent")["scan"], "cpu", "persistent", "persistent", patience)
    with pytest.raises(Failed, match="no answer in 0 s, and its process was ended"):
        process.ask("build", Case("lstm", SHAPE))
    assert process.process.wait(10) != 0
    with pytest.raises(Failed):
        process.ask("forget")
    process.close()


def test_the_arithmetic_of_the_floor():
    case = Case("gru", (2, 10, 3, 4), kind="deep")
    inputs = 2 * 20 * (3 + 3 * 4) * 12
    recurrent = 4 * 2 * 20 * 4 * 12
    lowest, weights = 2 * 20 * 3 * 12, inputs + recurrent
    for stacked, before, steps in ((False, inputs, 40), (True, lowest, 13)):
        assert part.products(case, "forward", stacked) == before
        assert part.products(case, "forward+grad", stacked) == 2 * before + weights
        seconds = part.floor_seconds(case, "forward+grad", {"forward": 1.0, "backward": 2.0}, 1e9, stacked)
        assert seconds == pytest.approx(steps * 3e-6 + (2 * before + weights) / 1e9)
    assert math.isinf(part.floor_seconds(case, "forward", {"forward": math.inf}, 1e9, False))


def test_every_case_has_a_division_and_its_exchange():
    for case in part.CASES:
        layer = part.layer_of(case, cuda_on_cpu.HOPPER)
        for way in build.PASSES:
            one = exchange.of_layer(layer, way, cuda_on_cpu.HOPPER)
            assert one.blocks * one.teams <= cuda_on_cpu.HOPPER.multiprocessors
            assert one.blocks * plan.best(layer, way, cuda_on_cpu.HOPPER).units >= layer.hidden
            assert len(plan.splits(layer, way, cuda_on_cpu.HOPPER)) > max(part.DIVISIONS)


def test_no_exchange_is_waited_for_when_the_time_is_over(tmp_path):
    every = exchange.of_each_kind()
    told = exchange.microseconds(tmp_path / "not there", every, Patience(60.0, 0.0))
    assert told == dict.fromkeys(every, "left out: the time is over")


def test_an_exchange_that_goes_wrong_costs_itself_alone(tmp_path, monkeypatch):
    """One process measures all; after a failure, and after what does not come, another one measures the rest."""
    counted = tmp_path / "counted"
    first, second = "echo microseconds: 0.5; echo no cluster >&2; exit 1", "echo x; echo microseconds: 1.5; exec sleep 60"
    found = script(tmp_path / "python", f"test -e {counted} && {{ {second}; }}; touch {counted}; {first}")
    monkeypatch.setattr(exchange.sys, "executable", found)
    every = exchange.of_each_kind()[:4]
    told = exchange.microseconds(tmp_path, every, Patience(1.0))
    assert list(told.values()) == [0.5, "no cluster", 1.5, "no answer before its process had run for 1 s"]
    assert list(told) == every


def test_the_exchange_compiles(tmp_path):
    try:
        cuda.nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))
    path = exchange.build_library(tmp_path)
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    assert " exchange_microseconds\n" in symbols
    told = exchange.microseconds(path, exchange.of_each_kind()[:1], Patience(60.0))
    assert isinstance(next(iter(told.values())), float | str)  # where there is no GPU, why not
