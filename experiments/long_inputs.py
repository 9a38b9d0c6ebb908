"""A study trains five encoder-decoders of equal size and puts the classic claims about long sources to the test.

    python -m experiments.long_inputs                                       digits to be copied, without data
    python -m experiments.long_inputs evaluate                              scores the test texts again
    python -m experiments.long_inputs predict "3 1 4 1 5 9 2 6"             by each of the models
    python -m experiments.long_inputs --dataset multi30k --data-dir FOLDER  real sentences, where FOLDER holds multi30k

plain: one layer, one direction, no attention. reversed: the same, reads the source from its end. doubled: the same, reads it
twice. deep: several narrower layers. attention: one layer, with the general attention of Luong et al. All have as many
parameters as the plain one, embeddings counted, as nearly as a width of their state can bring it about, and all are trained on
the same batches by the same recipe. Each is a run of its own in the folder of the run, and training goes on where it was
stopped.

Score: exact match, the share of texts that are their reference, for made-up pairs; for others BLEU of lower-cased words, 0 to
100, or of texts as people write them where Moses has no rules for the words of the targets' language. Loss: nats per symbol of
the reference, end symbol included, given those before. The test texts are put into groups by the length of their source in
symbols, as many in each as can be. One table, one figure, and what holds: each claim is that a number is above 0, the score of
the reversed model less that of the plain one, say. It holds where the 95 % interval of the number is above 0, does not hold
where the interval is below, and cannot be told otherwise, nor where all scores in it are below 1 of 100. The interval comes of
1,000 bootstrap samples of the test texts, the same for all models: it knows of no other seed and of no other recipe.

Digits, seed 0, two cores of an AMD EPYC beside other jobs, 762 s of training: exact match 63.6 % plain, 82.5 % reversed, 53.9 %
doubled, 66.6 % deep, 99.6 % attention; of sources of 18 to 20 digits 4.5, 30.6, 0.6, 2.5 and 98.1 %. So reading from the end
and attention help, attention hardly loses with length where the plain model loses nearly all, reading twice does not help, and
depth is better in exact match (+3.0, interval +0.5 to +5.7) and worse in loss.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from s2s_jax import attention as attentions
from s2s_jax import cells, plots
from s2s_jax.bootstrap import ByGroup, bootstrap, interval, length_groups
from s2s_jax.claims import Claim, judged, verdicts
from s2s_jax.data.datasets.text_files import texts_named, write_texts
from s2s_jax.data.pair_sets import (
    PATHS,
    PairBatches,
    PairFlags,
    PairPaths,
    between_spaces,
    fit,
    load_split,
    load_tests,
)
from s2s_jax.data.parallel import Pairs
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.tokenizers import Tokenizers, load_tokenizers
from s2s_jax.data.vocabulary import normalized
from s2s_jax.files import read_json
from s2s_jax.metrics import Mean
from s2s_jax.models.pair_loss import nats_of_targets, pair_loss
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.models.translator import Search, Translator
from s2s_jax.pair_scores import counts_of, is_made_up, name_of_bleu, target_of_rules
from s2s_jax.text_metrics import TextCounts, has_four_words
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

MODELS = ("plain", "reversed", "doubled", "deep", "attention")
LEAST = 0.01  # of a perfect score: models that are all below it have learned nothing to be compared
KEPT = 0.95  # the share of its score on the shortest that a model has on the longest if it does not get worse with length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairFlags, TrainingConfig):
    dataset: str = "copy"
    symbols: Literal["subwords", "words", "characters", "bytes"] | None = "words"
    vocabulary_size: int = 8000
    longest: int | None = 20
    steps: int = 1500
    cell: cells.Name = "lstm"
    """Recurrent cell of both sides."""
    embedding_features: int = 32
    """Width of the embedded symbols."""
    hidden_features: int = 128
    """Width of the plain model's state; the others get the one that gives them as many parameters."""
    deep_layers: int = 3
    """Layers of encoder and decoder of the deep model."""
    dropout: float = 0.0
    """On embeddings, between layers, on what the attention reads and before the output layer."""
    beam_size: int = 5
    """Hypotheses that are followed."""
    learning_rate: float = 5e-3
    evaluate_every: int = 500

    places: ClassVar[tuple[str, ...]] = (*TrainingConfig.places, *PATHS)
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {"evaluate": (PairPaths,)}


