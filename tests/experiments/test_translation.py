"""Translation: a tiny run over pairs of lines of one's own, from the command line to its last file, and what is refused."""

import functools
import gzip
import io
import itertools
import json
import re
import shutil
import sys
import typing
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from flax import nnx

from experiments import report, translation
from experiments.translation import Config, build_model
from s2s_jax import published
from s2s_jax.data.datasets.text_files import read_lines, texts_named, write_texts
from s2s_jax.data.pair_sets import TOYS
from s2s_jax.data.tokenizers import fit_tokenizers, load_tokenizers
from s2s_jax.models.pair_loss import pair_loss
from s2s_jax.models.translator import Translation
from s2s_jax.training.command import main
from s2s_jax.training.run import Run

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
    """Lines of letters and the same from their end; one file of each kind. Only in validation stands y, only in the test z."""
    rng, flags = np.random.default_rng(0), []
    for split, count in (("train", 60), ("validation", 10), ("test", 10)):
        lines = [list(rng.choice(list("abcdé"), rng.integers(1, 6))) for _ in range(count)]
        lines[0] += {"validation": ["y"], "test": ["z"]}.get(split, [])
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
    bleu = sacrebleu.corpus_bleu  # letters with spaces between them are lower-cased tokens already
    scores = {"bleu_cased": bleu, "bleu_lowercased_tokens": functools.partial(bleu, tokenize="none")}
    for name, metric in {**scores, "chrf": sacrebleu.corpus_chrf}.items():
        assert result["metrics"][name] == pytest.approx(metric(texts, [references]).score)
        assert result["metrics"][name] != pytest.approx(metric(references, [texts]).score)  # which is which matters
    for tokenizer in load_tokenizers(folder):  # of the training split only
        assert tokenizer.lacks("a y z") == ["y", "z"]
    details = result["details"]
    assert set(details["signatures"]) == each - {"loss", "perplexity"}
    assert sacrebleu.__version__ in details["signatures"]["bleu_cased"]
    assert "sacremoses" in details["signatures"]["bleu_lowercased_tokens"]
    assert details["vocabularies"] == {"source": 9, "target": 9}
    assert details["batch_shapes"] == 2
    assert 0 < details["padding"] < 1
    assert details["translations"]["test"].keys() == {"texts", "cut_off", "empty"}
    assert details["translations"]["test"]["empty"] == texts.count("")
    assert len(result["fingerprints"]["test"]) == 16


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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("от a\n漢字 $ b\n".encode())))
    call("predict", "a b c", lines, "-", "", "--runs-dir", own, "--name", "tiny")
    printed, lacks = (stream.splitlines() for stream in capsys.readouterr())
    assert printed[0] == "Before each translation: its log probability over average length penalty."
    nothing = "(an empty text: there is nothing to translate)"
    assert [line for line in printed[1:-1] if not line.startswith("  ")] == ["a b c", "c d", "é", "от a", "漢字 $ b", nothing]
    assert sum(line.startswith("  ") for line in printed) == 2 * 5  # a beam of 2 has no third, and an empty text no translation
    assert lacks == ["The model has no symbol of its own for 'от', '漢', '字', '$'."]
    alignments = json.loads((folder / "alignments.json").read_text(encoding="utf-8"))
    assert [one["text"] for one in alignments] == ["a b c", "c d", "é", "от a", "漢字 $ b", ""]
    assert (empty := alignments.pop())["score"] is None
    assert (empty["translation"], empty["weights"]) == ([], None)
    assert all(one["score"] < 0 for one in alignments)
    assert not re.search(r"0\.\d{6}", (folder / "alignments.json").read_text())  # five places, as is said
    assert [one["source"] for one in alignments[:2]] == [["a", "b", "c", "</s>"], ["c", "d", "</s>"]]
    for one in alignments:
        assert np.shape(one["weights"]) == (len(one["translation"]), len(one["source"]))
        np.testing.assert_allclose(np.sum(one["weights"], axis=1), 1, atol=1e-3)
    assert (folder / "figures" / "attention_of_prediction.png").exists()


