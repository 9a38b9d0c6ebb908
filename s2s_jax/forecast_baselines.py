"""Forecasts that learn little or nothing, which every table of forecasts should have beside the others."""

import numpy as np
from jaxtyping import Float, Int

RIDGE = 1e-3  # of the linear forecast, relative to the number of windows


def naive(past: Float[np.ndarray, "N L C"], horizon: int) -> Float[np.ndarray, "N H C"]:
    """The last value, again and again."""
    return np.repeat(past[:, -1:], horizon, axis=1)


def seasonal_naive(
    values: Float[np.ndarray, "T C"], origins: Int[np.ndarray, " N"], horizon: int, season: int
) -> Float[np.ndarray, "N H C"]:
    """The season before each origin, the first step ahead, again and again; `values` are those of all steps.

    Raises:
      ValueError: an origin within the first season.
    """
    if not 0 < season <= origins.min(initial=season):
        raise ValueError(f"season: expected 1 to {origins.min(initial=season)} steps before the first origin, got {season}")
    return values[origins[:, None] - season + np.arange(horizon) % season]


class Linear:
    """Least squares from the window to every step ahead, the same for all series, its last value subtracted and added back.

    That is NLinear (Zeng et al., arXiv 2205.13504, section 4) solved at once instead of trained, with a little ridge.

    Args:
      values: of the training part [T, C]; every window in it counts.
      length, horizon: L and H.
    """

    def __init__(self, values: Float[np.ndarray, "T C"], length: int, horizon: int):
        origins = np.arange(length, len(values) - horizon + 1)
        if not len(origins):
            raise ValueError(f"values: expected at least {length + horizon} steps, got {len(values)}")
        self._length, self._horizon = length, horizon
        gram, target = np.zeros((length + 1, length + 1)), np.zeros((length + 1, horizon))
        for chunk in np.array_split(origins, max(1, len(origins) // 512)):  # all windows at once would take gigabytes
            inputs, last = self._inputs(_windows(values, chunk - length, length))
            outputs = (_windows(values, chunk, horizon) - last).transpose(0, 2, 1).reshape(-1, horizon)
            gram += inputs.T @ inputs
            target += inputs.T @ outputs
        ridge = RIDGE * len(origins) * values.shape[1] * np.eye(length + 1)
        self._weights = np.linalg.solve(gram + ridge, target)

    def __call__(self, past: Float[np.ndarray, "N L C"]) -> Float[np.ndarray, "N H C"]:
        inputs, last = self._inputs(past)
        return (inputs @ self._weights).reshape(len(past), past.shape[2], self._horizon).transpose(0, 2, 1) + last

    def _inputs(self, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = past[:, -1:].astype(np.float64)
        flat = (past - last).transpose(0, 2, 1).reshape(-1, self._length)
        return np.concatenate([flat, np.ones((len(flat), 1))], axis=1), last


def _windows(values: np.ndarray, starts: Int[np.ndarray, " N"], length: int) -> Float[np.ndarray, "N L C"]:
    return values[starts[:, None] + np.arange(length)]
