"""A training to draw, and what a figure shows. How figures look is for eyes."""

import io

import matplotlib.image
import numpy as np


def history(seed, metric="accuracy"):
    training = [{"step": step, "train/loss": 2.0 / step + seed} for step in (10, 20, 30)]
    return [
        *training,
        *({"step": step, "validation/loss": 1.0 + seed, f"validation/{metric}": 0.2 * seed} for step in (15, 30)),
    ]


def lines(axes):
    return {line.get_label(): np.array(line.get_data()).T.tolist() for line in axes.get_lines()}


def drawn(figure):
    """The picture as it would be written; not blank."""
    file = io.BytesIO()
    figure.savefig(file, dpi=50)
    file.seek(0)
    picture = matplotlib.image.imread(file)
    assert picture.std() > 0.01
    return picture
