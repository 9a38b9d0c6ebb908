"""An encoder and a decoder without attention learn to add: they read "535+61" and write "596", symbol by symbol.

    python -m experiments.addition                          3 digits: all of 1,000 unseen sums exactly right, a minute
    python -m experiments.addition predict 535+61 7+8       with the run of the same --name
    python -m experiments.addition evaluate                 the test sums again
    python -m experiments.addition --digits 5 --steps 25000 --test-examples 10000       5 digits: all of 10,000, 7 minutes

Further settings and their figures, 9 digits and bits among them, stand with their commands in RESULTS.md.

`--task decimal`: two numbers of up to `--digits` digits. `--task binary`: two strings of `--digits` bits, one after the other
or, with `--layout paired`, bit by bit. The classic settings: Sutskever et al. (arXiv 1409.3215), Zaremba & Sutskever
(arXiv 1410.4615), Keras' addition example.

A tenth of all pairs (binary: half) is never trained on: the test sums are drawn from those. a+b and b+a fall on the same side.
Exact match: share of sums with every symbol right, decoded greedily. Character accuracy: share of right symbols among the
true sum's, end symbol included, in the same decoding. Teacher-forced accuracy: the same, but each symbol is predicted from
the true ones before. There is no stand-in here: the sums are the data set. Hardware of the times: two CPU cores.
"""

import dataclasses
import functools
import math
import re
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import cells, plots, published
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.sums import TEST, TRAIN, VALIDATION, Sums
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding.search import Found, greedy
from s2s_jax.losses import cross_entropy
from s2s_jax.masks import shift_right
from s2s_jax.metrics import Mean, exact_match, token_accuracy
from s2s_jax.models.seq2seq import Seq2Seq, decoder_step
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    steps: int = 4500
    task: Literal["decimal", "binary"] = "decimal"
    """What is added up."""
    digits: int = 3
    """Digits (bits) of each number, at most (binary: exactly)."""
    layout: Literal["sequence", "paired"] = "sequence"
    """Binary: one number after the other, or both bit by bit."""
    decoder: Literal["autoregressive", "repeat_vector"] = "autoregressive"
    """Form of the decoder."""
    cell: cells.Name = "lstm"
    """Recurrent cell of both sides."""
    hidden_features: int = 128
    """Width of the state."""
    embedding_features: int = 16
    """Width of the embedded symbols."""
    num_layers: int = 1
    """Layers of encoder and decoder."""
    reverse_source: bool = True
    """Read the source from its end."""
    double_source: bool = False
    """Read the source twice."""
    teacher_forcing: float = 1.0
    """Probability of reading the true symbol before in training."""
    curriculum: float = 0.15
    """Decimal: share of the steps over which the greatest number of digits grows from 1 to DIGITS."""
    batch_size: int = 128
    """Sums in a step."""
    learning_rate: float = 1e-2
    test_examples: int | None = None
    """Test sums; if not given 1,000, and all that are held out in the binary task."""
    evaluate_every: int = 500

    fractions: ClassVar[tuple[str, ...]] = ("exact_match", "character_accuracy")


def sums_of(config: Config) -> Sums:
    return Sums(config.task, config.digits, config.layout)


def training_batch(config: Config, sums: Sums, step: int) -> dict[str, np.ndarray]:
    """The batch of a step: three quarters uniform over all pairs of numbers up to the longest so far, a quarter of any lengths.

    Half and half while the curriculum grows, lest the short ones be forgotten. Any lengths: each number's is drawn evenly and
    by itself, as in Keras' example; sums of a short and a long number are hardly met otherwise. Of bits, whose numbers are all
    of one width, the whole batch is uniform over all pairs.
    """
    rng = np.random.default_rng((config.seed, step))
    grown = min(1.0, step / (config.curriculum * config.steps)) if config.curriculum else 1.0
    # The square root: the more digits, the longer it stays with them.
    longest = sums.digits if sums.fixed_width else max(1, math.ceil(grown**0.5 * sums.digits))
    even = 0 if sums.fixed_width else config.batch_size // (4 if grown == 1 else 2)
    a, b = sums.draw(rng, TRAIN, config.batch_size - even, longest)
    if even:
        even_a, even_b = sums.draw(rng, TRAIN, even, longest, even=True)
        a, b = np.concatenate([a, even_a]), np.concatenate([b, even_b])
    return sums.encode(a, b, longest)