def build_model(config: Config, tokenizers: Tokenizers, name: str, hidden_features: int) -> Seq2Seq:
    options: dict[str, Any] = {
        "plain": {},
        "reversed": {"reverse_source": True},
        "doubled": {"double_source": True},
        "deep": {"num_layers": config.deep_layers},
        "attention": {"decoder": "attention", "attention": attentions.general},
    }[name]
    return Seq2Seq(
        len(tokenizers.source),
        len(tokenizers.target),
        embedding_features=config.embedding_features,
        hidden_features=hidden_features,
        cell=cells.BY_NAME[config.cell],
        shared_embeddings=config.joint,
        tied_embeddings=True,
        dropout=config.dropout,
        rngs=nnx.Rngs(config.seed),
        **options,
    )


def widths(config: Config, tokenizers: Tokenizers) -> dict[str, int]:
    """For each model the width of its state with which it has as many parameters as the plain one, or most nearly so."""

    def parameters(name: str, width: int) -> int:
        return count_parameters(nnx.eval_shape(lambda: build_model(config, tokenizers, name, width)))

    wanted, found = parameters("plain", config.hidden_features), dict.fromkeys(MODELS, config.hidden_features)
    for name in ("deep", "attention"):  # the others differ in how they read alone
        counts = range(1, config.hidden_features + 1)
        enough = 1 + bisect.bisect_left(counts, wanted, key=lambda width, name=name: parameters(name, width))
        # Where it is as wide as the embeddings a model needs one matrix less, so that counts do not go up everywhere.
        near = range(max(1, enough - 2), enough + 2)
        found[name] = min(near, key=lambda width, name=name: abs(parameters(name, width) - wanted))
    return found


# The claims --------------------------------------------------------------------------------------------------------------


def _gains(name: str, source: str) -> tuple[Claim, Claim]:
    """That a model is better than the plain one, in score and in loss."""
    score, loss = [(1, name, "all"), (-1, "plain", "all")], [(1, "plain", "all"), (-1, name, "all")]
    says = f"{name} is better than plain"
    return Claim(f"gain_{name}", says, source, "score", score), Claim(f"gain_{name}_in_loss", says, source, "loss", loss)


_FALL = [(1, "plain", "shortest"), (-1, "plain", "longest")]
CLAIMS = (
    *_gains("reversed", "Sutskever et al., arXiv 1409.3215, section 3.3"),
    *_gains("doubled", "Zaremba & Sutskever, arXiv 1410.4615, section 3.3"),
    *_gains("deep", "Sutskever et al., arXiv 1409.3215, section 3.4"),
    *_gains("attention", "Bahdanau et al., arXiv 1409.0473, table 1"),
    Claim("fall_plain", "plain is worse on the longest", "Cho et al., arXiv 1409.1259", "score", _FALL),
    Claim(
        "fall_plain_beyond_attention",
        "plain falls by more than attention",
        "Bahdanau et al., arXiv 1409.0473, figure 2",
        "score",
        [*_FALL, (-1, "attention", "shortest"), (1, "attention", "longest")],
    ),
    Claim(
        "attention_beyond_kept",
        f"attention keeps {100 * KEPT:.0f} % on the longest",
        "Luong et al., arXiv 1508.04025, section 5.2",
        "score",
        [(1, "attention", "longest"), (-KEPT, "attention", "shortest")],
    ),
)


# Training and what it shows ------------------------------------------------------------------------------------------------


