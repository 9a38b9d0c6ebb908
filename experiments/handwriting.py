"""A network learns to read lines of writing: convolutions, a recurrent stack along the columns, then CTC or a decoder.

    python -m experiments.handwriting                     drawn number words, without data: CER 0.1 % in 3 minutes
    python -m experiments.handwriting --dataset froc_mss --data-dir FOLDER --height 48 --unknown-symbols count    manuscripts
    python -m experiments.handwriting --dataset mnist_lines --data-dir FOLDER   lines of digits, where FOLDER holds mnist
    python -m experiments.handwriting --dataset NAME --data-dir FOLDER     a folder NAME of your own: manifest.tsv and pictures
    python -m experiments.handwriting predict line.png                     with the run of the same --name; draws what it read

A folder of your own holds .png or .jpg pictures of single lines, dark on light, and manifest.tsv: tab-separated, with a header
and the columns split (train, val or validation, and, where there is one, test), file and text.

With the flags that stand in RESULTS.md the manuscripts are read with a CER of 5.7 % after 84 minutes on one core (seed 0), and
with a decoder, `--model attention`, of 7.3 % after 61 minutes more than the 52 of the CRNN (seed 2) that gives it its encoder.
Published on froc_mss, same split, no language model: CER 7.83 % (test) and 8.11 % (validation), Kraken (README of
Jean-Baptiste-Camps/FROC-MSS).
CER: insertions, deletions and substitutions over the characters of the references of the whole split, Unicode's form NFD,
spaces counted; `cer_without_spaces` beside it. `cer` is read greedily; `cer_beam` by beam search, with a character n-gram model
of the training texts where `--language-weight` is above 0. WER: the same of words between white space.
"""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from flax import nnx

