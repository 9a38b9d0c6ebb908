"""A language model learns to predict reviews byte by byte, and a classifier with its encoder learns praise from few labels.

    python -m experiments.transfer                                                the language model, on made-up reviews
    python -m experiments.transfer --labels 100 --name scratch                    a classifier from nothing, on 100 labels
    python -m experiments.transfer --labels 100 --name pretrained --init-from runs/transfer/default --init-parts encoder
    python -m experiments.transfer predict "What a dull film." --name pretrained  (a language model goes on with the text)

With `--data-dir FOLDER`, where `imdb` holds `train.tsv` and `test.tsv` (xz or gz too), the same on the reviews of Maas et al.
(2011); the commands with their figures and times stand in RESULTS.md. Each classifier draws `figures/accuracy_by_labels.png`
and prints a table of all classifiers that stand beside it. The made-up reviews show that it runs, and not what pretraining is
worth: each has few words of few, and the three commands above, 74, 62 and 63 s on two cores, end with 72.5 % from nothing and
64.8 % pretrained (seed 0, AMD EPYC).

The language model reads the training reviews without their labels (Dai & Le, arXiv 1511.01432), in windows, each from a state
of zeros. The classifier is its encoder, the mean of the outputs over time, and one linear layer; all of it is trained. The
labelled reviews are drawn by the seed, half of each class. 1,000 training reviews are for validation, and are neither read nor
labelled in training, unless `--labels` asks for all of them; they choose nothing. As published, 123 texts of `imdb` stand in
both of its splits; they stay.

Accuracy: share of all reviews of the split whose more probable class is right. Bits per byte: mean of -log2 of the probability
of each byte and of the end, given those before in its window.
"""

import collections
import dataclasses
import functools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import cells, plots, published
from s2s_jax.data import datasets
from s2s_jax.data.buckets import length_buckets
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.reviews import made_up_reviews
from s2s_jax.data.vocabulary import END, START, Bytes
from s2s_jax.decoding.search import sample
from s2s_jax.files import read_json
from s2s_jax.losses import classification, cross_entropy
from s2s_jax.masks import length_mask
from s2s_jax.metrics import Mean
from s2s_jax.models import LanguageModel, TextClassifier, decoder_step
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

VALIDATION = 1000
VOCABULARY = Bytes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    steps: int = 400
    labels: int = 0
    """Labelled reviews to train a classifier on; 0 trains the language model."""
    window: int = 256
    """Language model: bytes from one state of zeros to the next."""
    last_bytes: int = 1024
    """Classifier: how many bytes of a review are read, its last ones."""
    cell: cells.Name = "gru"
    """Recurrent cell."""
    hidden_features: int = 256
    """Width of the state."""
    embedding_features: int = 32
    """Width of the embedded bytes."""
    num_layers: int = 1
    """Layers."""
    dropout: float = 0.0
    """On embeddings, between layers and before the last one."""
    batch_size: int = 32
    """Windows or reviews in a step."""
    learning_rate: float = 3e-3
    evaluate_every: int = 100

    may_be_zero: ClassVar[tuple[str, ...]] = (*TrainingConfig.may_be_zero, "labels")


class Reviews(NamedTuple):
    """Symbols of each text, int32 [bytes], and its class, int32 [N]."""

    texts: Sequence[np.ndarray]
    labels: np.ndarray

    def at(self, chosen: np.ndarray) -> "Reviews":
        return Reviews([self.texts[number] for number in chosen], self.labels[chosen])


class Splits(NamedTuple):
    """Training, validation and test reviews, which are trained on, and where they are from."""

    dataset: str
    origin: str  # "real" or "generated"
    fingerprint: str | None  # of the real ones
    train: Reviews
    validation: Reviews | None
    test: Reviews


def load_splits(config: Config) -> Splits:
    """All reviews but those for validation; of a classifier as many as it has labels, half of each class.

    Raises:
      ValueError: more labels than there are.
    """
    folder = config.data_dir or os.environ.get("S2S_DATA_DIR")
    if folder:
        sources = [datasets.load("imdb", split, data_dir=folder) for split in ("train", "test")]
        train, test = map(of_source, sources)
        dataset, origin, fingerprint = "imdb", "real", sources[0].fingerprint
    else:
        train, test = (encoded(*made_up_reviews(count, seed)) for count, seed in ((4000, 0), (1000, 1)))
        dataset, origin, fingerprint = "made-up-reviews", "generated", None
    order = np.random.default_rng(0).permutation(len(train.labels))
    rest, validation = order[VALIDATION:], train.at(order[:VALIDATION])
    if config.labels == len(order):
        return Splits(dataset, origin, fingerprint, train, None, test)
    if config.labels:
        drawn = np.random.default_rng(config.seed).permutation(rest)
        half = math.ceil(config.labels / 2)
        of_class = [drawn[train.labels[drawn] == label][:half] for label in (0, 1)]
        if min(map(len, of_class)) < half:
            most = f"{len(order)}, which is all, or about {len(rest)} at most"
            raise ValueError(f"labels: expected {most}, got {config.labels}")
        rest = np.stack(of_class, axis=1).reshape(-1)[: config.labels]
    return Splits(dataset, origin, fingerprint, train.at(rest), validation, test)