def test_the_best_translations_go_to_a_file_in_the_order_of_the_texts(own, tmp_path, capsys, monkeypatch):
    def upper(self, texts, search, *, batch_size, attention):
        assert (search.n_best, attention) == (1, False)
        return [[Translation(text.upper(), 0.0, [], [], np.zeros(0), None, True)] for text in texts]

    monkeypatch.setattr(translation.Translator, "__call__", upper)
    lines = tmp_path / "lines.txt"
    lines.write_text("c d\né\n", encoding="utf-8")
    call("predict", lines, "", "a b", "--output", tmp_path / "best.txt", "--runs-dir", own, "--name", "tiny")
    assert (tmp_path / "best.txt").read_text(encoding="utf-8") == "C D\nÉ\n\nA B\n"
    assert capsys.readouterr().out == f"4 translations are in {tmp_path / 'best.txt'}, one a line.\n"


def test_as_many_are_told_as_are_asked_for_and_what_stands_behind_two_dashes_is_a_text(own, capsys):
    path = own / "translation" / "tiny" / "config.json"
    with pytest.raises(SystemExit, match="--n-best, --beam-size: expected from 1 to as many to tell as are followed, 2, got 3"):
        call("predict", "a b", "--n-best", "3", "--runs-dir", own, "--name", "tiny")
    path.write_text(path.read_text().replace('"beam_size": 2', '"beam_size": 6'))  # more than by default
    for flags, count in ((["--n-best", "6"], 6), ([], 3)):
        call("predict", "a", *flags, "--runs-dir", own, "--name", "tiny", "--", "-a b", "--n-best")
        printed = capsys.readouterr().out.splitlines()[1:-1]
        assert [line for line in printed if not line.startswith("  ")] == ["a", "-a b", "--n-best"]
        assert len(printed) == 3 * (1 + count)
    with pytest.raises(
        SystemExit, match="predict: unknown argument -a b; see --help, and -- before inputs that begin with a dash"
    ):
        call("predict", "-a b", "--runs-dir", own, "--name", "tiny")
    with pytest.raises(SystemExit, match="evaluate: unknown argument a; see --help"):
        call("evaluate", "--runs-dir", own, "--name", "tiny", "--", "a")


def test_predict_has_an_entry_for_each_text_also_where_nothing_was_found(own, capsys, monkeypatch):
    found = translation.Translator.__call__
    monkeypatch.setattr(translation.Translator, "__call__", lambda *given, **options: [[], *found(*given, **options)[1:]])
    call("predict", "a", " e\u0301 ", "--runs-dir", own, "--name", "tiny")
    nothing, one = json.loads((own / "translation" / "tiny" / "alignments.json").read_text(encoding="utf-8"))
    assert (nothing["text"], nothing["score"], nothing["translation"], nothing["weights"]) == ("a", None, [], None)
    assert one["text"] == "\u00e9"  # normalized as the texts of the training are


