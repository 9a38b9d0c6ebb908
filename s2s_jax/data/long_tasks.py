"""The classic tests of a long memory, drawn anew for each batch."""

import numpy as np

BLANK, SIGNAL = 0, 9  # of `copied_digits`; its digits are 1 to 8
DIGITS = 10


def marked_sums(rng: np.random.Generator, count: int, length: int) -> dict[str, np.ndarray]:
    """The adding problem (Hochreiter & Schmidhuber 1997, experiment 4): what is the sum of the two numbers that are marked?

    Returns:
      `sequence` float32 [count, length, 2]: numbers uniform in 0 to 1, and 1 at two of them, one in each half, else 0.
      `sum` float32 [count]. Who always says 1, its mean, has a squared error of 1/6.

    Raises:
      ValueError: a length below 2.
    """
    if length < 2:
        raise ValueError(f"length: expected at least 2, got {length}")
    values = rng.uniform(size=(count, length)).astype(np.float32)
    marks = np.zeros_like(values)
    rows, half = np.arange(count), length // 2
    marks[rows, rng.integers(0, half, count)] = 1
    marks[rows, rng.integers(half, length, count)] = 1
    return {"sequence": np.stack([values, marks], axis=-1), "sum": (values * marks).sum(1)}


def copied_digits(rng: np.random.Generator, count: int, length: int) -> dict[str, np.ndarray]:
    """Copy memory, as Bai et al. have it (arXiv 1803.01271): ten digits, `length` steps of nothing, then say them again.

    Returns:
      `sequence` int32 [count, length + 20]: the digits, blanks, and at the last eleven steps the signal and then, ten times, it
      again. `target` int32, the same shape: blanks, but the digits at the last ten steps.
      Who says blanks, then digits at random, has a cross-entropy of 10 ln 8 / (length + 20) nats a step.

    Raises:
      ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length: expected a positive number of steps, got {length}")
    digits = rng.integers(1, SIGNAL, (count, DIGITS)).astype(np.int32)
    sequence = np.full((count, length + 2 * DIGITS), BLANK, np.int32)
    target = sequence.copy()
    sequence[:, :DIGITS] = digits
    sequence[:, -DIGITS - 1 :] = SIGNAL
    target[:, -DIGITS:] = digits
    return {"sequence": sequence, "target": target}
