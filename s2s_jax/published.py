"""Published figures, beside which results stand: by experiment, and by what tells there which of them apply."""

from typing import TypedDict


class Published(TypedDict):
    """A figure of others: `value` of our metric of that name, accuracies and error rates from 0 to 1."""

    metric: str
    value: float
    how: str
    source: str


def _figures(how: str, source: str, **values: float) -> list[Published]:
    """Figures of one model, by metric."""
    return [{"metric": metric, "value": value, "how": how, "source": source} for metric, value in values.items()]


# By numbers and digits.
_KERAS = "Keras' addition example"
ADDITION = {
    "decimal3": _figures("100 epochs of 50,000 sums", _KERAS, character_accuracy=0.99),
    "decimal5": _figures("30 epochs of 550,000 sums", _KERAS, character_accuracy=0.99),
    "decimal9": _figures("with a curriculum", "Zaremba & Sutskever, arXiv 1410.4615", teacher_forced_accuracy=0.99),
}

# By order and cell.
_RRU = "README of Zakovskis et al., Gates Are Not What You Need in RNNs"
_MNIST_CLASSIFY = "README of lh9171338/MNIST-Classify"
PIXELS = {
    ("rows", "lstm"): _figures("LSTM-256, Adam", "roatienza/Deep-Learning-Experiments", accuracy=0.989),
    ("rows", "gru"): _figures("GRU, 18,300 parameters", _MNIST_CLASSIFY, accuracy=0.989),
    ("rows", "rnn"): _figures("RNN", _MNIST_CLASSIFY, accuracy=0.944),
    ("pixels", "lstm"): _figures("LSTM, in Gu et al. 2022, table 6", "arXiv 2111.00396", accuracy=0.989),
    ("pixels", "gru"): _figures("GRU", _RRU, accuracy=0.9836),
    ("permuted", "lstm"): _figures("LSTM", _RRU, accuracy=0.9739),
    ("permuted", "gru"): _figures("GRU", _RRU, accuracy=0.9868),
}

# By task, length and cell.
_BAI = "Bai, Kolter & Koltun, arXiv 1803.01271, table 1"
LONG_SEQUENCES = {
    ("adding", 600, "lstm"): _figures("LSTM", _BAI, loss=0.164),
    ("adding", 600, "gru"): _figures("GRU", _BAI, loss=5.3e-5),
    ("adding", 600, "rnn"): _figures("RNN", _BAI, loss=0.177),
    ("copy", 1000, "lstm"): _figures("LSTM", _BAI, loss=0.0204),
    ("copy", 1000, "gru"): _figures("GRU", _BAI, loss=0.0197),
    ("copy", 1000, "rnn"): _figures("RNN", _BAI, loss=0.0202),
}

# By data set, source and target.
_LIUM = "GRU with attention, joint BPE 10k, single run", "README of lium-lst/wmt17-mmt"
_BENTREVETT = "bentrevett/pytorch-seq2seq, notebook {}; spaCy tokens, greedy"
_MAXIMUS = "README of maximus-21/Neural-Machine-Translation; greedy, scoring not said"
_SOCKEYE = "at most, in its system test", "Sockeye 1.18"
TRANSLATION: dict[tuple[str, str | None, str | None], list[Published]] = {
    ("reverse", None, None): _figures("BLEU, not exact match", "tutorial of JoeyNMT", bleu_cased=95.42),
    ("copy", None, None): _figures(*_SOCKEYE, perplexity=1.03),
    ("sort", None, None): _figures(*_SOCKEYE, perplexity=1.03),
    ("multi30k", "en", "de"): _figures(*_LIUM, bleu_lowercased_tokens=39.00, bleu_lowercased_tokens_test_2017_flickr=31.25),
    ("multi30k", "en", "fr"): _figures(*_LIUM, bleu_lowercased_tokens=59.02, bleu_lowercased_tokens_test_2017_flickr=51.93),
    ("multi30k", "de", "en"): [
        *_figures("LSTM of two layers, no attention", _BENTREVETT.format(1), bleu_lowercased_tokens=13.76),
        *_figures("GRU, no attention", _BENTREVETT.format(2), bleu_lowercased_tokens=20.61),
        *_figures("GRU with attention", _BENTREVETT.format(3), bleu_lowercased_tokens=28.30),
        *_figures("two-directional LSTM with attention, sub-words", _MAXIMUS, bleu_lowercased_tokens=38.45),
    ],
}

