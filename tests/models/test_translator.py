"""From texts to texts: that each text has its own translation whatever stands beside it, and weights that fit their labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.data.tokenizers import fit_tokenizers
from s2s_jax.data.vocabulary import END, START
from s2s_jax.models import Seq2Seq, decoder_step
from s2s_jax.models.translator import Search, Translator
from tests.samples import assert_close, random_like

TEXTS = ["a b c d", "b", "d d a b c a a b c d", "", "c a z"]


@pytest.fixture(scope="module")
def tokenizers():
    return fit_tokenizers("words", ["a b c d"], ["a b c d"], joint=True, split="spaces")


def drawn(tokenizers, **options):
    size = len(tokenizers.source)
    model = Seq2Seq(size, size, embedding_features=3, hidden_features=6, cell=cells.gru, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 3, 1.5)))


@pytest.mark.parametrize("options", [{"decoder": "attention"}, {"decoder": "attention", "double_source": True}, {}], ids=str)
def test_a_text_is_translated_as_if_alone(tokenizers, options):
    translator = Translator(drawn(tokenizers, **options), tokenizers)
    search = Search(beam_size=3, n_best=2)
    together = translator(TEXTS, search, batch_size=4)
    for text, best in zip(TEXTS, together, strict=True):
        (alone,) = translator([text], search, batch_size=4)
        assert [one.text for one in best] == [one.text for one in alone]
        assert_close([one.score for one in best], [one.score for one in alone], 1e-5)
        assert [one.finished for one in best] == sorted((one.finished for one in best), reverse=True)
        assert not {"<pad>", "<s>"} & {piece for one in best for piece in one.pieces}


def test_weights_and_log_probabilities_are_those_of_the_model(tokenizers):
    model = drawn(tokenizers, decoder="attention")
    for text, (best,) in zip(TEXTS, Translator(model, tokenizers)(TEXTS), strict=True):
        source = np.append(tokenizers.source.encode(text), END).astype(np.int32)
        assert best.source_pieces == [*(word if word in "abcd" else "<unk>" for word in text.split()), "</s>"]
        assert len(best.pieces) == len(best.log_probs) == len(best.weights) <= 2 * len(source) + 10
        assert best.weights.shape[1] == len(source)
        assert_close(best.weights.sum(1), np.ones(len(best.pieces)), 1e-5)
        labels = {piece: number for number, piece in enumerate(tokenizers.target.pieces(range(len(tokenizers.target))))}
        numbers = [labels[piece] for piece in best.pieces]
        done = model(source[None], None, np.array([[START, *numbers[:-1]]], np.int32))
        logs = jax.nn.log_softmax(done)[0, np.arange(len(numbers)), np.array(numbers)]
        np.testing.assert_allclose(best.log_probs, logs, atol=1e-5)
        np.testing.assert_allclose(best.score, np.mean(logs), atol=1e-5)
        assert best.finished == (numbers[-1] == END)


def test_weights_of_a_source_read_twice_are_added_up(tokenizers):
    model = drawn(tokenizers, decoder="attention", double_source=True)
    ((best,),) = Translator(model, tokenizers)(["a b c"])
    step, params = decoder_step(model)
    context, state = model.start(np.array([[*tokenizers.source.encode("a b c"), END]], np.int32))
    weights = step(params, context, state, np.array([START])).aux[0]
    assert weights.shape == (8,)
    assert_close(best.weights[0], np.asarray(weights[:4] + weights[4:]), 1e-5)


def test_few_programs_are_compiled(tokenizers):
    translator = Translator(drawn(tokenizers, decoder="attention"), tokenizers)
    from s2s_jax.models import translator as module

    translator(["a b", "c", "d"], batch_size=4)
    before = module._searched._cache_size()
    translator(["a b c", "c d", "d", "a"], batch_size=4)
    translator(["a b c d a", "c d", "d"], batch_size=4)
    assert module._searched._cache_size() == before


def test_another_alpha_and_another_coverage_penalty_compile_nothing(tokenizers):
    from s2s_jax.models import translator as module

    translator = Translator(drawn(tokenizers, decoder="attention"), tokenizers)
    first = translator(TEXTS[:2], Search(alpha=1.0, coverage_penalty=0.1))
    before = module._searched._cache_size()
    second = translator(TEXTS[:2], Search(alpha=0.0, coverage_penalty=0.2))
    assert module._searched._cache_size() == before
    assert first[0][0].score != second[0][0].score


@pytest.mark.parametrize("double_source", [False, True])
def test_a_coverage_penalty_counts_the_positions_of_the_source_alone(tokenizers, double_source):
    translator = Translator(drawn(tokenizers, decoder="attention", double_source=double_source), tokenizers)
    without, covering = (translator(TEXTS, Search(coverage_penalty=beta, beam_size=1)) for beta in (0.0, 0.5))
    costs = []
    for (best,), (same,) in zip(without, covering, strict=True):
        assert best.pieces == same.pieces
        costs.append(best.score - same.score)
        if not double_source:  # of one that was read twice both readings count, whose weights are not told apart
            np.testing.assert_allclose(costs[-1], -0.5 * np.log(np.minimum(best.weights.sum(0), 1)).sum(), atol=1e-5)
    assert min(costs) >= 0
    assert max(costs) > 0.1


def test_of_an_empty_line_nothing_is_said(tokenizers):
    translator = Translator(drawn(tokenizers), tokenizers)
    lines = ["", TEXTS[0], "", TEXTS[1]]
    first, one, third, two = translator.of_lines(lines)
    assert (first, third) == ([], [])
    assert [best[0].text for best in (one, two)] == [best[0].text for best in translator([TEXTS[0], TEXTS[1]])]


def test_a_translation_is_cut_off_at_its_limit(tokenizers):
    translator = Translator(drawn(tokenizers), tokenizers)
    search = Search(max_ratio=0.5, max_extra=1)
    assert [search.limit(length) for length in (1, 2, 3, 4)] == [1, 2, 2, 3]
    for text, (best,) in zip(TEXTS, translator(TEXTS, search), strict=True):
        most = search.limit(len(text.split()) + 1)
        assert len(best.pieces) <= most
        assert best.finished or len(best.pieces) == most


def test_weights_come_back_where_they_are_asked_for(tokenizers):
    translator = Translator(drawn(tokenizers, decoder="attention"), tokenizers)
    for search in (Search(), Search(coverage_penalty=0.1)):
        (with_weights,), (without,) = (translator(["a b"], search, attention=asked)[0] for asked in (True, False))
        assert without.weights is None
        assert with_weights.weights is not None
        assert without.text == with_weights.text


def test_an_ensemble_says_what_the_mean_of_its_probabilities_says(tokenizers):
    one, other = drawn(tokenizers, decoder="attention"), drawn(tokenizers, num_layers=2)
    assert_close(
        [best.score for (best,) in Translator([one, one], tokenizers)(TEXTS)],
        [best.score for (best,) in Translator(one, tokenizers)(TEXTS)],
        1e-5,
    )
    for text, (best,) in zip(TEXTS, Translator([one, other], tokenizers)(TEXTS), strict=True):
        source = np.append(tokenizers.source.encode(text), END).astype(np.int32)
        labels = {piece: number for number, piece in enumerate(tokenizers.target.pieces(range(len(tokenizers.target))))}
        numbers = [labels[piece] for piece in best.pieces]
        done = [jax.nn.softmax(model(source[None], None, np.array([[START, *numbers[:-1]]]))) for model in (one, other)]
        logs = jnp.log(sum(done) / 2)[0, np.arange(len(numbers)), np.array(numbers)]
        np.testing.assert_allclose(best.log_probs, logs, atol=1e-5)
        assert best.weights is None  # one of them has no attention


def test_bad_arguments_are_named(tokenizers):
    model = drawn(tokenizers)
    translator = Translator(model, tokenizers)
    for search, options, message in (
        (Search(), {"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        (Search(coverage_penalty=0.1), {}, "coverage_penalty: expected 0 without attention, got 0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            translator(TEXTS, search, **options)
    for options, message in (
        ({"max_ratio": 0.5, "max_extra": 0}, "max_ratio, max_extra: expected room for a symbol at least, got 0.5 and 0"),
        ({"max_ratio": -0.5, "max_extra": 3}, "max_ratio: expected a number from 0, got -0.5"),
        ({"max_ratio": float("nan")}, "max_ratio: expected a number from 0, got nan"),
        ({"beam_size": 0}, "beam_size: expected a positive number, got 0"),
        ({"n_best": 6}, "n_best, beam_size: expected from 1 to as many to tell as are followed, 5, got 6"),
        ({"n_best": 0}, "n_best, beam_size: expected from 1 to as many to tell as are followed, 5, got 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected a number from 0, got -1"),
        ({"max_ratio": 9.0, "max_extra": -1}, "max_extra: expected a number from 0, got -1"),
        ({"alpha": -1.0}, "alpha: expected a number from 0, got -1.0"),
        ({"coverage_penalty": float("inf")}, "coverage_penalty: expected a number from 0, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            Search(**options)
    with pytest.raises(ValueError, match="texts: expected a list of texts, got one, 'a b'"):
        translator("a b")
    narrow = Seq2Seq(len(tokenizers.source), 6, embedding_features=3, hidden_features=6, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"models: expected one that reads 8 symbols and says 8, as .* got 8 and 6"):
        Translator([model, narrow], tokenizers)
    with pytest.raises(ValueError, match="models: expected at least one, got none"):
        Translator([], tokenizers)
    with pytest.raises(ValueError, match="models: expected all of an ensemble to read their sources twice or none of them"):
        Translator([model, drawn(tokenizers, double_source=True)], tokenizers)


def test_no_text_has_no_translation(tokenizers):
    assert Translator(drawn(tokenizers), tokenizers)([]) == []
