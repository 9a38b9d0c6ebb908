"""The benchmark: equal results are demanded, arithmetic and ratios are right, and what it measures is what it says."""

import dataclasses
import functools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import addition, pixels
from experiments.benchmark import chart, decoding, recurrence, report, training_step
from experiments.benchmark.__main__ import main
from experiments.benchmark.case import COMPARED, SMALL, Case, grid
from experiments.benchmark.decoding import measure as measure_decoding
from experiments.benchmark.peers import peers
from experiments.benchmark.program import on_jax
from experiments.benchmark.recurrence import Refused, difference, measure
from experiments.benchmark.timing import OUTVOTED, Plan, geometric_mean, interleaved, ratio, summary, tail
from experiments.benchmark.worker import Worker
from experiments.benchmark.workload import Workload
from s2s_jax import cells, unroll
from s2s_jax.recurrence.choice import BACKENDS
from tests.oracles import oracle

ROOT = Path(__file__).parents[2]
SHORT = Plan(0.0, 2, 2)
SHAPE = (3, 5, 4, 8)


class Here:
    """A worker in this process, asked as one in another would be."""

    def __init__(self, worker):
        self.worker = worker

    def ask(self, method, *arguments):
        return getattr(self.worker, method)(*arguments)


def measured(case, *names, wrong=None):
    """What `measure` tells of ours and the peers named; with `wrong`, "scan" computes that instead."""
    every = peers("cpu")
    workers: dict[str, Any] = {name: Here(Worker(name, "cpu")) for name in ("ours", *names)}
    if wrong is not None:
        workers["scan"].worker.peer = every["scan"]._replace(build=wrong)
    chosen = {name: every[name] for name in workers}
    return list(measure([case], workers, chosen, "cpu", SHORT, lambda case, part: case.operations(part) / 1e9))


def without_bias(case, platform):
    def apply(params, xs):
        p = params[0][0]
        return tuple(unroll(cells.lstm, p._replace(b=0 * p.b), xs))

    return on_jax(case, apply, lambda p: p, lambda p: p, jax.tree.leaves)


def without_gradient_of_inputs(case, platform):
    def apply(params, xs):
        return tuple(unroll(cells.lstm, params[0][0], jax.lax.stop_gradient(xs)))

    return on_jax(case, apply, lambda p: p, lambda p: p, jax.tree.leaves)


def a_little_off(case, platform):
    def apply(params, xs):
        outputs, state = unroll(cells.lstm, params[0][0], xs)
        return outputs * 1.001, state

    return on_jax(case, apply, lambda p: p, lambda p: p, jax.tree.leaves)


def not_a_number(case, platform):
    def apply(params, xs):
        outputs, state = unroll(cells.lstm, params[0][0], xs)
        return outputs + jnp.nan, state

    return on_jax(case, apply, lambda p: p, lambda p: p, jax.tree.leaves)


@pytest.mark.parametrize("wrong", [without_bias, without_gradient_of_inputs, a_little_off, not_a_number])
def test_a_peer_that_computes_something_else_is_not_timed(wrong):
    (refused,) = measured(Case("lstm", SHAPE), "scan", wrong=wrong)
    assert isinstance(refused, Refused)
    assert refused.peer == "scan"
    assert "differs from ours" in refused.why
    assert not refused.failed


def test_in_bfloat16_gradients_of_weights_may_differ_more():
    """Some peers add up those of all steps in it; outputs may not."""
    numbers = np.ones((2, 3), np.float32)
    ours = {"outputs": numbers, "params": [[(numbers, None)]], "xs": numbers}
    for name, theirs, want in (("params", [[(1.3 * numbers, None)]], 0.1), ("xs", 1.3 * numbers, 0.3)):
        assert difference({"forward+grad": ours}, {"forward+grad": ours | {name: theirs}}, 3.0) == pytest.approx(want)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("names", [("torch",), ("flax linen", "flax nnx", "keras", "scan")], ids=["PyTorch", "on JAX"])