def train(run: Run[Config]) -> None:
    config = run.config
    training, validation = (load_split(config, split, config.data_dir) for split in ("train", "validation"))
    if why := target_of_rules(config)[1]:
        run.say(f"No bleu_lowercased_tokens, but {name_of_bleu(config)}: {why}.")
    if told := between_spaces(config):
        run.say(told)
    run.trained_on(training.name, config.origin, training.fingerprint)
    test = test_of(config)  # what is wrong with it is an error now, and not after the training
    for pairs in (training, validation, test):
        run.say(f"{pairs.split}: {pairs.report}")
    tokenizers = fit(config, training)
    grouped(tokenizers, test)
    if not is_made_up(config) and not has_four_words(test.targets, config.languages[1]):
        raise ValueError("test_target: expected texts of four words and more, as BLEU needs, got none")
    if run.writes:
        tokenizers.save(run.folder)
    batches = PairBatches(config, tokenizers, training, config.seed)
    validated = batches.in_order(validation)
    models, trained = {}, []
    for name, width in widths(config, tokenizers).items():
        run.say(f"\n{name}, {width} units:")
        origin = config.init_from and config.init_from / name
        part = Run.begin(run.task, dataclasses.replace(config, name=f"{config.name}/{name}", init_from=origin))
        part.trained_on(training.name, config.origin, training.fingerprint)
        models[name] = build_model(config, tokenizers, name, width)
        if part.weights.exists():
            checkpoint.load_weights(part.weights, models[name])
            run.say(f"Trained already; its weights are in {part.folder}.")
        else:
            shuffled = batches.shuffled(config.seed)
            by_recipe = train_by_recipe(part, models[name], pair_loss, shuffled, lambda model: validate(model, validated))
            models[name] = by_recipe.model
        trained.append(read_json(part.folder / "training.json"))
    if run.writes:
        checkpoint.save_weights(run.weights, nnx.Dict(models))
    times = {what: sum(one["times"].get(what, 0.0) for one in trained) for what in trained[0]["times"]}
    run.trained(max(one["steps"] for one in trained), times, sorted({one["backend"] for one in trained}))
    report(run, models, tokenizers, batches, test)


def validate(model: Seq2Seq, batches: Batches) -> dict[str, float]:
    loss = counted_loss(model, batches)
    return {"loss": float(loss.value(loss.counts.sum(0)))}


def test_of(config: Config) -> Pairs:
    return load_tests(config, config.data_dir)[""]


def grouped(tokenizers: Tokenizers, pairs: Pairs) -> dict[str, np.ndarray]:
    """Which texts are in each group of source lengths; the end symbol is not counted."""
    return length_groups([len(tokenizers.source.encode(text)) for text in pairs.sources])


def report(run: Run[Config], models: Mapping[str, Seq2Seq], tokenizers: Tokenizers, batches: PairBatches, pairs: Pairs) -> None:
    """Scores the test texts by length of their source, judges the claims, draws the figure, and writes result.json."""
    config = run.config
    run.scores({pairs.split: pairs.fingerprint})
    lengths = grouped(tokenizers, pairs)
    groups = {"all": np.arange(len(pairs.sources)), **lengths}
    metric, perfect = ("exact_match", 1.0) if is_made_up(config) else (name_of_bleu(config), 100.0)
    counts = {}
    for name, model in models.items():
        texts = translated(model, tokenizers, pairs.sources, config.beam_size)
        if run.writes and not run.changed:
            path = run.folder / f"translations_{name}.txt"
            write_texts(path, texts)
        counts[name] = counts_of(config, texts, pairs.targets)
    in_order = batches.in_order(pairs)
    values = {
        "score": bootstrap(counts, groups),
        "loss": bootstrap({name: counted_loss(model, in_order) for name, model in models.items()}, groups),
    }
    found: dict[str, dict[str, Any]] = {
        name: {
            "parameters": count_parameters(model),
            "hidden_features": model.encoder.recurrent.hidden_features,
            **{of: {group: float(these[name, group][0]) for group in groups} for of, these in values.items()},
        }
        for name, model in models.items()
    }
    least = {"score": LEAST * perfect, "loss": 0.0}
    claims = [judged(claim, values[claim.of], list(lengths), least[claim.of]) for claim in CLAIMS]
    scored = f"{pairs.split}, {pairs.scope} texts ({config.origin}), beam {config.beam_size}"
    run.say(f"\n{scored}: {metric.replace('_', ' ')}, 0 to 100, and loss in nats per symbol,")
    run.say("by symbols of the source and with the number of texts.\n")
    run.say(table(found, groups, perfect))
    run.say(
        "\nA claim holds where the 95 % interval of its number is above 0; of scores that are all below 1 it cannot be told.\n"
    )
    run.say(verdicts(claims, perfect))
    run.say(f"\n{metric}: {counts['plain'].signature}")
    if not run.changed:
        draw(run, found, values["score"], lengths, metric)
    totals = {f"{metric}_{name}": one["score"]["all"] for name, one in found.items()}
    totals |= {f"loss_{name}": one["loss"]["all"] for name, one in found.items()}
    of_groups = {
        f"{metric}_{name}_{group.replace(' ', '_')}": one["score"][group] for name, one in found.items() for group in lengths
    }
    result = run.finish(
        split=f"{pairs.split}, {pairs.scope}",
        metrics=totals | {claim["metric"]: claim["value"] for claim in claims} | of_groups,
        published=[],
        examples_per_step=len(batches.training) / batches.shuffled(config.seed).steps_per_epoch,
        texts={group: len(numbers) for group, numbers in groups.items()},
        models=found,
        claims=claims,
        details={"findings": {each.split: each.report.findings for each in (batches.training, pairs)}},
    )
    run.say_end(result)


