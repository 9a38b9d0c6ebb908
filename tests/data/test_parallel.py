"""Pairs of lines from folders and files, their faults, and their batches."""

import gzip
import lzma
import unicodedata

import numpy as np
import pytest

from s2s_jax.data.buckets import field_buckets, with_room_for
from s2s_jax.data.parallel import encode_pairs, load_pairs, read_pairs
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.tokenizers import fit_tokenizers
from s2s_jax.data.toy_pairs import reversed_integers
from s2s_jax.data.vocabulary import END

ENGLISH = ["A man.", "Two dogs run.", "Caf\u00e9!"]
GERMAN = ["Ein Mann.", "Zwei Hunde laufen.", "Caf\u00e9!"]


def write(path, lines):
    raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wb") as file:
        file.write(raw)
    return path


def of_files(folder, source, target, split="train", **options):
    return read_pairs(write(folder / "a.txt", source), write(folder / "b.txt", target), split, **options)


def of_folder(folder, source, target, split="train", **options):
    data = folder / "texts"
    data.mkdir(exist_ok=True)
    for name in {"train", split}:
        write(data / f"{name}.en", source)
        write(data / f"{name}.de", target)
    return load_pairs("texts", split, languages=("en", "de"), data_dir=folder, cache_dir=folder / "cache", **options)


@pytest.mark.parametrize("ending", [".txt", ".gz", ".xz"])
def test_files_of_ones_own_plain_and_compressed(ending, tmp_path):
    decomposed = [unicodedata.normalize("NFD", line) + "  " for line in ENGLISH]
    source, target = write(tmp_path / f"a{ending}", decomposed), write(tmp_path / f"b{ending}", GERMAN)
    pairs = read_pairs(source, target, "validation")
    assert (pairs.sources, pairs.targets) == (ENGLISH, GERMAN)
    assert (pairs.name, pairs.split, str(pairs.report)) == (f"a{ending}, b{ending}", "validation", "validation 3")
    assert read_pairs(target, source, "validation").fingerprint != pairs.fingerprint


def test_both_directions_of_a_folder(tmp_path):
    pairs = of_folder(tmp_path, ENGLISH, GERMAN)
    assert (pairs.sources, pairs.targets, pairs.name) == (ENGLISH, GERMAN, "texts")
    options = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
    back = load_pairs("texts", "train[1:]", languages=("de", "en"), **options)
    assert (back.sources, back.targets) == (GERMAN[1:], ENGLISH[1:])
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1  # prepared once for both
    assert back.fingerprint == pairs.fingerprint


