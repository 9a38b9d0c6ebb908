"""Folders in five plain formats, whole and wrong; what is prepared, by one process or two; and TFDS's catalogue."""

import gzip
import io
import json
import lzma
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from s2s_jax.data.datasets import formats, load
from s2s_jax.data.datasets.formats import FORMATS, format_of
from s2s_jax.data.pipeline import Batches

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def packed(name, raw):
    raw = raw.encode() if isinstance(raw, str) else raw
    return {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(raw)


def folder_of(tmp_path, files, name="set"):
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else packed(file, content))
    return folder


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def idx_of(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


PIXELS = np.arange(3 * 4 * 5).reshape(3, 4, 5)
IDX = {
    "train-images-idx3-ubyte.gz": packed("a.gz", idx_of(PIXELS)),
    "train-labels-idx1-ubyte": idx_of(np.array([7, 0, 2])),
    "t10k-images-idx3-ubyte": idx_of(PIXELS[:1] + 100),
    "t10k-labels-idx1-ubyte": idx_of(np.array([1])),
}
TEXT = {
    "train.de.gz": "ein Häuschen\nzwei\n\u2028 drei\x85\n",
    "train.en": "a cottage\r\ntwo\r\nthree",
    "train.fr.xz": "une\ndeux\ntrois\n",
    "val_2016.de.gz": "vier\n",
    "val_2016.en": "\ufefffour\n",
    "val_2016.fr.xz": "quatre\n",
    "SOURCE.md": "read me",
}
AUDIO = {
    "manifest.tsv": "split\tfile\tseconds\tspeaker\ttext\n"
    'train\ta/1.flac\t0.5\tjo\t"YES\ntrain\t2.flac\t1\tmo\t\n'
    "test\t3.flac\t2\tjo\tNO\n",
    "train.zip": zip_of({"a/": b"", "a/1.flac": b"fLaC\0one", "2.flac": b"fLaC\xfftwo"}),
    "test.zip": zip_of({"3.flac": b"fLaC three"}),
}
CAPTIONS = {
    "manifest.tsv": "split\tfile\ttext\ntrain\t1.jpg\ta cat\ntrain\t2.jpg\ta dog\ntrain\t1.jpg\tçat\n",
    "train.zip": zip_of({"1.jpg": b"one", "2.jpg": b"two"}),
}
LABELLED = {
    "train.tsv.xz": 'label\tid\trating\ttext\n1\t07\t9\tsaid "good\n0\t08\t1\tbad\n',
    "test.tsv.xz": "label\tid\trating\ttext\n1\t09\t10\tfine\n",
}
SERIES = {
    "air-line.csv": '"Month","Passengers"\n"1949-01",112\n"1949-02",118.5\n',
    "ETT.csv.xz": "date,HUFL,OT\n2016-07-01 00:00:00,5.25,-1\n2016-07-01 01:00:00,5.5,2\n2016-07-01 02:00:00,6,1e3\n",
}


def plain(example):
    """Values that `==` compares."""
    return {field: value.tolist() if isinstance(value, np.ndarray) else value for field, value in example.items()}


def test_idx_images(tmp_path, capsys):
    folder_of(tmp_path, IDX)
    train = load("set", "train", data_dir=tmp_path / "data")
    assert [plain(example) for example in train] == [
        {"image": PIXELS[i].tolist(), "label": label} for i, label in enumerate([7, 0, 2])
    ]
    assert (train[0]["image"].dtype, train[0]["label"].dtype) == (np.uint8, np.int32)
    test = load("set", "test", data_dir=tmp_path / "data")
    assert [plain(example) for example in test] == [{"image": (PIXELS[0] + 100).tolist(), "label": 1}]
    assert test.report.examples == {"train": 3, "test": 1}
    assert capsys.readouterr().out == ""


def test_mnist_itself_has_all_its_pictures_or_is_refused(tmp_path):
    folder_of(tmp_path, IDX, "mnist")
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte: expected shape \(10000, 28, 28\), got \(1, 4, 5\)"):
        load("mnist", "train", data_dir=tmp_path / "data")


def test_parallel_text(tmp_path):
    folder_of(tmp_path, TEXT)
    both = load("set", "train", data_dir=tmp_path / "data", languages=("de", "en"))
    # A line separator and a next-line character are text: what ends a line is the line feed, in both files.
    assert list(both) == [
        {"de": "ein Häuschen", "en": "a cottage"},
        {"de": "zwei", "en": "two"},
        {"de": "\u2028 drei\x85", "en": "three"},
    ]
    every = load("set", "val_2016", data_dir=tmp_path / "data")
    assert list(every) == [{"de": "vier", "en": "four", "fr": "quatre"}]
    assert every.report.examples == {"train": 3, "val_2016": 1}
    assert every.report.findings == {}


def test_a_manifest_with_a_zip_a_split(tmp_path):
    folder_of(tmp_path, AUDIO)
    train = load("set", "train", data_dir=tmp_path / "data")
    assert [plain(example) for example in train] == [
        {"audio": b"fLaC\0one", "file": "a/1.flac", "seconds": 0.5, "speaker": "jo", "text": '"YES'},
        {"audio": b"fLaC\xfftwo", "file": "2.flac", "seconds": 1.0, "speaker": "mo", "text": ""},
    ]
    assert [example["text"] for example in load("set", "test", data_dir=tmp_path / "data")] == ["NO"]


def test_a_manifest_with_its_files_beside_it(tmp_path):
    loose = {"a/1.flac": b"fLaC\0one", "2.flac": b"fLaC\xfftwo", "4.flac": b"no line names it"}
    folder_of(tmp_path, with_(AUDIO, train__zip=None))
    for name, content in loose.items():
        path = tmp_path / "data" / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    beside = load("set", "train", data_dir=tmp_path / "data")
    folder_of(tmp_path / "zipped", AUDIO)
    zipped = load("set", "train", data_dir=tmp_path / "zipped" / "data")
    assert [plain(example) for example in beside] == [plain(example) for example in zipped]
    assert [example["text"] for example in load("set", "test", data_dir=tmp_path / "data")] == ["NO"]  # of a zip
    # Their bytes are in the fingerprint, those of other files are not.
    (tmp_path / "data" / "set" / "4.flac").write_bytes(b"changed")
    assert load("set", "train", data_dir=tmp_path / "data").fingerprint == beside.fingerprint
    (tmp_path / "data" / "set" / "a" / "1.flac").write_bytes(b"fLaC new")
    again = load("set", "train", data_dir=tmp_path / "data")
    assert again.fingerprint != beside.fingerprint
    assert again[0]["audio"] == b"fLaC new"
    # What lies elsewhere is not read, and so is not there.
    manifest = tmp_path / "data" / "set" / "manifest.tsv"
    (tmp_path / "data" / "2.flac").write_bytes(b"fLaC elsewhere")
    for elsewhere in ("../2.flac", str(tmp_path / "data" / "2.flac")):
        manifest.write_text(AUDIO["manifest.tsv"].replace("2.flac", elsewhere))
        with pytest.raises(ValueError, match=r"manifest.tsv:3: expected '.*2.flac' in the folder of the manifest, found none"):
            load("set", "train", data_dir=tmp_path / "data")
    manifest.write_text(AUDIO["manifest.tsv"])
    (tmp_path / "data" / "set" / "2.flac").unlink()
    with pytest.raises(ValueError, match=r"manifest.tsv:3: expected '2.flac' in the folder of the manifest, found none"):
        load("set", "train", data_dir=tmp_path / "data")


def test_a_file_of_several_lines_is_one_example(tmp_path):
    folder_of(tmp_path, CAPTIONS)
    got = load("set", "train", data_dir=tmp_path / "data")
    assert [plain(example) for example in got] == [
        {"image": b"one", "file": "1.jpg", "text": ["a cat", "çat"]},
        {"image": b"two", "file": "2.jpg", "text": ["a dog"]},
    ]


def test_labelled_text(tmp_path):
    folder_of(tmp_path, LABELLED)
    assert [plain(example) for example in load("set", "train", data_dir=tmp_path / "data")] == [
        {"label": 1, "id": "07", "rating": 9, "text": 'said "good'},
        {"label": 0, "id": "08", "rating": 1, "text": "bad"},
    ]


def test_csv_series(tmp_path):
    folder_of(tmp_path, SERIES)
    ett = load("set", "ETT", data_dir=tmp_path / "data")
    assert [plain(example) for example in ett][::2] == [
        {"date": "2016-07-01 00:00:00", "values": [5.25, -1]},
        {"date": "2016-07-01 02:00:00", "values": [6, 1000]},
    ]
    assert ett[0]["values"].dtype == np.float32
    assert ett.report.columns == {"ETT": ["HUFL", "OT"], "air-line": ["Passengers"]}
    line = load("set", "air-line", data_dir=tmp_path / "data")
    assert [plain(example) for example in line] == [
        {"date": "1949-01", "values": [112]},
        {"date": "1949-02", "values": [118.5]},
    ]
    assert load("set", "ETT[1:]", data_dir=tmp_path / "data")[0]["date"] == "2016-07-01 01:00:00"


# What is wrong is named ----------------------------------------------------------------------------------------------------


def with_(files, **changed):
    """The files with some changed or left out (None); the names have their dots as __ and their minus signs as ___."""
    named = {name.replace("___", "-").replace("__", "."): content for name, content in changed.items()}
    return {name: content for name, content in {**files, **named}.items() if content is not None}


def damaged(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


MANIFEST = AUDIO["manifest.tsv"]
REFUSED = {
    "idx: labels missing": (
        with_(IDX, t10k___labels___idx1___ubyte=None),
        "expected images and labels of 't10k', got only t10k-images-idx3-ubyte",
    ),
    "idx: counts": (
        with_(IDX, t10k___labels___idx1___ubyte=idx_of(np.arange(2))),
        r"t10k-labels-idx1-ubyte: expected 1 integers, as many as t10k-images-idx3-ubyte has pictures, got uint8 \[2\]",
    ),
    "idx: no pictures": (
        with_(IDX, t10k___images___idx3___ubyte=idx_of(np.arange(4))),
        r"t10k-images-idx3-ubyte: expected uint8 \[N, H, W\], got uint8 \[4\]",
    ),
    "idx: two shapes": (
        with_(IDX, t10k___images___idx3___ubyte=idx_of(PIXELS[:1, :2])),
        r"expected pictures of one shape, got \[\(2, 5\), \(4, 5\)\]",
    ),
    "idx: damaged": (
        with_(IDX, train___images___idx3___ubyte__gz=IDX["train-images-idx3-ubyte.gz"][:-9]),
        "train-images-idx3-ubyte.gz: damaged gzip file",
    ),
    "text: counts": (
        with_(TEXT, train__en="one\ntwo\n"),
        "expected the same number of lines in each language, got train.de.gz 3, train.en 2, train.fr.xz 3",
    ),
    "text: language missing": (
        with_(TEXT, val_2016__en=None),
        "expected val_2016.en, plain, .gz or .xz, to go with val_2016.de.gz, found none",
    ),
    "text: a split of one language": (with_(TEXT, new__fr="un\n"), "expected new.de, plain, .gz or .xz, to go with new.fr"),
    "text: not UTF-8": (
        with_(TEXT, train__en=b"a\nb\nc\xe4d\n"),
        "train.en:3: expected UTF-8, got the byte 0xe4 at place 1",
    ),
    "text: gzip cut": (
        with_(TEXT, train__de__gz=packed("a.gz", "ein\nzwei\ndrei\n")[:-5]),
        r"train.de.gz: damaged gz file, after line \d",
    ),
    "text: gzip that is none": (with_(TEXT, train__de__gz=b"ein\nzwei\ndrei\n"), "train.de.gz: damaged gz file, after line 0"),
    "text: xz damaged": (
        with_(TEXT, train__fr__xz=damaged(packed("a.xz", TEXT["train.fr.xz"]), 30)),
        r"train.fr.xz: damaged xz file, after line \d",
    ),
    "text: nothing in it": (
        with_(TEXT, val_2016__de__gz="", val_2016__en="", val_2016__fr__xz=""),
        "expected examples in the split 'val_2016', found none",
    ),
    "text: a split called all": (
        {"all.de": "x\n", "all.en": "y\n"},
        "expected a split named by letters, digits, _ and -, and not 'all', got 'all'",
    ),
    "manifest: columns": (
        with_(AUDIO, manifest__tsv=MANIFEST + "test\t4.flac\t2\tNO\n"),
        "manifest.tsv:5: expected 5 columns, got 4",
    ),
    "manifest: header": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("file", "path")),
        r"manifest.tsv:1: expected a header of different names, split, file among them, got \['split', 'path'",
    ),
    "manifest: header twice": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("speaker", "text")),
        "manifest.tsv:1: expected a header of different names",
    ),
    "manifest: empty": (
        with_(AUDIO, manifest__tsv=""),
        "manifest.tsv: expected a header and rows, got an empty file",
    ),
    "manifest: only a header": (
        with_(AUDIO, manifest__tsv="split\tfile\n"),
        "manifest.tsv: expected lines after the header, found none",
    ),
    "manifest: number": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("\t2\tjo", "\tnan\tjo")),
        "manifest.tsv:4: expected a finite number that float32 holds in column 'seconds', got 'nan'",
    ),
    "manifest: number beyond float32": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("\t2\tjo", "\t1e39\tjo")),
        "manifest.tsv:4: expected a finite number that float32 holds in column 'seconds', got '1e39'",
    ),
    "manifest: label beyond int32": (
        with_(CAPTIONS, manifest__tsv="split\tfile\tlabel\ntrain\t1.jpg\t1\ntrain\t2.jpg\t-2147483649\n"),
        "manifest.tsv:3: expected an integer that int32 holds in column 'label', got '-2147483649'",
    ),
    "manifest: file missing": (
        with_(AUDIO, train__zip=zip_of({"a/1.flac": b"one"})),
        "manifest.tsv:3: expected '2.flac' in train.zip, found none",
    ),
    "manifest: zip missing": (
        with_(AUDIO, test__zip=None),
        "manifest.tsv:4: expected test.zip for the split 'test', or its files beside the manifest, found neither",
    ),
    "manifest: zip of no split": (
        with_(AUDIO, extra__zip=zip_of({"4.flac": b"four"})),
        "manifest.tsv: expected lines of the split 'extra', for there is extra.zip; found none",
    ),
    "manifest: zip cut": (with_(AUDIO, test__zip=AUDIO["test.zip"][:-9]), "test.zip: damaged zip file"),
    "manifest: member damaged": (
        with_(AUDIO, test__zip=damaged(AUDIO["test.zip"], AUDIO["test.zip"].index(b"three"))),
        "test.zip: damaged zip file, at '3.flac' .*CRC",
    ),
    "manifest: empty member": (
        with_(AUDIO, test__zip=zip_of({"3.flac": b""})),
        "test.zip: expected '3.flac' to hold something, got an empty file",
    ),
    "manifest: one file in two splits": (
        with_(AUDIO, test__zip=zip_of({"3.flac": b"fLaC\0one"})),
        "manifest.tsv:4: expected each file in one split, got '3.flac' in 'test' with the bytes of 'a/1.flac' in 'train'",
    ),
    "manifest: unknown kind": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("2.flac", "2.doc")),
        r"expected files of one kind, images or audio .*, got \['.doc', '.flac'\]",
    ),
    "manifest: two kinds": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("2.flac", "2.png")),
        r"expected files of one kind, images or audio .*, got \['.flac', '.png'\]",
    ),
    "manifest: a column named as the bytes": (
        with_(AUDIO, manifest__tsv=MANIFEST.replace("speaker", "audio")),
        "manifest.tsv:1: expected no column 'audio'",
    ),
    "labelled: columns": (
        with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n1\t3\t4\tx\n1\t3\t4\tx\ty\n"),
        "test.tsv.xz:3: expected 4 columns, got 5",
    ),
    "labelled: label": (
        with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n1.0\t3\t4\tx\n"),
        "test.tsv.xz:2: expected an integer that int32 holds in column 'label', got '1.0'",
    ),
    "labelled: label with a line between its digits": (
        with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n1_0\t3\t4\tx\n"),
        "test.tsv.xz:2: expected an integer that int32 holds in column 'label', got '1_0'",
    ),
    "labelled: label in digits of another script": (
        with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n\u0663\t3\t4\tx\n"),
        "test.tsv.xz:2: expected an integer that int32 holds in column 'label', got '\u0663'",
    ),
    "labelled: label beyond int32": (
        with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n1\t3\t4\tx\n2147483648\t3\t4\tx\n"),
        "test.tsv.xz:3: expected an integer that int32 holds in column 'label', got '2147483648'",
    ),
    "labelled: label beyond any": (
        with_(LABELLED, test__tsv__xz=f"label\tid\trating\ttext\n1\t3\t{'9' * 400}\tx\n"),
        "test.tsv.xz:2: expected an integer that int32 holds in column 'rating', got '999",
    ),
    "labelled: no text": (
        {"train.tsv": "label\tid\n1\t2\n"},
        r"train.tsv:1: expected a header of different names, label, text among them, got \['label', 'id'\]",
    ),
    "labelled: other columns": (
        with_(LABELLED, test__tsv__xz="label\ttext\n1\tx\n"),
        r"(test|train).tsv.xz:1: expected the columns of the other splits",
    ),
    "labelled: two files of a split": (
        with_(LABELLED, test__tsv="label\ttext\n1\tx\n"),
        "expected one file for 'test', got test.tsv and test.tsv.xz",
    ),
    "csv: columns": (
        with_(SERIES, air___line__csv="m,p\n1949-01,1\n1949-02,1,2\n"),
        "air-line.csv:3: expected 2 columns, got 3",
    ),
    "csv: number": (
        with_(SERIES, air___line__csv="m,p\n1949-01,?\n"),
        r"air-line.csv:2: expected a finite number that float32 holds in column 'p', got '\?'",
    ),
    "csv: number beyond float32": (
        with_(SERIES, air___line__csv="m,p,q\n1949-01,1,2\n1949-02,3.4028235e38,-3.4028236e38\n"),
        "air-line.csv:3: expected a finite number that float32 holds in column 'q', got '-3.4028236e38'",
    ),
    "csv: date": (
        with_(SERIES, air___line__csv="m,p\n01/02/1949,1\n"),
        "air-line.csv:2: expected an ISO date such as .*, got '01/02/1949'",
    ),
    "csv: order": (
        with_(SERIES, air___line__csv="m,p\n1949-02,1\n1949-02,2\n"),
        "air-line.csv:3: expected a date after 1949-02, got 1949-02",
    ),
    "csv: header": (with_(SERIES, air___line__csv="m\n1949-02\n"), r"air-line.csv:1: expected the names of .*, got \['m'\]"),
    "csv: empty": (with_(SERIES, air___line__csv=""), r"air-line.csv:1: expected the names of .*, got \[\]"),
    "two formats": ({**SERIES, **LABELLED}, "expected files of one format, got those of labelled text and csv series"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_and_leaves_nothing_behind(tmp_path, case):
    files, message = REFUSED[case]
    folder_of(tmp_path, files)
    with pytest.raises(ValueError, match=message) as caught:
        load("set", "train", data_dir=tmp_path / "data")
    assert not str(caught.value).startswith("Failed")  # TFDS's own words would come first
    assert not [path.name for path in tmp_path.glob("cache/s2s_jax/*") if path.suffix != ".lock"]


def test_equal_text_in_two_splits_is_counted_and_told(tmp_path, caplog):
    again = with_(TEXT, val_2016__de__gz="zwei\nvier\nzwei\n", val_2016__en="two\nfour\n2\n", val_2016__fr__xz="deux\n\nx\n")
    folder_of(tmp_path, again)
    report = load("set", "train", data_dir=tmp_path / "data").report
    assert report.findings == {
        "the same text in two splits": {"count": 1, "first": ["train.de.gz:2 and val_2016.de.gz:1"]},
        "lines with an empty side": {"count": 1, "first": ["val_2016.de.gz:2"]},
    }
    assert "the same text in two splits: 1, first train.de.gz:2 and val_2016.de.gz:1" in caplog.text
    # What was found is kept with what was prepared.
    assert load("set", "val_2016", data_dir=tmp_path / "data").report.findings == report.findings


def test_equal_labelled_texts_and_pictures_are_counted(tmp_path):
    folder_of(tmp_path, with_(LABELLED, test__tsv__xz="label\tid\trating\ttext\n0\t1\t1\tbad\n0\t1\t1\tbad\n"), "texts")
    found = load("texts", "test", data_dir=tmp_path / "data").report.findings["the same text in two splits"]
    assert found == {"count": 1, "first": ["test.tsv.xz:2 and train.tsv.xz:3"]}
    folder_of(tmp_path, with_(IDX, t10k___images___idx3___ubyte=idx_of(PIXELS[2:])), "pictures")
    found = load("pictures", "test", data_dir=tmp_path / "data").report.findings["the same picture in two splits"]
    assert found == {"count": 1, "first": ["test 0 and train 2"]}


def test_files_that_look_odd_are_counted(tmp_path):
    files = {
        "manifest.tsv": "split\tfile\ntrain\t1.png\ntrain\t2.png\ntest\t1.png\n",
        "train.zip": zip_of({"1.png": b"one", "2.png": b"one"}),
        "test.zip": zip_of({"1.png": b"two", "3.png": b"three"}),
    }
    folder_of(tmp_path, files)
    assert load("set", "train", data_dir=tmp_path / "data").report.findings == {
        "files in a zip that no line of the manifest names": {"count": 1, "first": ["test.zip: 3.png"]},
        "files of equal bytes in one split": {"count": 1, "first": ["train: 1.png and 2.png"]},
        "different files of one name in two splits": {"count": 1, "first": ["1.png in train and test"]},
    }


def test_integers_that_float32_rounds_are_counted(tmp_path):
    # 2^24 + 1 is the first; 9007199254740993 is 2^53 + 1, which float64 rounds first; a power of ten is no count of anything.
    numbers = "16777216,16777217,16777218.0,-16777219.0,9007199254740993,9007199254740992,16777217.5,1e30,0.1"
    names = "abcdefghi"
    folder_of(tmp_path, {"air.csv": f"m,{','.join(names)}\n1949-01,{numbers}\n1949-02,{numbers}\n"})
    source = load("set", "air", data_dir=tmp_path / "data")
    places = [f"air.csv:{line} '{name}'" for line in (2, 3) for name in "bde"]
    assert source.report.findings == {
        "numbers that float32 rounds to another integer": {"count": 6, "first": places[:5]},
    }
    np.testing.assert_array_equal(source[0]["values"], np.array(numbers.split(","), np.float64).astype(np.float32))


def test_the_ends_of_int32_and_float32_are_kept(tmp_path):
    folder_of(tmp_path, {"train.tsv": "label\ttext\n2147483647\ta\n-2147483648\tb\n"}, "texts")
    texts = load("texts", "train", data_dir=tmp_path / "data")
    assert [int(example["label"]) for example in texts] == [2**31 - 1, -(2**31)]
    folder_of(tmp_path, {"air.csv": "m,p,q\n1949-01,3.4028235e38,-3.4028235677e38\n"}, "series")
    greatest = float(np.finfo(np.float32).max)
    assert load("series", "air", data_dir=tmp_path / "data")[0]["values"].tolist() == [greatest, -greatest]


@pytest.mark.parametrize("languages", [("de",), ("de", "de"), ("de", "nl"), ()])
def test_languages_that_are_not_there_are_refused(tmp_path, languages):
    folder_of(tmp_path, TEXT)
    with pytest.raises(ValueError, match=r"languages: expected two or more of \['de', 'en', 'fr'\], got \["):
        load("set", "train", data_dir=tmp_path / "data", languages=languages)


def test_options_and_splits_that_are_not_there_are_refused(tmp_path):
    folder_of(tmp_path, SERIES)
    with pytest.raises(ValueError, match=r"options: expected some of \[\] for csv series, got \['languages'\]"):
        load("set", "ETT", data_dir=tmp_path / "data", languages=("de", "en"))
    with pytest.raises(ValueError, match=r"split: expected one or a slice of \['ETT', 'air-line'\] of set, got 'train'"):
        load("set", "train", data_dir=tmp_path / "data")


# Where it is looked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_variable", [False, True], ids=["argument", "variable"])
@pytest.mark.parametrize("nested", [False, True], ids=["itself", "in it"])
def test_finds_the_folder(tmp_path, monkeypatch, by_variable, nested):
    folder = folder_of(tmp_path, SERIES)
    given = folder.parent if nested else folder
    monkeypatch.setenv("S2S_DATA_DIR", str(given if by_variable else tmp_path / "none"))
    assert len(load("set", "ETT", data_dir=None if by_variable else given)) == 3


def test_a_folder_without_the_data_is_an_error(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, {"SOURCE.md": "nothing else"})
    with pytest.raises(
        FileNotFoundError, match=f"data_dir: expected 'other' in .*, in one of these formats: {next(iter(FORMATS))}"
    ):
        load("other", "train", data_dir=folder.parent)
    monkeypatch.setenv("S2S_DATA_DIR", str(folder.parent))
    with pytest.raises(FileNotFoundError, match="expected 'set' in"):  # it is there, so that the catalogue is not meant
        load("set", "train")


@pytest.mark.parametrize("files", [IDX, TEXT, AUDIO, CAPTIONS, LABELLED, SERIES], ids=range(6))
def test_each_folder_shows_one_format(tmp_path, files):
    read = [known.files(sorted(files)) for known in FORMATS.values()]
    assert sorted(filter(None, read)) == [sorted(set(files) - {"SOURCE.md"})]
    assert format_of(folder_of(tmp_path, files)) in FORMATS
    assert format_of(tmp_path) is None
    assert format_of(tmp_path / "none") is None


# Prepared once -------------------------------------------------------------------------------------------------------------


def prepared(tmp_path):
    return sorted(path.name for path in tmp_path.glob("cache/s2s_jax/*") if path.is_dir())


def test_is_prepared_once_for_each_state_of_the_folder_and_each_choice_of_options(tmp_path):
    folder = folder_of(tmp_path, TEXT)
    load("set", "train", data_dir=folder)
    (first,) = prepared(tmp_path)
    stamp = (tmp_path / "cache/s2s_jax" / first / "report.json").stat().st_mtime_ns
    load("set", "val_2016", data_dir=folder)
    assert prepared(tmp_path) == [first]
    assert (tmp_path / "cache/s2s_jax" / first / "report.json").stat().st_mtime_ns == stamp
    load("set", "train", data_dir=folder, languages=("en", "fr"))
    load("set", "train", data_dir=folder, languages=("fr", "en"))
    assert len(prepared(tmp_path)) == 3
    (folder / "train.en").write_text("a\nb\nd\n")
    assert [example["en"] for example in load("set", "train", data_dir=folder)] == ["a", "b", "d"]
    stat = (folder / "train.en").stat()
    (folder / "train.en").write_text("a\nb\ne\n")  # of the same size
    os.utime(folder / "train.en", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [example["en"] for example in load("set", "train", data_dir=folder)] == ["a", "b", "e"]
    stat = (folder / "train.en").stat()
    (folder / "train.en").write_text("a\nb\nf\n")  # of the same size and time
    os.utime(folder / "train.en", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [example["en"] for example in load("set", "train", data_dir=folder)] == ["a", "b", "f"]
    assert len(prepared(tmp_path)) == 6
    # What changes no data prepares nothing: another time, a file that is not read.
    os.utime(folder / "train.en")
    (folder / "SOURCE.md").write_text("read me again")
    load("set", "train", data_dir=folder)
    assert len(prepared(tmp_path)) == 6


def test_folders_of_equal_names_sizes_and_times_are_told_apart(tmp_path):
    folders = [folder_of(tmp_path / which, SERIES) for which in ("one", "two")]
    changed = folders[1] / "air-line.csv"
    changed.write_text(changed.read_text().replace("118.5", "119.5"))
    for path in (path for folder in folders for path in folder.iterdir()):
        os.utime(path, ns=(10**18, 10**18))
    one, two = (load("set", "air-line", data_dir=folder) for folder in folders)
    assert (one[1]["values"].tolist(), two[1]["values"].tolist()) == ([118.5], [119.5])
    assert one.fingerprint != two.fingerprint


def test_the_fingerprint_is_of_content_and_options_and_not_of_the_split_or_the_place(tmp_path):
    one, two = (folder_of(tmp_path / which, TEXT) for which in ("one", "two"))

    def fingerprint(folder, split="train", name="set", **options):
        return load(name, split, data_dir=folder, **options).fingerprint

    same = {fingerprint(one), fingerprint(two), fingerprint(one, "val_2016"), fingerprint(one, "train[1:]")}
    assert len(same) == 1
    assert len(prepared(tmp_path)) == 1
    others = [fingerprint(one, languages=("de", "en")), fingerprint(one, languages=("en", "de")), fingerprint(one, name="one")]
    (two / "val_2016.en").write_text("five\n")
    others.append(fingerprint(two))
    assert len({*same, *others}) == 5


def test_a_file_that_changes_while_it_is_read_is_told_and_nothing_is_kept(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, TEXT)
    read = formats.read_lines

    def changing(path):
        lines = read(path)
        yield next(lines)
        (folder / "train.fr.xz").write_bytes(packed("a.xz", "un\ndeux\ntrois\n"))
        yield from lines

    monkeypatch.setattr(formats, "read_lines", changing)
    with pytest.raises(ValueError, match=r"set: expected files at rest, got train.fr.xz changed while they were read"):
        load("set", "train", data_dir=folder)
    assert prepared(tmp_path) == []
    assert load("set", "train", data_dir=folder)[0]["fr"] == "un"


@pytest.mark.parametrize("name", ["2024 Größe", "a/b-c"])
def test_a_folder_may_have_any_name(tmp_path, name):
    folder_of(tmp_path, SERIES, name)
    source = load(name, "ETT", data_dir=tmp_path / "data")
    assert (len(source), repr(source)) == (3, f"{name}, split ETT")


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, SERIES)
    load("set", "ETT", data_dir=folder, cache_dir=tmp_path / "here")
    assert list((tmp_path / "here").glob("set-*/report.json"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("set", "ETT", data_dir=folder)
    assert list((tmp_path / "home/.cache/s2s_jax").glob("set-*/report.json"))


# A process that prepares slowly: it says when it is in the middle, and how often it began.
SLOW = """
import sys, time
from s2s_jax.data.datasets import formats, load
read = formats.read_lines
def slow(path):
    print("reads", flush=True)
    for line in read(path):
        time.sleep(float(sys.argv[2]))
        yield line
formats.read_lines = slow
source = load("set", "train", data_dir=sys.argv[1])
print(len(source), source[2]["en"], flush=True)
"""


def slow_process(folder, seconds):
    command = [sys.executable, "-c", SLOW, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_prepare_once(tmp_path):
    folder = folder_of(tmp_path, TEXT)
    both = [slow_process(folder, 0.1) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = [out.splitlines() for out, _ in said]
    assert [out[-1] for out in lines] == ["3 three", "3 three"]
    assert sorted(len(out) for out in lines) == [1, 7]  # six files, read by one of the two
    assert len(prepared(tmp_path)) == 1


def test_a_process_killed_half_way_leaves_nothing_that_counts(tmp_path):
    folder = folder_of(tmp_path, TEXT)
    process = slow_process(folder, 30)
    assert process.stdout is not None
    assert process.stdout.readline() == "reads\n"  # and sleeps within the first file
    (partial,) = prepared(tmp_path)
    assert partial.endswith(".partial")
    waiting = slow_process(folder, 0)  # for the lock, which the killed process gives up
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = waiting.communicate(timeout=60)
    assert out.splitlines()[-1] == "3 three", err
    assert prepared(tmp_path) == [partial.removesuffix(".partial")]
    assert not list(tmp_path.glob("cache/**/*incomplete*"))  # as TFDS calls what the killed process had written
    assert len(load("set", "train", data_dir=folder)) == 3


def test_a_damaged_record_is_named(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (200, 40, 50))
    folder = folder_of(
        tmp_path,
        {"train-images-idx3-ubyte": idx_of(random), "train-labels-idx1-ubyte": idx_of(np.arange(200))},
    )
    load("set", "train", data_dir=folder)
    (file,) = tmp_path.glob("cache/s2s_jax/*/*/*/*array_record*")
    raw = file.read_bytes()
    at = raw.index(random[7].astype(np.uint8).tobytes()[100:150])
    file.write_bytes(damaged(raw, at))
    source = load("set", "train", data_dir=folder)
    with pytest.raises(
        ValueError, match=r"set, split train, record 7: damaged \(.*\); it is prepared anew when .*set-\w+ is del"
    ):
        source[7]
    with pytest.raises(ValueError, match="set, split train, record 7: damaged"):
        source.__getitems__([5, 6, 7, 8])
    for number in (0, 199):
        assert source[number]["label"] == number
    batches = Batches(source, 8, seed=None)
    np.testing.assert_array_equal([batch["label"] for batch in batches.iterate(1, 25)], np.arange(8, 200).reshape(-1, 8))
    np.testing.assert_array_equal(batches(3)["image"], random[24:32])
    for read in (lambda: batches(0), lambda: list(batches.iterate(0, 2))):
        with pytest.raises(ValueError, match=r"set, split train, example 7: cannot be read .*record 7: damaged"):
            read()


def test_a_source_is_a_sequence(tmp_path):
    source = load("set", "ETT", data_dir=folder_of(tmp_path, SERIES))
    assert (len(source), source[-1]["date"][-8:], len(list(source))) == (3, "02:00:00", 3)
    for index in (3, -4):
        with pytest.raises(IndexError):
            source[index]
    with pytest.raises(TypeError):
        source[0:2]
    assert [plain(example) for example in source.__getitems__([2, 0])] == [plain(source[2]), plain(source[0])]


# TFDS's catalogue ----------------------------------------------------------------------------------------------------------


def test_other_names_are_tfdss(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("S2S_DATA_DIR", str(tmp_path))
    with tfds.testing.mock_data(num_examples=5):
        images = load("mnist", "train", cache_dir=tmp_path / "tfds")
        texts = load("imdb_reviews", "test", cache_dir=tmp_path / "tfds")
    assert len(images) == len(texts) == 5
    assert images.fingerprint != texts.fingerprint
    assert (images[3]["image"].shape, images[3]["image"].dtype, images[3]["label"].shape) == ((28, 28, 1), np.uint8, ())
    assert isinstance(texts[0]["text"], str)
    assert texts[0]["label"].dtype == np.int64


def test_a_set_of_the_catalogue_is_prepared_and_read_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class S2sJaxTestTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        __module__ = "catalogue"  # with a dot in it, TFDS imports importlib_resources

        def _info(self):
            label = tfds.features.ClassLabel(names=["bad", "good"])
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(20):
                yield number, {"text": f"Nº {number}", "label": ["bad", "good"][number % 2]}

    source = load("s2s_jax_test_texts", "train[:50%]", cache_dir=tmp_path)
    assert len(source) == 10
    assert (source.splits, source.classes) == (("train",), {"label": ("bad", "good")})
    for example in source:
        assert example["label"] == int(example["text"].removeprefix("Nº ")) % 2
    assert "tensorflow" not in sys.modules


def test_a_name_that_nobody_knows_is_refused():
    with pytest.raises(
        ValueError,
        match=r"name: expected a folder of that name or a data set of TFDS's catalogue, got 'nobodys'; .* in --data-dir",
    ):
        load("nobodys", "train")


def test_no_tensorflow_and_nothing_heavy_before_it_is_used(tmp_path):
    folder = folder_of(tmp_path, AUDIO)
    code = f"""
import json, sys
from s2s_jax.data import datasets
before = sorted(sys.modules)
source = datasets.load("set", "train", data_dir={str(folder)!r})
source[0]
print(json.dumps([before, sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    before, after = json.loads(done.stdout)
    assert not {"tensorflow_datasets", "grain", "array_record"} & set(before)
    assert "tensorflow_datasets" in after
    assert "tensorflow" not in after
