r"""A network with attention learns to translate: number words, real sentences, or pairs of lines of your own.

    python -m experiments.translation                                       number words, English to German, without data
    python -m experiments.translation predict "three hundred twelve"    with the run of the same --name
    python -m experiments.translation --dataset multi30k --data-dir FOLDER  real sentences, where FOLDER holds multi30k
    python -m experiments.translation --dataset files --train-source a.en --train-target a.de ...     your own pairs of lines

`--dataset reverse`, `copy` and `sort` are the toy tasks of JoeyNMT's tutorial and of Sockeye's system test: lines of integers,
each of which is a symbol unless `--symbols` says otherwise. They are drawn by the rule that is the task.
Sub-words are of the training split only, and are kept in the run.

English to German at the published figures: mean 39.7 (test_2016_flickr) and 32.1 (test_2017_flickr) of three seeds, BLEU of
lower-cased Moses tokens; seeds 1 and 2 took 35 and 39 minutes of training on one core of an AMD EPYC with AVX-512:

    python -m experiments.translation --dataset multi30k --data-dir FOLDER --source en --target de --vocabulary-size 5000 \
        --embedding-features 256 --label-smoothing 0.1 --average-decay 0.999 --shapes 12 --lowercase --hidden-features 256 \
        --dropout 0.3 --tokens 900 --steps 12000 --learning-rate 2e-3 --evaluate-every 1000 --checkpoint-every 250 \
        --attention additive --beam-size 10 --seed 1 --name ende-seed1

BLEU is 0 to 100 and comes twice. `bleu_lowercased_tokens`: both sides normalised, lower-cased and cut into words by Moses'
rules, as the Multi30k tasks count it. `bleu_cased`: sacrebleu's own, on texts as people write them, and with `--lowercase`
`bleu_lowercased`, as nothing cased is said then; of Chinese, Japanese and Thai it counts characters. There is none where no
reference has four words. Exact match: share of texts that are their reference; with `--lowercase` all is lower-cased first, for
chrF too. Loss: nats per symbol of the reference, end symbol included, given those before; perplexity: its exponential.

A student of other runs: `predict train.en --output more.de --ensemble NAME ...`, then train with `--more-source train.en
--more-target more.de`, which come to the true pairs.

Beam search; `--beam-size 1` takes the most probable symbol at each step, unless `--early-stopping exact` and a penalty have it
go on behind an end. `evaluate` and `predict` take the flags of the search again, and `--ensemble NAME ...`, further runs whose
probabilities are averaged with those of the run (it comes behind the texts of `predict`). A result that is not of the run's own
flags goes to evaluation.json.
"""

import collections
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from flax import nnx

from s2s_jax import attention as attentions
from s2s_jax import cells, plots, published
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
    seen_before,
)
from s2s_jax.data.parallel import Pairs
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.tokenizers import Tokenizers, load_tokenizers
from s2s_jax.data.vocabulary import normalized
from s2s_jax.models.pair_loss import measure_pairs, pair_loss
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.models.translator import Search, Translation, Translator
from s2s_jax.pair_scores import scores_of, target_of_rules
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.config import ScoredSplit
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

HEADS = 4  # of --attention multi_head
SHOWN = 3  # best translations of each text by `predict`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    ensemble: tuple[str, ...] = ()
    """Further finished runs with the same symbols; it is searched by the mean of all probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(Ensemble):
    output: Path | None = None
    """Write the best translation of each text to this file, one a line, and tell nothing else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(ScoredSplit, Ensemble):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairFlags, Search, TrainingConfig):
    steps: int = 1200
    attention: Literal["general", "dot", "scaled_dot", "concat", "additive", "multi_head", "coverage", "location", "none"] = (
        "general"
    )
    """Score of the attention; concat, of Luong et al., and additive, of Bahdanau et al., are the same."""
    input_feeding: bool = False
    """Whether the attentional vector is read with the next symbol."""
    query_layer: Literal["last", "first"] = "last"
    """Which of the decoder's layers asks the attention; those above the first read its answer."""
    bridge: Literal["last", "zero", "learned"] = "last"
    """What the decoder starts from."""
    tied_embeddings: bool = True
    """The target's embedding is the output matrix too."""
    cell: cells.Name = "gru"
    """Recurrent cell of both sides."""
    embedding_features: int = 64
    """Width of the embedded symbols."""
    hidden_features: int = 128
    """Width of the state."""
    num_layers: int = 1
    """Layers of encoder and decoder."""
    residual: bool = False
    """Residual links between layers."""
    bidirectional: bool = True
    """Read the source in both directions."""
    reverse_source: bool = False
    """Read the source from its end."""
    double_source: bool = False
    """Read the source twice."""
    dropout: float = 0.1
    """On embeddings, between layers, on what the attention reads and before the output layer."""
    input_dropout: float = 0.0
    """On what each layer reads, one mask for all steps."""
    recurrent_dropout: float = 0.0
    """On the state, one mask for all steps."""
    word_dropout: float = 0.0
    """Share of the symbols, on both sides, that are hidden from the network in training."""
    r_drop: float = 0.0
    """The alpha of R-Drop, weight of how far two passes with other dropout are apart; above 0 a step takes twice as long."""
    coverage_loss: float = 0.0
    """Weight of how often the attention reads the same again, for `--attention coverage` say."""
    label_smoothing: float = 0.0
    """Share of the probability that is spread over all symbols."""
    teacher_forcing: float = 1.0
    """Probability of reading the true symbol before in training."""
    learning_rate: float = 3e-3
    evaluate_every: int = 400

    may_be_zero: ClassVar[tuple[str, ...]] = (*TrainingConfig.may_be_zero, "no_repeat_ngram_size", "max_extra")
    places: ClassVar[tuple[str, ...]] = (*TrainingConfig.places, *PATHS)
    at_most: ClassVar[Mapping[str, str]] = {"n_best": "beam_size"}
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {
        "train": (ScoredSplit,),
        "evaluate": (Scored, Search, PairPaths),
        "predict": (Told, Search),
    }
    fractions: ClassVar[tuple[str, ...]] = ("token_accuracy",)