@pytest.mark.parametrize("read", [of_files, of_folder])
@pytest.mark.parametrize("bad_lines", ["error", "drop"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_files_of_different_numbers_of_lines_are_always_an_error(read, bad_lines, split, tmp_path):
    # A folder's languages are told in alphabetical order, de before en.
    sides = (ENGLISH, GERMAN[:2]) if read is of_files else (ENGLISH[:2], GERMAN)
    with pytest.raises(ValueError, match=r"expected (as many lines in both|the same number of lines).* 3\b.* 2$"):
        read(tmp_path, *sides, split, bad_lines=bad_lines)


BAD = {
    "empty": (" ", r":2: expected a text, got an empty line; bad_lines='drop'", "lines with an empty side"),
    "not UTF-8": (b"Zwei \xff", r":2: expected UTF-8, got the byte 0xff at place 5", "not UTF-8"),
    "long": ("x" * 31, r":2: expected at most 30 characters, got 31; bad_lines='drop'", "lines of more than 30 characters"),
}


@pytest.mark.parametrize("read", [of_files, of_folder])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_line_is_an_error_or_left_out_and_counted(read, side, fault, tmp_path):
    line, message, found = BAD[fault]
    texts = [list(ENGLISH), list(GERMAN)]
    texts[side][1] = line
    with pytest.raises(ValueError, match=message):
        read(tmp_path, *texts, max_characters=30)
    pairs = read(tmp_path, *texts, max_characters=30, bad_lines="drop")
    assert (pairs.sources, pairs.targets) == (ENGLISH[::2], GERMAN[::2])
    findings = {what: finding for what, finding in pairs.report.findings.items() if found in what}
    assert [finding["count"] for finding in findings.values()] == [1]
    assert next(iter(findings.values()))["first"][0].endswith(":2")
    assert f"{['a.txt', 'b.txt'][side] if read is of_files else ['en', 'de'][side]}:2" in str(pairs.report)
    assert pairs.report.examples == {"train": 2}


@pytest.mark.parametrize("read", [of_files, of_folder])
@pytest.mark.parametrize("bad_lines", ["error", "drop"])
def test_no_test_line_is_left_out_or_cut_for_its_length(read, bad_lines, tmp_path):
    long = "x" * 31
    pairs = read(tmp_path, [long, *ENGLISH], [*GERMAN, long], "test_2016", max_characters=30, bad_lines=bad_lines)
    assert (pairs.sources, pairs.targets) == ([long, *ENGLISH], [*GERMAN, long])
    (finding,) = [found for what, found in pairs.report.findings.items() if "kept in a test split" in what]
    assert finding["count"] == 2
    # Of a split of any name, where it is said to be one.
    assert len(read(tmp_path, [long], ["b"], "newstest", max_characters=30, test=True).sources) == 1
    with pytest.raises(ValueError, match="expected at most 30 characters, got 31"):
        read(tmp_path, [long], ["b"], "test", max_characters=30, test=False)


def test_an_empty_line_of_a_test_split_is_an_error_unless_told_and_then_counted(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt:2: expected a text, got an empty line"):
        of_files(tmp_path, ["a", ""], ["b", "x" * 99], "test", max_characters=30)
    pairs = of_files(tmp_path, ["a", ""], ["b", "x" * 99], "test", max_characters=30, bad_lines="drop")
    assert pairs.sources == ["a"]
    assert str(pairs.report) == f"test 1\nlines with an empty side, left out: 1, first {tmp_path / 'a.txt'}:2"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"source": ["", ""], "target": ["a", "b"], "bad_lines": "drop"},
            ValueError,
            "expected at least one pair, got none of 2 lines",
        ),
        ({"source": [], "target": []}, ValueError, "expected at least one pair, got none of 0 lines"),
        ({"bad_lines": "skip"}, ValueError, "bad_lines: expected 'error' or 'drop', got 'skip'"),
        ({"max_characters": 0}, ValueError, "max_characters: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        of_files(tmp_path, **{"source": ENGLISH, "target": GERMAN, **options})


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"target: expected a file, got .*none\.txt"):
        read_pairs(write(tmp_path / "a.txt", ENGLISH), tmp_path / "none.txt", "train")
    with pytest.raises(ValueError, match="languages: expected two, of sources and targets, got 'en'"):
        load_pairs("texts", "train", languages="en", data_dir=tmp_path)
    damaged = tmp_path / "a.gz"
    damaged.write_bytes(gzip.compress(b"a\nb\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"a\.gz: damaged gz file"):
        read_pairs(damaged, write(tmp_path / "b.txt", ENGLISH), "train", bad_lines="drop")


# As numbers ----------------------------------------------------------------------------------------------------------------


def test_ends_stand_where_the_caller_says(tmp_path):
    pairs = of_files(tmp_path, ENGLISH, GERMAN)
    tokenizers = fit_tokenizers("words", pairs.sources, pairs.targets, joint=False)
    for source_end, target_end in ((False, True), (True, False)):
        encoded = encode_pairs(pairs, tokenizers, source_end=source_end, target_end=target_end)
        assert encoded.lengths["source"].tolist() == [len(text.split()) + source_end for text in ENGLISH]
        assert encoded.lengths["target"].tolist() == [len(text.split()) + target_end for text in GERMAN]
        for number, example in enumerate(encoded):
            assert example["source"].tolist() == tokenizers.source.encode(ENGLISH[number]).tolist() + [END] * source_end
            assert example["target"].tolist() == tokenizers.target.encode(GERMAN[number]).tolist() + [END] * target_end
            assert example["source"].dtype == example["target"].dtype == np.int32
    assert (len(encoded), encoded.fingerprint) == (3, pairs.fingerprint)
    with pytest.raises(IndexError):
        encoded[3]


def test_batches_of_two_lengths_hold_every_pair_whole():
    pairs = reversed_integers("train", 500)
    tokenizers = fit_tokenizers("words", pairs.sources, pairs.targets, joint=True)
    encoded = encode_pairs(pairs, tokenizers, source_end=False, target_end=True)
    buckets = field_buckets(encoded.lengths, 5)
    batches = Batches(encoded, tokens=300, seed=0, lengths=encoded.lengths, buckets=buckets)
    seen = {}
    for step, batch in enumerate(batches):
        for row, number in enumerate(batches.ids(step)):
            if number >= 0:
                seen[int(number)] = (
                    tokenizers.source.decode(batch["source"][row]),
                    tokenizers.target.decode(batch["target"][row]),
                )
                assert batch["target"][row][batch["target_lengths"][row] - 1] == END
        assert max(batch["source"].size, batch["target"].size) <= 300
    assert [seen[number] for number in range(500)] == list(zip(pairs.sources, pairs.targets, strict=True))
    assert len(batches.usage().shapes) <= 5
    assert batches.usage().padding < 0.25
    # A test split of longer sequences: the same shapes and one more, and nothing left out.
    longer = encode_pairs(reversed_integers("test", 50, longest=30), tokenizers, source_end=False, target_end=True)
    usage = Batches(longer, 8, seed=None, lengths=longer.lengths, buckets=with_room_for(buckets, longer.lengths)).usage()
    assert (usage.examples, len(usage.left_out)) == (50, 0)


def test_a_set_of_the_catalogue(tmp_path):
    import tensorflow_datasets as tfds

    class S2sJaxTestTranslations(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        __module__ = "catalogue"  # with a dot in it, TFDS imports importlib_resources

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(["en", "de"]))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate({"en": en, "de": de} for en, de in zip(ENGLISH, GERMAN, strict=True))

    options = {"data_dir": None, "cache_dir": tmp_path}
    pairs = load_pairs("s2s_jax_test_translations", "train", languages=("de", "en"), **options)
    assert sorted(zip(pairs.sources, pairs.targets, strict=True)) == sorted(zip(GERMAN, ENGLISH, strict=True))
    with pytest.raises(ValueError, match=r"languages: expected some of \['de', 'en'\], the fields of s2s.*, got \['fr'\]"):
        load_pairs("s2s_jax_test_translations", "train", languages=("de", "fr"), **options)