def build_model(config: Config, sums: Sums) -> Seq2Seq:
    if config.decoder == "repeat_vector" and config.teacher_forcing != 1:
        raise ValueError("teacher_forcing: expected 1 with the repeat-vector decoder, which reads no symbols")
    return Seq2Seq(
        len(sums.source_alphabet),
        len(sums.target_alphabet),
        embedding_features=config.embedding_features,
        hidden_features=config.hidden_features,
        decoder=config.decoder,
        cell=cells.BY_NAME[config.cell],
        num_layers=config.num_layers,
        reverse_source=config.reverse_source,
        double_source=config.double_source,
        rngs=nnx.Rngs(config.seed),
    )


def loss(config: Config, model: Seq2Seq, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    target = batch["target"]
    logits = model(
        batch["source"], batch["source_lengths"], shift_right(target, START), key=key, teacher_forcing=config.teacher_forcing
    )
    nats = cross_entropy(logits, target, target != PAD)
    return nats.total / nats.count, {"loss": nats}


def decode(model: Seq2Seq, batch: dict[str, Any]) -> Found:
    step, params = decoder_step(model)
    context, state = model.start(batch["source"], batch["source_lengths"])
    length = batch["target"].shape[1]
    return greedy(step, params, context, state, start=START, end=END, max_length=length, pad=PAD)


def measure(model: Seq2Seq, batch: dict[str, Any]) -> dict[str, Mean]:
    """Exact match and character accuracy of the greedy decoding, and loss and accuracy with the true symbols before."""
    target, found = batch["target"], decode(model, batch).tokens
    counts = batch["mask"]  # rows that `Batches` did not only fill the last batch up with
    right = exact_match(found, target, jnp.ones_like(target, bool), counts)
    valid = (target != PAD) & counts[:, None]
    logits = model(batch["source"], batch["source_lengths"], shift_right(target, START))
    return {
        "exact_match": right,
        "character_accuracy": token_accuracy(found, target, valid),
        "teacher_forced_accuracy": token_accuracy(logits.argmax(-1), target, valid),
        "loss": cross_entropy(logits, target, valid),
    }


def train(run: Run[Config]) -> None:
    config = run.config
    sums = sums_of(config)
    run.trained_on(f"{config.task}{config.digits}", "drawn")
    measure_over = make_measure(measure)
    validation = Batches(sums.encode(*sums.sample(VALIDATION, 500)), 500, seed=None)
    trained = train_by_recipe(
        run,
        build_model(config, sums),
        functools.partial(loss, config),
        functools.partial(training_batch, config, sums),
        lambda model: measure_over(model, validation),
    )
    report(run, trained.model)


def report(run: Run[Config], model: Seq2Seq) -> None:
    """Scores the test sums, prints ten of them, draws the figures, and writes result.json."""
    config = run.config
    sums = sums_of(config)
    a, b = sums.sample(TEST, config.test_examples)
    metrics = score(sums, model, a, b)
    run.say(
        f"\n{len(a)} sums never trained on: exact match {metrics['exact_match']:.4f}, "
        f"character accuracy {metrics['character_accuracy']:.4f}\n"
    )
    run.say("\n".join(examples(sums, model, a[:10], b[:10])))
    unseen = unseen_by_digits(sums)
    exact = {label: score(sums, model, *pairs)["exact_match"] for label, pairs in unseen.items()}
    told = "; ".join(f"{label.replace(chr(10), ', ')}: {share:.1%}" for label, share in exact.items())
    run.say(f"\nExact match by digits of the longer number, on up to 200 unseen sums of each: {told}")
    for label in (label for label, share in exact.items() if share < 1):
        wrong = [line for line in examples(sums, model, *unseen[label]) if "WRONG" in line]
        run.say(f"Of {label.split()[0]}: " + "\n      ".join(wrong[:5]))
    draw(run, exact)
    result = run.finish(
        split=f"test: {len(a)} pairs never trained on, uniform over all such pairs of numbers up to {sums.base}^{sums.digits}",
        metrics=metrics,
        published=published.ADDITION.get(f"{config.task}{config.digits}", []),
        examples_per_step=config.batch_size,
        parameters=count_parameters(model),
    )
    run.say_end(result)


def score(sums: Sums, model: Seq2Seq, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return make_measure(measure)(model, Batches(sums.encode(a, b), 500, seed=None))


def examples(sums: Sums, model: Seq2Seq, a: np.ndarray, b: np.ndarray) -> list[str]:
    """A line for each sum: the question, the model's answer, and whether it is right."""
    found = jax.jit(lambda model_batch: decode(nnx.merge(*model_batch[0]), model_batch[1]).tokens)(
        (nnx.split(model), sums.encode(a, b))
    )
    lines = []
    for x, y, tokens in zip(a, b, np.asarray(found), strict=True):
        question = f"{sums.write(int(x), sums.digits)}+{sums.write(int(y), sums.digits)}"
        truth, answer = sums.write(int(x + y), sums.digits + 1), sums.target_alphabet.decode(tokens)
        verdict = "right" if answer == truth else f"WRONG, it is {truth}"
        lines.append(f"{question:>{2 * sums.digits + 1}} = {answer:<{sums.digits + 1}} {verdict}")
    return lines


def unseen_by_digits(sums: Sums, each: int = 200) -> dict[str, np.ndarray]:
    """For each number of digits of the longer number up to `each` test sums [2, N], by that number and how many there are."""
    found = {}
    for digits in range(1, sums.digits + 1):
        rng = np.random.default_rng(digits)
        a, b = sums.draw(rng, TEST, 4 * each, digits)
        chosen = np.flatnonzero(np.maximum(a, b) >= (sums.base ** (digits - 1) if digits > 1 else 0))
        pairs = np.unique(np.stack([a[chosen], b[chosen]]), axis=1)
        pairs = pairs[:, rng.permutation(pairs.shape[1])[:each]]
        found[f"{digits}\nn = {pairs.shape[1]}"] = pairs
    return found


def draw(run: Run[Config], exact: dict[str, float]) -> None:
    config = run.config
    title = f"Addition, {config.task}, up to {config.digits} {'bits' if config.task == 'binary' else 'digits'}"
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title))
    figure = plots.bars(
        list(exact),
        list(exact.values()),
        xlabel="digits of the longer number",
        ylabel="exact match",
        title=f"{title}:\nunseen sums exactly right",
    )
    run.figure("exact_match_by_digits", figure)


def load(run: Run[Config]) -> tuple[Sums, Seq2Seq]:
    config = run.config
    sums = sums_of(config)
    run.trained_on(f"{config.task}{config.digits}", "drawn")
    model = build_model(config, sums)
    checkpoint.load_weights(run.weights, model)
    return sums, model


def evaluate(run: Run[Config]) -> None:
    report(run, load(run)[1])


def predict(run: Run[Config], inputs: list[str]) -> None:
    sums, model = load(run)
    if not inputs:
        raise ValueError('expected at least one sum, like "535+61"')
    questions = re.sub(r"\s*\+\s*", "+", " ".join(inputs)).split()  # 535 + 61 comes as three inputs
    a, b = np.array([sums.parse(text) for text in questions]).T
    print("\n".join(examples(sums, model, a, b)))


if __name__ == "__main__":
    main("addition", Config, train=train, evaluate=evaluate, predict=predict)