from s2s_jax import cells, plots, published
from s2s_jax.attention import make_additive
from s2s_jax.bootstrap import bootstrap, interval, length_groups
from s2s_jax.data.augmentation import FADED
from s2s_jax.data.line_sets import LineFlags, load_splits
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.text_lines import (
    EncodedLines,
    LineBatches,
    TextLines,
    describe,
    fit_characters,
    picture_bytes,
    read_picture,
)
from s2s_jax.data.vocabulary import Characters
from s2s_jax.layers import Backbone
from s2s_jax.models.crnn import CRNN, ColumnEncoder, PictureToText
from s2s_jax.models.line_labels import encode_lines, unfit
from s2s_jax.models.line_loss import line_loss
from s2s_jax.models.line_reader import LineRead, LineReader, Reading, lines_per_second, reader_of
from s2s_jax.text_metrics import character_edits, character_error_rate, confusions, word_error_rate
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.config import ScoredSplit
from s2s_jax.training.provenance import describe_device
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(ScoredSplit, Reading):
    """What `evaluate` does."""

    speed: bool = False
    """Also read the validation split in turns, greedily and by the beam, and keep the lines a second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LineFlags, Reading, TrainingConfig):
    steps: int = 600
    model: Literal["crnn", "attention"] = "crnn"
    """CTC over frames, or a decoder with attention that says one symbol after the other."""
    backbone: Literal["vgg", "residual"] = "vgg"
    """Convolutions, plain or with residual links."""
    cell: cells.Name = "lstm"
    """Recurrent cell."""
    hidden_features: int = 128
    """Width of the state, of each direction."""
    num_layers: int = 2
    """Recurrent layers."""
    embedding_features: int = 32
    """Of the decoder with attention: width of the embedded symbols."""
    attention: Literal["general", "location"] = "general"
    """Score of the decoder's attention: by content, or also by where it looked before."""
    label_smoothing: float = 0.0
    """Of the decoder with attention: share of the probability that is spread over all symbols."""
    dropout: float = 0.2
    """On columns, between layers, on their outputs."""
    augment: float = 1.0
    """How strongly training pictures are changed; 0 for not at all."""
    columns: int = 4000
    """Rows of a batch times the columns of its widest picture, at most."""
    shapes: int = 6
    """Shapes of batches."""
    unknown_symbols: Literal["error", "count"] = "error"
    """Characters of validation and test that the training texts lack: stop, or count them (they then count as errors)."""
    unfit_labels: Literal["error", "drop"] = "error"
    """Training texts that need more frames than their picture has: stop, or leave them out and name them."""
    learning_rate: float = 2e-3
    evaluate_every: int = 200

    may_be_zero: ClassVar[tuple[str, ...]] = TrainingConfig.may_be_zero
    places: ClassVar[tuple[str, ...]] = (*TrainingConfig.places, "speed")  # whether it is timed changes nothing that is read
    may_be_negative: ClassVar[tuple[str, ...]] = ("language_bonus",)
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {
        "train": (ScoredSplit,),
        "evaluate": (Scored,),
        "predict": (Reading,),
    }
    fractions: ClassVar[tuple[str, ...]] = ("cer",)
    taken_by: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("attention", "embedding_features", "label_smoothing"), ("attention",)),
        **dict.fromkeys(("language_weight", "lexicon"), ("crnn",)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment >= FADED:
            expected = f"a number from 0 to below {FADED:.2f}, where ink fades to nothing"
            raise ValueError(f"augment: expected {expected}, got {self.augment}")


def build_model(config: Config, characters: Characters) -> CRNN | PictureToText:
    rngs = nnx.Rngs(config.seed)
    backbone = Backbone(config.channels, residual=config.backbone == "residual", dropout=config.dropout / 2, rngs=rngs)
    stack: dict[str, Any] = {
        "cell": cells.BY_NAME[config.cell],
        "num_layers": config.num_layers,
        "dropout": config.dropout,
        "rngs": rngs,
    }
    if config.model == "crnn":
        return CRNN(backbone, config.height, config.hidden_features, len(characters), **stack)
    encoder = ColumnEncoder(backbone, config.height, config.hidden_features, **stack)
    options: dict[str, Any] = {"input_feeding": True, "dropout": config.dropout, "rngs": rngs}
    if config.attention == "location":
        options["attention"] = make_additive(location_filters=10)
    return PictureToText(encoder, len(characters), config.embedding_features, **options)


def train(run: Run[Config]) -> None:
    config = run.config
    lines = load_splits(config, run.flags.split, config.data_dir)
    training = lines["train"]
    if config.origin == "generated":
        run.say("No data set named: trains on drawn number words, whose figures say nothing about handwriting.")
    run.trained_on(training.name, config.origin, training.fingerprint)
    characters = fit_characters(training)
    model = build_model(config, characters)
    encoded = {split: encode(config, model, of_split, characters) for split, of_split in lines.items()}
    for split, of_split in lines.items():
        run.say(describe(of_split))
        if found := encoded[split].findings():
            run.say(found)
    if run.writes:
        save(run, characters, training)
    batches = LineBatches(encoded["train"], columns=config.columns, shapes=config.shapes)
    validated = batches.in_order(encoded["validation"])

    def evaluated(model: Any) -> dict[str, float]:
        read, measured = LineReader(model, characters).measured(validated)
        return {**measured, "cer": character_error_rate([line.text for line in read], lines["validation"].texts).value}

    loss = functools.partial(line_loss, augment=config.augment, label_smoothing=config.label_smoothing)
    trained = train_by_recipe(run, model, loss, batches.shuffled(config.seed), evaluated)
    report(run, trained.model, characters, lines, batches, encoded)


def encode(config: Config, model: CRNN | PictureToText, lines: TextLines, characters: Characters) -> EncodedLines:
    options: dict[str, Any] = {"unknown_symbols": config.unknown_symbols, "unfit_labels": config.unfit_labels}
    return encode_lines(model, lines, characters, **options)


def save(run: Run[Config], characters: Characters, training: TextLines) -> None:
    """What `predict` needs besides the weights: the alphabet, and the texts of language model and lexicon."""
    # As bytes, for text files would turn carriage returns into line feeds.
    (run.folder / "alphabet.txt").write_bytes(characters.alphabet.encode())
    (run.folder / "training_texts.txt").write_bytes("".join(f"{text}\n" for text in training.texts).encode())


def build_reader(run: Run[Config], model: CRNN | PictureToText, characters: Characters) -> LineReader:
    """With the language model and the lexicon that are asked for, of the training texts in the run's folder."""
    texts = (run.folder / "training_texts.txt").read_bytes().decode().split("\n")[:-1]
    return reader_of(run.config, model, characters, texts)


def report(
    run: Run[Config],
    model: CRNN | PictureToText,
    characters: Characters,
    lines: Mapping[str, TextLines],
    batches: LineBatches,
    encoded: Mapping[str, EncodedLines],
    speed: bool = False,
) -> None:
    """Reads the splits, scores them, times that if wanted, draws the figures, and writes result.json."""
    config, reader = run.config, build_reader(run, model, characters)
    metrics: dict[str, float] = {}
    signatures: dict[str, str] = {}
    unread: dict[str, int] = {}
    greedily: list[LineRead] = []
    beams: dict[str, int | None] = {"": None}
    if config.beam_size > 1:
        beams["_beam"] = config.beam_size
    scored = {"_validation": "validation", **({"": "test"} if "test" in lines else {})}
    left_out = {split: unfit(model, encoded[split], lines[split].ids) for split in scored.values()}
    for suffix, split in scored.items():
        in_order, references = batches.in_order(encoded[split]), lines[split].texts
        values: dict[str, float] = {}
        for how, beam_size in beams.items():
            read, measured = reader.measured(in_order, beam_size)
            values["loss"] = measured["loss"]
            texts = [line.text for line in read]
            scores = {
                "cer": character_error_rate(texts, references),
                "cer_without_spaces": character_error_rate(texts, references, spaces=False),
                "wer": word_error_rate(texts, references),
            }
            values |= {f"{name}{how}": score.value for name, score in scores.items()}
            signatures |= {name: score.signature for name, score in scores.items()}
            if run.writes and not run.changed:
                path = run.folder / f"read_{split}{how}.txt"
                path.write_bytes("".join(f"{text}\n" for text in texts).encode())
            unread[f"{split}{how}"] = sum(not line.finished for line in read)
            if not how:
                greedily = read  # of the last split, for the figures
        if left_out[split]["count"]:
            run.say(f"{split}, lines whose texts do not fit their frames, which the loss leaves out: {left_out[split]}")
        metrics |= {f"{name}{suffix}": value for name, value in values.items()}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
        run.say(f"\n{split}, {len(references)} lines ({config.origin}): {told}")
        if cut := {how: count for how, count in unread.items() if count}:
            run.say(f"Lines of which no whole text was found: {cut}")
    last = [*scored.values()][-1]
    confused = confusions([line.text for line in greedily], lines[last].texts).most_common(15)
    told = "\n".join(
        f"  {count:5d}  {wanted or '(nothing)'} read as {said or '(nothing)'}" for (wanted, said), count in confused
    )
    run.say(f"The most frequent confusions in {last}, read greedily:\n{told}")
    timed: dict[str, Any] = {}
    if speed:
        in_turns, timed = time_reading(run, reader, batches.in_order(encoded["validation"]))
        metrics |= in_turns
    plan = batches.shuffled(config.seed)
    usage = plan.usage()
    result = run.finish(
        split=f"{last}, all {len(lines[last].texts)}",
        metrics=metrics,
        published=published.HANDWRITING.get(config.dataset, []),
        examples_per_step=len(encoded["train"]) / plan.steps_per_epoch,
        reads_test="test" in lines,
        parameters=count_parameters(model),
        details={
            "signatures": signatures,
            "alphabet": len(characters.alphabet),
            "padding": round(usage.padding, 4),
            "batch_shapes": len(usage.shapes),
            "unfinished": unread,
            "unknown": {split: dict(of_split.unknown) for split, of_split in encoded.items()},
            "dropped": encoded["train"].dropped,
            "unfit": left_out,
            "confusions": confused,
            **timed,
        },
    )
    if not run.changed:
        draw(run, lines[last], greedily)
    run.say_end(result)


def time_reading(run: Run[Config], reader: LineReader, batches: Batches) -> tuple[dict[str, float], dict[str, Any]]:
    """How fast a plan's lines are read, greedily and by the run's beam, in rounds by turns: metrics, and their details.

    `lines_per_second` and `lines_per_second_beam` are medians of the rounds, network and making batches included, compiling
    not; `beam_slowdown` is the median of how many times longer the beam takes than greedy reading in the same round.
    """
    beam_size, usage = run.config.beam_size, batches.usage()
    beams = {"lines_per_second": None, **({"lines_per_second_beam": beam_size} if beam_size > 1 else {})}
    rounds = dict(zip(beams, lines_per_second(reader, batches, [*beams.values()], usage.examples), strict=True))
    if beam_size > 1:
        rounds["beam_slowdown"] = [greedy / beam for greedy, beam in zip(*rounds.values(), strict=True)]
    device = describe_device()
    for name, values in rounds.items():
        told = f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g} in {len(values)} rounds)"
        run.say(f"{name.replace('_', ' ')} {told} on {device}")
    details = {"split": "validation", "batches": str(usage), "beam_size": beam_size, "rounds": rounds}
    measured_on = dict.fromkeys(rounds, device)
    return {name: statistics.median(values) for name, values in rounds.items()}, {"speed": details, "measured_on": measured_on}