def of_source(source: Any) -> Reviews:
    examples = [source[number] for number in range(len(source))]
    return encoded(
        [example["text"] for example in examples], np.array([int(example["label"]) for example in examples], np.int32)
    )


def encoded(texts: Sequence[str], labels: np.ndarray) -> Reviews:
    return Reviews([VOCABULARY.encode(text) for text in texts], labels)


class Windows:
    """Each text with a start and an end symbol, cut into windows; each begins with the last symbol of the one before."""

    def __init__(self, texts: Sequence[np.ndarray], window: int):
        self._symbols = np.concatenate([np.concatenate([[START], text, [END]]).astype(np.int16) for text in texts])
        starts, lengths, place = [], [], 0
        for text in texts:
            predicted = len(text) + 1
            first = np.arange(0, predicted, window)
            starts.append(place + first)
            lengths.append(np.minimum(window, predicted - first) + 1)
            place += predicted + 1
        self._starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        start = self._starts[number]
        return {"tokens": self._symbols[start : start + self.lengths[number]].astype(np.int32)}

    def batches(self, batch_size: int, seed: int | None) -> Batches:
        buckets = length_buckets(self.lengths, 4)
        return Batches(self, batch_size, seed=seed, lengths={"tokens": self.lengths}, buckets=buckets)


class Labelled:
    """The ends of texts, with their classes."""

    def __init__(self, reviews: Reviews, last_bytes: int):
        self._reviews = reviews
        self._last_bytes = last_bytes
        self.lengths = np.array([min(len(text), last_bytes) for text in reviews.texts], np.int32)

    def __len__(self) -> int:
        return len(self._reviews.texts)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return {"tokens": self._reviews.texts[number][-self._last_bytes :], "label": self._reviews.labels[number]}

    def batches(self, batch_size: int, seed: int | None) -> Batches:
        """In buckets of a quarter to all of the longest; where texts are long, the same in every split."""
        longest = max(1, int(self.lengths.max()))
        buckets = sorted({math.ceil(longest * quarter / 4) for quarter in (1, 2, 3, 4)})
        return Batches(self, batch_size, seed=seed, lengths={"tokens": self.lengths}, buckets=buckets)


def build_model(config: Config) -> LanguageModel | TextClassifier:
    options: dict[str, Any] = {
        "embedding_features": config.embedding_features,
        "hidden_features": config.hidden_features,
        "cell": cells.BY_NAME[config.cell],
        "num_layers": config.num_layers,
        "dropout": config.dropout,
        "rngs": nnx.Rngs(config.seed),
    }
    if config.labels:
        return TextClassifier(len(VOCABULARY), 2, pooling="mean", **options)
    return LanguageModel(len(VOCABULARY), **options)


# The language model --------------------------------------------------------------------------------------------------------


def nats_of_language(model: LanguageModel, batch: Mapping[str, Any], key: jax.Array | None = None) -> Mean:
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    logits = model(None, model.initial_states(len(inputs)), inputs, key=key).logits
    return cross_entropy(logits, targets, length_mask(batch["tokens_lengths"] - 1, targets.shape[1]))