def test_texts_are_read_as_those_of_a_training_are(tmp_path):
    lines = ["a\u2028b\x0bc", " d ", "e\u0301"]
    raw = b"\xef\xbb\xbf" + "\n".join(lines).encode()
    for name, data in (("lines.txt", raw), ("lines.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(data)
        assert texts_named([str(tmp_path / name)]) == ["a\u2028b\x0bc", " d ", "e\u0301"]
    assert texts_named(["x" * 300, " y"]) == ["x" * 300, " y"]  # longer than the name of a file may be
    with pytest.raises(ValueError, match="expected UTF-8, got the byte 0xff at place 3"):
        texts_named(["bad\udcff"])  # which is what Python makes of such a byte on the command line
    (tmp_path / "bad").write_bytes(b"a\nb\xff")
    with pytest.raises(ValueError, match=r"/bad:2: expected UTF-8, got the byte 0xff at place 1"):
        texts_named([str(tmp_path / "bad")])


def test_texts_are_written_one_a_line_whatever_is_in_them(tmp_path):
    write_texts(tmp_path / "lines.txt", ["a\nb", "", "c\u2028d\x0b\u00e9"])
    assert texts_named([str(tmp_path / "lines.txt")]) == ["a b", "", "c\u2028d\x0b\u00e9"]


def test_standard_input_is_read_as_a_file_is(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\r\nb\xff\n")))
    with pytest.raises(ValueError, match=r"standard input:2: expected UTF-8, got the byte 0xff at place 1"):
        texts_named(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffa\x85b\r\n\n".encode())))
    assert texts_named(["-", "c"]) == ["a\x85b", "", "c"]


def test_other_flags_of_the_search_leave_the_result_as_it_is(own, capsys):
    folder = own / "translation" / "tiny"
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "config.json"}
    call("evaluate", "--beam-size", "1", "--max-ratio", "0", "--max-extra", "1", "--runs-dir", own, "--name", "tiny")
    told = capsys.readouterr().out
    assert "Cut off at the length limit: 1" in told
    assert "Not the run's own flags: --beam-size 1, --max-ratio 0.0, --max-extra 1." in told
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["changed"] == {"beam_size": 1, "max_ratio": 0.0, "max_extra": 1}
    assert evaluation["config"]["max_extra"] == 1
    assert evaluation["command"] != json.loads((folder / "result.json").read_text())["command"]
    assert evaluation["test_reads"] == 2  # the test was read, whatever the flags
    counts = evaluation["details"]["translations"]["test"]
    assert counts["cut_off"] + counts["empty"] == counts["texts"] == 10  # at most one symbol each, the end or another
    assert (
        kept.pop(folder / "result.json").replace(b'"test_reads": 1,', b'"test_reads": 2,')
        == (folder / "result.json").read_bytes()
    )
    for path, content in kept.items():
        assert path.read_bytes() == content
    call("evaluate", "--split", "validation", "--runs-dir", own, "--name", "tiny")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (evaluation["test_reads"], evaluation["split"]) == (2, "validation, all 10")
    assert all(name.endswith("_validation") for name in evaluation["metrics"])
    call("evaluate", "--beam-size", "2", "--runs-dir", own, "--name", "tiny")  # the run's own
    assert json.loads((folder / "result.json").read_text())["test_reads"] == 3
    call(
        "predict",
        "a b",
        "--n-best",
        "1",
        "--length-penalty",
        "gnmt",
        "--coverage-penalty",
        "0.2",
        "--runs-dir",
        own,
        "--name",
        "tiny",
    )
    assert sum(line.startswith("  ") for line in capsys.readouterr().out.splitlines()[-3:]) == 1


def test_what_a_run_tells_follows_a_smaller_beam_and_is_an_error_only_where_it_is_said(own, capsys):
    folder = own / "translation" / "tiny"
    path, where = folder / "config.json", ("--runs-dir", own, "--name", "tiny")
    path.write_text(path.read_text().replace('"beam_size": 2', '"beam_size": 4').replace('"n_best": null', '"n_best": 3'))
    for flags, count in (([], 3), (["--beam-size", "2"], 2), (["--beam-size", "6"], 3), (["--n-best", "4"], 4)):
        call("predict", "a b", *flags, *where)
        assert sum(line.startswith("  ") for line in capsys.readouterr().out.splitlines()) == count
    call("evaluate", "--split", "validation", "--beam-size", "1", *where)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["changed"]["beam_size"] == 1
    message = "--n-best, --beam-size: expected from 1 to as many to tell as are followed, 2, got 3"
    for command in ("predict", "evaluate"):
        with pytest.raises(SystemExit, match=message):
            call(command, *(["a b"] if command == "predict" else []), "--n-best", "3", "--beam-size", "2", *where)


def test_a_tuned_run_leaves_the_test_unread_until_it_is_evaluated(pairs, tmp_path):
    folder = tmp_path / "translation" / "default"
    absent = [*pairs[:-1], tmp_path / "absent"]  # the targets of the test
    call(*SMALL, *absent, "--steps", "1", "--split", "validation", "--runs-dir", tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert (result["split"], result["test_reads"]) == ("validation, all 10", 0)
    assert all(name.endswith("_validation") for name in result["metrics"])
    assert not (folder / "translations_test.txt").exists()
    with pytest.raises(
        ValueError, match="expected figures of a test split, which evaluate adds, got those of validation, all 10"
    ):
        report.keep(folder, "tuned", tmp_path / "cards")
    call("evaluate", *pairs[-2:], "--runs-dir", tmp_path)
    scored = json.loads((folder / "result.json").read_text())
    assert (scored["split"], scored["test_reads"], "changed" in scored) == ("test, all 10", 1, False)
    assert result["metrics"].items() <= {name: pytest.approx(value) for name, value in scored["metrics"].items()}.items()


def test_a_run_goes_on_with_another_search(own, pairs, capsys):
    call(*SMALL, *pairs, "--runs-dir", own, "--name", "tiny", "--alpha", "0.5", "--max-ratio", "3")
    assert "Finished already" in capsys.readouterr().out


def test_an_ensemble_is_searched_by_the_mean_of_its_models(own, capsys):
    folder = own / "translation"
    twin = shutil.copytree(folder / "tiny", folder / "twin")
    call("evaluate", "--ensemble", "twin", "--runs-dir", own, "--name", "tiny")
    result, evaluation = (json.loads((folder / "tiny" / f"{name}.json").read_text()) for name in ("result", "evaluation"))
    assert evaluation["changed"] == {"ensemble": ["twin"]}
    assert "Not the run's own flags: --ensemble twin." in capsys.readouterr().out
    assert evaluation["metrics"].keys() == {name for name in result["metrics"] if "loss" not in name and "perp" not in name}
    for name, value in evaluation["metrics"].items():  # of twins the mean is that of one
        assert value == pytest.approx(result["metrics"][name])
    assert evaluation["parameters"] == 2 * result["parameters"]
    call("predict", "a b", "--ensemble", "twin", "--runs-dir", own, "--name", "tiny")
    fit_tokenizers("words", ["x"], ["y"], joint=False).save(twin)
    with pytest.raises(
        SystemExit, match=r"--ensemble: expected runs with the source_tokenizer.json of .*/tiny, got another in"
    ):
        call("predict", "a b", "--ensemble", "twin", "--runs-dir", own, "--name", "tiny")


def test_evaluate_finds_files_that_moved_and_one_process_writes(own, pairs, tmp_path, monkeypatch):
    folder = own / "translation" / "tiny"
    config = json.loads((folder / "config.json").read_text())
    moved, flags = tmp_path / "elsewhere", []
    moved.mkdir()
    for flag, path in zip(pairs[::2], pairs[1::2], strict=True):
        flags += [flag, shutil.copy(path, moved)]
        config[flag[2:].replace("-", "_")] = f"/nowhere/{path.name}"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"--train-source: expected a file, found none at /nowhere/train.source.gz"):
        call("evaluate", "--runs-dir", own, "--name", "tiny")
    call("evaluate", *flags, "--runs-dir", own, "--name", "tiny")
    assert json.loads((folder / "result.json").read_text())["test_reads"] == 2
    call(*SMALL, *pairs, "--runs-dir", own, "--name", "tiny")  # it is no other run
    (folder / "translations_test.txt").unlink()
    monkeypatch.setattr(Run, "writes", False)
    call("evaluate", *flags, "--runs-dir", own, "--name", "tiny")
    assert not (folder / "translations_test.txt").exists()


@pytest.mark.parametrize("attention", typing.get_args(typing.get_type_hints(Config)["attention"]))
def test_every_attention_takes_a_step_of_training(attention):
    config = Config(attention=attention, hidden_features=8, embedding_features=4)
    tokenizers = fit_tokenizers("characters", ["abc"], ["abc"], joint=True)
    graphdef, params = nnx.split(build_model(config, tokenizers))
    numbers = np.array([[4, 5, 6, 2], [5, 2, 0, 0]], np.int32)
    lengths = np.array([4, 2], np.int32)
    batch = {"source": numbers, "target": numbers, "mask": np.ones(2, bool)}
    batch |= {"source_lengths": lengths, "target_lengths": lengths}

    @jax.jit
    def step(params):
        def loss_of(params):
            return pair_loss(nnx.merge(graphdef, params, copy=True), batch, jax.random.key(0))[0]

        loss, slopes = jax.value_and_grad(loss_of)(params)
        return loss, jax.tree.map(lambda one, slope: one - 0.01 * slope, params, slopes)

    before, params = step(params)
    after, _ = step(params)
    assert jnp.isfinite(after)
    assert after < before


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help_tells_the_defaults_of_a_run_without_flags(command, capsys):
    with pytest.raises(SystemExit):
        call(command, "--help")
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert re.search(r"--beam-size INT [^(]*\(default: 5\)", told)
    assert "What is not said stays as the run has it" in told


def test_a_space_is_drawn_as_an_open_box():
    found = Translation("a b", 0.0, ["▁a", "▁", "<0xE2>", "</s>"], ["▁a▁", "b"], np.zeros(2), np.ones((2, 4)) / 4, True)
    axes = translation.attention_map(found).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["\u2423a", "\u2423", "<0xE2>", "</s>"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["\u2423a\u2423", "b"]


def test_a_toy_is_drawn_and_told_beside_its_published_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TOYS, "sort", functools.partial(TOYS["sort"], count=20))
    call("--dataset", "sort", *SMALL[SMALL.index("--hidden-features") :], "--steps", "1", "--runs-dir", tmp_path)
    result = json.loads((tmp_path / "translation" / "default" / "result.json").read_text())
    assert (result["data"], result["config"]["symbols"]) == ("drawn", "words")
    assert "texts (drawn), beam 2: " in capsys.readouterr().out
    assert [one["metric"] in result["metrics"] for one in result["published"]] == [True]
    for toy in TOYS:
        assert published.TRANSLATION[(toy, *Config(dataset=toy).languages)]


def test_test_files_are_missed_before_the_training(pairs, tmp_path):
    with pytest.raises(SystemExit, match="--test-source, --test-target: expected a file for each with --dataset"):
        call(*SMALL, *pairs[:8], "--runs-dir", tmp_path / "runs")
    assert not (tmp_path / "runs" / "translation").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dataset", "files"],
            "--train-source, --train-target, --validation-source, --validation-target, --test-source, --test-target: expected",
        ),
        (["--train-source", "nowhere.txt"], r"--train-source: expected a file, found none at /.*nowhere\.txt"),
        (["--attention", "none", "--coverage-penalty", "1"], "--coverage-penalty: expected 0 without attention, got 1.0"),
        (["--attention", "none", "--input-feeding"], "--input-feeding: expected none with the decoder 'autoregressive'"),
        (
            ["--attention", "multi_head", "--hidden-features", "30"],
            "--hidden-features: expected a multiple of the 4 heads of --attention multi_head, got 30",
        ),
        (["--dataset", "numbers", "--target", "fr"], "--source, --target: expected en and de with numbers, got en and fr"),
        (["--dataset", "multi30k"], "--data-dir: expected a folder that holds multi30k, got none"),
        (
            ["--dataset", "nothing"],
            "--dataset: expected a folder of that name or a data set of TFDS's catalogue, got 'n",
        ),
    ],
    ids=str,
)
def test_flags_that_name_no_data_or_do_not_fit_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    with pytest.raises(SystemExit, match=message):
        call(*arguments, "--runs-dir", tmp_path / "runs")


