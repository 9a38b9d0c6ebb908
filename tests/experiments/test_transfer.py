"""Transfer: windows, who is labelled, that a pretrained encoder arrives, and tiny runs on made-up reviews."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from experiments import transfer
from s2s_jax.data.reviews import made_up_reviews
from s2s_jax.data.vocabulary import END, START, Bytes
from s2s_jax.models import LanguageModel
from s2s_jax.training.checkpoint import read_weights
from s2s_jax.training.command import main
from tests.samples import assert_close

TEXTS = [Bytes().encode(text) for text in ("abcdefg", "", "xy", "abcd")]


@pytest.mark.parametrize("window", [1, 2, 4, 5, 100])
def test_windows_predict_each_byte_and_the_end_once(window):
    windows = transfer.Windows(TEXTS, window)
    predicted = [window["tokens"] for window in map(windows.__getitem__, range(len(windows)))]
    assert [len(tokens) for tokens in predicted] == windows.lengths.tolist()
    assert max(windows.lengths) <= window + 1
    want = [symbol for text in TEXTS for symbol in [*text, END]]
    assert [symbol for tokens in predicted for symbol in tokens[1:]] == want
    before = [symbol for text in TEXTS for symbol in [START, *text]]
    assert [symbol for tokens in predicted for symbol in tokens[:-1]] == before


def test_bits_are_those_of_a_model_that_knows_nothing():
    """All symbols equally probable: log2 of how many there are, whatever the padding."""
    model = LanguageModel(259, embedding_features=3, hidden_features=4, rngs=nnx.Rngs(0))
    model.output.kernel[...] = 0 * model.output.kernel[...]
    texts = [np.arange(3, 3 + length, dtype=np.int32) for length in range(9)]
    batches = transfer.Windows(texts, 9).batches(4, None)
    assert batches.usage().padding > 0.1  # of four buckets for nine lengths, and of rows without a text
    totals = [transfer.measure_language(model, batch)["bits_per_byte"] for batch in batches]
    assert sum(float(mean.count) for mean in totals) == sum(len(text) + 1 for text in texts)
    assert_close(sum(float(mean.total) for mean in totals) / sum(float(mean.count) for mean in totals), np.log2(259), 1e-5)


def test_of_a_long_review_the_end_is_read():
    labelled = transfer.Labelled(transfer.Reviews(TEXTS, np.arange(4, dtype=np.int32)), 3)
    (batch,) = transfer.Labelled(transfer.Reviews(TEXTS[:1], np.array([1], np.int32)), 3).batches(1, None)
    assert Bytes().decode(batch["tokens"][0]) == "efg"
    assert labelled.lengths.tolist() == [3, 0, 2, 3]
    assert [len(labelled[number]["tokens"]) for number in range(4)] == [3, 0, 2, 3]


@pytest.fixture
def few(monkeypatch):
    """Few made-up reviews, and no data folder of the machine."""
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setattr(transfer, "made_up_reviews", lambda count, seed: made_up_reviews(count // 50, seed))
    monkeypatch.setattr(transfer, "VALIDATION", 20)


def keys(reviews):
    return {text.tobytes() for text in reviews.texts}


def test_labelled_reviews_are_drawn_by_seed_half_of_each_class_and_never_for_validation(few):
    drawn = [transfer.load_splits(transfer.Config(labels=10, seed=seed)) for seed in (0, 0, 1)]
    for splits in drawn:
        assert len(keys(splits.train)) == 10
        assert splits.train.labels.sum() == 5
        assert len(keys(splits.validation)) == 20
        assert not keys(splits.train) & keys(splits.validation)
        assert not (keys(splits.train) | keys(splits.validation)) & keys(splits.test)
    assert keys(drawn[0].train) == keys(drawn[1].train) != keys(drawn[2].train)
    assert keys(drawn[0].validation) == keys(drawn[2].validation)
    unlabelled = transfer.load_splits(transfer.Config())
    assert len(keys(unlabelled.train)) == 60
    assert keys(unlabelled.validation) == keys(drawn[0].validation)
    assert not keys(unlabelled.train) & keys(unlabelled.validation)
    everything = transfer.load_splits(transfer.Config(labels=80))
    assert everything.validation is None
    assert len(keys(everything.train)) == 80
    with pytest.raises(ValueError, match="labels: expected 80, which is all, or about 60 at most, got 79"):
        transfer.load_splits(transfer.Config(labels=79))


FUNCTIONS = {"train": transfer.train, "evaluate": transfer.evaluate, "predict": transfer.predict}
SMALL = ["--steps", "4", "--hidden-features", "4", "--embedding-features", "3", "--batch-size", "8", "--last-bytes", "40"]


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["transfer.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.transfer"))
        main("transfer", transfer.Config, **FUNCTIONS)


def test_a_language_model_and_classifiers_with_and_without_its_encoder(few, tmp_path, capsys):
    call(*SMALL, "--runs-dir", tmp_path)
    folder = tmp_path / "transfer"
    language = json.loads((folder / "default" / "result.json").read_text())
    assert (language["data"], language["dataset"]) == ("generated", "made-up-reviews")
    assert 7 < language["metrics"]["bits_per_byte"] < 9
    assert "trains on made-up reviews, whose figures say nothing about real ones" in capsys.readouterr().out

    for seed in (0, 1):
        call(*SMALL, "--runs-dir", tmp_path, "--labels", "20", "--seed", seed, "--name", f"scratch{seed}")
    call(*SMALL, "--runs-dir", tmp_path, "--labels", "20", "--last-bytes", "50", "--name", "another")  # is in no table of these
    options = ["--init-from", folder / "default", "--init-parts", "encoder", "--freeze", "encoder"]
    call(*SMALL, "--runs-dir", tmp_path, "--labels", "80", "--name", "pretrained", *options)
    printed = capsys.readouterr().out
    assert "80 labelled reviews; of " in printed
    weights, before, fresh = (
        read_weights(folder / name / "weights.safetensors") for name in ("pretrained", "default", "scratch0")
    )
    for name in before:
        if name.startswith("encoder."):
            assert np.array_equal(weights[name], before[name]), name
    assert not np.array_equal(fresh["encoder.recurrent.layers.0.0.u"], before["encoder.recurrent.layers.0.0.u"])

    scores = {
        name: json.loads((folder / name / "result.json").read_text())["metrics"]["accuracy"]
        for name in ("scratch0", "scratch1", "pretrained")
    }
    mean, deviation = (
        np.mean([scores["scratch0"], scores["scratch1"]]),
        np.std([scores["scratch0"], scores["scratch1"]], ddof=1),
    )
    table = [line.split() for line in printed.splitlines()[-4:]]
    assert ["from", "nothing", "20", "2", f"{mean:.4f}", "±", f"{deviation:.4f}"] in table
    assert ["pretrained,", "frozen", "80", "1", f"{scores['pretrained']:.4f}"] in table
    assert (folder / "pretrained" / "figures" / "accuracy_by_labels.png").exists()
    assert not (folder / "default" / "figures" / "accuracy_by_labels.png").exists()

    call("evaluate", "--name", "pretrained", "--runs-dir", tmp_path)
    again = json.loads((folder / "pretrained" / "result.json").read_text())
    assert (again["metrics"]["accuracy"], again["test_reads"]) == (scores["pretrained"], 2)
    capsys.readouterr()
    call("predict", "What a dull film.", "", "--name", "pretrained", "--runs-dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["What a dull film.", ""]
    assert all(line.startswith(("praise (", "no praise (")) for line in lines)
    call("predict", "The film", "--runs-dir", tmp_path)
    assert capsys.readouterr().out.startswith("The film")
    with pytest.raises(SystemExit, match="expected at least one text"):
        call("predict", "--runs-dir", tmp_path)