def counted_loss(model: Seq2Seq, batches: Batches) -> TextCounts:
    """Nats and symbols of each reference, which give nats per symbol."""
    parts, counts = nnx.split(model), {}
    for step, batch in enumerate(batches):
        nats, symbols = map(np.asarray, _nats_of_batch(parts, batch))
        counts |= {text: (nats[row], symbols[row]) for row, text in enumerate(batches.ids(step)) if text >= 0}
    ordered = np.array([counts[text] for text in sorted(counts)], np.float64)
    return TextCounts(ordered, lambda sums: sums[..., 0] / sums[..., 1], "nats per symbol")


@jax.jit
def _nats_of_batch(parts: tuple[nnx.GraphDef, nnx.State], batch: Mapping[str, Any]) -> Mean:
    return nats_of_targets(nnx.merge(*parts, copy=True), batch)


def draw(run: Run[Config], found: Mapping[str, Any], scores: ByGroup, lengths: Mapping[str, np.ndarray], metric: str) -> None:
    config = run.config
    named = {name: f"{name}, {one['hidden_features']} units" for name, one in found.items()}
    figure = plots.lines(
        {named[name]: [one["score"][group] for group in lengths] for name, one in found.items()},
        {named[name]: [interval(scores[name, group]) for group in lengths] for name in found},
        [f"{group}\nn = {len(numbers)}" for group, numbers in lengths.items()],
        xlabel="symbols of the source, and number of test texts",
        ylabel=f"{metric.replace('_', ' ')}, with 95 % intervals",
        title=f"{config.dataset}: {config.cell} models of about {found['plain']['parameters']:,} parameters",
        fractions=metric == "exact_match",
    )
    run.figure("score_by_length", figure)


def translated(model: Seq2Seq, tokenizers: Tokenizers, texts: Sequence[str], beam_size: int) -> list[str]:
    """The best translation of each text; an empty one of an empty text, or where the model gave no number to go by."""
    found = Translator(model, tokenizers).of_lines(texts, Search(beam_size=beam_size), attention=False)
    return [best[0].text if best else "" for best in found]


def table(models: Mapping[str, Mapping[str, Any]], groups: Mapping[str, np.ndarray], perfect: float) -> str:
    """A row for each model, a column for each group: score in hundredths of a perfect one, and loss."""
    heading = ["model", "parameters", "units", *(f"{group} ({len(numbers)})" for group, numbers in groups.items())]
    rows = [heading]
    for name, one in models.items():
        told = [f"{100 / perfect * one['score'][group]:.1f}  {one['loss'][group]:.3f}" for group in groups]
        rows.append([name, f"{one['parameters']:,}", str(one["hidden_features"]), *told])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True)) for row in rows)


def load(run: Run[Config]) -> tuple[dict[str, Seq2Seq], Tokenizers]:
    tokenizers = load_tokenizers(run.folder)
    models = {name: build_model(run.config, tokenizers, name, width) for name, width in widths(run.config, tokenizers).items()}
    checkpoint.load_weights(run.weights, nnx.Dict(models))
    return models, tokenizers


def evaluate(run: Run[Config]) -> None:
    training = load_split(run.config, "train", run.config.data_dir)
    run.trained_on(training.name, run.config.origin, training.fingerprint)
    models, tokenizers = load(run)
    test = test_of(run.config)
    run.say(f"{test.split}: {test.report}")
    report(run, models, tokenizers, PairBatches(run.config, tokenizers, training, run.config.seed), test)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """What each model makes of each input, or of each line of a file, or of standard input for "-"."""
    if not inputs:
        raise ValueError('expected at least one text, like "3 1 4 1 5"')
    texts = [normalized(text).strip() for text in texts_named(inputs)]
    models, tokenizers = load(run)
    by_model = {name: translated(model, tokenizers, texts, run.config.beam_size) for name, model in models.items()}
    for number, text in enumerate(texts):
        print(text, *(f"  {name:<10} {found[number]}" for name, found in by_model.items()), sep="\n")


if __name__ == "__main__":
    main("long_inputs", Config, train=train, evaluate=evaluate, predict=predict)