def build_model(config: Config, tokenizers: Tokenizers) -> Seq2Seq:
    options: dict[str, Any] = {}
    if config.attention == "none" and config.coverage_loss:
        raise ValueError(f"coverage_loss: expected 0 with --attention none, got {config.coverage_loss}")
    if config.attention != "none":
        if config.attention == "multi_head" and config.hidden_features % HEADS:
            expected = f"a multiple of the {HEADS} heads of --attention multi_head"
            raise ValueError(f"hidden_features: expected {expected}, got {config.hidden_features}")
        made = {
            **attentions.ATTENTIONS,
            "multi_head": attentions.make_multi_head(HEADS),
            "coverage": attentions.make_additive(coverage=True),
            "location": attentions.make_additive(location_filters=10),
        }
        options = {"decoder": "attention", "attention": made[config.attention]}
        if config.attention in ("dot", "scaled_dot"):
            options["merge"] = "sum"  # these ask for a memory as wide as the query
    return Seq2Seq(
        len(tokenizers.source),
        len(tokenizers.target),
        embedding_features=config.embedding_features,
        hidden_features=config.hidden_features,
        cell=cells.BY_NAME[config.cell],
        num_layers=config.num_layers,
        residual=config.residual,
        bidirectional=config.bidirectional,
        reverse_source=config.reverse_source,
        double_source=config.double_source,
        bridge=config.bridge,
        input_feeding=config.input_feeding,
        query_layer=config.query_layer,
        shared_embeddings=config.joint,
        tied_embeddings=config.tied_embeddings,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        recurrent_dropout=config.recurrent_dropout,
        rngs=nnx.Rngs(config.seed),
        **options,
    )


class Split(NamedTuple):
    """What is scored: texts, and the same as numbers."""

    pairs: Pairs
    in_order: Batches


def splits_of(config: Config, batches: PairBatches, which: str) -> dict[str, Split]:
    """The validation split, and where `which` says so the test splits, by what is put behind the names of their metrics."""
    found = {"_validation": load_split(config, "validation", config.data_dir)}
    if which == "test":
        found |= load_tests(config, config.data_dir)
    return {suffix: Split(pairs, batches.in_order(pairs)) for suffix, pairs in found.items()}


def train(run: Run[Config]) -> None:
    config = run.config
    training = load_split(config, "train", config.data_dir)
    if config.dataset == "numbers":
        run.say("No data set named: trains on number words, whose figures say nothing about real sentences.")
    if why := target_of_rules(config)[1]:
        run.say(f"No bleu_lowercased_tokens: {why}.")
    if told := between_spaces(config):
        run.say(told)
    run.trained_on(training.name, config.origin, training.fingerprint)
    tokenizers = fit(config, training)
    batches = PairBatches(config, tokenizers, training, config.seed)
    splits = splits_of(
        config, batches, run.flags.split
    )  # those of the test too: what is wrong with them is an error now, and not at the end
    _, validated = splits["_validation"]
    for pairs in (training, *(pairs for pairs, _ in splits.values())):
        run.say(f"{pairs.split}: {pairs.report}")
    for pairs, _ in splits.values():
        if seen := seen_before(training, pairs):
            run.say(f"{pairs.split}: {seen} of {len(pairs.sources)} pairs stand in the training split too.")
    model = build_model(config, tokenizers)
    Translator(model, tokenizers)([], search_of(config, 1))  # flags that do not fit are an error now, too
    if run.writes:
        tokenizers.save(run.folder)
    measure_over = make_measure(measure_pairs)
    trained = train_by_recipe(
        run,
        model,
        functools.partial(
            pair_loss,
            teacher_forcing=config.teacher_forcing,
            label_smoothing=config.label_smoothing,
            word_dropout=config.word_dropout,
            r_drop=config.r_drop,
            coverage=config.coverage_loss,
        ),
        batches.shuffled(config.seed),
        lambda model: measure_over(model, validated),
    )
    report(run, [trained.model], tokenizers, batches, splits)