def draw(run: Run[Config], lines: TextLines, read: Sequence[LineRead]) -> None:
    """Learning curve, CER by length, and the first line as it was read."""
    config, texts = run.config, [line.text for line in read]
    title = f"{lines.name}, {config.model}"
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title))
    if len({len(text) for text in lines.texts}) > 1:
        groups = length_groups([len(text) for text in lines.texts])
        values = bootstrap({"cer": character_edits(texts, lines.texts)}, groups)
        by_group = [values["cer", group] for group in groups]
        figure = plots.lines(
            {"CER": [float(value[0]) for value in by_group]},
            {"CER": [interval(value) for value in by_group]},
            list(groups),
            xlabel="characters of the line",
            ylabel="CER, with 95 % interval over lines",
            title=f"{title}: {lines.split}, {len(texts)} lines",
            fractions=True,
        )
        run.figure("cer_by_length", figure)
    run.figure("line", drawn_line(lines.pictures[0], read[0], lines.ids[0]))


def drawn_line(picture: np.ndarray, read: LineRead, name: str) -> Any:
    return plots.read_line(picture.mean(-1).T, list(read.text), read.spans, read.confidences, title=name)


def load(run: Run[Config]) -> tuple[CRNN | PictureToText, Characters]:
    characters = Characters((run.folder / "alphabet.txt").read_bytes().decode())
    model = build_model(run.config, characters)
    checkpoint.load_weights(run.weights, model)
    return model, characters