def test_peers_compute_the_same(names, cell):
    for name in {"torch", "keras"} & set(names):
        oracle(name)
    with jax.numpy_rank_promotion("allow"):
        rows = measured(Case(cell, SHAPE), *names)
    assert [(row["part"], row["peer"]) for row in rows] == [
        (part, name) for part in ("forward", "forward+grad") for name in names
    ]
    assert all(row["difference"] < 1e-5 for row in rows)


@pytest.mark.parametrize("cell", ["min_gru", "lru", "diagonal_lstm"])
def test_cells_of_our_own_are_measured_on_our_backends_alone(cell):
    every, case = peers("cpu"), Case(cell, SHAPE)
    assert [name for name, peer in every.items() if peer.takes(case, "cpu")] == ["ours", *BACKENDS]
    names = ("scan", "fused", "associative") if cell != "diagonal_lstm" else ("scan", "fused", "parallel")
    rows = measured(case, *names)
    assert [row["peer"] for row in rows] == [*names, *names]
    assert all(row["difference"] < 1e-5 for row in rows)
    with pytest.raises(ValueError, match="native does not apply"):
        measured(case, "native")


@pytest.mark.parametrize("kind", ["stack", "streaming", "both", "ragged", "deep"])
def test_stacks_and_streaming_are_the_same_in_pytorch(kind):
    oracle("torch")
    rows = measured(Case("gru", SHAPE, kind=kind), "torch")
    assert len(rows) == (1 if kind == "streaming" else 2)
    assert all(row["difference"] < 1e-5 and row["kind"] == kind for row in rows)
    assert rows[0]["shape"] == ([3, 1, 4, 8] if kind == "streaming" else [3, 5, 4, 8])


