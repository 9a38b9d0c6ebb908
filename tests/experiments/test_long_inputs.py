"""Long inputs: a tiny run from the command line to its last file; groups, widths, losses and verdicts by hand."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from experiments import long_inputs
from experiments.long_inputs import (
    CLAIMS,
    MODELS,
    Config,
    build_model,
    widths,
)
from s2s_jax.bootstrap import length_groups
from s2s_jax.claims import judged
from s2s_jax.data.datasets.report import Report
from s2s_jax.data.pair_sets import PairBatches
from s2s_jax.data.parallel import Pairs
from s2s_jax.data.tokenizers import fit_tokenizers
from s2s_jax.models.pair_loss import measure_pairs
from s2s_jax.training.checkpoint import read_weights
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure
from s2s_jax.training.state import count_parameters

FUNCTIONS = {"train": long_inputs.train, "evaluate": long_inputs.evaluate, "predict": long_inputs.predict}
SMALL = ["--steps", "4", "--evaluate-every", "4", "--checkpoint-every", "0", "--hidden-features", "12", "--deep-layers", "2"]
SMALL += [
    "--embedding-features",
    "4",
    "--tokens",
    "64",
    "--shapes",
    "1",
    "--beam-size",
    "1",
    "--source",
    "en",
    "--target",
    "de",
]


def call(*arguments):
    """As `python -m experiments.long_inputs` with these arguments does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["long_inputs.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.long_inputs"))
        main("long_inputs", Config, **FUNCTIONS)


def write_pairs(folder):
    rng, flags = np.random.default_rng(0), []
    for split, count in (("train", 60), ("validation", 10), ("test", 20)):
        lines = [list(rng.choice(list("abcd"), rng.integers(1, 7))) for _ in range(count)]
        for side in ("source", "target"):
            path = folder / f"{split}.{side}"
            path.write_text("".join(" ".join(text) + "\n" for text in lines) + "\n" * (split == "test"))
            flags += [f"--{split}-{side}", path]
    return flags


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of runs with one that was stopped at its third model and went on. Not to be changed; see `own`."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [
        "--dataset",
        "files",
        *write_pairs(tmp_path_factory.mktemp("pairs")),
        *SMALL,
        "--bad-lines",
        "drop",
        "--runs-dir",
        folder,
    ]
    train_by_recipe = long_inputs.train_by_recipe

    def stopped(part, *rest):
        if part.config.name == "default/doubled":
            raise KeyboardInterrupt
        return train_by_recipe(part, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_inputs, "train_by_recipe", stopped)
        with pytest.raises(SystemExit):
            call(*arguments)
    run = folder / "long_inputs" / "default"
    before = {name: (run / name / "training.json").read_bytes() for name in ("plain", "reversed")}
    assert not (run / "weights.safetensors").exists()
    call(*arguments)
    for name, training in before.items():
        assert (run / name / "training.json").read_bytes() == training
    return folder


@pytest.fixture
def own(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "moved")


def test_a_run_leaves_all_its_files(finished):
    folder = finished / "long_inputs" / "default"
    assert [path.name for path in (folder / "figures").iterdir()] == ["score_by_length.png"]
    weights = read_weights(folder / "weights.safetensors")
    for name in MODELS:
        assert len((folder / f"translations_{name}.txt").read_text().split("\n")) == 21
        for array, values in read_weights(folder / name / "weights.safetensors").items():
            np.testing.assert_array_equal(weights[f"{name}.{array}"], values)
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["steps"], result["split"]) == ("real", 4, "test, 20 of 21")
    (finding,) = result["details"]["findings"]["test"].values()
    assert (finding["count"], finding["first"][0].split("/")[-1]) == (1, "test.source:21")
    assert result["seconds"] == pytest.approx(
        sum(json.loads((folder / name / "training.json").read_text())["seconds"] for name in MODELS), abs=0.5
    )
    groups = list(result["texts"])
    lengths = np.array([len(text.split()) for text in read(folder, "test_source") if text])
    assert groups == ["all", *length_groups(lengths)]
    assert sum(result["texts"].values()) == 2 * result["texts"]["all"] == 40
    metrics = {f"bleu_lowercased_tokens_{name}" for name in MODELS}
    of_groups = {f"{metric}_{group.replace(' ', '_')}" for metric in metrics for group in groups[1:]}
    assert set(result["metrics"]) == metrics | of_groups | {f"loss_{name}" for name in MODELS} | {c.metric for c in CLAIMS}
    for name, one in result["models"].items():
        assert set(one["score"]) == set(one["loss"]) == set(groups)
        assert one["score"]["all"] == result["metrics"][f"bleu_lowercased_tokens_{name}"]
    for claim in result["claims"]:
        assert claim["low"] <= claim["high"]
        assert claim["verdict"] in ("holds", "does not hold", "cannot be told")


