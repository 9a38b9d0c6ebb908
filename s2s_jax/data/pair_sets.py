"""Which pairs of texts, cut into which symbols, in which batches: flags that experiments on pairs share, and what they name."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from s2s_jax.data import moses, number_words, toy_pairs
from s2s_jax.data.buckets import field_buckets, with_room_for
from s2s_jax.data.own_files import name_own_files
from s2s_jax.data.parallel import BadLines, EncodedPairs, Pairs, encode_pairs, joined, load_pairs, read_pairs
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.subwords import Subwords
from s2s_jax.data.tokenizers import Tokenizers, fit_tokenizers

TOYS = {"reverse": toy_pairs.reversed_integers, "copy": toy_pairs.copied_digits, "sort": toy_pairs.sorted_digits}
WAYS = 16  # in which each training text is cut with `subword_dropout`
VALIDATION = {"multi30k": "val"}  # what its folder calls that split


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPairPaths:
    """Flags that say where the splits are, all of one's own."""

    train_source: Path | None = None
    """One text a line, plain, .gz or .xz."""
    train_target: Path | None = None
    """Its translations, line by line."""
    validation_source: Path | None = None
    """The same for validation."""
    validation_target: Path | None = None
    """The same for validation."""
    test_source: Path | None = None
    """The same for the test."""
    test_target: Path | None = None
    """The same for the test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairPaths(OwnPairPaths):
    """Flags that say where pairs are."""

    more_source: Path | None = None
    """Further sources to train on, one a line, plain, .gz or .xz."""
    more_target: Path | None = None
    """Their translations, line by line: those of other models, say (arXiv 1606.07947)."""


PATHS = tuple(field.name for field in dataclasses.fields(PairPaths))
_OWN_PATHS = tuple(field.name for field in dataclasses.fields(OwnPairPaths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFlags(PairPaths):
    """Flags of an experiment whose examples are pairs of texts."""

    dataset: str = "numbers"
    """numbers, reverse, copy, sort; a folder of line-aligned text such as multi30k, or a name of TFDS's catalogue such as
    ted_hrlr_translate/pt_to_en; or files, which the flags of files name, and which goes without saying with those."""
    source: str | None = None
    """Language of the sources; if not given en, and unknown of files."""
    target: str | None = None
    """Language of the targets; if not given de, and unknown of files."""
    bad_lines: BadLines = "error"
    """Lines that are empty, not UTF-8 or too long: stop, or leave them out and count them."""
    max_characters: int | None = None
    """Longest line."""
    longest: int | None = None
    """Reverse, copy and sort: most symbols of a source; if not given as published."""
    symbols: Literal["subwords", "words", "characters", "bytes"] | None = None
    """What texts are cut into; if not given words of reverse, copy and sort, which have too few for sub-words, and those of all
    else."""
    method: Literal["bpe", "unigram"] = "bpe"
    """How sub-words are chosen."""
    vocabulary_size: int = 400
    """Sub-words or words, of each side or of both together."""
    subword_dropout: float = 0.0
    """Rate at which merges of bpe are left out in training, so that texts are cut in many ways; 0.05 is much."""
    joint: bool = True
    """One vocabulary, and one embedding, for both sides."""
    lowercase: bool = False
    """Lower-case all texts."""
    tokens: int = 1500
    """Rows of a batch times its longer side, at most."""
    shapes: int = 10
    """Shapes of batches."""

    def __post_init__(self) -> None:
        name_own_files(self, _OWN_PATHS)
        if self.symbols is None:
            object.__setattr__(self, "symbols", "words" if self.dataset in TOYS else "subwords")
        if (self.more_source is None) != (self.more_target is None):
            raise ValueError("more_source, more_target: expected both or none, got one")
        if self.subword_dropout and (self.symbols, self.method) != ("subwords", "bpe"):
            expected = "it with --symbols subwords --method bpe"
            raise ValueError(f"subword_dropout: expected {expected}, got it with {self.symbols} and {self.method}")
        if not 0 <= self.subword_dropout <= 1:
            raise ValueError(f"subword_dropout: expected 0 to 1, got {self.subword_dropout}")
        getattr(super(), "__post_init__", lambda: None)()  # of the other flags of an experiment

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """Of sources and targets; None where it is not known, or none at all."""
        if self.dataset in TOYS:
            return None, None
        first, second = (None, None) if self.dataset == "files" else ("en", "de")
        return self.source or first, self.target or second

    @property
    def origin(self) -> Literal["real", "drawn", "generated"]:
        """Number words stand in for real sentences; the toy tasks are drawn by the rules that they are."""
        if self.dataset in TOYS:
            return "drawn"
        return "generated" if self.dataset == "numbers" else "real"


def load_split(flags: PairFlags, split: Any, data_dir: str | Path | None = None) -> Pairs:
    """The pairs "train", "validation" or "test" (of a folder: any split) of the data set; to "train" come further ones.

    Raises:
      ValueError, FileNotFoundError: flags that name no data; see `load_pairs` and `read_pairs`.
    """
    pairs = _named_split(flags, split, data_dir)
    if split == "train" and flags.more_source is not None and flags.more_target is not None:
        pairs = joined(pairs, _read_named(flags, "more_source", "more_target", split))
    return pairs


def _read_named(flags: PairFlags, source: str, target: str, split: str) -> Pairs:
    """Pairs of the files that two of the flags name."""
    for name in (source, target):
        path = getattr(flags, name)
        if path is None:
            lacking = [one for one in _OWN_PATHS if getattr(flags, one) is None]
            raise ValueError(f"{', '.join(lacking)}: expected a file for each with --dataset files, got none")
        if not path.is_file():
            raise FileNotFoundError(f"{name}: expected a file, found none at {path.absolute()}")
    checks: dict[str, Any] = {"bad_lines": flags.bad_lines, "max_characters": flags.max_characters}
    return read_pairs(getattr(flags, source), getattr(flags, target), split, **checks)


def _named_split(flags: PairFlags, split: Any, data_dir: str | Path | None) -> Pairs:
    if flags.dataset == "numbers":
        if flags.languages != ("en", "de"):
            raise ValueError("source, target: expected en and de with numbers, got {} and {}".format(*flags.languages))
        return number_words.number_words(split)
    if flags.dataset in TOYS:
        return TOYS[flags.dataset](split, **({} if flags.longest is None else {"longest": flags.longest}))
    if flags.dataset == "files":
        return _read_named(flags, f"{split}_source", f"{split}_target", split)
    if flags.dataset == "multi30k" and not (data_dir or os.environ.get("S2S_DATA_DIR")):
        raise ValueError("data_dir: expected a folder that holds multi30k, got none")
    name = VALIDATION.get(flags.dataset, split) if split == "validation" else split
    languages: Any = flags.languages  # both are known but of toys and files
    checks: dict[str, Any] = {"bad_lines": flags.bad_lines, "max_characters": flags.max_characters}
    return load_pairs(flags.dataset, name, languages=languages, data_dir=data_dir, **checks)


def load_tests(flags: PairFlags, data_dir: str | Path | None = None) -> dict[str, Pairs]:
    """The test splits, by what is put behind the names of their metrics: nothing for the first."""
    names = {"": "test_2016_flickr", "_test_2017_flickr": "test_2017_flickr"} if flags.dataset == "multi30k" else {"": "test"}
    return {suffix: load_split(flags, split, data_dir) for suffix, split in names.items()}


def seen_before(training: Pairs, pairs: Pairs) -> int:
    """How many pairs of another split stand in the training split too, source and target."""
    known = set(zip(training.sources, training.targets, strict=True))
    return sum(pair in known for pair in zip(pairs.sources, pairs.targets, strict=True))


def fit(flags: PairFlags, pairs: Pairs) -> Tokenizers:
    """Tokenizers of both sides, of these pairs."""
    options: dict[str, Any] = {"lowercase": flags.lowercase}
    if flags.symbols in ("subwords", "words"):
        options["size"] = flags.vocabulary_size
    if flags.symbols == "subwords":
        options["method"] = flags.method
    if flags.symbols == "words" and flags.dataset in TOYS:
        options["split"] = "spaces"
    kind: Any = flags.symbols  # one of the four, since flags are made
    return fit_tokenizers(kind, pairs.sources, pairs.targets, joint=flags.joint, languages=flags.languages, **options)


def between_spaces(flags: PairFlags) -> str:
    """With words: for people, which languages' words are what stands between spaces, for want of rules; "" where none are."""
    if flags.symbols != "words" or flags.dataset in TOYS:
        return ""
    without = [code for code in dict.fromkeys(flags.languages) if not moses.cuts_words(moses.base_language(code))]
    told = " and ".join("a language that is not known" if code is None else code for code in without)
    return f"Words of {told} are what stands between spaces: there are no rules that cut its texts." if told else ""