def test_the_weights_that_cudnn_takes(monkeypatch):
    from jax.experimental import rnn

    def lstm(xs, h, c, weights, lengths, *sizes):  # JAX's own statement of what cuDNN computes, which runs anywhere
        w, u, b, b_hh = rnn.unpack_lstm_weights(weights, sizes[0], sizes[1], sizes[2], sizes[4])
        return rnn.lstm_ref(xs, h, c, w, u, b, b_hh, lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", lstm)
    case, ours = Case("lstm", SHAPE), Worker("ours", "cpu")
    cudnn = Worker("scan", "cpu")
    cudnn.peer = peers("gpu")["jax cudnn"]
    with jax.numpy_rank_promotion("allow"):
        assert difference(ours.build(case)[1], cudnn.build(case)[1]) < 1e-5


def test_no_bias_is_zero_and_padding_is_ragged():
    p = Case("gru", SHAPE).params()[0][0]
    assert np.all(p.b != 0)
    assert np.all(p.b_n != 0)
    assert not np.any(Case("gru", SHAPE).params(inner_bias=False)[0][0].b_n)
    lengths = Case("lstm", (9, 16, 4, 8), kind="stack").lengths
    assert lengths is not None
    assert lengths.mean() == pytest.approx(16 / 2, abs=0.6)


def test_arithmetic_of_the_shape():
    lstm = Case("lstm", (2, 3, 5, 7))
    assert lstm.operations("forward") == 2 * 3 * 2 * 4 * 7 * (5 + 7)
    assert lstm.operations("forward+grad") == 3 * lstm.operations("forward")
    assert Case("gru", (2, 3, 5, 7)).operations("forward") == 0.75 * lstm.operations("forward")
    assert Case("diagonal_lstm", (2, 3, 5, 7)).operations("forward") == 2 * 3 * 2 * 4 * 7 * 5
    assert Case("lru", (2, 3, 5, 7)).operations("forward") == 2 * 3 * 2 * (5 * 14 + 14 * 7 + 5 * 7)
    stack = Case("rnn", (2, 3, 5, 7), kind="stack")  # lengths 3 and 1, so 4 steps, twice each layer
    assert stack.operations("forward") == 2 * 4 * 2 * 7 * ((5 + 7) + (14 + 7))


def test_the_grids():
    small = grid("small", "float32", ("lstm", "gru", "rnn"))
    assert [c.shape for c in small if c.cell == "lstm"] == list(SMALL)
    assert [c for c in small if c.cell == "rnn"] == [Case("rnn", COMPARED)]
    full = grid("full", "float32", ("lstm", "gru"))
    # (1, 200, 256, 256) is in both
    assert len([c for c in full if c.kind == "layer" and c.cell == "gru"]) == 6 + 4 * 4 * 3 - 1 + 7
    assert grid("small", "float32", ("gru",), kinds=("streaming",)) == [
        c for c in full if (c.kind, c.cell) == ("streaming", "gru")
    ]
    shape = (2, 3, 4, 5)
    assert grid("full", "float32", ("rnn",), (shape,)) == [Case("rnn", shape)]
    assert grid("small", "float32", ("rnn",), (shape,), ("stack",)) == [Case("rnn", shape, kind="stack")]
    assert {c.kind for c in full} == {"layer", "stack", "streaming"}
    assert len(set(full)) == len(full)


def test_ratios():
    made = ratio([2.0, 4.0, 9.0, 8.0], [1.0, 2.0, 3.0, 2.0])
    assert made.value == 6.0 / 2.0  # of the medians
    assert (made.low, made.high) == (2.0, 3.25)  # of 2, 2, 3, 4
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert tail([*range(1, 102)]) == pytest.approx(100 / 51)
    rows = [
        {"cell": "lstm", "part": "forward", "peer": "torch", "ratio": value, "shape": [k]} for k, value in enumerate((2.0, 0.5))
    ]
    (one,) = summary(rows)
    assert (one["mean"], one["least"], one["least_at"], one["shapes"]) == (pytest.approx(1.0), 0.5, [1], 2)


def test_how_near_the_best_of_our_backends_is_told():
    """Of other programs alone: one that runs the same as ours tells how far two measurements are apart."""

    def row(shape, part, peer, ratio, backend="native"):
        return {"cell": "gru", "shape": shape, "part": part, "peer": peer, "ratio": ratio, "backend": backend, "ours_ms": 1.0}

    rows = [
        row([1, 2, 3, 4], "forward", "native", 0.5),
        row([1, 2, 3, 4], "forward", "scan", 0.96),
        row([1, 2, 3, 4], "forward", "torch", 0.1),
        row([2, 2, 3, 4], "forward", "fused", 0.8),
        row([2, 2, 3, 4], "forward", "scan", 1.2),
        row([2, 2, 3, 4], "forward+grad", "torch", 0.1),
    ]
    last = report.conclusion(rows).splitlines()[-1]
    assert last == (
        "Ours, forward: within 5% of the fastest other backend at 1 of 2 shapes; at worst native took 1.25 times as long as"
        " fused, GRU 2, 2, 3, 4"
    )
    assert "fastest other" not in report.conclusion(rows[:1])


def test_all_are_timed_in_every_round_and_in_changing_order():
    asked = []

    def timer(name):
        def timed(calls, warm):
            asked.append((name, calls))
            return [{"slow": 1.0, "fast": 0.004}[name]] * calls

        return timed

    samples = interleaved({name: timer(name) for name in ("slow", "fast")}, Plan(0.0, 8, 9))
    assert samples == {"slow": [1.0] * 8, "fast": [0.004] * 8}
    assert len(asked) == 2 * 8 + 1  # the fast one once more, in the first round: it was not known to be fast
    assert all({asked[k][0], asked[k + 1][0]} == {"slow", "fast"} for k in range(3, 17, 2))
    assert len({asked[k][0] for k in range(3, 17, 2)}) == 2
    assert {calls for name, calls in asked if name == "slow"} == {1}
    assert max(calls for name, calls in asked if name == "fast") == 15  # 60 ms of them


@pytest.mark.parametrize(("disturbed", "most", "rounds"), [(1.0, 9, 2), (3.0, 9, OUTVOTED), (3.0, 3, 3)])
def test_a_disturbed_sample_is_outvoted(disturbed, most, rounds):
    times = iter([disturbed] + [1.0] * 20)
    asked = {"ours": lambda calls, warm: [next(times)], "theirs": lambda calls, warm: [0.5]}
    samples = interleaved(asked, Plan(0.0, 2, most))
    assert [len(taken) for taken in samples.values()] == [rounds, rounds]
    assert statistics.median(samples["ours"]) == 1.0


def test_inputs_are_fresh_and_calls_are_timed_one_by_one():
    case, worker = Case("rnn", SHAPE), Worker("scan", "cpu")
    worker.build(case)
    worker.prepare(case)
    seen = []
    program = worker.built[case]
    worker.built[case] = program._replace(run={"forward": lambda params, xs, dy: seen.append(float(xs.sum()))})
    assert len(worker.time(case, "forward", 6, True)) == 6
    assert len(seen) == 7
    assert len(set(seen)) == case.prepared
    assert seen[0] != seen[1]


def test_peak_memory_holds_at_least_what_comes_back():
    case = Case("lstm", (16, 64, 8, 256))
    peak = recurrence.peaks(case, "forward+grad", {"scan": peers("cpu")["scan"]}, "cpu", "auto")["scan"]
    if peak is None:
        pytest.skip("the system does not tell")
    returned = 4 * sum(x.size for x in (*case.inputs(0), *case.params()[0][0][:3]))
    assert returned < peak < 40 * returned


def test_a_shape_end_to_end(tmp_path, capsys):
    path = tmp_path / "deep" / "figures.json"
    flags = [
        "--shapes",
        "2,3,4,8",
        "--cells",
        "gru",
        "--peers",
        "scan",
        "flax linen",
        "--json",
        str(path),
        "--steady",
        "--backend",
        "native",
    ]
    main([*flags, "--platform", "cpu"])
    found = json.loads(path.read_text())
    assert set(found) >= {"machine", "rows"}
    assert found["machine"]["gflops"]["float32"] > 0
    assert not found["refused"]
    assert [(row["part"], row["peer"]) for row in found["rows"]] == [
        (part, peer) for part in ("forward", "forward+grad") for peer in ("flax linen", "scan")
    ]
    for row in found["rows"]:
        assert set(row) >= {"cell", "shape", "dtype", "part", "peer", "ours_ms", "peer_ms", "ratio"}
        assert (row["cell"], row["shape"], row["dtype"]) == ("gru", [2, 3, 4, 8], "float32")
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"], rel=0.01)
        assert row["backend"] == "native"
        assert row["ours_tail"] >= 1
    assert path.with_suffix(".png").stat().st_size > 10_000
    told = capsys.readouterr().out
    assert "nn.RNN, OptimizedLSTMCell, time_major" in told  # the setting of each peer
    assert "least" in told


def test_streaming_alone_has_a_file_and_no_chart(tmp_path, capsys):
    path = tmp_path / "figures.json"
    path.with_suffix(".png").write_text("of other figures")
    flags = ["--shapes", "2,3,4,8", "--kinds", "streaming", "--cells", "gru", "--peers", "scan", "--seconds", "0.01"]
    main([*flags, "--json", str(path), "--platform", "cpu", "--backend", "scan"])
    found = json.loads(path.read_text())
    assert not found["rows"]
    (row,) = found["further_rows"]
    assert (row["kind"], row["shape"], row["backend"]) == ("streaming", [2, 1, 4, 8], "scan")
    assert not path.with_suffix(".png").exists()
    told = capsys.readouterr().out
    assert "the same program in another process" in told
    assert f"All figures are in {path}." in told


TINY = [
    Workload(
        batch_size=batch_size,
        beam_size=beam_size,
        input_feeding=fed,
        sentences=4,
        vocabulary_size=1100,
        features=16,
        longest=12,
        max_length=max_length,
    )
    for batch_size, beam_size, fed, max_length in ((1, 1, False, 30), (3, 3, True, 9))
]


def test_decoding_end_to_end(tmp_path, capsys, monkeypatch):
    oracle("torch")
    monkeypatch.setattr(decoding, "workloads", lambda: TINY)
    path = tmp_path / "figures.json"
    main(["decoding", "--seconds", "0.01", "--platform", "cpu", "--json", str(path)])
    found = json.loads(path.read_text())
    assert not found["refused"]
    names = [name for name in decoding.peers("cpu") if name != "ours"]
    assert [row["peer"] for row in found["decoding"]] == names * len(TINY)
    for row in found["decoding"]:
        assert row["sentences_that_differ"] == 0
        assert row["score_difference"] < 1e-5
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"], rel=0.01)
        assert row["ours_tokens_per_second"] == pytest.approx(1e3 * row["tokens"] / row["ours_ms"], rel=0.01)
    assert [row["lengths"][1] for row in found["decoding"]][-1] == 9  # of those that were cut off
    assert (
        found["decoding"][0]["lengths"][0] < found["decoding"][0]["lengths"][1] < 30
    )  # those that ended, at different lengths
    told = capsys.readouterr().out
    assert "beam 3, batch 3, 1100 symbols, with input feeding, 4 sentences" in told
    assert "all symbols equal" in told


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_peer_that_decodes_something_else_is_not_timed(beam_size):
    oracle("torch")
    from experiments.benchmark.torch_decoding import Translator

    name, workload = "torch, 1 thread", dataclasses.replace(TINY[1], beam_size=beam_size, max_length=30)
    right = decoding.peers("cpu")[name]

    def build(workload, platform):
        program = right.build(workload, platform)

        def params(given):
            made: Translator = program.params(given)
            made.combine.weight.data *= 1.1
            return made

        return program._replace(params=params)

    wrong = right._replace(build=build)
    workers: dict[str, Any] = {of: Here(Worker(of, "cpu", part="decoding")) for of in ("ours", name)}
    workers["wrong"] = Here(Worker(name, "cpu", part="decoding"))
    workers["wrong"].worker.peer = wrong
    rows = list(measure_decoding([workload], workers, decoding.peers("cpu") | {"wrong": wrong}, SHORT))
    (refused,) = (row for row in rows if "why" in row)
    assert refused["peer"] == "wrong"
    assert "differs from ours in" in refused["why"]
    (timed,) = (row for row in rows if "why" not in row)
    assert (timed["peer"], timed["sentences_that_differ"]) == (name, 0)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--peers", "nobody"], "nothing to measure"),
        (["--cells", "rnn", "--kinds", "stack"], "nothing to measure"),
        (["--seconds", "0"], "seconds: expected a positive number, got 0.0"),
        (["training-step", "--steady"], "steady: expected it with recurrence only"),
        (
            ["training-step", "--seconds", "1"],
            "seconds: expected it with recurrence and decoding and persistent and diagonal only",
        ),
        (["decoding", "--dtype", "bfloat16"], "dtype: expected it with recurrence and diagonal only, got it with decoding"),
        (["decoding", "--backend", "scan"], "backend: expected it with recurrence and training-step only"),
        (["encoding"], "expected recurrence, training-step, decoding, persistent, diagonal first"),
        (["--shapes", "2,3,4,8", "--cells", "gru", "--peers", "scan", "--backend", "cudnn"], "nothing was measured"),
    ],
)
def test_what_measures_nothing_is_refused(flags, why, tmp_path, capsys):
    with pytest.raises(ValueError, match=re.escape(why)):
        main([*flags, "--json", str(tmp_path / "figures.json"), "--platform", "cpu"])
    if "cudnn" in flags:
        assert "ours is left out: ValueError: backend: cudnn does not apply: it needs an NVIDIA GPU" in capsys.readouterr().out


