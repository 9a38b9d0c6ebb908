"""A network with attention learns to translate: number words, real sentences, or pairs of lines of your own.

    python -m experiments.translation                                       number words, English to German, without data
    python -m experiments.translation predict "three hundred and twelve"    with the run of the same --name
    python -m experiments.translation --dataset multi30k --data-dir FOLDER  real sentences, where FOLDER holds multi30k
    python -m experiments.translation --dataset files --train-source a.en --train-target a.de ...     your own pairs of lines

`--dataset reverse`, `copy` and `sort` are the toy tasks of JoeyNMT's tutorial and of Sockeye's system test: lines of integers.
Sub-words are of the training split only, and are kept in the run.

BLEU is 0 to 100 and comes twice. `bleu_lowercased_tokens`: both sides normalised, lower-cased and cut into words by Moses'
rules, as the Multi30k tasks count it. `bleu_cased`: sacrebleu's own, on texts as people write them. Exact match: share of texts
that are their reference. Loss: nats per symbol of the reference, end symbol included, given those before; perplexity: its
exponential. Beam search unless `--beam-size 1`.
"""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from flax import nnx

from s2s_jax import attention as attentions
from s2s_jax import cells, plots
from s2s_jax.data.pair_sets import TOYS, PairBatches, PairFlags, fit, load_split, load_tests
from s2s_jax.data.tokenizers import Tokenizers, load_tokenizers
from s2s_jax.models.pair_loss import measure_pairs, pair_loss
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.models.translator import Search, Translation, Translator
from s2s_jax.text_metrics import bleu_cased, bleu_lowercased_tokens, chrf, exact_match_of_texts
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

