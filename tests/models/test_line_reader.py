"""Reading batches of lines: each line as it is read alone, by frames or with a decoder, the loss beside it, and training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s2s_jax.data.text_lines import EncodedLines, LineBatches, TextLines
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding import greedy
from s2s_jax.decoding.ctc import Language, ctc_align, ctc_beam_search, ctc_greedy
from s2s_jax.decoding.lexicon import make_lexicon
from s2s_jax.decoding.ngrams import fit_ngrams, ngram_step
from s2s_jax.losses import ctc_loss
from s2s_jax.metrics import mean_over
from s2s_jax.models import decoder_step, line_reader
from s2s_jax.models.line_loss import as_ink
from s2s_jax.models.line_reader import LineReader
from s2s_jax.training.loop import fit
from tests import oracles
from tests.models.test_crnn import ALPHABET, crnn, with_decoder


def lines():
    rng = np.random.default_rng(3)
    widths = [37, 12, 22, 9, 4, 3]
    made = [(255 * rng.random((width, 8, 1))).astype(np.uint8) for width in widths]
    return EncodedLines(TextLines("made", "test", made, ["abc"] * 6, list("uvwxyz")), ALPHABET)


def in_batches(source):
    return LineBatches(source, columns=50, shapes=3).in_order(source)


def alone(model, picture):
    return model(as_ink(picture[None]))


def test_lines_are_read_in_the_order_of_the_source():
    model, source = crnn(), lines()
    read = LineReader(model, ALPHABET)(in_batches(source))
    for number, line in enumerate(read):
        logits, lengths = alone(model, source[number]["picture"])
        logits = np.where(np.isin(np.arange(len(ALPHABET)), [START, END]), -np.inf, logits)  # they stand in no label
        want = ctc_greedy(logits, lengths)
        said = np.asarray(want.tokens[0, : int(want.lengths[0])])
        kept = said > END
        assert line.text == ALPHABET.decode(said[kept])
        assert line.log_prob == pytest.approx(float(want.log_probs[0]), rel=1e-4, abs=1e-4)
        assert line.confidences == pytest.approx(np.asarray(want.confidences[0, : len(said)])[kept].tolist(), rel=1e-4)
        starts, ends = (np.asarray(leaf[0, : len(said)])[kept] * 4 for leaf in (want.starts, want.ends))
        assert line.spans == list(zip(starts.tolist(), ends.tolist(), strict=True))


def test_the_loss_beside_what_is_read_is_that_of_each_line():
    """Of a CRNN beside PyTorch, a line at a time; of a decoder beside log probabilities picked one by one."""
    torch = oracles.oracle("torch")
    source, model = lines(), crnn()
    read, measured = LineReader(model, ALPHABET).measured(in_batches(source))
    assert [line.text for line in read] == [line.text for line in LineReader(model, ALPHABET)(in_batches(source))]
    total = fitting = 0
    for number in range(len(source)):
        logits, lengths = alone(model, source[number]["picture"])
        if lengths[0] >= 3:  # frames for "abc"
            log_probs = torch.log_softmax(torch.tensor(np.array(logits)).swapaxes(0, 1), -1)
            label = torch.from_numpy(source[number]["label"][None])
            total += float(torch.nn.functional.ctc_loss(log_probs, label, [int(lengths[0])], [3], PAD, reduction="sum"))
            fitting += 1
    assert 0 < fitting < len(source)
    assert measured == pytest.approx({"loss": total / (3 * fitting), "unfit": 1 - fitting / len(source)}, rel=1e-4)
    model, nats = with_decoder(), []
    for number in range(len(source)):
        label = source[number]["label"]
        logits = model(as_ink(source[number]["picture"][None]), None, np.array([[START, *label[:-1]]]))
        nats += [-float(jax.nn.log_softmax(row)[symbol]) for row, symbol in zip(logits[0], label, strict=True)]
    assert LineReader(model, ALPHABET).measured(in_batches(source))[1] == pytest.approx({"loss": np.mean(nats)}, rel=1e-4)


def test_beam_search_with_a_language_model_and_a_lexicon():
    model, source = crnn(), lines()
    ngrams = fit_ngrams([ALPHABET.encode("abca")], len(ALPHABET), order=3, end=PAD)
    lexicon = make_lexicon([ALPHABET.encode("ab"), ALPHABET.encode("c")], len(ALPHABET))
    plain = LineReader(model, ALPHABET)(in_batches(source), beam_size=8)
    fused = LineReader(model, ALPHABET, ngrams=ngrams, weight=5.0, bonus=4.0)(in_batches(source), beam_size=8)
    assert [line.text for line in fused] != [line.text for line in plain]
    words = LineReader(model, ALPHABET, lexicon=lexicon)(in_batches(source), beam_size=8)
    assert {line.text for line in words} <= {"", "ab", "c"}
    assert all(len(line.text) == len(line.spans) == len(line.confidences) for line in itertools.chain(plain, fused, words))
    with pytest.raises(ValueError, match="ngrams, lexicon: expected none with a decoder"):
        LineReader(with_decoder(), ALPHABET, ngrams=ngrams)


def test_beam_search_and_alignment_are_those_of_each_line():
    """With a language model, whose weight and bonus differ."""
    model, source = crnn(), lines()
    ngrams = fit_ngrams([ALPHABET.encode("abca")], len(ALPHABET), order=3, end=PAD)
    read = LineReader(model, ALPHABET, ngrams=ngrams, weight=0.5, bonus=2.0)(in_batches(source), beam_size=8)
    language = Language(ngram_step, ngrams, jnp.zeros(1, int), weight=0.5, bonus=2.0)
    for number in (0, 2):
        logits, lengths = alone(model, source[number]["picture"])
        logits = np.where(np.isin(np.arange(len(ALPHABET)), [START, END]), -np.inf, logits)
        best = ctc_beam_search(logits, lengths, beam_size=8, language=language)
        length = int(best.lengths[0, 0])
        tokens = best.tokens[:, 0, :length]
        where = ctc_align(logits, lengths, tokens, [length])
        assert length > 1
        assert read[number].text == ALPHABET.decode(np.asarray(tokens[0]))
        assert read[number].log_prob == pytest.approx(float(best.log_probs[0, 0]), rel=1e-4)
        assert read[number].confidences == pytest.approx(where.confidences[0].tolist(), rel=1e-4)
        assert read[number].spans == [
            (4 * a, 4 * b) for a, b in zip(where.starts[0].tolist(), where.ends[0].tolist(), strict=True)
        ]


def test_a_decoder_reads_as_its_greedy_search_does():
    model, source = with_decoder(), lines()
    read = LineReader(model, ALPHABET)(in_batches(source))
    step, params = decoder_step(model)
    for number, line in enumerate(read):
        picture = source[number]["picture"]
        context, state = model.start(as_ink(picture[None]))
        limit = len(picture) // 4 + 1
        want = greedy(step, params, context, state, start=START, end=END, max_length=limit, banned=(PAD, START))
        assert line.text == ALPHABET.decode(np.asarray(want.tokens[0]))
        assert line.finished == bool(want.finished[0])
        assert line.log_prob == pytest.approx(float(want.scores[0]), rel=1e-4, abs=1e-4)
        assert line.spans == looked_at(step, params, context, state, np.asarray(want.tokens[0])[: len(line.text)])
        assert len(line.text) <= limit


def looked_at(step, params, context, state, symbols):
    """Columns of the frame that each symbol's step attends to most, one step after the other."""
    spans, before = [], START
    for symbol in symbols:
        state, _, weights = step(params, context, state, jnp.array([before]))
        seen = weights.shape[1] > 0  # the narrowest picture has no frame
        frame, before = int(jnp.argmax(weights[0])) if seen else 0, symbol
        spans.append((4 * frame, 4 * (frame + seen)))
    return spans


