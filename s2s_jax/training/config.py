"""The flags that every experiment has, and which of them make a run what it is."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Flags that every experiment has."""

    steps: int
    """Steps of training."""
    seed: int = 0
    """Draws weights, batches and dropout."""
    name: str = "default"
    """Name of the run: its folder is RUNS_DIR/TASK/NAME."""
    runs_dir: Path = Path("runs")
    """Where the runs are."""
    data_dir: Path | None = None
    """Folder of the real data; the variable S2S_DATA_DIR if not given."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; 0 for none."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("seed", "checkpoint_every")
    may_be_negative: ClassVar[tuple[str, ...]] = ()  # of floating numbers
    # Below 1, where an experiment has them.
    rates: ClassVar[tuple[str, ...]] = (
        *("dropout", "input_dropout", "recurrent_dropout", "word_dropout", "subword_dropout"),
        *("label_smoothing", "average_decay"),
    )
    # At most 1, where an experiment has them.
    probabilities: ClassVar[tuple[str, ...]] = ("teacher_forcing",)
    # Where a run is, finds its data and is computed may change from sitting to sitting without making it another run.
    places: ClassVar[tuple[str, ...]] = ("runs_dir", "data_dir", "checkpoint_every")
    # By command: dataclasses of flags that it takes, train besides those of the config. Those that the config inherits say what
    # is done with the trained model: they are no part of the run's identity, and the command may give others than the training
    # did.
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {}
    # Flags that are at most as great as another. Where a command gives the other alone, and less than the run has of the first,
    # the first follows it.
    at_most: ClassVar[Mapping[str, str]] = {}
    # Which values of `--model` take a flag, for flags that not all of them do: with another it has to stay at its default.
    taken_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @classmethod
    def not_of_identity(cls) -> set[str]:
        """Names of the flags that may change without making it another run."""
        later = {field.name for types in cls.flags_of.values() for one in types for field in dataclasses.fields(one)}
        return {*cls.places, *later}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in self.may_be_zero else 1
            if type(value) is int and value < least:
                raise ValueError(f"{field.name}: expected at least {least}, got {value}")
            signed = field.name in self.may_be_negative
            if type(value) is float and not (math.isfinite(value) and (signed or value >= 0)):
                raise ValueError(f"{field.name}: expected a {'finite number' if signed else 'number from 0 on'}, got {value}")
            if field.name in self.rates and value is not None and value >= 1:
                raise ValueError(f"{field.name}: expected a rate in [0, 1), got {value}")
            if field.name in self.probabilities and value > 1:
                raise ValueError(f"{field.name}: expected a probability in [0, 1], got {value}")
        config: Any = self
        for name, models in self.taken_by.items():
            if getattr(config, name) != getattr(type(config), name) and config.model not in models:
                raise ValueError(f"{name}: expected it with {', '.join(models)}, got it with {config.model}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """What is scored, for `flags_of`; it is no part of the config, so that the test of a tuned run can be scored later."""

    split: Literal["test", "validation"] = "test"
    """Score validation and test, or validation alone, which leaves the test unread."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("validation", "test") if self.split == "test" else ("validation",)
