"""Addition: what training sees, and a tiny run from the command line to its last file."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import addition
from experiments.__main__ import listed
from experiments.addition import Config, sums_of, training_batch
from s2s_jax.training.command import main


def decoded_pairs(sums, batch):
    """The pairs of a batch, read back from its symbols."""
    texts = [sums.source_alphabet.decode(row) for row in batch["source"]]
    if sums.paired:
        bits = [[format(int(symbol), "02b") for symbol in text] for text in texts]
        texts = ["".join(pair[0] for pair in row) + "+" + "".join(pair[1] for pair in row) for row in bits]
    return np.array([[int(part, sums.base) for part in text.split("+")] for text in texts]).T


@pytest.mark.parametrize(
    "options",
    [
        {"digits": 2},
        {"digits": 3},
        {"digits": 4, "curriculum": 0.5},
        {"task": "binary", "digits": 6},
        {"task": "binary", "digits": 6, "layout": "paired"},
    ],
    ids=str,
)
def test_training_never_sees_a_validation_or_test_pair(options):
    config = Config(**options, batch_size=128, steps=100)
    sums = sums_of(config)
    held = {(x, y) for split in (1, 2) for x, y in zip(*(n.tolist() for n in sums.sample(split, 20_000)), strict=True)}
    for step in range(0, 100, 2):
        batch = training_batch(config, sums, step)
        a, b = decoded_pairs(sums, batch)
        assert not held & set(zip(a.tolist(), b.tolist(), strict=True))
        assert not held & set(zip(b.tolist(), a.tolist(), strict=True))
        assert np.all(sums.split_of(a, b) == 0)
        again = training_batch(config, sums, step)
        assert all(np.array_equal(batch[key], again[key]) for key in batch)
    assert np.any(batch["source"] != training_batch(config, sums, step + 1)["source"])


def test_the_curriculum_grows_to_all_digits():
    config = Config(digits=4, curriculum=0.5, batch_size=64, steps=100)
    sums = sums_of(config)
    longest = [int(decoded_pairs(sums, training_batch(config, sums, step)).max()) for step in range(0, 100, 5)]
    digits = [len(str(n)) for n in longest]
    assert digits[0] == 1
    assert digits == sorted(digits)
    assert set(digits[10:]) == {4}


# Tiny runs -----------------------------------------------------------------------------------------------------------------

FUNCTIONS = {"train": addition.train, "evaluate": addition.evaluate, "predict": addition.predict}
SMALL = ["--steps", "20", "--digits", "2", "--hidden-features", "8", "--embedding-features", "4", "--batch-size", "16"]
SMALL += ["--test-examples", "30", "--checkpoint-every", "10", "--evaluate-every", "10"]
REQUIRED = {
    *("experiment", "dataset", "data", "split", "metrics", "published", "seed", "steps", "examples", "seconds", "test_reads"),
    *("device", "versions", "command"),
}


def call(*arguments):
    """As `python -m experiments.addition` with these arguments does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["addition.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.addition"))
        main("addition", Config, **FUNCTIONS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of runs with one finished run, "tiny". Not to be changed; see `own`."""
    folder = tmp_path_factory.mktemp("runs")
    call(*SMALL, "--runs-dir", folder, "--name", "tiny")
    return folder


@pytest.fixture
def own(finished, tmp_path):
    """A copy of that folder, for tests that write into it."""
    return shutil.copytree(finished, tmp_path / "moved")


def test_a_run_leaves_all_its_files(finished):
    folder = finished / "addition" / "tiny"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "checkpoints", "metrics.jsonl", "figures", "weights.safetensors", "result.json"} <= names
    assert {path.name for path in (folder / "figures").iterdir()} == {"learning_curve.png", "exact_match_by_digits.png"}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (folder / "figures").iterdir())
    config = json.loads((folder / "config.json").read_text())
    assert (config["digits"], config["steps"], config["seed"]) == (2, 20, 0)
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= REQUIRED
    assert (result["experiment"], result["dataset"], result["data"]) == ("addition", "decimal2", "drawn")
    assert (result["seed"], result["steps"], result["examples"], result["test_reads"]) == (0, 20, 320, 1)
    metrics = result["metrics"]
    assert set(metrics) == {"exact_match", "character_accuracy", "teacher_forced_accuracy", "loss"}
    assert all(0 <= metrics[name] <= 1 for name in metrics if name != "loss")
    assert result["command"].startswith("python -m experiments.addition --steps 20 --digits 2")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "validation/exact_match", "validation/character_accuracy"} <= {key for line in lines for key in line}
    assert [line["step"] for line in lines if "validation/exact_match" in line] == [10, 20]


def test_evaluate_reads_the_test_sums_again_and_counts_it(own, capsys):
    path = own / "addition" / "tiny" / "result.json"
    before = json.loads(path.read_text())
    call("evaluate", "--runs-dir", own, "--name", "tiny")
    after = json.loads(path.read_text())
    assert after["test_reads"] == 2
    for key in ("metrics", "seed", "steps", "examples", "split"):
        assert after[key] == before[key]
    printed = capsys.readouterr().out
    assert f"exact match {after['metrics']['exact_match']:.4f}" in printed
    ten, of_digits = printed.split("Exact match by digits of the longer number")
    assert sum(line.endswith(" right") or "WRONG, it is" in line for line in ten.splitlines()) == 10
    # Hardly trained: of each number of digits five wrong ones are named.
    for digits, named in re.findall(r"Of (\d): (.*WRONG, it is .*(?:\n +.*WRONG, it is .*)*)", of_digits):
        sums = re.findall(r"(\d+)\+(\d+) = (\d*) *WRONG, it is (\d+)", named)
        assert 0 < len(sums) <= 5
        for a, b, said, truth in sums:
            assert (int(a) + int(b), said != truth) == (int(truth), True)
            assert max(len(a), len(b)) == int(digits)
    assert "Of 1: " in of_digits


def test_evaluate_keeps_what_tells_of_the_training(own, monkeypatch):
    """A card's command has to make the run again, and its seconds are those of the hardware that it names."""
    path = own / "addition" / "tiny" / "result.json"
    before = json.loads(path.read_text())
    monkeypatch.setattr("s2s_jax.training.run.describe_device", lambda: "another machine")
    call("evaluate", "--runs-dir", own, "--name", "tiny")
    after = json.loads(path.read_text())
    assert {key: after[key] for key in ("command", "device", "seconds")} == {
        key: before[key] for key in ("command", "device", "seconds")
    }


def test_predict_works_from_the_folder_alone(own, capsys):
    folder = own / "addition" / "tiny"
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    call("predict", "53+6", "7 + 8", "1", "+", "2", "--runs-dir", own, "--name", "tiny")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" = ")[0].strip() for line in lines] == ["53+6", "7+8", "1+2"]
    for line, truth in zip(lines, ("59", "15", "3"), strict=True):
        answer = line.split(" = ")[1].split()[0]
        assert (answer == truth) == line.endswith(" right")
        assert line.endswith((" right", f"WRONG, it is {truth}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "5x+6"], "expected a sum like .535.61., got '5x"),
        (["predict", "5"], "got '5'"),
        (["predict", "5+"], "got '5"),
        (["predict", "1+2+3"], "got '1"),
        (["predict", "123+4"], "expected numbers of at most 2 digits, as trained"),
        (["predict"], "expected at least one sum"),
    ],
)
def test_what_cannot_be_added_up_is_refused(finished, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call(*arguments, "--runs-dir", finished, "--name", "tiny")


@pytest.mark.parametrize(
    "arguments", [["--stepz", "3"], ["evaluate", "--steps", "3"], ["predict", "1+2", "--digits", "2"]], ids=" ".join
)
def test_an_unknown_flag_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code not in (0, None)
    flag = next(text for text in arguments if text.startswith("--"))
    assert flag in str(stopped.value.code) + capsys.readouterr().err


def test_a_flag_out_of_its_range_is_told_by_its_name(tmp_path):
    with pytest.raises(SystemExit, match=r": --checkpoint-every: expected at least 0, got -1$"):
        call("--checkpoint-every", "-1", "--runs-dir", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalaute"], "expected train, evaluate or predict first, or flags only, got 'evalaute'; did you mean evaluate"),
        (["1+2"], "expected train, evaluate or predict first, or flags only, got '1.2'$"),
        (["--name", "x", "predict", "1+2"], "predict: the command comes first"),
    ],
    ids=str,
)
def test_a_command_that_is_not_understood_is_an_error(arguments, message):
    with pytest.raises(SystemExit, match=message):
        call(*arguments)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit, match=r"tyro.*pip install -e '\.\[experiments\]'"):
        call("--steps", "1")