def read(folder, name):
    with open(json.loads((folder / "config.json").read_text())[name]) as file:
        return file.read().splitlines()


def test_evaluate_scores_the_same_again_and_predict_asks_every_model(own, capsys):
    path = own / "long_inputs" / "default" / "result.json"
    before = json.loads(path.read_text())
    for name in MODELS:
        shutil.rmtree(path.parent / name)
    call("evaluate", "--runs-dir", own)
    after = json.loads(path.read_text())
    assert (after["test_reads"], after["split"]) == (2, "test, 20 of 21")
    told = capsys.readouterr().out
    assert "test: test 20\nlines with an empty side, left out: 1" in told
    assert after["metrics"] == pytest.approx(before["metrics"])
    assert after["claims"] == before["claims"]
    (first,) = (row for row in told.split("\n\n") if row.lstrip().startswith("model "))
    heading, *rows = first.splitlines()
    assert [row.split()[0] for row in rows] == list(MODELS)
    assert [len(row.split()) for row in rows] == [3 + 2 * len(before["texts"])] * len(MODELS)
    assert len({len(row) for row in (heading, *rows)}) == 1
    call("predict", "a b c", "d", "--runs-dir", own)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["a", *MODELS, "d", *MODELS]


def of_digits():
    return fit_tokenizers("words", ["0 1 2 3 4 5 6 7 8 9"], ["0"], joint=True, split="spaces")


@pytest.mark.parametrize(
    "flags",
    [{}, {"cell": "gru", "deep_layers": 4, "hidden_features": 256}, {"embedding_features": 75}],
    ids=str,
)
def test_all_models_have_as_many_parameters_within_two_per_cent(flags):
    config, tokenizers = Config(**flags), of_digits()
    found = widths(config, tokenizers)
    counts = {
        name: count_parameters(nnx.eval_shape(lambda name=name, width=width: build_model(config, tokenizers, name, width)))
        for name, width in found.items()
    }
    assert list(counts) == list(MODELS)
    assert found["plain"] == found["reversed"] == found["doubled"] == config.hidden_features
    assert found["deep"] < found["attention"] < config.hidden_features
    assert max(counts.values()) / min(counts.values()) < 1.02


def test_models_differ_in_what_they_are_named_after():
    config, tokenizers = Config(deep_layers=2), of_digits()
    models = {name: nnx.eval_shape(lambda name=name: build_model(config, tokenizers, name, 8)) for name in MODELS}
    assert [name for name, model in models.items() if model.attends] == ["attention"]
    assert [name for name, model in models.items() if model.encoder.double_source] == ["doubled"]
    assert [name for name, model in models.items() if model.encoder.recurrent.directions == ("backward",)] == ["reversed"]
    assert [name for name, model in models.items() if len(model.encoder.recurrent.layers) == 2] == ["deep"]


def test_groups_hold_about_as_many_texts_each_and_keep_a_length_together():
    groups = length_groups([9, 1, 2, 1, 4, 1, 3, 5], 3)
    assert {name: numbers.tolist() for name, numbers in groups.items()} == {
        "1": [1, 3, 5],
        "2 to 4": [2, 4, 6],
        "5 to 9": [0, 7],
    }
    assert {name: len(numbers) for name, numbers in length_groups([3] * 9 + [7], 5).items()} == {"3": 9, "4 to 7": 1}
    assert list(length_groups([1, 2], 5)) == ["1", "2"]
    with pytest.raises(ValueError, match="lengths: expected different ones, got none but 3"):
        length_groups([3, 3, 3])


