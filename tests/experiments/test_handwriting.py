"""Handwriting: tiny runs of both models on drawn lines and on a folder, their figures, and what is refused."""

import contextlib
import io
import json
import re
import shutil
import sys
import unicodedata
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from experiments import handwriting, report
from experiments.handwriting import Config, build_model, encode
from s2s_jax.data.line_sets import load_split
from s2s_jax.data.text_lines import LineBatches, drawn_lines, fit_characters
from s2s_jax.data.vocabulary import END
from s2s_jax.layers import Backbone, Stage
from s2s_jax.models.line_loss import line_loss
from s2s_jax.models.line_reader import LineRead, LineReader
from s2s_jax.text_metrics import character_error_rate
from s2s_jax.training.command import main

FUNCTIONS = {"train": handwriting.train, "evaluate": handwriting.evaluate, "predict": handwriting.predict}
SMALL = ["--steps", "3", "--hidden-features", "4", "--num-layers", "1", "--shapes", "1", "--evaluate-every", "3"]


@pytest.fixture(autouse=True, scope="module")
def few(tmp_path_factory):
    """Few drawn lines, a small backbone, and no data folder of the machine."""
    stages = (Stage(2, 1, (4, 2)), Stage(3, 1, (4, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("S2S_DATA_DIR", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("s2s_jax.data.line_sets.drawn_lines", lambda split, height: drawn_lines(split, height=height, count=12))
        patch.setattr(handwriting, "Backbone", lambda channels, **options: Backbone(channels, stages, **options))
        yield


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["handwriting.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.handwriting"))
        main("handwriting", Config, **FUNCTIONS)


@pytest.fixture(scope="module")
def crnn(few, tmp_path_factory):
    """The folder that a small run is in, and what it has printed."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call(*SMALL, "--runs-dir", folder)
    return folder, printed.getvalue()


def test_a_crnn_from_training_to_prediction(crnn, tmp_path, capsys, monkeypatch):
    trained, printed = crnn
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert "trains on drawn number words, whose figures say nothing about handwriting" in printed
    folder = tmp_path / "handwriting" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["dataset"], result["split"]) == ("generated", "drawn_lines", "test, all 12")
    assert (result["published"], result["test_reads"]) == ([], 1)
    names = ("cer", "cer_without_spaces", "wer", "loss")
    assert set(result["metrics"]) == {*names, *(f"{name}_validation" for name in names)}
    assert set(result["details"]["signatures"]) == {"cer", "cer_without_spaces", "wer"}
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"learning_curve.png", "cer_by_length.png", "line.png"}
    lines = drawn_lines("test", count=12)
    read = (folder / "read_test.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert character_error_rate(read, lines.texts).value == result["metrics"]["cer"]

    # Timed too, which is kept beside the scores; of a run that reads greedily there is no beam to be compared.
    call("evaluate", "--runs-dir", tmp_path, "--speed")
    again = json.loads((folder / "result.json").read_text())
    rounds = again["details"]["speed"]["rounds"]["lines_per_second"]
    assert len(rounds) == 5
    speed = {"lines_per_second": sorted(rounds)[2]}
    assert (again["test_reads"], again["metrics"]) == (2, {**result["metrics"], **speed})
    assert again["details"]["measured_on"]["lines_per_second"].startswith("cpu, ")
    assert "batches in an epoch: " in again["details"]["speed"]["batches"]
    real = tmp_path / "real"  # drawn lines have no card
    real.mkdir()
    (real / "result.json").write_text(json.dumps({**again, "data": "real"}))
    card = report.keep(real, "crnn-speed", tmp_path / "results")
    assert json.loads(card.read_text())["metrics"]["lines_per_second"] == speed["lines_per_second"]
    assert sum(count for _, count in again["details"]["confusions"]) > 0
    other = ["--beam-size", "3", "--language-weight", "0.5", "--language-bonus", "-0.5", "--language-order", "3", "--lexicon"]
    capsys.readouterr()
    call("evaluate", "--runs-dir", tmp_path, "--split", "validation", "--speed", *other)
    printed = capsys.readouterr().out
    assert re.search(r"\nlines per second beam [\d.]+ \([\d.]+ to [\d.]+ in 5 rounds\) on cpu, ", printed)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["test_reads"]) == ("validation, all 12", 2)
    assert {"cer_validation", "cer_beam_validation"} <= set(evaluation["metrics"])
    assert evaluation["metrics"]["cer_validation"] == result["metrics"]["cer_validation"]
    assert json.loads((folder / "result.json").read_text()) == again
    speed = evaluation["details"]["speed"]
    greedy, beam, slower = (speed["rounds"][name] for name in ("lines_per_second", "lines_per_second_beam", "beam_slowdown"))
    assert slower == pytest.approx([one / other for one, other in zip(greedy, beam, strict=True)])
    assert (speed["beam_size"], evaluation["metrics"]["beam_slowdown"]) == (3, sorted(slower)[2])

    picture = tmp_path / "line.png"
    Image.fromarray(255 - lines.pictures[0][..., 0].T).save(picture)
    capsys.readouterr()
    other = tmp_path / "other.png"
    Image.fromarray(255 - lines.pictures[1][..., 0].T).save(other)
    call("predict", picture, other, picture, "--runs-dir", tmp_path)
    printed = capsys.readouterr().out.splitlines()[::2]
    for told, path, text in zip(printed, (picture, other, picture), (read[0], read[1], read[0]), strict=True):
        assert told.startswith(f"{path}: {text}  (mean confidence")
    assert {path.name for path in (folder / "figures").glob("read_*")} == {"read_line.png", "read_other.png", "read_line_2.png"}
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    with pytest.raises(SystemExit) as left:
        call("predict", tmp_path / "none.png", tmp_path, picture, damaged, "--runs-dir", tmp_path)
    assert capsys.readouterr().out.startswith(f"{picture}: {read[0]}  (mean confidence")
    wrong = [
        f"{tmp_path / 'none.png'}: expected a picture, found no such file",
        f"{tmp_path}: expected a picture, got a folder",
    ]
    wrong += [f"{damaged}: expected a picture, got a file of no known kind"]
    assert str(left.value).endswith(": " + "\n".join(wrong))
    with pytest.raises(SystemExit, match="--lexicon: expected a --beam-size above 1 with it, got 1"):
        call("predict", picture, "--runs-dir", tmp_path, "--lexicon")
    monkeypatch.setattr(LineReader, "__call__", lambda *_: [LineRead("", [], [], 0.0)])
    call("predict", picture, "--runs-dir", tmp_path)
    assert capsys.readouterr().out.startswith(f"{picture}: (nothing read)\n")
    monkeypatch.setattr(LineReader, "__call__", lambda *_: [LineRead("", [], [], -np.inf, finished=False)])
    call("predict", picture, "--runs-dir", tmp_path, "--beam-size", "2", "--lexicon")
    assert capsys.readouterr().out.startswith(f"{picture}: (nothing read: the search found no text of whole words, ")


def test_columns_with_a_decoder(crnn, tmp_path, capsys):
    """It starts from the columns of a CRNN that was trained before, and keeps them; a text that never ends is told."""
    decoder = ["--model", "attention", "--attention", "location", "--label-smoothing", "0.1", "--augment", "0"]
    from_crnn = ["--init-from", crnn[0] / "handwriting/default", "--init-parts", "encoder", "--freeze", "encoder"]
    call(*SMALL, "--runs-dir", tmp_path, *decoder, *from_crnn)
    result = json.loads((tmp_path / "handwriting/default/result.json").read_text())
    assert result["metrics"]["cer"] >= 0
    assert "unfit" not in capsys.readouterr().out
    before, after = (load_file(folder / "handwriting/default/weights.safetensors") for folder in (crnn[0], tmp_path))
    kept = [name for name in after if name.startswith("encoder.recurrent")]
    assert kept
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name])

    picture, weights = tmp_path / "line.png", tmp_path / "handwriting/default/weights.safetensors"
    Image.new("L", (24, 32), 255).save(picture)  # 6 frames: 6 characters and the end

    def read(bias_of_end):
        after["decoder.output.bias"][END] = bias_of_end
        save_file(after, weights)
        capsys.readouterr()
        call("predict", picture, "--runs-dir", tmp_path)
        return capsys.readouterr().out.splitlines()[0]

    assert re.search(r": .{7}  \(mean confidence .*\); cut off after 7 characters, .* before the decoder said", read(-99))
    assert read(99).endswith(": (nothing read)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--language-weight 0.3", "--language-weight: expected a --beam-size above 1 with it, got 1"),
        ("--lexicon", "--lexicon: expected a --beam-size above 1 with it, got 1"),
        ("--lexicon --beam-size 2 --model attention", "--lexicon: expected it with crnn, got it with attention"),
        (
            "--language-weight 1 --beam-size 2 --model attention",
            "--language-weight: expected it with crnn, got it with attention",
        ),
        ("--language-bonus 0.3", "--language-bonus: expected it with a --language-weight above 0, got it without"),
        ("--language-weight 1 --beam-size 2 --language-bonus inf", "--language-bonus: expected a finite number, got inf"),
        ("--augment 8", r"--augment: expected a number from 0 to below 3\.33, where ink fades to nothing, got 8\.0"),
        ("--language-order 3 --beam-size 2", "--language-order: expected it with a --language-weight above 0, got it without"),
        ("--label-smoothing 0.1", "--label-smoothing: expected it with attention, got it with crnn"),
        ("--attention location", "--attention: expected it with attention, got it with crnn"),
        ("--embedding-features 9", "--embedding-features: expected it with attention, got it with crnn"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_before_anything_is_read(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr("s2s_jax.data.line_sets.load_split", lambda *_: pytest.fail("it was read"))
    with pytest.raises(SystemExit, match=message):
        call("--runs-dir", tmp_path, *flags.split())
    assert not any(tmp_path.iterdir())


def test_labels_end_for_a_decoder_only():
    config = Config()
    lines = load_split(config, "train")
    characters = fit_characters(lines)
    for model, end in (("crnn", []), ("attention", [2])):
        config = Config(model=model)
        encoded = encode(config, build_model(config, characters), lines, characters)
        assert encoded[0]["label"].tolist() == [*characters.encode(lines.texts[0]), *end]


@pytest.mark.parametrize("model", ["crnn", "attention"])
def test_augmentation_and_dropout_act_in_training_alone_and_by_the_key(model):
    config = Config(model=model, shapes=1)
    lines = load_split(config, "train")
    characters = fit_characters(lines)
    made = build_model(config, characters)
    batch = LineBatches(encode(config, made, lines, characters), columns=5000, shapes=1).shuffled(0)(0)

    def loss_of(config, key):
        return float(line_loss(build_model(config, characters), batch, jax.random.key(key), augment=config.augment)[0])

    once, again, other = (loss_of(config, key) for key in (0, 0, 1))
    assert once == again != other
    plain = [loss_of(Config(model=model, augment=0.0, dropout=0.0), key) for key in (0, 1)]
    assert plain[0] == plain[1]
    assert np.isfinite(plain[0])


def test_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    rows = ["split\tfile\twords"]
    for split, texts in {"train": ["été", "ete", "a b"], "val": ["bé"], "test": ["ab", "é?"]}.items():
        for number, text in enumerate(texts):
            file = f"{split}{number}.png"
            Image.new("L", (40 + 3 * number, 20), 100 + number + len(split)).save(folder / file)
            rows.append(f"{split}\t{file}\t{text}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = [
        *SMALL,
        "--runs-dir",
        tmp_path / "runs",
        "--dataset",
        "mine",
        "--data-dir",
        tmp_path / "data",
        "--text-column",
        "words",
    ]
    with pytest.raises(
        SystemExit, match=r"--unknown-symbols: expected 'count', .* in mine, split test, .* '\?' \(U\+003F\) 1 times"
    ):
        call(*flags)
    call(*flags, "--unknown-symbols", "count", "--name", "counted")
    result = json.loads((tmp_path / "runs/handwriting/counted/result.json").read_text())
    assert result["data"] == "real"
    assert result["details"]["unknown"] == {"train": {}, "validation": {}, "test": {"?": 1}}
    alphabet = (tmp_path / "runs/handwriting/counted/alphabet.txt").read_text(encoding="utf-8")
    assert alphabet == "".join(sorted(set(unicodedata.normalize("NFD", "étéa b"))))
    # One that is tuned does not read the test, of which nothing is an error then.
    call(*flags, "--name", "tuned", "--split", "validation")
    result = json.loads((tmp_path / "runs/handwriting/tuned/result.json").read_text())
    assert (result["split"], result["test_reads"]) == ("validation, all 1", 0)
    assert "cer" not in result["metrics"]
    # Without a test split, and with the other name of validation.
    rows = [row.replace("val\t", "validation\t") for row in rows if not row.startswith("test")]
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    call(*flags, "--name", "no-test")
    result = json.loads((tmp_path / "runs/handwriting/no-test/result.json").read_text())
    assert (result["split"], result["test_reads"]) == ("validation, all 1", 0)
    assert set(result["details"]["unfit"]) == {"validation"}


def test_errors_of_a_folder_name_no_flag_that_nobody_typed(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(2):
        Image.new("L", (40, 20 + number)).save(folder / f"{number}.png")
    flags = [*SMALL, "--runs-dir", tmp_path / "runs", "--dataset", "mine", "--data-dir", tmp_path]

    def refused(rows, *more):
        (folder / "manifest.tsv").write_text("\n".join(["split\tfile\ttext\tlabel", *rows, ""]))
        with pytest.raises(SystemExit) as left:
            call(*flags, *more)
        return str(left.value).removeprefix("python -m experiments.handwriting: ")

    rows = ["train\t0.png\ta\t1", "val\t1.png\tb\t1"]
    assert refused([rows[0].replace("train", "learn"), rows[1]]) == (
        "mine, split: expected one or a slice of ['learn', 'val'] of mine, got 'train'"
    )
    assert refused(rows[:1]) == "mine: expected a split val or validation, got the splits train"
    assert refused(rows, "--text-column", "words") == "--text-column: expected one of label, text of mine, got 'words'"
    assert (
        refused(rows, "--text-column", "label")
        == "--text-column: expected a column of texts of mine, got 'label', one of numbers"
    )
    told = refused([*rows, "train\t0.png\tc\t1"])
    assert told == f"{folder / 'manifest.tsv'}:4: expected one text for each file, got 2 of 0.png, the first in line 2"


def test_texts_that_do_not_fit_their_frames(tmp_path, monkeypatch):
    lines = drawn_lines("train", count=4)
    narrow = lines._replace(pictures=[lines.pictures[0][:20], *lines.pictures[1:]])
    monkeypatch.setattr("s2s_jax.data.line_sets.drawn_lines", lambda split, height: narrow._replace(split=split))
    small = [*SMALL, "--runs-dir", tmp_path, "--augment", "0"]
    with pytest.raises(
        SystemExit, match=r"--unfit-labels: expected 'drop', .*, got 1 .*: train 0, '\w.*', needs \d+ and has 5"
    ):
        call(*small)
    call(*small, "--unfit-labels", "drop")
    result = json.loads((tmp_path / "handwriting/default/result.json").read_text())
    assert result["details"]["dropped"] == ["train 0"]
    assert np.isfinite(result["metrics"]["loss"])
    assert result["details"]["unfit"] == {split: {"count": 1, "ids": ["train 0"]} for split in ("validation", "test")}


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match="--data-dir: expected a folder that holds mnist, got none"):
        call(*SMALL, "--runs-dir", tmp_path / "runs", "--dataset", "mnist_lines")
    with pytest.raises(SystemExit, match="expected 'froc_mss' in"):
        call(*SMALL, "--runs-dir", tmp_path / "runs", "--dataset", "froc_mss", "--data-dir", tmp_path)
    assert not (tmp_path / "runs/handwriting").exists()


def test_a_text_may_hold_a_carriage_return(tmp_path):
    lines = drawn_lines("train", count=2)._replace(texts=["a\rb", "b"])
    characters, run = fit_characters(lines), SimpleNamespace(folder=tmp_path, config=Config(beam_size=2, lexicon=True))
    handwriting.save(run, characters, lines)
    assert (tmp_path / "alphabet.txt").read_bytes().decode() == characters.alphabet == "\rab"
    assert (tmp_path / "training_texts.txt").read_bytes() == b"a\rb\nb\n"
    handwriting.build_reader(run, build_model(run.config, characters), characters)  # where the lexicon knows no other words


def test_figures_of_files_of_one_name_are_different():
    names = ["a/line.png", "b/line.jpg", "line_2.png", "other"]
    assert handwriting.figure_names(names) == ["read_line", "read_line_2", "read_line_2_2", "read_other"]