def test_a_missing_peer_is_named_and_a_wrong_flag_refused(monkeypatch):
    peer = peers("cpu")["torch"]
    assert peer._replace(package="no_such_package_anywhere").missing
    command = [sys.executable, "-m", "experiments.benchmark"]
    done = subprocess.run([*command, "--shapes", "1,2,3"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "shapes: expected four positive numbers B,T,D,H, got '1,2,3'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("task", ["addition", "rows", "pixels"])
def test_training_steps_are_those_of_the_experiments(task):
    if task == "addition":
        config = addition.Config()
        made, module = training_step.addition(), addition
        model: Any = addition.build_model(config, addition.sums_of(config))
        batch = addition.training_batch(config, addition.sums_of(config), config.steps)
        theirs = made.batches(config.steps)
        assert all(np.array_equal(batch[name], theirs[name]) for name in batch)
    else:
        config = pixels.Config(order=task, num_layers=2 if task == "rows" else 1)
        made, module = training_step.digits(task, "lstm", config.num_layers), pixels
        model, batch = pixels.build_model(config), made.batches(0)
    assert config.batch_size == training_step.EXAMPLES
    ours, theirs = (nnx.split(m, nnx.Param, ...)[1] for m in (made.model(), model))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), ours, theirs))
    traced = [
        re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(lambda b, k, loss=loss: loss(model, b, k))(batch, jax.random.key(3))))
        for loss in (made.loss, functools.partial(module.loss, config))
    ]
    assert traced[0] == traced[1]  # the same program, whatever the numbers


