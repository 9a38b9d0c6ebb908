"""Text classification: runs of four networks on a few made-up reviews, what their flags are, and what words are worth."""

import io
import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import text_classification
from experiments.text_classification import Config
from s2s_jax.data import labelled_texts
from s2s_jax.data.reviews import made_up_reviews
from s2s_jax.training.command import main

FUNCTIONS = {
    "train": text_classification.train,
    "evaluate": text_classification.evaluate,
    "predict": text_classification.predict,
}
SMALL = ["--steps", "4", "--hidden-features", "4", "--batch-size", "8", "--max-length", "40", "--shapes", "2"]
SMALL += ["--evaluate-every", "2"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few made-up reviews, and no data folder of the machine."""
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setattr(labelled_texts, "_MADE_UP", {"train": (40, 0), "validation": (20, 2), "test": (30, 1)})


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["text_classification.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.text_classification"))
        main("text_classification", Config, **FUNCTIONS)


def test_a_run_from_training_to_prediction(tmp_path, capsys):
    call(*SMALL, "--features", "5", "--runs-dir", tmp_path)
    folder = tmp_path / "text_classification/default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["dataset"], result["split"]) == ("generated", "made-up-reviews", "test, all 30")
    assert set(result["metrics"]) == {"accuracy", "loss", "accuracy_validation", "loss_validation"}
    assert (folder / "figures/learning_curve.png").exists()
    printed = capsys.readouterr().out
    assert "train: 40 texts, of " in printed
    row = [
        "default",
        "cnn_recurrent,",
        "lstm",
        "40",
        "bytes",
        f"{result['parameters']:,}",
        "0",
        "4",
        f"{result['seconds']:.0f}",
    ]
    assert [*row, f"{result['metrics']['accuracy']:.4f}"] in [line.split() for line in printed.splitlines()]

    call("evaluate", "--runs-dir", tmp_path, "--split", "validation")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["metrics"] == {name: result["metrics"][name] for name in ("accuracy_validation", "loss_validation")}
    assert evaluation["test_reads"] == 1
    capsys.readouterr()

    with pytest.raises(SystemExit, match="expected at least one text"):
        call("predict", "--runs-dir", tmp_path)
    path = tmp_path / "two.txt"
    path.write_text("Schöne dull film.\n\n")
    call("predict", path, "What a dull film.", "so " * 20, "--runs-dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "  only the last 40 of its 60 symbols are read" in lines
    assert lines[0] == f"{path}: 2 lines, each read as a text, as it is no table with text"
    shown = [line for line in lines[1:] if not line.startswith("  ")]
    assert [line.split(": ", 1)[1] for line in shown] == ["Schöne dull film.", "", "What a dull film.", "so " * 20]
    assert all(line.split(" ")[0] in ("positive", "negative") for line in shown)
    assert lines[lines.index(f"{shown[1]}") + 1] == "  it has no symbols: that is what the classifier says of any empty text"
    assert sum(line.startswith("  it has no symbols") for line in lines) == 1
    assert sum(", below 0 against it: " in line for line in lines) == 3
    assert "Schöne " in next(line for line in lines if "below 0 against it" in line)
    figures = sorted(file.name for file in (folder / "figures").glob("read_*"))
    assert [name[:-13] for name in figures] == [
        "read_Schöne_dull_film",
        "read_What_a_dull_film",
        "read_so_so_so_so_so_so_so_so_so_so_so_so_so_s",
    ]
    (tmp_path / "rows.csv").write_text('label,text\n1,"What a dull\nfilm?"\n')
    call("predict", tmp_path / "rows.csv", "--runs-dir", tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'rows.csv'}: 1 rows, of which text is read\n")
    assert "label" not in printed.split("read\n")[1]
    assert "dull\nfilm?" in printed
    assert len(list((folder / "figures").glob("read_*"))) == 4  # of another text, with the same words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit, match="standard input: expected at least one line, got none"):
            call("predict", "-", "--runs-dir", tmp_path)


def test_of_a_long_file_all_classes_are_told_and_the_symbols_of_ten_texts(tmp_path, capsys):
    """Those of the others are the classes that each has alone, whatever stands beside it."""
    call(*SMALL, "--features", "5", "--runs-dir", tmp_path)
    texts = [f"{'so ' * number}dull a film, number {number}." for number in range(text_classification.MARKED + 35)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts) + "\n")
    capsys.readouterr()
    call("predict", path, "--runs-dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    answers = [line for line in lines if line.startswith(("positive", "negative"))]
    assert [line.split(": ")[1] for line in answers] == texts
    assert sum(", below 0 against it: " in line for line in lines) == sum("drawn in " in line for line in lines) == 10
    assert lines[-1] == f"Which symbols mattered is told of the first 10 of the {len(texts)} texts alone."
    call("predict", *(texts[number] for number in (-1, 10, 17)), "--runs-dir", tmp_path)
    alone = capsys.readouterr().out
    assert [line for line in alone.splitlines() if line.startswith(("positive", "negative"))] == [
        answers[number] for number in (-1, 10, 17)
    ]
    assert "alone." not in alone


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "recurrent", "--cell", "gru", "--pooling", "max", "--split", "validation"),
        ("--model", "cnn_small", "--features", "3", "--symbols", "characters", "--vocabulary-size", "20", "--lowercase"),
        ("--model", "vdcnn9", "--features", "2", "--shortcuts"),
    ],
    ids=lambda flags: flags[1],
)
def test_the_other_networks(tmp_path, flags, capsys):
    call(*SMALL, "--steps", "1", "--runs-dir", tmp_path, *flags)
    result = json.loads((tmp_path / "text_classification/default/result.json").read_text())
    assert np.isfinite(list(result["metrics"].values())).all()
    assert (result["details"]["unknown"]["test"] > 0) == ("characters" in flags)
    assert result["test_reads"] == ("accuracy" in result["metrics"]) == ("--split" not in flags)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("default "))
    assert f"{result['seconds']:.0f}" == row.split()[-2 if "accuracy" in result["metrics"] else -1]


def test_every_network_has_its_name():
    built = {}
    for name in ("cnn_small", "cnn_large", "vdcnn9", "vdcnn17", "vdcnn29", "recurrent", "cnn_recurrent"):
        config = Config(model=name, shortcuts=name == "vdcnn29")
        shapes = jax.eval_shape(lambda config=config: nnx.state(text_classification.build_model(config, 259, 2), nnx.Param))
        built[name] = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert built["cnn_small"] < built["cnn_large"]
    assert built["recurrent"] < built["cnn_recurrent"] < built["vdcnn9"] < built["vdcnn17"] < built["vdcnn29"]


def test_words_are_worth_what_their_characters_are():
    shown = [("a", 1.0), ("b", 2.0), (" ", 9.0), ("\n", 9.0), ("c", -1.0)]
    assert text_classification.by_words(shown) == [("ab", 3.0), ("c", -1.0)]
    assert text_classification.by_words([(" ", 1.0)]) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shortcuts": True}, "shortcuts: expected it with vdcnn9, vdcnn17, vdcnn29, got it with cnn_recurrent"),
        ({"model": "cnn_small", "cell": "gru"}, "cell: expected it with recurrent, cnn_recurrent, got it with cnn_small"),
        ({"model": "recurrent", "features": 9}, "features: expected it with cnn_small, .*, got it with recurrent"),
        ({"dropout": 1.5}, r"dropout: expected a rate in \[0, 1\), got 1.5"),
        ({"vocabulary_size": 70}, "vocabulary_size: expected it with --symbols characters, got it with bytes"),
        ({"symbols": "characters", "vocabulary_size": 2}, "vocabulary_size: expected at least 5, got 2"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**flags)


def test_another_test_file_is_an_evaluation_of_its_own(tmp_path):
    rows = [f"{label}\t{text}" for label, text in zip("ab" * 10, made_up_reviews(20, 0).texts, strict=True)]
    for name, some in (("train", rows), ("test", rows[:6]), ("other", rows[6:9])):
        (tmp_path / f"{name}.tsv").write_text("label\ttext\n" + "\n".join(some) + "\n")
    files = ["--train-file", tmp_path / "train.tsv", "--test-file"]
    call(*SMALL, "--steps", "1", "--features", "5", "--runs-dir", tmp_path, *files, tmp_path / "test.tsv")
    folder = tmp_path / "text_classification/default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["dataset"], result["split"]) == ("real", "train", "test, all 6")
    details = result["details"]
    assert details["texts"] == {"train": 18, "validation": 2, "test": 6}
    assert details["findings"]["the same text in two splits"]["count"] == details["duplicates"] == 6
    assert "accuracy_without_duplicates" not in result["metrics"]  # of no text
    call("evaluate", "--runs-dir", tmp_path, *files, tmp_path / "other.tsv")
    assert json.loads((folder / "result.json").read_text()) == result | {"test_reads": 2}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["changed"]) == ("test, all 3", {"test_file": str(tmp_path / "other.tsv")})
    moved = (tmp_path / "test.tsv").rename(tmp_path / "moved.tsv")  # the same texts in another place
    call("evaluate", "--runs-dir", tmp_path, *files, moved)
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]
    (tmp_path / "test.tsv").write_text((tmp_path / "other.tsv").read_text())
    with pytest.raises(SystemExit, match=r"expected the test split that its figures are about, got another in the same place"):
        call("evaluate", "--runs-dir", tmp_path)
    (tmp_path / "train.tsv").write_text("label\ttext\n" + "\n".join(rows[2:]) + "\n")
    with pytest.raises(SystemExit, match="expected the data that the run was trained on"):
        call("evaluate", "--runs-dir", tmp_path)


def test_accuracy_without_the_test_texts_that_were_trained_on(tmp_path, capsys, monkeypatch):
    rows = [f"{label}\t{text}" for label, text in zip("ab" * 10, made_up_reviews(20, 0).texts, strict=True)]
    for name, some in (("train", rows), ("test", [*rows[:3], "a\tsomething new", "b\tsomething else"])):
        (tmp_path / f"{name}.tsv").write_text("label\ttext\n" + "\n".join(some) + "\n")

    def all_are_a(model, batch, **options):
        return jax.numpy.zeros((len(batch["label"]), 2)).at[:, 0].set(1.0) + 0 * model.output.bias.sum()

    monkeypatch.setattr(text_classification, "class_logits", all_are_a)
    files = ["--train-file", tmp_path / "train.tsv", "--test-file", tmp_path / "test.tsv"]
    call(*SMALL, "--steps", "1", "--features", "5", "--runs-dir", tmp_path, *files)
    result = json.loads((tmp_path / "text_classification/default/result.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(3 / 5)  # two of three known ones, and one of two
    assert result["metrics"]["accuracy_without_duplicates"] == pytest.approx(1 / 2)
    assert result["details"]["duplicates"] == 3
    told = "3 of the test texts stand in training or validation; without them accuracy 0.5000"
    assert told in capsys.readouterr().out


def test_a_batch_without_any_text_has_a_loss_of_zero(monkeypatch):
    monkeypatch.setattr(text_classification, "class_logits", lambda model, batch, **options: np.zeros((2, 3), np.float32))
    batch = {"label": np.zeros(2, np.int32), "mask": np.zeros(2, bool)}
    nats, told = text_classification.loss(None, batch, jax.random.key(0))
    assert float(nats) == 0
    assert np.isnan(told["loss"].value())