def test_lines_a_second_are_those_of_each_round_behind_the_first(monkeypatch):
    now = [0.0]

    def read(batches, beam_size):
        now[0] += 100.0 if now[0] < 150 else 2.0 * (beam_size or 1)  # the first rounds compile

    monkeypatch.setattr(line_reader.time, "perf_counter", lambda: now[0])
    assert line_reader.lines_per_second(read, None, [None, 4], 12) == [[6.0] * 5, [1.5] * 5]


def test_a_crnn_learns_what_its_lines_say():
    texts = ["ab", "ba", "cc"]
    columns = {"a": [255, 0, 0, 255], "b": [0, 0, 255, 255], "c": [255, 255, 255, 0]}
    made = []
    for text in texts:  # each character is 12 columns of its own pattern
        rows = np.concatenate([np.tile(np.repeat(columns[character], 2), (12, 1)) for character in text])
        made.append(rows[..., None].astype(np.uint8))
    source = EncodedLines(TextLines("made", "train", made, texts, texts), ALPHABET)
    plan = LineBatches(source, columns=200, shapes=1)

    def loss(model, batch, key):
        logits, frames = model(as_ink(batch["picture"]), batch["picture_lengths"], training=True)
        nats, fits = ctc_loss(logits, frames, batch["label"], batch["label_lengths"], unfit="drop")
        return jnp.sum(nats), {"loss": mean_over(nats, fits)}

    model = fit(crnn(), loss, plan.shuffled(0), optimizer=optax.adam(2e-2), steps=300).model  # running statistics need some
    assert [line.text for line in LineReader(model, ALPHABET)(plan.in_order(source))] == texts
