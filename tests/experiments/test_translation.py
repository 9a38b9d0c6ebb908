"""Translation: a tiny run over pairs of lines of one's own, from the command line to its last file, and what is refused."""

import gzip
import io
import json
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax import nnx

from experiments import translation
from experiments.translation import Config
from s2s_jax.training.command import main

FUNCTIONS = {"train": translation.train, "evaluate": translation.evaluate, "predict": translation.predict}
SMALL = ["--dataset", "files", "--source", "en", "--target", "de", "--symbols", "words", "--vocabulary-size", "12"]
SMALL += ["--steps", "20", "--evaluate-every", "10", "--checkpoint-every", "10", "--hidden-features", "8"]
SMALL += ["--embedding-features", "4", "--tokens", "64", "--shapes", "2", "--beam-size", "2"]


def call(*arguments):
    """As `python -m experiments.translation` with these arguments does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["translation.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.translation"))
        main("translation", Config, **FUNCTIONS)


def write_pairs(folder):
    """Lines of letters and the same from their end; one file of each kind."""
    rng, flags = np.random.default_rng(0), []
    for split, count in (("train", 60), ("validation", 10), ("test", 10)):
        lines = [list(rng.choice(list("abcdé"), rng.integers(1, 6))) for _ in range(count)]
        for side, ending, texts in (("source", ".gz", lines), ("target", "", [line[::-1] for line in lines])):
            path = folder / f"{split}.{side}{ending}"
            data = "".join(" ".join(text) + "\n" for text in texts).encode()
            path.write_bytes(gzip.compress(data) if ending else data)
            flags += [f"--{split}-{side}", path]
    return flags


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pairs):
    """A folder of runs with one finished run, "tiny". Not to be changed; see `own`."""
    folder = tmp_path_factory.mktemp("runs")
    call(*SMALL, *pairs, "--runs-dir", folder, "--name", "tiny")
    return folder


@pytest.fixture
def own(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "moved")


def test_a_run_leaves_all_its_files(finished):
    folder = finished / "translation" / "tiny"
    names = {path.name for path in folder.iterdir()}
    assert {"source_tokenizer.json", "target_tokenizer.json", "translations_validation.txt", "translations_test.txt"} <= names
    assert {path.name for path in (folder / "figures").iterdir()} == {"learning_curve.png", "attention.png"}
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["steps"], result["test_reads"]) == ("real", 20, 1)
    assert result["split"] == "test, all 10"
    each = {"bleu_cased", "bleu_lowercased_tokens", "chrf", "exact_match", "loss", "perplexity"}
    assert set(result["metrics"]) == each | {f"{name}_validation" for name in each}
    assert result["metrics"]["perplexity"] == pytest.approx(np.exp(result["metrics"]["loss"]))
    texts = (folder / "translations_test.txt").read_text().splitlines()
    references = read(folder, "test_target")
    assert result["metrics"]["exact_match"] == np.mean([a == b for a, b in zip(texts, references, strict=True)])


def test_rates_of_dropout_reach_both_sides():
    tokenizers: Any = SimpleNamespace(source=range(9), target=range(9))
    rates = {"dropout": 0.2, "input_dropout": 0.3, "recurrent_dropout": 0.4}
    model = nnx.eval_shape(lambda: translation.build_model(Config(num_layers=2, joint=False, **rates), tokenizers))
    for stack in (model.encoder.recurrent, model.decoder.below):
        assert {name: getattr(stack, name) for name in rates} == rates


def read(folder, name):
    with open(json.loads((folder / "config.json").read_text())[name]) as file:
        return file.read().splitlines()


def test_evaluate_scores_the_same_again(own):
    path = own / "translation" / "tiny" / "result.json"
    before = json.loads(path.read_text())
    call("evaluate", "--runs-dir", own, "--name", "tiny")
    after = json.loads(path.read_text())
    assert after["test_reads"] == 2
    assert after["metrics"] == pytest.approx(before["metrics"])


def test_predict_takes_texts_files_and_standard_input_of_any_script(own, tmp_path, capsys, monkeypatch):
    folder = own / "translation" / "tiny"
    shutil.rmtree(folder / "checkpoints")
    lines = tmp_path / "lines.txt"
    lines.write_text("c d\né\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("от a\n漢字 $ b\n"))
    call("predict", "a b c", lines, "-", "", "--runs-dir", own, "--name", "tiny")
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed[:-1] if not line.startswith("  ")] == ["a b c", "c d", "é", "от a", "漢字 $ b", ""]
    assert sum(line.startswith("  ") for line in printed) == 2 * 6  # a beam of 2 has no third
    alignments = json.loads((folder / "alignments.json").read_text(encoding="utf-8"))
    assert [one["source"] for one in alignments[:2]] == [["a", "b", "c", "</s>"], ["c", "d", "</s>"]]
    for one in alignments:
        assert np.shape(one["weights"]) == (len(one["translation"]), len(one["source"]))
        np.testing.assert_allclose(np.sum(one["weights"], axis=1), 1, atol=1e-3)
    assert (folder / "figures" / "attention_of_prediction.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "files"], "train_source: expected a file with --dataset files, got none"),
        (["--dataset", "numbers", "--target", "fr"], "source, target: expected en and de with numbers, got en and fr"),
        (["--dataset", "multi30k"], "data_dir: expected a folder that holds multi30k, got none"),
        (["--dataset", "nothing"], "name: expected a folder of that name or a data set of TFDS's catalogue, got 'nothing'"),
    ],
    ids=str,
)
def test_flags_that_name_no_data_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    with pytest.raises(SystemExit, match=message):
        call(*arguments, "--runs-dir", tmp_path / "runs")


def test_a_bad_line_is_an_error_or_counted(pairs, tmp_path, capsys):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("a b\n\nc\n")
    target.write_text("b a\nx\nc\n")
    flags = [*SMALL, *pairs, "--train-source", source, "--train-target", target, "--runs-dir", tmp_path / "runs"]
    flags += ["--steps", "1", "--vocabulary-size", "7"]
    with pytest.raises(SystemExit, match=r"source\.txt:2: expected a text, got an empty line"):
        call(*flags)
    call(*flags, "--bad-lines", "drop")
    assert "lines with an empty side, left out: 1, first" in capsys.readouterr().out
