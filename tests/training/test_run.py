"""What a run writes down of its data."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest

from s2s_jax.training.config import RunConfig
from s2s_jax.training.provenance import command, typed
from s2s_jax.training.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sought:
    beam: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sought, RunConfig):
    steps: int = 1
    width: int = 8
    texts: Path | None = None

    places: ClassVar = (*RunConfig.places, "texts")
    flags_of: ClassVar = {"evaluate": (Sought,)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Sought):
    texts: Path | None = None
    split: str = "test"


def begun(folder):
    """A sitting of a run in which something was trained."""
    run = Run.begin("task", RunConfig(steps=1, runs_dir=folder))
    run.log(1, {"train/loss": 1.0})
    return run


def test_a_run_goes_on_only_on_data_of_its_fingerprint(tmp_path):
    begun(tmp_path).trained_on("digits", "real", "a1")
    begun(tmp_path).trained_on("digits", "real", "a1")
    with pytest.raises(ValueError, match=r"trained on, .*'fingerprint': 'a1'}, got .*'fingerprint': 'b2'}; see data_dir"):
        begun(tmp_path).trained_on("digits", "real", "b2")
    run = begun(tmp_path)
    run.trained_on("digits", "real")  # this sitting cannot tell; what is known stays
    run.trained(1, {"step": 1.0})
    result = run.finish(split="test", metrics={}, published=[], examples_per_step=1)
    assert (result["dataset"], result["data"], result["fingerprint"]) == ("digits", "real", "a1")
    assert json.loads((run.folder / "result.json").read_text())["fingerprint"] == "a1"


def test_a_run_from_before_fingerprints_takes_the_first_that_it_is_told(tmp_path):
    begun(tmp_path).trained_on("digits", "real")
    assert json.loads((tmp_path / "task/default/data.json").read_text()) == {"dataset": "digits", "data": "real"}
    begun(tmp_path).trained_on("digits", "real", "a1")
    with pytest.raises(ValueError, match="'fingerprint': 'a1'"):
        begun(tmp_path).trained_on("digits", "real", "b2")


def test_a_run_that_trained_nothing_takes_other_data(tmp_path):
    Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path)).trained_on("digits", "real", "a1")
    Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path)).trained_on("letters", "generated", "b2")
    told = json.loads((tmp_path / "task/default/data.json").read_text())
    assert told == {"dataset": "letters", "data": "generated", "fingerprint": "b2"}


def test_a_result_tells_what_training_took_however_often_it_is_scored(tmp_path):
    run = begun(tmp_path)
    run.trained_on("digits", "real")
    with pytest.raises(FileNotFoundError, match=r"training.json: expected this file of the run; call fit, which ends with it"):
        run.finish(split="test", metrics={}, published=[], examples_per_step=32)
    run.trained(250, {"step": 10.125, "data": 0.5, "checkpoints": 0.25})
    for reads in (1, 2):
        result = run.finish(split="test", metrics={"accuracy": 0.5}, published=[], examples_per_step=32)
        assert (result["steps"], result["examples"], result["seconds"], result["test_reads"]) == (250, 8000, 10.9, reads)
        assert result["times"] == {"step": 10.12, "data": 0.5, "checkpoints": 0.25}


def test_the_command_says_nothing_of_where_runs_and_data_are(tmp_path, monkeypatch):
    given = ["x.py", "--steps", "3", "--data-dir", "/here", "--seed=4", "--runs_dir=/there", "--runs-dir", "r", "a b"]
    monkeypatch.setattr("sys.argv", given)
    run = begun(tmp_path)
    run.trained(1, {})
    command = json.loads((run.folder / "training.json").read_text())["command"]
    assert command.endswith(" --steps 3 --seed=4 'a b'")


def test_a_skipped_step_is_written_down_once(tmp_path):
    """Also where a kill has it done again, and has torn the last line."""
    run = begun(tmp_path)
    run.log_skipped([{"step": 3, "ids": [1, 2]}, {"step": 4, "ids": [5, 6]}])
    with (run.folder / "skipped.jsonl").open("a") as file:
        file.write('{"step": 5, "id')
    with pytest.warns(UserWarning, match="skipped.jsonl:3: passed over, not a whole line"):
        run.log_skipped([{"step": 4, "ids": [5, 6]}, {"step": 5, "ids": [7, 8]}])
    lines = (run.folder / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in [*lines[:2], *lines[3:]]] == [3, 4, 5]


def test_a_data_folder_that_is_none_is_named_before_there_is_a_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data-dir: expected a folder, found none at .*/nowhere$"):
        Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path / "runs", data_dir=tmp_path / "nowhere"))
    assert not (tmp_path / "runs").exists()


def test_a_run_of_which_nothing_came_is_discarded_and_no_other(tmp_path):
    other = Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path, name="other"))
    run = Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path))
    run.trained_on("digits", "generated")
    run.discard()
    assert [path.name for path in (tmp_path / "task").iterdir()] == ["other"]
    run.discard()  # there is nothing to do
    other.log_skipped([{"step": 0}])
    other.discard()
    begun(tmp_path).discard()
    assert sorted(path.name for path in (tmp_path / "task").iterdir()) == ["default", "other"]
    assert (other.folder / "config.json").exists()


def test_what_is_done_with_a_trained_model_and_where_its_data_is_make_no_other_run(tmp_path):
    run = Run.begin("task", Config(runs_dir=tmp_path, texts=Path("a")))
    run.log(1, {"train/loss": 1.0})
    for other in (Config(runs_dir=tmp_path, beam=7), Config(runs_dir=tmp_path, texts=Path("b"))):
        assert Run.begin("task", other).identity() == run.identity()
    with pytest.raises(ValueError, match=r"holds a run with width 8 \(now 9\)"):
        Run.begin("task", Config(runs_dir=tmp_path, width=9))


def test_other_flags_are_scored_beside_the_result(tmp_path):
    run = Run.begin("task", Config(runs_dir=tmp_path, texts=Path("a")))
    run.trained_on("digits", "real")
    run.trained(1, {})
    run.weights.write_bytes(b"")

    def finish(asked, **more):
        finished = Run.finished("task", Config, "default", tmp_path)
        assert finished.config.texts == Path("a")
        finished.use(asked)
        assert finished.config.texts == asked.texts
        finished.finish(split="test", metrics={}, published=[], examples_per_step=1, **more)
        files = (run.folder / f"{name}.json" for name in ("result", "evaluation"))
        return [json.loads(path.read_text()) if path.exists() else {} for path in files]

    result, evaluation = finish(Asked(texts=Path("b")))  # another place is the same run
    assert (result["test_reads"], result["config"]["beam"], evaluation) == (1, 5, {})
    result, evaluation = finish(Asked(beam=2, split="validation"), reads_test=False)
    assert (result["test_reads"], evaluation["test_reads"]) == (1, 1)
    assert evaluation["changed"] == {"beam": 2, "split": "validation"}
    assert evaluation["config"]["beam"] == 2
    before = result
    result, evaluation = finish(Asked(beam=2))
    assert evaluation["test_reads"] == 2
    assert result == before | {"test_reads": 2}  # each look at the test counts, and nothing else of it changes
    result, evaluation = finish(Asked())
    assert (result["test_reads"], evaluation["test_reads"]) == (3, 2)
    assert "changed" not in result


def test_other_data_in_another_place_is_an_evaluation_and_in_the_same_place_an_error(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Files:
        texts: Path = Path("a")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(Files, RunConfig):
        steps: int = 1
        places: ClassVar[tuple[str, ...]] = (*RunConfig.places, "texts")

    def finish(run, **fingerprints):
        run.scores(fingerprints)
        run.finish(split="test", metrics={"loss": 1.0}, published=[], examples_per_step=1)
        names = ("result", "evaluation")
        return [json.loads(path.read_text()) if (path := run.folder / f"{name}.json").exists() else {} for name in names]

    def asked(texts="a"):
        run = Run.finished("task", Config, "default", tmp_path)
        run.use(Files(texts=Path(texts)))
        return run

    run = Run.begin("task", Config(runs_dir=tmp_path))
    run.trained_on("texts", "real", "t")
    run.trained(1, {})
    (run.folder / "weights.safetensors").touch()
    assert finish(run, validation="v", test="a")[0]["fingerprints"] == {"validation": "v", "test": "a"}
    own, _ = finish(asked(), validation="v")  # what is not scored again stays the run's own
    result, evaluation = finish(asked("b"), validation="v", test="b")
    assert result == own | {"test_reads": 3}
    assert (evaluation["changed"], evaluation["fingerprints"]) == ({"texts": "b"}, {"validation": "v", "test": "b"})
    result, _ = finish(asked("moved"), validation="v", test="a")
    assert (result["test_reads"], "changed" in result) == (4, False)
    with pytest.raises(ValueError, match="expected the test split that its figures are about, got another in the same place"):
        finish(asked(), test="c")


def test_a_run_to_start_from_is_told_as_below_the_default_folder(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Started(RunConfig):
        steps: int = 1
        init_from: Path | None = None
        other: Path = Path("elsewhere")

    given = ["x.py", "--init-from", f"{tmp_path}/pixels/a", "--runs-dir", str(tmp_path), "--other", "elsewhere"]
    monkeypatch.setattr("sys.argv", given)
    run = Run.begin("task", Started(runs_dir=tmp_path, init_from=tmp_path / "pixels" / "a"))
    run.log(1, {"train/loss": 1.0})
    run.trained_on("digits", "real")
    run.trained(1, {})
    result = run.finish(split="test", metrics={}, published=[], examples_per_step=1)
    assert result["command"].endswith(" --init-from runs/pixels/a --other elsewhere")
    assert (result["config"]["init_from"], result["config"]["other"]) == ("runs/pixels/a", "elsewhere")
    for given, told in (
        (["x.py", f"--init-from={tmp_path}/a", f"--runs-dir={tmp_path}"], " --init-from=runs/a"),
        (["x.py", "--length", "600", "--runs-dir", "."], " --length 600"),
    ):
        monkeypatch.setattr("sys.argv", given)
        assert command().endswith(told)


def test_flags_are_told_as_one_types_them():
    told = [typed(*pair) for pair in (("beam_size", 3), ("parts", ["a", "b"]), ("with_lexicon", True), ("lexicon", False))]
    assert told == ["--beam-size 3", "--parts a b", "--with-lexicon", "--no-lexicon"]