class PairBatches:
    """Splits as numbers, in batches of the shapes of the training split.

    With `subword_dropout` every training pair is there `WAYS` times, cut anew each time, and an epoch goes through all of them.

    Attributes:
      training: the training split, encoded.

    Raises:
      ValueError: a training text of more symbols than a batch may have, which is quoted.
    """

    def __init__(self, flags: PairFlags, tokenizers: Tokenizers, training: Pairs, seed: int):
        self._flags, self._tokenizers = flags, tokenizers
        self.training = self._cut_in_many_ways(training, seed) if flags.subword_dropout else self._encoded(training)
        for side, of_side in self.training.lengths.items():
            longest = int(of_side.argmax()) if len(of_side) else 0
            if len(of_side) and of_side[longest] > flags.tokens:
                text = getattr(training, f"{side}s")[longest % len(training.sources)]
                expected = f"enough for the longest {side}, {of_side[longest]} symbols ({text!r:.60}...)"
                hint = "--max-characters N --bad-lines drop leaves longer ones out"
                raise ValueError(f"tokens: expected {expected}, got {flags.tokens}; {hint}")
        self._buckets = field_buckets(self.training.lengths, flags.shapes)

    def _cut_in_many_ways(self, pairs: Pairs, seed: int) -> EncodedPairs:
        both = [tokenizer for tokenizer in self._tokenizers if isinstance(tokenizer, Subwords)]
        sampled = Tokenizers(*(tokenizer.with_dropout(self._flags.subword_dropout, seed) for tokenizer in both))
        again = pairs._replace(sources=pairs.sources * WAYS, targets=pairs.targets * WAYS)
        return encode_pairs(again, sampled, source_end=True, target_end=True)

    def _encoded(self, pairs: Pairs) -> EncodedPairs:
        return encode_pairs(pairs, self._tokenizers, source_end=True, target_end=True)

    def shuffled(self, seed: int) -> Batches:
        """Of the training split, for training."""
        return self._batches(self.training, seed)

    def in_order(self, pairs: Pairs) -> Batches:
        """Of another split, for an evaluation; of one with a side longer than `tokens` the batches are of more."""
        return self._batches(self._encoded(pairs), None)

    def _batches(self, encoded: EncodedPairs, seed: int | None) -> Batches:
        buckets = with_room_for(self._buckets, encoded.lengths)
        tokens = self._flags.tokens if seed is not None else max(self._flags.tokens, *buckets[-1].values())
        return Batches(encoded, tokens=tokens, seed=seed, lengths=encoded.lengths, buckets=buckets)
