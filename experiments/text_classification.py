"""A network reads texts byte by byte and learns to name their class: convolutions, recurrence, and both.

    python -m experiments.text_classification          made-up reviews, without data: 87.5 % in 32 s (seed 0, 2 AMD EPYC cores)
    python -m experiments.text_classification --dataset imdb --data-dir FOLDER             reviews, where FOLDER holds imdb
    python -m experiments.text_classification --train-file a.csv --test-file b.csv --label-column kind    texts of your own
    python -m experiments.text_classification predict "What a dull film."    with the run of the same --name; a file will do

`--model`: `cnn_small` and `cnn_large`, the character CNN of Zhang et al.; `vdcnn9`, `vdcnn17` and `vdcnn29`, the very deep one
of Conneau et al. (`--shortcuts`); `recurrent`, an LSTM or GRU over all symbols; `cnn_recurrent`, convolutions and pooling below
it. Zhang et al. read 70 characters; `--symbols characters --vocabulary-size 74 --lowercase` reads the 70 most frequent ones.

Of a text longer than `--max-length` its last symbols are read. Where there is no validation split, 1,000 training texts, a
tenth at most, are for that. Accuracy: share of all texts of the split whose most probable class is right; without duplicates:
of the test texts that neither training nor validation holds. `predict` reads of a table the columns that the run learnt from,
and of any other file each line. It tells the class of every text and, of the first ten, by how much the log odds of
the class fall where parts of the text are hidden, in words and as a picture.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import cells, plots, published
from s2s_jax.data.buckets import power_of_two
from s2s_jax.data.datasets.text_files import texts_named
from s2s_jax.data.labelled_texts import (
    PATHS,
    EncodedTexts,
    TextBatches,
    TextFlags,
    TextPaths,
    TextSplits,
    load_texts,
    texts_of_table,
)
from s2s_jax.data.tokenizers import Tokenizer, characters_of, fit_tokenizer, load_tokenizer
from s2s_jax.data.vocabulary import UNKNOWN
from s2s_jax.files import read_json, write_json
from s2s_jax.losses import classification
from s2s_jax.metrics import Mean
from s2s_jax.models.character_networks import CharacterCNN, CharacterCRNN, SequenceStage, VeryDeepCNN
from s2s_jax.models.classifier import TextClassifier
from s2s_jax.models.occlusion import occlusion
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.config import ScoredSplit
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

MARKED = 10  # texts of which `predict` tells and draws which symbols mattered: that asks the network hundreds of times each
RECURRENT = ("recurrent", "cnn_recurrent")
# Which networks take which flags; the others take none of them.
TAKEN_BY = {
    "shortcuts": ("vdcnn9", "vdcnn17", "vdcnn29"),
    "embedding_features": ("vdcnn9", "vdcnn17", "vdcnn29", *RECURRENT),
    "features": ("cnn_small", "cnn_large", "vdcnn9", "vdcnn17", "vdcnn29", "cnn_recurrent"),
    **dict.fromkeys(("cell", "num_layers", "bidirectional", "pooling"), RECURRENT),
}
# What stands for a 0 of features and hidden features, and for no dropout, as published where it is.
SIZES = {"cnn_small": (256, 1024), "cnn_large": (1024, 2048), "recurrent": (0, 128), "cnn_recurrent": (128, 128)}
DROPOUT = {"cnn_small": 0.5, "cnn_large": 0.5, "recurrent": 0.2, "cnn_recurrent": 0.2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextFlags, TrainingConfig):
    steps: int = 400
    model: Literal["cnn_small", "cnn_large", "vdcnn9", "vdcnn17", "vdcnn29", "recurrent", "cnn_recurrent"] = "cnn_recurrent"
    """Which network reads."""
    symbols: Literal["bytes", "characters"] = "bytes"
    """What texts are cut into."""
    vocabulary_size: int = 0
    """Of characters the most frequent ones, four special symbols among them; 0 for all of the training texts."""
    lowercase: bool = False
    """Lower-case all texts."""
    max_length: int = 1014
    """Symbols of a text that are read, its last ones."""
    shortcuts: bool = False
    """Very deep: links around its blocks."""
    cell: cells.Name = "lstm"
    """Recurrent cell."""
    embedding_features: int = 16
    """Width of the embedded symbols."""
    features: int = 0
    """Width of the convolutions, of a very deep network of its first; 0 for the published one, or 128."""
    hidden_features: int = 0
    """Width of the state, of each direction, or of the dense layers; 0 for the published one, or 128."""
    num_layers: int = 1
    """Recurrent layers."""
    bidirectional: bool = True
    """Read in both directions."""
    pooling: Literal["last", "mean", "max"] = "mean"
    """What is taken of the recurrent outputs."""
    dropout: float | None = None
    """Recurrent: on what it reads, between layers and on what is pooled; convolutions alone: between dense layers. If not given
    0.2, or as published: 0.5 of the character CNN, none of the very deep one."""
    batch_size: int = 32
    """Texts in a step."""
    shapes: int = 6
    """Shapes of batches."""
    learning_rate: float = 2e-3
    evaluate_every: int = 100
    goal: str | None = "max:accuracy"

    may_be_zero: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.may_be_zero,
        *("vocabulary_size", "features", "hidden_features"),
    )
    places: ClassVar[tuple[str, ...]] = (*TrainingConfig.places, *PATHS)
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {"train": (ScoredSplit,), "evaluate": (ScoredSplit, TextPaths)}
    fractions: ClassVar[tuple[str, ...]] = ("accuracy",)
    taken_by: ClassVar[Mapping[str, tuple[str, ...]]] = TAKEN_BY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary_size and self.symbols != "characters":
            raise ValueError(f"vocabulary_size: expected it with --symbols characters, got it with {self.symbols}")
        if 0 < self.vocabulary_size < UNKNOWN + 2:
            raise ValueError(f"vocabulary_size: expected at least {UNKNOWN + 2}, got {self.vocabulary_size}")


def build_tokenizer(config: Config, texts: Sequence[str]) -> Tokenizer:
    options: dict[str, Any] = {"lowercase": config.lowercase}
    if config.vocabulary_size:
        options["size"] = config.vocabulary_size
    return fit_tokenizer(config.symbols, texts, **options)


def build_model(config: Config, vocabulary_size: int, classes: int) -> Any:
    name = config.model
    own = SIZES.get(name, (64, 2048))
    features, hidden = config.features or own[0], config.hidden_features or own[1]
    dropout = DROPOUT.get(name, 0.0) if config.dropout is None else config.dropout
    options: dict[str, Any] = {"hidden_features": hidden, "dropout": dropout, "rngs": nnx.Rngs(config.seed)}
    if name in ("cnn_small", "cnn_large"):
        options |= {"features": features, "stddev": 0.05 if name == "cnn_small" else 0.02, "max_length": config.max_length}
        return CharacterCNN(vocabulary_size, classes, **options)
    options["embedding_features"] = config.embedding_features
    if name.startswith("vdcnn"):
        options |= {"width": features, "depth": int(name.removeprefix("vdcnn")), "shortcuts": config.shortcuts}
        return VeryDeepCNN(vocabulary_size, classes, **options)
    options |= {field: getattr(config, field) for field in ("num_layers", "bidirectional", "pooling")}
    options["cell"] = cells.BY_NAME[config.cell]
    if name == "recurrent":
        return TextClassifier(vocabulary_size, classes, **options)
    return CharacterCRNN(vocabulary_size, classes, stages=[SequenceStage(features, size) for size in (5, 5, 3)], **options)


def class_logits(model: Any, batch: Mapping[str, Any], *, training: bool = False, key: jax.Array | None = None) -> jax.Array:
    options = {} if isinstance(model, TextClassifier) else {"training": training}  # recurrence alone has no batch norm
    return model(batch["tokens"], batch["tokens_lengths"], key=key, **options)


def loss(model: Any, batch: Mapping[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    told = classification(class_logits(model, batch, training=True, key=key), batch["label"], batch["mask"])
    return told["loss"].loss(), told


def measure(model: Any, batch: Mapping[str, Any]) -> dict[str, Mean]:
    return classification(class_logits(model, batch), batch["label"], batch["mask"])


def encode(config: Config, texts: TextSplits, tokenizer: Tokenizer) -> dict[str, EncodedTexts]:
    """The splits, and as "duplicates" the test texts that training or validation holds too."""
    unknown = UNKNOWN if config.symbols == "characters" else None  # no byte is unknown
    splits = texts.splits | {"duplicates": texts.known_of_test()}
    return {split: EncodedTexts(some, tokenizer, config.max_length, unknown) for split, some in splits.items()}


def train(run: Run[Config]) -> None:
    config = run.config
    texts = load_texts(config, config.data_dir)
    if config.origin == "generated":
        run.say("No data set named: trains on made-up reviews, whose figures say nothing about real texts.")
    run.trained_on(texts.name, config.origin, texts.fingerprint)
    run.say(f"{texts.name}: {texts.report}; classes {', '.join(texts.classes)}")
    tokenizer = build_tokenizer(config, texts.splits["train"].texts)
    encoded = encode(config, texts, tokenizer)
    for split in texts.splits:
        run.say(f"{split}: {encoded[split].describe()}")
    model = build_model(config, len(tokenizer), len(texts.classes))
    if run.writes:
        tokenizer.save(run.folder / "tokenizer.json")
        write_json(run.folder / "classes.json", texts.classes)
    batches = TextBatches(encoded["train"], config.batch_size, config.shapes)
    measure_over, validated = make_measure(measure), batches.in_order(encoded["validation"])
    trained = train_by_recipe(
        run,
        model,
        loss,
        batches.shuffled(config.seed),
        lambda model: measure_over(model, validated),
    )
    report(run, trained.model, texts, encoded, batches)


def report(
    run: Run[Config],
    model: Any,
    texts: TextSplits,
    encoded: Mapping[str, EncodedTexts],
    batches: TextBatches,
) -> None:
    """Scores the splits, draws the figures, and writes result.json."""
    splits = run.flags.splits
    run.scores({split: texts.fingerprint_of(split) for split in splits})
    config, measure_over = run.config, make_measure(measure)
    metrics: dict[str, float] = {}
    for split in splits:
        values = measure_over(model, batches.in_order(encoded[split]))
        metrics |= {f"{name}{'' if split == 'test' else f'_{split}'}": value for name, value in values.items()}
        told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        run.say(f"\n{split}, {len(encoded[split])} texts ({config.origin}): {told}")
    duplicates, count = encoded["duplicates"], len(encoded["test"])
    if "test" in splits and 0 < len(duplicates) < count:
        right = measure_over(model, batches.in_order(duplicates))["accuracy"] * len(duplicates)
        metrics["accuracy_without_duplicates"] = (metrics["accuracy"] * count - right) / (count - len(duplicates))
        told = f"{len(duplicates)} of the test texts stand in training or validation; without them"
        run.say(f"{told} accuracy {metrics['accuracy_without_duplicates']:.4f}")
    plan = batches.shuffled(config.seed)
    usage = plan.usage()
    result = run.finish(
        split=f"{splits[-1]}, all {len(encoded[splits[-1]])}",
        metrics=metrics,
        published=published.text_classification(config.dataset, config.model),
        examples_per_step=len(encoded["train"]) / plan.steps_per_epoch,
        reads_test="test" in splits,
        parameters=count_parameters(model),
        details={
            "classes": texts.classes,
            "texts": texts.report.examples,
            "findings": texts.report.findings,
            "duplicates": len(duplicates),
            "padding": round(usage.padding, 4),
            "batch_shapes": len(usage.shapes),
            "cut": {split: encoded[split].cut for split in texts.splits},
            "unknown": {split: encoded[split].unknown for split in texts.splits},
        },
    )
    if not run.changed:
        title = f"{texts.name}, {config.model}, {config.max_length} {config.symbols}"
        run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title))
        compare(run)
    run.say_end(result)


def compare(run: Run[Config]) -> None:
    """A table of all finished runs on the same training texts that stand beside this one."""
    here = read_json(run.folder / "result.json")
    run.say(f"\n{'run':<24}{'model':<26}{'read':>16}{'parameters':>12}{'seed':>6}{'steps':>8}{'seconds':>9}  test accuracy")
    for path in sorted(run.folder.parent.glob("*/result.json")):
        result = read_json(path)
        if any(here.get(name) != result.get(name) for name in ("dataset", "fingerprint")):
            continue
        config = result["config"]
        kind = config["cell"] if config["model"] in RECURRENT else "shortcuts" if config["shortcuts"] else ""
        model, read = ", ".join(filter(None, (config["model"], kind))), f"{config['max_length']} {config['symbols']}"
        told = f"{path.parent.name:<24}{model:<26}{read:>16}{result['parameters']:>12,}{result['seed']:>6}"
        accuracy = result["metrics"].get("accuracy")  # none where validation alone was scored
        of_test = "" if accuracy is None else f"  {accuracy:.4f}"
        run.say(f"{told}{result['steps']:>8}{result['seconds']:>9.0f}{of_test}")


def load(run: Run[Config]) -> tuple[Any, Tokenizer, list[str]]:
    tokenizer = load_tokenizer(run.folder / "tokenizer.json")
    classes = read_json(run.folder / "classes.json")
    model = build_model(run.config, len(tokenizer), len(classes))
    checkpoint.load_weights(run.weights, model)
    return model, tokenizer, classes


def evaluate(run: Run[Config]) -> None:
    config = run.config
    texts = load_texts(config, config.data_dir)
    run.trained_on(texts.name, config.origin, texts.fingerprint)
    model, tokenizer, _ = load(run)
    encoded = encode(config, texts, tokenizer)
    report(run, model, texts, encoded, TextBatches(encoded["train"], config.batch_size, config.shapes))


def predict(run: Run[Config], inputs: list[str]) -> None:
    """The class of each text, or of each row or line of a file, and which symbols of the first ten texts spoke for it."""
    if not inputs:
        raise ValueError('expected at least one text, like "What a dull film.", or a file of them')
    config = run.config
    model, tokenizer, classes = load(run)
    blank = int(tokenizer.encode(" ")[0])

    @jax.jit
    def logits(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return class_logits(model, {"tokens": tokens[:, : config.max_length], "tokens_lengths": lengths})

    texts = [text for given in inputs for text in texts_of(config, given)]
    encoded = [tokenizer.encode(text) for text in texts]
    read = [whole[-config.max_length :] for whole in encoded]
    unmarked = log_probabilities_of(logits, read[MARKED:])
    for number, (text, whole, tokens) in enumerate(zip(texts, encoded, read, strict=True)):
        found = occlusion(logits, tokens, blank=blank) if number < MARKED else None
        log_probabilities = next(unmarked) if found is None else found.log_probabilities
        said = int(np.argmax(log_probabilities))
        answer = f"{classes[said]} ({np.exp(log_probabilities[said]):.1%})"
        print(f"{answer}: {text}")
        if not len(tokens):
            print("  it has no symbols: that is what the classifier says of any empty text")
        if len(whole) > len(tokens):
            print(f"  only the last {len(tokens)} of its {len(whole)} symbols are read")
        if config.symbols == "characters" and (unknown := int((tokens == UNKNOWN).sum())):
            print(f"  {unknown} of its symbols are unknown")
        if found is None or not len(tokens):
            continue
        shown = [
            (symbol, float(found.worth[start:end, said].sum()))
            for symbol, start, end in characters_of(tokenizer, tokens.tolist())
        ]
        words = sorted(by_words(shown), key=lambda word: -abs(word[1]))[:6]
        print(f"  for {classes[said]}, below 0 against it: " + ", ".join(f"{word} {value:+.2f}" for word, value in words))
        figure = plots.marked_text(*zip(*shown, strict=True), title=answer, label=f"for {classes[said]}\n(log odds, nats)")
        print(f"  drawn in {run.figure(figure_name(text), figure)}")
    if len(texts) > MARKED:
        print(f"Which symbols mattered is told of the first {MARKED} of the {len(texts)} texts alone.")


def log_probabilities_of(
    logits: Callable[[jax.Array, jax.Array], jax.Array], texts: Sequence[np.ndarray], batch_size: int = 32
) -> Iterator[np.ndarray]:
    """[classes] of each text, an array of symbols; padded to a power of two, so that few shapes are compiled."""
    for begin in range(0, len(texts), batch_size):
        batch = texts[begin : begin + batch_size]
        lengths = np.zeros(batch_size, np.int32)
        lengths[: len(batch)] = [len(tokens) for tokens in batch]
        rows = np.zeros((batch_size, power_of_two(int(lengths.max()))), np.int32)
        for row, tokens in zip(rows, batch, strict=False):
            row[: len(tokens)] = tokens
        yield from np.asarray(jax.nn.log_softmax(logits(jnp.asarray(rows), jnp.asarray(lengths))))[: len(batch)]


def texts_of(config: Config, given: str) -> list[str]:
    """What an input holds: the columns of a table that the run learnt from, or else each line of a file, or the text itself."""
    if not os.path.isfile(given):  # a pipe can be read once only, and Path's form raises an error for a long text
        return texts_named([given])
    columns = " and ".join(config.text_columns)
    texts = texts_of_table(Path(given), config)
    if texts is not None:
        print(f"{given}: {len(texts)} rows, of which {columns} is read")
        return texts
    lines = texts_named([given])
    print(f"{given}: {len(lines)} lines, each read as a text, as it is no table with {columns}")
    return lines


def figure_name(text: str) -> str:
    """Of a text, by its first words, and by all of it so that no other text has the same."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return "_".join(["read", *re.findall(r"\w+", text[:40]), digest])


def by_words(shown: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Words between white space, each with the sum of what its characters are worth."""
    words: list[list[Any]] = []
    before = " "
    for symbol, value in shown:
        if not symbol.isspace():
            if before.isspace():
                words.append(["", 0.0])
            words[-1][0] += symbol
            words[-1][1] += value
        before = symbol
    return [(word, value) for word, value in words]


if __name__ == "__main__":
    main("text_classification", Config, train=train, evaluate=evaluate, predict=predict)