_LIUM = {"how": "GRU with attention, joint BPE 10k, single run", "source": "README of lium-lst/wmt17-mmt"}
_BENTREVETT = "bentrevett/pytorch-seq2seq, notebook {}; spaCy tokens, greedy"
_MAXIMUS = "README of maximus-21/Neural-Machine-Translation; greedy, scoring not said"
# By source and target: metric and value.
PUBLISHED = {
    ("en", "de"): [
        {"metric": "bleu_lowercased_tokens", "value": 39.00, **_LIUM},
        {"metric": "bleu_lowercased_tokens_test_2017_flickr", "value": 31.25, **_LIUM},
    ],
    ("en", "fr"): [
        {"metric": "bleu_lowercased_tokens", "value": 59.02, **_LIUM},
        {"metric": "bleu_lowercased_tokens_test_2017_flickr", "value": 51.93, **_LIUM},
    ],
    ("de", "en"): [
        {"metric": "bleu_lowercased_tokens", "value": value, "how": how, "source": source}
        for value, how, source in (
            (13.76, "LSTM of two layers, no attention", _BENTREVETT.format(1)),
            (20.61, "GRU, no attention", _BENTREVETT.format(2)),
            (28.30, "GRU with attention", _BENTREVETT.format(3)),
            (38.45, "two-directional LSTM with attention, sub-words", _MAXIMUS),
        )
    ],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairFlags, TrainingConfig):
    steps: int = 1200
    attention: Literal["general", "dot", "scaled_dot", "concat", "additive", "multi_head", "coverage", "none"] = "general"
    """Score of the attention."""
    input_feeding: bool = False
    """Whether the attentional vector is read with the next symbol."""
    query_layer: Literal["last", "first"] = "last"
    """Which of the decoder's layers asks the attention; those above the first read its answer."""
    bridge: Literal["last", "zero", "learned"] = "last"
    """What the decoder starts from."""
    tied_embeddings: bool = True
    """The target's embedding is the output matrix too."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
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
    label_smoothing: float = 0.0
    """Share of the probability that is spread over all symbols."""
    teacher_forcing: float = 1.0
    """Probability of reading the true symbol before in training."""
    beam_size: int = 5
    """Hypotheses that are followed."""
    alpha: float = 1.0
    """Scores are log probabilities over length to this power."""
    learning_rate: float = 3e-3
    evaluate_every: int = 400

    may_be_zero: ClassVar[tuple[str, ...]] = (*TrainingConfig.may_be_zero, "alpha")
    fractions: ClassVar[tuple[str, ...]] = ("token_accuracy",)


def build_model(config: Config, tokenizers: Tokenizers) -> Seq2Seq:
    options: dict[str, Any] = {}
    if config.attention != "none":
        made = {**attentions.ATTENTIONS, "coverage": attentions.make_additive(coverage=True)}
        made["multi_head"] = attentions.make_multi_head(4)
        options = {
            "decoder": "attention",
            "attention": made[config.attention],
            "input_feeding": config.input_feeding,
            "query_layer": config.query_layer,
        }
    return Seq2Seq(
        len(tokenizers.source),
        len(tokenizers.target),
        embedding_features=config.embedding_features,
        hidden_features=config.hidden_features,
        cell={"rnn": cells.rnn, "lstm": cells.lstm, "gru": cells.gru}[config.cell],
        num_layers=config.num_layers,
        residual=config.residual,
        bidirectional=config.bidirectional,
        reverse_source=config.reverse_source,
        double_source=config.double_source,
        bridge=config.bridge,
        shared_embeddings=config.joint,
        tied_embeddings=config.tied_embeddings,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        recurrent_dropout=config.recurrent_dropout,
        rngs=nnx.Rngs(config.seed),
        **options,
    )


def train(run: Run[Config]) -> None:
    config = run.config
    training, validation = (load_split(config, split, config.data_dir) for split in ("train", "validation"))
    if config.dataset == "numbers":
        run.say("No data set named: trains on number words, whose figures say nothing about real sentences.")
    run.trained_on(training.name, config.origin, training.fingerprint)
    for pairs in (training, validation):
        run.say(f"{pairs.split}: {pairs.report}")
    tokenizers = fit(config, training)
    tokenizers.save(run.folder)
    batches = PairBatches(config, tokenizers, training)
    measure_over = make_measure(measure_pairs)
    validated = batches.in_order(validation)
    trained = train_by_recipe(
        run,
        build_model(config, tokenizers),
        functools.partial(pair_loss, teacher_forcing=config.teacher_forcing, label_smoothing=config.label_smoothing),
        batches.shuffled(config.seed),
        lambda model: measure_over(model, validated),
    )
    report(run, trained.model, tokenizers, batches)


def report(run: Run[Config], model: Seq2Seq, tokenizers: Tokenizers, batches: PairBatches) -> None:
    """Translates validation and test splits, scores them, draws the figures, and writes result.json."""
    config = run.config
    translator, metrics, signatures = Translator(model, tokenizers), {}, {}
    splits = {"_validation": load_split(config, "validation", config.data_dir), **load_tests(config, config.data_dir)}
    measure_over = make_measure(measure_pairs)
    for suffix, pairs in splits.items():
        found = [first(best) for best in translator(pairs.sources, search_of(config))]
        texts = [translation.text for translation in found]
        scores = {"chrf": chrf(texts, pairs.targets)}
        if config.dataset != "numbers":  # single words in German, which have no four in a row
            scores["bleu_cased"] = bleu_cased(texts, pairs.targets)
        if config.dataset not in (*TOYS, "numbers"):
            scores["bleu_lowercased_tokens"] = bleu_lowercased_tokens(texts, pairs.targets, config.target)
        scores["exact_match"] = exact_match_of_texts(texts, pairs.targets)
        forced = measure_over(model, batches.in_order(pairs))
        values = {name: score.value for name, score in scores.items()}
        values |= {"loss": forced["loss"], "perplexity": math.exp(forced["loss"])}
        metrics |= {f"{name}{suffix}": value for name, value in values.items()}
        signatures |= {name: score.signature for name, score in scores.items()}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        run.say(f"\n{pairs.split}, {len(texts)} texts ({config.origin}), beam {config.beam_size}: {told}")
        (run.folder / f"translations_{pairs.split}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        if suffix == "":
            told = [f"{s}\n  {t}\n  {r}" for s, t, r in zip(pairs.sources[:3], texts[:3], pairs.targets[:3], strict=True)]
            run.say("Source, translation and reference:\n" + "\n".join(told))
            draw(run, next((one for one in found if 4 <= len(one.pieces) <= 25), found[0]))
    run.say("\n" + "\n".join(f"{name}: {signature}" for name, signature in signatures.items()))
    tested = [pairs for suffix, pairs in splits.items() if suffix != "_validation"]
    result = run.finish(
        split=", ".join(f"{pairs.split}, all {len(pairs.sources)}" for pairs in tested),
        metrics=metrics,
        published=PUBLISHED.get((config.source, config.target), []) if config.dataset == "multi30k" else [],
        examples_per_step=len(batches.training) / batches.shuffled(config.seed).steps_per_epoch,
        parameters=count_parameters(model),
    )
    run.say(
        f"{result['seconds']:.1f} s of training on {result['device']}. Figures, weights and result.json are in {run.folder}."
    )


def search_of(config: Config, n_best: int = 1) -> Search:
    return Search(beam_size=config.beam_size, n_best=min(n_best, config.beam_size), alpha=config.alpha)


def first(best: list[Translation]) -> Translation:
    """The best translation; an empty one where the model gave no number to go by."""
    return best[0] if best else Translation("", -math.inf, [], [], np.zeros(0, np.float32), None, False)


def draw(run: Run[Config], translation: Translation) -> None:
    config = run.config
    title = f"{config.dataset}, {config.source} to {config.target}"
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title))
    if translation.weights is not None:
        run.figure("attention", attention_map(translation))


def attention_map(translation: Translation) -> Any:
    return plots.heatmap(
        translation.weights,
        translation.pieces,
        translation.source_pieces,
        xlabel="source",
        ylabel="translation",
        title="Attention weights",
    )


def load(run: Run[Config]) -> tuple[Seq2Seq, Tokenizers]:
    tokenizers = load_tokenizers(run.folder)
    model = build_model(run.config, tokenizers)
    checkpoint.load_weights(run.weights, model)
    return model, tokenizers


def evaluate(run: Run[Config]) -> None:
    training = load_split(run.config, "train", run.config.data_dir)
    run.trained_on(training.name, run.config.origin, training.fingerprint)
    model, tokenizers = load(run)
    report(run, model, tokenizers, PairBatches(run.config, tokenizers, training))


def predict(run: Run[Config], inputs: list[str]) -> None:
    """Translates each input, or each line of a file, or of standard input for "-"; the weights go to a figure and to JSON."""
    if not inputs:
        raise ValueError('expected at least one text, a file, or "-" for standard input')
    texts: list[str] = []
    for text in inputs:
        if text == "-":
            texts += [line.rstrip("\n") for line in sys.stdin]
        elif Path(text).is_file():
            texts += Path(text).read_text(encoding="utf-8").splitlines()
        else:
            texts.append(text)
    model, tokenizers = load(run)
    alignments = []
    for number, (text, best) in enumerate(
        zip(texts, Translator(model, tokenizers)(texts, search_of(run.config, n_best=3)), strict=True)
    ):
        print(text)
        for translation in best:
            cut = "" if translation.finished else "  (cut off)"
            print(f"  {translation.score:8.3f}  {translation.text}{cut}")
        if best and best[0].weights is not None:
            alignments.append(
                {
                    "source": best[0].source_pieces,
                    "translation": best[0].pieces,
                    "log_probabilities": [round(float(value), 5) for value in best[0].log_probs],
                    "weights": np.round(best[0].weights, 5).tolist(),
                }
            )
            if number == 0:
                run.figure("attention_of_prediction", attention_map(best[0]))
    if alignments:
        path = run.folder / "alignments.json"
        path.write_text(json.dumps(alignments, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"The weights of the best are in {path}, those of the first text in figures/attention_of_prediction.png.")


if __name__ == "__main__":
    main("translation", Config, train=train, evaluate=evaluate, predict=predict)