def test_a_vocabulary_that_the_texts_do_not_fit_is_told_by_its_flag(pairs, tmp_path):
    with pytest.raises(SystemExit, match="--vocabulary-size: expected at least 5, got 4"):
        call(*SMALL, *pairs, "--vocabulary-size", "4", "--runs-dir", tmp_path / "runs")


def test_names_of_files_that_are_not_there_are_no_texts(tmp_path, monkeypatch):
    paths = ["./a", "/nowhere/lines", "../b/c", "~/x", r"C:\\data\\lines.TXT"]
    for name in ("lines.txt", "train.en.gz", "test.de", "data/a.source", "x.csv.xz", *paths):
        with pytest.raises(FileNotFoundError, match=f"{re.escape(name)}: expected a file, found none"):
            texts_named([name])
    texts = [
        "and/or",
        "3.14",
        "e.g.",
        "Is it x.txt?",
        "no. 5",
        "/",
        "...",
        "end.The",
        "well...it",
        "a@b.de",
        "node.js",
        "我喜欢a.de",
    ]
    texts += ["https://a.de", "/s", "/ˈhɛloʊ/", "a/b"]
    assert texts_named(texts) == texts
    monkeypatch.chdir(tmp_path.parent)
    assert texts_named([tmp_path.name]) == [tmp_path.name]  # a word may be a folder's name by chance
    with pytest.raises(FileNotFoundError, match="expected a text or a file, got a folder"):
        texts_named([str(tmp_path)])
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: expected at least one line, got none"):
        texts_named([str(tmp_path / "empty")])


