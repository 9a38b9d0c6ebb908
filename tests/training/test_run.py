"""What a run writes down of its data."""

import json

import pytest

from s2s_jax.training.run import Run, RunConfig


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
    result = run.finish(split="test", metrics={}, published=[], steps=1, examples=1, seconds=1.0)
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
    Run.begin("task", RunConfig(steps=1, runs_dir=tmp_path)).trained_on("digits", "real", "b2")
