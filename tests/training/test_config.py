"""The flags that every experiment has."""

import dataclasses
from typing import ClassVar

import pytest

from s2s_jax.training.config import RunConfig, ScoredSplit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sought:
    beam: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sought, RunConfig):
    steps: int = 1
    model: str = "small"
    layers: int = 3
    bonus: float = 0.0
    rate: float = 0.1
    dropout: float | None = None
    teacher_forcing: float = 1.0

    may_be_negative: ClassVar = ("bonus",)
    flags_of: ClassVar = {"evaluate": (Sought,)}
    taken_by: ClassVar = {"layers": ("deep", "deeper")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"beam": 0}, "beam: expected at least 1, got 0"),
        ({"rate": -0.1}, "rate: expected a number from 0 on, got -0.1"),
        ({"rate": float("inf")}, "rate: expected a number from 0 on, got inf"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"teacher_forcing": 1.1}, r"teacher_forcing: expected a probability in \[0, 1\], got 1.1"),
        ({"bonus": float("nan")}, "bonus: expected a finite number, got nan"),
        ({"layers": 2}, "layers: expected it with deep, deeper, got it with small"),
    ],
)
def test_flags_that_do_not_do_are_named(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**given)


def test_what_the_same_flags_allow_is_allowed():
    given = {"seed": 0, "checkpoint_every": 0, "bonus": -1.0, "rate": 0.0, "dropout": 0.0, "model": "deep", "layers": 2}
    assert given.items() <= dataclasses.asdict(Config(**given)).items()


def test_places_and_what_other_commands_take_are_no_part_of_the_identity():
    assert Config.not_of_identity() == {"runs_dir", "data_dir", "checkpoint_every", "beam"}


def test_the_test_is_read_unless_validation_alone_is_asked_for():
    assert ScoredSplit().splits == ("validation", "test")
    assert ScoredSplit(split="validation").splits == ("validation",)