def evaluate(run: Run[Config]) -> None:
    config = run.config
    lines = load_splits(config, run.flags.split, config.data_dir)
    run.trained_on(lines["train"].name, config.origin, lines["train"].fingerprint)
    model, characters = load(run)
    encoded = {split: encode(config, model, of_split, characters) for split, of_split in lines.items()}
    batches = LineBatches(encoded["train"], columns=config.columns, shapes=config.shapes)
    report(run, model, characters, lines, batches, encoded, speed=run.flags.speed)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """Reads pictures of lines, dark on light; prints text and confidence, and draws what was read where."""
    if not inputs:
        raise ValueError("expected at least one picture of a line")
    config = run.config
    model, characters = load(run)
    reader = build_reader(run, model, characters)
    names, pictures, wrong = [], [], []
    for name in inputs:
        try:
            pictures.append(read_picture(picture_bytes(name), config.height, config.channels))
            names.append(name)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if names:
        encoded = EncodedLines(TextLines("input", "input", pictures, [""] * len(names), names), characters)
        plan = LineBatches(encoded, columns=config.columns, shapes=config.shapes).in_order(encoded)
        read = reader(plan, config.beam_size if config.beam_size > 1 else None)
        for name, picture, line, figure in zip(names, pictures, read, figure_names(names), strict=True):
            print(f"{name}: {line.described()}")
            print(f"  drawn in {run.figure(figure, drawn_line(picture, line, name))}")
    if wrong:
        raise ValueError("\n".join(wrong))


def figure_names(names: Sequence[str]) -> list[str]:
    """A figure's name for each file, after the file's, and different from the others."""
    found: list[str] = []
    for stem in (Path(name).stem for name in names):
        numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        found.append(next(figure for number in numbers if (figure := f"read_{stem}{number}") not in found))
    return found


if __name__ == "__main__":
    main("handwriting", Config, train=train, evaluate=evaluate, predict=predict)