def language_loss(model: LanguageModel, batch: Mapping[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    nats = nats_of_language(model, batch, key)
    return nats.total / nats.count, {"loss": nats}


def measure_language(model: LanguageModel, batch: Mapping[str, Any]) -> dict[str, Mean]:
    nats = nats_of_language(model, batch)
    return {"loss": nats, "bits_per_byte": Mean(nats.total / math.log(2), nats.count)}


# The classifier ------------------------------------------------------------------------------------------------------------


def class_logits(model: TextClassifier, batch: Mapping[str, Any], key: jax.Array | None = None) -> jax.Array:
    return model(batch["tokens"], batch["tokens_lengths"], key=key)


def class_loss(model: TextClassifier, batch: Mapping[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    told = classification(class_logits(model, batch, key), batch["label"], batch["mask"])
    return told["loss"].total / told["loss"].count, told


def measure_class(model: TextClassifier, batch: Mapping[str, Any]) -> dict[str, Mean]:
    return classification(class_logits(model, batch), batch["label"], batch["mask"])


# Training and what it shows ------------------------------------------------------------------------------------------------


def source_of(config: Config, reviews: Reviews) -> Windows | Labelled:
    return Labelled(reviews, config.last_bytes) if config.labels else Windows(reviews.texts, config.window)


def measure_over(config: Config, model: Any, reviews: Reviews) -> dict[str, float]:
    return _measures(bool(config.labels))(model, source_of(config, reviews).batches(100, None))


@functools.lru_cache
def _measures(classifies: bool) -> Any:
    return make_measure(measure_class if classifies else measure_language)


def train(run: Run[Config]) -> None:
    config = run.config
    splits = load_splits(config)
    if splits.origin == "generated":
        run.say("No data folder given: trains on made-up reviews, whose figures say nothing about real ones.")
    run.trained_on(splits.dataset, splits.origin, splits.fingerprint)
    if config.labels:
        texts = splits.train.texts
        cut = sum(len(text) > config.last_bytes for text in texts)
        told = f"; of {cut} of them only the last {config.last_bytes} bytes are read" if cut else ""
        run.say(f"{len(texts)} labelled reviews{told}.")
    validation = splits.validation
    trained = train_by_recipe(
        run,
        build_model(config),
        class_loss if config.labels else language_loss,
        source_of(config, splits.train).batches(config.batch_size, config.seed),
        None if validation is None else lambda model: measure_over(config, model, validation),
    )
    report(run, trained.model, splits)


def report(run: Run[Config], model: Any, splits: Splits) -> None:
    """Scores the test reviews, draws the figures, and writes result.json."""
    config = run.config
    test, what = splits.test, "all"
    if not config.labels and len(test.texts) > 1000:  # enough for the bits of a byte
        test, what = test.at(np.random.default_rng(0).permutation(len(test.texts))[:1000]), "drawn at random"
    metrics = measure_over(config, model, test)
    told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
    run.say(f"\n{len(test.texts)} test reviews ({splits.origin}): {told}")
    title = f"{'IMDB reviews' if splits.origin == 'real' else 'Made-up reviews'}, {config.cell} {config.hidden_features}"
    subject = f"classifier on {config.labels} labels" if config.labels else "language model"
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, f"{title}: {subject}"))
    result = run.finish(
        split=f"test, {len(test.texts)} reviews, {what}",
        metrics=metrics,
        published=published.IMDB if splits.origin == "real" and splits.validation is None else [],
        examples_per_step=config.batch_size,
        parameters=count_parameters(model),
    )
    if config.labels:
        compare(run, title)
    run.say_end(result)


def compare(run: Run[Config], title: str) -> None:
    """A table and a figure of all finished classifiers beside this run, by number of labels.

    Of those that differ from it in where the encoder is from, labels, steps and seed alone; of several of one seed that are
    alike but for their steps the first by name.
    """
    here = read_json(run.folder / "result.json")
    free = {"seed", "name", "labels", "steps", "init_from", "init_parts", "freeze", "evaluate_every"}
    found: dict[str, dict[float, dict[int, float]]] = {}
    for path in sorted(run.folder.parent.glob("*/result.json")):
        result = read_json(path)
        config, mine = result["config"], here["config"]
        if not config["labels"] or any(here.get(name) != result.get(name) for name in ("dataset", "fingerprint")):
            continue
        if all(config[name] == mine[name] for name in mine.keys() - free):
            way = ("pretrained, frozen" if config["freeze"] else "pretrained") if config["init_from"] else "from nothing"
            by_labels = found.setdefault(way, collections.defaultdict(dict))
            by_labels[config["labels"]].setdefault(result["seed"], result["metrics"]["accuracy"])
    lines = {way: {labels: list(seeds.values()) for labels, seeds in by.items()} for way, by in sorted(found.items())}
    run.say(f"\n{'':<20}{'labels':>8}{'seeds':>7}  test accuracy")
    for way, values_by_labels in lines.items():
        for labels, values in sorted(values_by_labels.items()):
            deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            run.say(f"{way:<20}{labels:>8}{len(values):>7}  {statistics.mean(values):.4f}{deviation}")
    labels = {
        "xlabel": "labelled reviews that were trained on",
        "ylabel": "share of the test reviews classified right",
    }
    figure = plots.spread(lines, **labels, title=f"{title}: a pretrained encoder or none")
    run.figure("accuracy_by_labels", figure)


def load(run: Run[Config]) -> Any:
    model = build_model(run.config)
    checkpoint.load_weights(run.weights, model)
    return model


def evaluate(run: Run[Config]) -> None:
    splits = load_splits(run.config)
    run.trained_on(splits.dataset, splits.origin, splits.fingerprint)
    report(run, load(run), splits)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """The class of each text; a language model goes on with each."""
    if not inputs:
        raise ValueError('expected at least one text, like "What a dull film."')
    model = load(run)
    for text in inputs:
        symbols = VOCABULARY.encode(text)
        if run.config.labels:
            ends = symbols[-run.config.last_bytes :]
            shares = jax.nn.softmax(model(ends[None], np.array([len(ends)])))[0]
            print(f"{'praise' if shares[1] > shares[0] else 'no praise'} ({max(shares):.1%}): {text}")
            continue
        step, params = decoder_step(model)
        read = np.concatenate([[START], symbols])
        state = model(None, model.initial_states(1), jnp.asarray(read[None, :-1])).state
        more = sample(
            step, params, None, state, jax.random.key(0), start=int(read[-1]), end=END, max_length=200, temperature=0.7
        )
        print(text + VOCABULARY.decode(np.asarray(more.tokens[0])))


if __name__ == "__main__":
    main("transfer", Config, train=train, evaluate=evaluate, predict=predict)