def constant(**values):
    """Scores without spread: {model: (all, shortest, longest)}."""
    places = ("all", "1", "9")
    return {(name, place): np.full(101, one) for name, of in values.items() for place, one in zip(places, of, strict=True)}


def test_claims_are_the_numbers_that_they_speak_of():
    scores = constant(
        plain=(0.5, 0.9, 0.2), reversed=(0.7, 0, 0), doubled=(0.4, 0, 0), deep=(0.5, 0, 0), attention=(0.9, 1.0, 0.8)
    )
    losses = constant(plain=(0.5, 0, 0), reversed=(0.2, 0, 0), doubled=(0.5, 0, 0), deep=(0.7, 0, 0), attention=(0.1, 0, 0))
    found = [judged(claim, {"score": scores, "loss": losses}[claim.of], ["1", "5", "9"]) for claim in CLAIMS]
    assert {one["metric"]: (pytest.approx(one["value"]), one["verdict"]) for one in found} == {
        "gain_reversed": (0.2, "holds"),
        "gain_reversed_in_loss": (0.3, "holds"),
        "gain_doubled": (-0.1, "does not hold"),
        "gain_doubled_in_loss": (0, "cannot be told"),
        "gain_deep": (0, "cannot be told"),
        "gain_deep_in_loss": (-0.2, "does not hold"),
        "gain_attention": (0.4, "holds"),
        "gain_attention_in_loss": (0.4, "holds"),
        "fall_plain": (0.7, "holds"),
        "fall_plain_beyond_attention": (0.5, "holds"),
        "attention_beyond_kept": (-0.15, "does not hold"),
    }
    hardly = constant(plain=(0.001, 0, 0), reversed=(0.009, 0, 0))
    assert [judged(CLAIMS[0], hardly, ["1", "9"], least)["verdict"] for least in (0.009, 0.01)] == ["holds", "cannot be told"]
    nothing_learned = constant(**dict.fromkeys(MODELS, (0, 0, 0)))
    assert {judged(claim, nothing_learned, ["1", "9"])["verdict"] for claim in CLAIMS} == {"cannot be told"}


def test_a_loss_is_that_of_all_texts_together():
    config, tokenizers = Config(tokens=14, shapes=2), of_digits()
    model = build_model(config, tokenizers, "plain", 4)
    pairs = Pairs("some", "test", ["7 8 9 0 1 2", "4", "5 6", "1 2 3"], ["9", "4", "5 6 7 8", "1 2"], None, Report())
    batches = PairBatches(config, tokenizers, pairs, 0).in_order(pairs)
    assert batches.steps_per_epoch > 1
    counts = long_inputs.counted_loss(model, batches)
    np.testing.assert_array_equal(counts.counts[:, 1], [2, 2, 5, 3])  # in the order of the texts, end symbols included
    want = make_measure(measure_pairs)(model, batches)["loss"]
    assert counts.value(counts.counts.sum(0)) == pytest.approx(want, rel=1e-5)
    assert long_inputs.validate(model, batches) == {"loss": pytest.approx(want, rel=1e-5)}
    alone = PairBatches(config, tokenizers, pairs, 0).in_order(pairs._replace(sources=["5 6"], targets=["5 6 7 8"]))
    assert counts.value(counts.counts[2]) == pytest.approx(make_measure(measure_pairs)(model, alone)["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.2, "holds"), (-0.01, 0.2, "cannot be told"), (-0.2, -0.01, "does not hold")]
)
def test_a_claim_holds_where_its_whole_interval_is_above_zero(low, high, verdict):
    scores = constant(plain=(0.5, 0, 0), reversed=(0.5, 0, 0))
    # 4 % of the samples are at each end, so that the ends of the interval are those.
    gain = np.concatenate([[0.1], [low] * 4, np.linspace(low, high, 92), [high] * 4])
    scores["reversed", "all"] = scores["plain", "all"] + gain
    told = judged(CLAIMS[0], scores, ["1", "9"])
    assert (told["value"], told["low"], told["high"]) == pytest.approx((0.1, low, high))
    assert told["verdict"] == verdict