def test_pairs_of_the_test_that_stand_in_training_are_counted(pairs, tmp_path, capsys):
    flags = dict(zip(pairs[::2], pairs[1::2], strict=True))
    flags |= {f"--test-{side}": flags[f"--train-{side}"] for side in ("source", "target")}
    call(*SMALL, *itertools.chain(*flags.items()), "--steps", "1", "--runs-dir", tmp_path / "runs")
    of_split = {
        split: list(zip(*(read_lines(flags[f"--{split}-{side}"]) for side in ("source", "target")), strict=True))
        for split in ("train", "validation", "test")
    }
    shared = {split: sum(pair in of_split["train"] for pair in pairs) for split, pairs in of_split.items()}
    assert 0 < shared["validation"] < len(of_split["validation"])
    told = capsys.readouterr().out
    for split in ("validation", "test"):
        expected = f"{split}: {shared[split]} of {len(of_split[split])} pairs stand in the training split too."
        assert expected in told.splitlines()


def test_a_bad_line_is_an_error_or_counted(pairs, tmp_path, capsys):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("a b\n\nc\n")
    target.write_text("b a\nx\nc\n")
    test = tmp_path / "test.txt"
    test.write_bytes(b"a b c d\n\nb a\n\xff\n")
    flags = [*SMALL, *pairs, "--train-source", source, "--train-target", target, "--runs-dir", tmp_path / "runs"]
    flags += ["--test-source", test, "--test-target", test]
    flags += ["--steps", "1", "--vocabulary-size", "7"]
    with pytest.raises(SystemExit, match=r"source\.txt:2: expected a text, got an empty line; --bad-lines drop leaves"):
        call(*flags)
    call(*flags, "--bad-lines", "drop", "--target", "vi")
    told = capsys.readouterr().out
    assert "train: train 2\nlines with an empty side, left out: 1, first" in told
    assert "\ntest, 2 of 4 texts (real), beam 2: " in told
    result = json.loads((tmp_path / "runs" / "translation" / "default" / "result.json").read_text())
    assert result["split"] == "test, 2 of 4"
    kinds = ("lines with an empty side, left out", "lines that are not UTF-8, left out")
    of_test = {what: {"count": 1, "first": [f"{test}:{line}"]} for what, line in zip(kinds, (2, 4), strict=True)}
    of_training = {kinds[0]: {"count": 1, "first": [f"{source}:2"]}}
    assert result["details"]["findings"] == {"train": of_training, "validation": {}, "test": of_test}
    call("evaluate", "--runs-dir", tmp_path / "runs")
    again = capsys.readouterr().out
    for printed in (told, again):
        assert f"test: test 2\n{kinds[0]}: 1, first {test}:2\n{kinds[1]}: 1, first {test}:4\n" in printed
    assert json.loads((tmp_path / "runs" / "translation" / "default" / "result.json").read_text())["split"] == "test, 2 of 4"
    assert told.index("No bleu_lowercased_tokens: Moses has no rules for words of vi.") < told.index("Batches: ")
    assert "Words of vi are what stands between spaces: there are no rules that cut its texts." in told