def test_what_a_training_step_divides_into():
    task = training_step.addition()
    (row,) = training_step.measured(task, ["scan"], SHORT)
    assert (row["backend"], row["ratio"]) == ("scan", 1.0)
    assert sum(row["division_ms"].values()) == pytest.approx(row["step_ms"])
    assert row["examples_per_second"] == pytest.approx(128_000 / row["step_ms"])
    assert chart.steps([row]) is not None


def test_all_backends_of_a_stack_are_told(monkeypatch):
    def why_not(cell, directions, *_):
        return None if directions[0].xs.shape[-1] == SHAPE[2] else "it is not the first layer"

    stack = Case("gru", SHAPE, kind="stack")
    assert Worker("ours", "cpu", "fused").backend(stack) == "fused"
    jax.clear_caches()  # of what was traced where fused was taken for all
    monkeypatch.setitem(BACKENDS, "fused", BACKENDS["fused"]._replace(why_not=why_not))
    monkeypatch.setenv("S2S_JAX_BACKEND", "fused")
    assert Worker("ours", "cpu").backend(stack) == "fused, scan"
    assert Worker("ours", "cpu").backend(Case("gru", SHAPE)) == "fused"
    assert Worker("ours", "cpu").backend(Case("gru", SHAPE, kind="streaming")) == "fused"


def test_every_peer_is_told_apart_in_the_chart_without_colours():
    every = {**peers("cpu"), **peers("gpu")}
    rows = [
        {"cell": "lstm", "part": "forward", "shape": SHAPE, "peer": name, "ratio": 1.5, "ratio_quartiles": [1.2, 1.8]}
        for name in every
        if name != "ours"
    ]
    (axes,) = chart.ratios(rows, "title").axes
    dots = [line for line in axes.get_lines() if line.get_marker() not in ("None", None, "")]
    assert len(dots) == len(rows)
    assert len({dot.get_marker() for dot in dots}) == len(rows)
    assert len({dot.get_color() for dot in dots}) >= len(rows) - 1  # both settings of PyTorch are of one