def test_a_finished_run_is_neither_trained_nor_scored_again(own, capsys):
    path = own / "addition" / "tiny" / "result.json"
    before = path.read_text()
    call(*SMALL, "--runs-dir", own, "--name", "tiny")
    told = capsys.readouterr().out
    assert "Finished already" in told
    assert f"exact match {json.loads(before)['metrics']['exact_match']:.4f}" in told
    assert path.read_text() == before
    # Trained to its end but not scored yet, as a kill in between leaves it.
    path.unlink()
    call(*SMALL, "--runs-dir", own, "--name", "tiny")
    assert "Trained already, 20 steps" in capsys.readouterr().out
    assert json.loads(path.read_text())["metrics"] == json.loads(before)["metrics"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_that_is_not_there_is_an_error(tmp_path, command):
    with pytest.raises(SystemExit, match=r"expected a finished run with weights.safetensors, found none; train it first"):
        call(command, *(["1+2"] if command == "predict" else []), "--runs-dir", tmp_path)


def test_another_configuration_in_the_same_folder_is_an_error(finished):
    with pytest.raises(SystemExit, match=r"holds a run with .*hidden_features 8 \(now 9\).*--name"):
        call(*SMALL, "--hidden-features", "9", "--runs-dir", finished, "--name", "tiny")


def test_the_other_decoder_in_binary_and_paired(tmp_path, capsys):
    options = ["--decoder", "repeat_vector", "--task", "binary", "--layout", "paired", "--digits", "3", "--cell", "gru"]
    options += ["--runs-dir", tmp_path]
    call(*SMALL, *options)
    result = json.loads((tmp_path / "addition" / "default" / "result.json").read_text())
    assert (result["dataset"], result["published"]) == ("binary3", [])
    capsys.readouterr()
    call("predict", "011+1", "--runs-dir", tmp_path)
    assert capsys.readouterr().out.strip().startswith("011+001 = ")


def test_the_list_names_every_experiment_and_its_commands():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "experiments"], cwd=root, capture_output=True, text=True, check=True)
    assert {"addition", "benchmark", "pixels", "report"} <= set(listed())  # benchmark is a folder of files
    for name, (sentence, commands) in listed().items():
        assert f"{name}: {sentence}" in done.stdout
        assert re.fullmatch(r"(A|An|The) .* (learns?|trains) .*\.", sentence), sentence  # whole, and what is learnt
        assert commands
        assert all(command in done.stdout for command in commands)
    assert "python -m experiments.addition predict 535+61" in done.stdout