def report(
    run: Run[Config],
    models: Sequence[Seq2Seq],
    tokenizers: Tokenizers,
    batches: PairBatches,
    splits: Mapping[str, Split],
) -> None:
    """Translates the splits, scores them, draws the figures, and writes result.json.

    With flags that are not the run's own it draws nothing and keeps no translations. Of several models it tells no loss.
    """
    config = run.config
    run.scores({pairs.split: pairs.fingerprint for pairs, _ in splits.values()})
    translator, metrics, signatures = Translator(models, tokenizers), {}, {}
    counts: dict[str, dict[str, int]] = {}
    measure_over = make_measure(measure_pairs)
    for suffix, (pairs, in_order) in splits.items():
        found = [first(best) for best in translator(pairs.sources, search_of(config, 1), attention=False)]
        texts = [translation.text for translation in found]
        scores = scores_of(config, texts, pairs.targets)
        values = {name: score.value for name, score in scores.items()}
        if len(models) == 1:
            loss = measure_over(models[0], in_order)["loss"]
            values |= {"loss": loss, "perplexity": math.exp(loss)}
        metrics |= {f"{name}{suffix}": value for name, value in values.items()}
        signatures |= {name: score.signature for name, score in scores.items()}
        cut_off = sum(bool(one.pieces) and not one.finished for one in found)
        counts[pairs.split] = {"texts": len(texts), "cut_off": cut_off, "empty": texts.count("")}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        if not any(name.startswith("bleu") for name in scores):
            told += "; no BLEU, as no reference has four words"
            told += "" if any(config.languages) else " between spaces (--target says the language)"
        run.say(f"\n{pairs.split}, {pairs.scope} texts ({config.origin}), beam {config.beam_size}: {told}")
        run.say(f"Cut off at the length limit: {cut_off}; empty: {texts.count('')}.")
        if run.writes and not run.changed:
            path = run.folder / f"translations_{pairs.split}.txt"
            write_texts(path, texts)
        if suffix == "":
            shown = sorted({len(texts) * part // 6 for part in (1, 3, 5)})  # the first ones are often the shortest
            told = [f"{pairs.sources[number]}\n  {texts[number]}\n  {pairs.targets[number]}" for number in shown]
            run.say("Source, translation and reference:\n" + "\n".join(told))
            if not run.changed:
                chosen = next((number for number, one in enumerate(found) if 4 <= len(one.pieces) <= 25), 0)
                draw(run, first(translator([pairs.sources[chosen]], search_of(config, 1))[0]))
    run.say("\n" + "\n".join(f"{name}: {signature}" for name, signature in signatures.items()))
    scored = [pairs for suffix, (pairs, _) in splits.items() if suffix != "_validation" or len(splits) == 1]
    plan = batches.shuffled(config.seed)
    usage = plan.usage()
    result = run.finish(
        split=", ".join(f"{pairs.split}, {pairs.scope}" for pairs in scored),
        metrics=metrics,
        published=published.TRANSLATION.get((config.dataset, *config.languages), []) if config.longest is None else [],
        examples_per_step=len(batches.training) / plan.steps_per_epoch,
        reads_test=len(splits) > 1,
        parameters=sum(map(count_parameters, models)),
        details={
            "signatures": signatures,
            "vocabularies": {side: len(tokenizer) for side, tokenizer in tokenizers._asdict().items()},
            "padding": round(usage.padding, 4),
            "batch_shapes": len(usage.shapes),
            "translations": counts,
            "findings": {
                pairs.split: pairs.report.findings for pairs in (batches.training, *(pairs for pairs, _ in splits.values()))
            },
        },
    )
    run.say_end(result)


def search_of(config: Config, n_best: int) -> Search:
    options: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(Search)}
    options["n_best"] = n_best
    return Search(**options)


def first(best: list[Translation]) -> Translation:
    """The best translation; an empty one where the model gave no number to go by."""
    return best[0] if best else Translation("", -math.inf, [], [], np.zeros(0, np.float32), None, False)


def draw(run: Run[Config], translation: Translation) -> None:
    config = run.config
    title = ", ".join([config.dataset, *([] if None in config.languages else ["{} to {}".format(*config.languages)])])
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title))
    if translation.weights is not None:
        run.figure("attention", attention_map(translation))


