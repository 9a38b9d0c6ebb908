"""Reviews that are made up: a stand-in for texts whose class is what they say."""

from typing import NamedTuple

import numpy as np

_WORDS = {
    1: ["wonderful", "moving", "funny", "brilliant", "charming", "gripping", "clever", "beautiful", "honest", "fresh"],
    0: ["dull", "awful", "boring", "clumsy", "tedious", "hollow", "lazy", "ugly", "fake", "stale"],
}
_VERDICTS = {
    1: ["I loved every minute", "see it twice", "a joy from start to end", "it stays with you", "highly recommended"],
    0: ["I nearly fell asleep", "save your money", "a waste of an evening", "it made no sense", "best avoided"],
}
_SUBJECTS = ["film", "plot", "acting", "script", "music", "ending", "cast", "camera", "story", "dialogue"]
_FORMS = ["The {} was {}.", "I found the {} quite {}.", "What a {} {}!", "Such a {} {} is rare.", "The {} seemed {} to me."]


class LabelledTexts(NamedTuple):
    """Texts, and a class for each, int32 [N]."""

    texts: list[str]
    labels: np.ndarray


def made_up_reviews(count: int, seed: int) -> LabelledTexts:
    """Reviews of two to six sentences, of class 1 (praise) and 0 in turn; one sentence in five says the opposite."""
    if count < 1:
        raise ValueError(f"count: expected at least one review, got {count}")
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    return LabelledTexts([_review(int(label), rng) for label in labels], labels)


def _review(label: int, rng: np.random.Generator) -> str:
    return " ".join(_sentence(label if rng.random() < 0.8 else 1 - label, rng) for _ in range(rng.integers(2, 7)))


def _sentence(label: int, rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        return str(rng.choice(_VERDICTS[label])).capitalize() + "."
    form, subject, word = str(rng.choice(_FORMS)), rng.choice(_SUBJECTS), rng.choice(_WORDS[label])
    return form.format(*((word, subject) if form.startswith(("What", "Such")) else (subject, word)))