# By data set.
_KRAKEN = "Kraken, CNN + BLSTM + CTC, default settings, same split", "README of Jean-Baptiste-Camps/FROC-MSS"
_LAIA = "CRNN, best validation CER of 40 epochs, on other lines of MNIST's digits", "PyLaia benchmarks/basic.log"
HANDWRITING = {
    "froc_mss": _figures(
        *_KRAKEN, cer=0.0783, cer_without_spaces=0.0692, cer_validation=0.0811, cer_without_spaces_validation=0.0703
    ),
    "mnist_lines": _figures(*_LAIA, cer_validation=0.014),
}

# Of all 25,000 labels, byte by byte, up to 4,096 bytes of each review.
IMDB = [
    *_figures("Transformer, bytes", "Long Range Arena, arXiv 2011.04006", accuracy=0.6427),
    *_figures("S4, bytes", "arXiv 2111.00396", accuracy=0.8682),
]

# Of AG News, by network.
_VERY_DEEP = "arXiv 1606.01781"
_AG_NEWS = {
    "cnn_large": _figures("character CNN, the best of its table", "arXiv 1509.01626", accuracy=0.905),
    "vdcnn9": _figures("9 layers", _VERY_DEEP, accuracy=0.902),
    "vdcnn17": _figures("17 layers", _VERY_DEEP, accuracy=0.906),
    "vdcnn29": _figures("29 layers, the best of its table", _VERY_DEEP, accuracy=0.913),
}


def text_classification(dataset: str, model: str) -> list[Published]:
    """Of IMDB those of bytes, whatever the network, and of AG News those of the same network."""
    if dataset == "imdb":
        return IMDB
    return _AG_NEWS.get(model, []) if dataset == "ag_news_subset" else []


# ETTh1, all seven series from 96 hours, by horizon: MSE and MAE.
_FROM_96_HOURS = {
    96: {"SegRNN": (0.368, 0.395), "iTransformer": (0.386, 0.405), "PatchTST": (0.414, 0.419), "DLinear": (0.386, 0.400)},
    192: {"SegRNN": (0.408, 0.419), "iTransformer": (0.441, 0.436), "PatchTST": (0.460, 0.445), "DLinear": (0.437, 0.432)},
    336: {"SegRNN": (0.444, 0.440), "iTransformer": (0.487, 0.458), "PatchTST": (0.501, 0.466), "DLinear": (0.481, 0.459)},
    720: {"SegRNN": (0.446, 0.457), "iTransformer": (0.503, 0.491), "PatchTST": (0.500, 0.488), "DLinear": (0.519, 0.516)},
}
# ETTh1, by number of series and horizon: MSE and MAE.
_INFORMER = {
    (1, 24): {"LSTMa": (0.114, 0.272), "DeepAR": (0.107, 0.280), "Informer": (0.098, 0.247)},
    (1, 48): {"LSTMa": (0.193, 0.358), "DeepAR": (0.162, 0.327), "Informer": (0.158, 0.319)},
    (1, 168): {"LSTMa": (0.236, 0.392), "DeepAR": (0.239, 0.422), "Informer": (0.183, 0.346)},
    (1, 336): {"LSTMa": (0.590, 0.698), "DeepAR": (0.445, 0.552), "Informer": (0.222, 0.387)},
    (1, 720): {"LSTMa": (0.683, 0.768), "DeepAR": (0.658, 0.707), "Informer": (0.269, 0.435)},
    (7, 24): {"LSTMa": (0.650, 0.624), "LSTNet": (1.293, 0.901), "Informer": (0.577, 0.549)},
    (7, 48): {"LSTMa": (0.702, 0.675), "LSTNet": (1.456, 0.960), "Informer": (0.685, 0.625)},
    (7, 168): {"LSTMa": (1.212, 0.867), "LSTNet": (1.997, 1.214), "Informer": (0.931, 0.752)},
    (7, 336): {"LSTMa": (1.424, 0.994), "LSTNet": (2.655, 1.369), "Informer": (1.128, 0.873)},
    (7, 720): {"LSTMa": (1.960, 1.322), "LSTNet": (2.143, 1.380), "Informer": (1.215, 0.896)},
}


def etth1(series: int, look_back: int, horizon: int) -> list[Published]:
    """Of so many of its series: of a look-back of 96 those of SegRNN's table, and of any look-back those of Informer's."""
    known = {
        "README of SegRNN's repository": _FROM_96_HOURS.get(horizon, {}) if (series, look_back) == (7, 96) else {},
        "arXiv 2012.07436": _INFORMER.get((series, horizon), {}),
    }
    return [
        figure
        for source, of_models in known.items()
        for how, (mse, mae) in of_models.items()
        for figure in _figures(how, source, mse=mse, mae=mae)
    ]