def attention_map(translation: Translation) -> Any:
    labels = [[piece.replace("▁", "\u2423") for piece in pieces] for pieces in (translation.pieces, translation.source_pieces)]
    return plots.heatmap(
        translation.weights,
        *labels,
        xlabel="source",
        ylabel="translation",
        title="Attention weights",
    )


def load(run: Run[Config]) -> tuple[list[Seq2Seq], Tokenizers]:
    """The model of the run, and those of its ensemble behind it.

    Raises:
      ValueError: another run of other symbols.
    """
    tokenizers, models = load_tokenizers(run.folder), []
    others = [Run.finished(run.task, Config, name, run.config.runs_dir) for name in run.flags.ensemble]
    for one in (run, *others):
        for side in Tokenizers._fields:
            file = f"{side}_tokenizer.json"
            if (one.folder / file).read_bytes() != (run.folder / file).read_bytes():
                raise ValueError(f"ensemble: expected runs with the {file} of {run.folder}, got another in {one.folder}")
        models.append(build_model(one.config, tokenizers))
        checkpoint.load_weights(one.weights, models[-1])
    return models, tokenizers


def evaluate(run: Run[Config]) -> None:
    training = load_split(run.config, "train", run.config.data_dir)
    run.trained_on(training.name, run.config.origin, training.fingerprint)
    models, tokenizers = load(run)
    batches = PairBatches(run.config, tokenizers, training, run.config.seed)
    splits = splits_of(run.config, batches, run.flags.split)
    for pairs, _ in splits.values():
        run.say(f"{pairs.split}: {pairs.report}")
    report(run, models, tokenizers, batches, splits)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """Translates each input, or each line of a file, or of standard input for "-"; the weights go to a figure and to JSON.

    With `--output FILE` the best translation of each goes there, and nothing else is told.
    """
    if not inputs:
        raise ValueError('expected at least one text, a file, or "-" for standard input')
    texts = [normalized(text).strip() for text in texts_named(inputs)]
    models, tokenizers = load(run)
    if run.flags.output is not None:
        found = Translator(models, tokenizers).of_lines(texts, search_of(run.config, 1), attention=False)
        write_texts(run.flags.output, [first(best).text for best in found])
        print(f"{len(texts)} translations are in {run.flags.output}, one a line.")
        return
    if lacks := collections.Counter(symbol for text in texts for symbol in tokenizers.source.lacks(text)):
        most = ", ".join(map(repr, (symbol for symbol, _ in lacks.most_common(10))))
        told = f"{most}{f' and {len(lacks) - 10} more' if len(lacks) > 10 else ''}"
        print(f"The model has no symbol of its own for {told}.", file=sys.stderr)
    score = "log probability" if run.config.alpha == 0 else f"log probability over {run.config.length_penalty} length penalty"
    print(f"Before each translation: its {score}{' and coverage penalty' * bool(run.config.coverage_penalty)}.")
    alignments = []
    told_of_each = run.config.n_best or min(SHOWN, run.config.beam_size)
    # A few texts at once: each hypothesis that is followed keeps its attention weights.
    found = Translator(models, tokenizers).of_lines(texts, search_of(run.config, told_of_each), batch_size=8)
    for text, best in zip(texts, found, strict=True):
        print(text or "(an empty text: there is nothing to translate)")
        for translation in best:
            cut = "" if translation.finished else "  (cut off)"
            print(f"  {translation.score:8.3f}  {translation.text}{cut}")
        alignments.append(first(best).as_json(text))
    if not texts:
        return
    path = run.folder / "alignments.json"
    told = ",\n".join(json.dumps(alignment, ensure_ascii=False) for alignment in alignments)  # a text a line
    path.write_text(f"[\n{told}\n]\n", encoding="utf-8")
    told = f"The best, symbol by symbol, are in {path}"
    best = next((first(one) for one in found if one), first([]))
    if best.weights is not None:
        run.figure("attention_of_prediction", attention_map(best))
        told += ", the weights of the first in figures/attention_of_prediction.png"
    elif run.config.attention != "none":
        told += "; there are no weights to draw"
    print(f"{told}.")


if __name__ == "__main__":
    main("translation", Config, train=train, evaluate=evaluate, predict=predict)
