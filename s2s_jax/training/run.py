"""A run: its folder, its logs and its result."""

import contextlib
import dataclasses
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from s2s_jax.files import append_line, read_json, whole_lines, write_json
from s2s_jax.training.checkpoint import changes
from s2s_jax.training.config import RunConfig
from s2s_jax.training.lock import try_lock
from s2s_jax.training.parallel import greatest
from s2s_jax.training.provenance import command, describe_device, in_runs, typed, versions

# Where data is from: real; drawn by the rule that is the task itself, as published, such as sums; or generated, which stands in
# for real data, and whose figures say nothing about it.
ORIGINS = ("real", "drawn", "generated")

ConfigType = TypeVar("ConfigType", bound=RunConfig)


class Run(Generic[ConfigType]):
    """A folder `runs/<task>/<name>/`: config.json, checkpoints/, metrics.jsonl, figures/, weights.safetensors, result.json."""

    def __init__(self, task: str, config: ConfigType):
        self.task = task
        self.config = config
        self.folder = config.runs_dir / task / config.name
        self.flags: Any = None  # those of `flags_of` the command
        self.changed: dict[str, Any] = {}  # which of them differ from what the run was trained and scored with
        self._elsewhere: dict[str, Any] = {}  # which of them are places, and differ
        self._scored: dict[str, str | None] = {}  # fingerprints by split, see `scores`
        self._board: Any = None
        self._locked = False

    @classmethod
    def begin(cls, task: str, config: ConfigType) -> "Run[ConfigType]":
        """Makes the folder, or goes on in it.

        Raises:
          TypeError: `config` is no `RunConfig`.
          FileNotFoundError: its data_dir is no folder.
          ValueError: it holds a run of another configuration, or another process trains there.
        """
        if not isinstance(config, RunConfig):
            raise TypeError(f"config: expected a RunConfig, such as RunConfig(steps=1000, name='first'), got {config!r}")
        if config.data_dir is not None and not config.data_dir.is_dir():
            raise FileNotFoundError(f"--data-dir: expected a folder, found none at {config.data_dir.absolute()}")
        run = cls(task, config)
        path = run.folder / "config.json"
        with run.locked():
            if path.exists() and run.has_begun():
                without = config.not_of_identity()
                different = changes(_without(read_json(path), without), _without(_as_json(config), without))
                if different:
                    raise ValueError(
                        f"{run.folder} holds a run with {different}. Give this one another --name (--init-from {run.folder} "
                        "starts from its weights), or delete that folder."
                    )
            elif run.writes:
                (run.folder / "data.json").unlink(missing_ok=True)  # of a sitting that trained nothing, perhaps on other data
            if run.writes:
                write_json(path, _as_json(config))
        return run

    @classmethod
    def finished(
        cls, task: str, config_type: type[ConfigType], name: str, runs_dir: Path, data_dir: Path | None = None
    ) -> "Run[ConfigType]":
        """The run of that name, with the configuration that it was trained with; `data_dir` if its data moved since.

        Raises:
          FileNotFoundError: there is none that has finished.
        """
        folder = runs_dir / task / name
        if not (folder / "weights.safetensors").exists():
            where = folder.absolute()
            raise FileNotFoundError(f"{where}: expected a finished run with weights.safetensors, found none; train it first")
        values: dict[str, Any] = read_json(folder / "config.json")
        known = {field.name for field in dataclasses.fields(config_type)}
        if values.keys() - known:
            raise ValueError(f"{folder}: was trained by another version, with the flags {sorted(values.keys() - known)}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        hints = typing.get_type_hints(config_type)
        paths = {name for name in known if Path in (hints[name], *typing.get_args(hints[name]))}
        values |= {name: Path(value) for name, value in values.items() if name in paths and value is not None}
        values |= {"runs_dir": runs_dir, "name": name, "data_dir": data_dir or values["data_dir"]}
        return cls(task, config_type(**values))

    def use(self, flags: Any) -> None:
        """Takes the flags of `evaluate` or `predict`, a dataclass: where the config has one of them, in the place of its own.

        `changed` then holds those that are not the run's own, or their default where it has none; places aside, unless what is
        scored there turns out to be other data, see `scores`.
        """
        given = {field.name: (getattr(flags, field.name), field.default) for field in dataclasses.fields(flags)}
        own = {name: getattr(self.config, name, default) for name, (_, default) in given.items()}
        self.flags = flags
        differ = {name: value for name, (value, _) in given.items() if value != own[name]}
        self.changed = {name: value for name, value in differ.items() if name not in self.config.places}
        self._elsewhere = {name: value for name, value in differ.items() if name in self.config.places}
        known = {field.name for field in dataclasses.fields(self.config)}
        self.config = dataclasses.replace(self.config, **{name: value for name, (value, _) in given.items() if name in known})

    def trained_on(self, dataset: str, data: str, fingerprint: str | None = None) -> None:
        """Writes down which data the run is about; later sittings must use the same.

        Args:
          dataset: name of the data.
          data: one of `ORIGINS`.
          fingerprint: of the content, such as a `Source` has; compared where both this sitting and an earlier one tell it.

        Raises:
          ValueError: it was other data before, or `data` is none of them.
        """
        if data not in ORIGINS:
            raise ValueError(f"data: expected one of {', '.join(ORIGINS)}, got {data!r}")
        path = self.folder / "data.json"
        now = {"dataset": dataset, "data": data, **({"fingerprint": fingerprint} if fingerprint else {})}
        before = read_json(path) if path.exists() else {}
        if any(before[name] != now[name] for name in before.keys() & now.keys()):
            raise ValueError(
                f"{self.folder}: expected the data that the run was trained on, {before}, got {now}; see data_dir, "
                "or give this run another --name"
            )
        if self.writes:
            write_json(path, before | now)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While it lasts no other process trains in the folder. Within it, it may be asked for again; `fit` does so.

        Of several processes that train together the one that writes has the lock, and all have to ask.

        Raises:
          ValueError: another process trains there.
        """
        if self._locked:
            yield
            return
        with try_lock(self.folder / "lock") if self.writes else contextlib.nullcontext(True) as free:
            if greatest(not free):
                raise ValueError(f"{self.folder}: another process trains there; wait for its end, or give another --name")
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def identity(self) -> dict[str, Any]:
        """What makes it this run and no other: task and config, but for what may change from sitting to sitting."""
        return {"task": self.task, **_without(_as_json(self.config), self.config.not_of_identity())}

    def has_begun(self) -> bool:
        """Whether something was trained."""
        return any((self.folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "weights.safetensors"))

    def discard(self) -> None:
        """Removes the folder if nothing came of the run: no more is in it than what `begin` and `trained_on` leave."""
        files = list(self.folder.iterdir()) if self.writes and self.folder.exists() else []
        if files and {path.name for path in files} <= {"config.json", "data.json", "lock"}:
            for path in files:
                path.unlink()
            self.folder.rmdir()
            with contextlib.suppress(OSError):  # there are other runs
                self.folder.parent.rmdir()

    def has_checkpoints(self) -> bool:
        """Whether an earlier sitting left any."""
        return (self.folder / "checkpoints").exists()

    def has_trained(self) -> bool:
        """Whether its training came to an end."""
        return (self.folder / "training.json").exists()

    def is_of_generated_data(self) -> bool:
        """Whether it was trained on data that stand in for real data, see `ORIGINS`."""
        path = self.folder / "data.json"
        return path.exists() and read_json(path)["data"] == "generated"

    def has_result(self) -> bool:
        """Whether it was finished and scored."""
        return (self.folder / "result.json").exists()

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes what all processes have in common."""
        return jax.process_index() == 0

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def say(self, text: str) -> None:
        """Prints, in one of the processes."""
        if self.writes:
            print(text, flush=True)

    def log_skipped(self, lines: list[dict[str, Any]]) -> None:
        """Appends to skipped.jsonl: steps that were skipped, and the ids of their examples; each step once."""
        if self.writes:
            path = self.folder / "skipped.jsonl"
            before = {line["step"] for line in whole_lines(path)}
            for line in lines:
                if line["step"] not in before:
                    append_line(path, line)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl, and to the TensorBoard log where tensorboardX is installed."""
        if not self.writes:
            return
        append_line(self.folder / "metrics.jsonl", {"step": step, **values})
        if self._board is None:
            try:
                from tensorboardX import SummaryWriter

                self._board = SummaryWriter(str(self.folder / "tensorboard"))
            except ImportError:
                self._board = False
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def history(self) -> list[dict[str, float]]:
        """All lines of metrics.jsonl; of two for the same step and names, the later one counts.

        A line that a kill tore is passed over with a warning that names it.
        """
        lines = whole_lines(self.folder / "metrics.jsonl")
        return list({(line["step"], tuple(line)): line for line in lines}.values())

    def steps(self) -> int:
        """Steps that were trained, by the log."""
        return int(max((line["step"] for line in self.history()), default=0))

    def figure(self, name: str, figure: Any) -> Path:
        """Writes a matplotlib figure to figures/<name>.png."""
        path = self.folder / "figures" / f"{name}.png"
        if self.writes:
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, dpi=150, bbox_inches="tight")
        return path

    def trained(self, steps: int, times: dict[str, float], backends: Sequence[str] = (), compilations: int = 0) -> None:
        """Writes training.json: steps done, seconds by what they were for and in all, device, backend, versions, command.

        `backends` are those that recurrence was carried along time by, in all sittings; of several "backend" names each, and it
        is None where there was none. `compilations` are the programs of the training step alone, one for each shape of batches,
        that the last sitting compiled; those of an evaluation are not among them.
        """
        training = {
            "steps": steps,
            "seconds": round(sum(times.values()), 1),
            "times": {part: round(seconds, 2) for part, seconds in times.items()},
            "device": describe_device(),
            "backend": ", ".join(backends) or None,
            "compilations": compilations,
            "versions": versions(),
            "command": command(),
        }
        if self.writes:
            write_json(self.folder / "training.json", training)

    def scores(self, fingerprints: Mapping[str, str | None]) -> None:
        """Says what is about to be scored, where other places than the run's own may hold other data.

        The first data of a split are the run's own. With flags that name other places, which hold others, it is an evaluation
        of its own: `changed` then has these flags. Call it after `trained_on`, and before anything is drawn, written or told.

        Args:
          fingerprints: of the content, by split.

        Raises:
          ValueError: a split that is not the run's own, in the same place.
        """
        path, result = self.folder / "data.json", self.folder / "result.json"
        data = read_json(path)
        # Where runs of before kept them.
        older = read_json(result).get("details", {}).get("fingerprints", {}) if result.exists() else {}
        own = older | data.get("fingerprints", {})
        others = sorted(split for split in own.keys() & fingerprints.keys() if own[split] != fingerprints[split])
        if others and not self._elsewhere:
            raise ValueError(
                f"{self.folder}: expected the {others[0]} split that its figures are about, got another in the same place; "
                "give it a name of its own and evaluate with that, or train with another --name"
            )
        self._scored = dict(fingerprints)
        if others:
            self.changed |= self._elsewhere
        elif self.writes:
            write_json(path, data | {"fingerprints": own | self._scored})

    def finish(
        self,
        *,
        split: str,
        metrics: dict[str, float],
        published: Sequence[Mapping[str, object]],
        examples_per_step: float,
        reads_test: bool = True,
        **more: Any,
    ) -> dict[str, Any]:
        """Writes result.json: the arguments, what `trained_on` and `fit` left behind, and how often it was scored.

        With flags that differ from the run's own, see `use`, it writes evaluation.json instead, which names them as `changed`
        and whose `command` is the evaluation's. Of result.json only `test_reads` goes up with it.

        Args:
          split: what was scored.
          metrics: by name; accuracies and error rates are fractions from 0 to 1.
          published: for comparison; each with `metric`, `value`, `how` and `source`.
          examples_per_step: rows of a batch, or their mean over an epoch.
          reads_test: whether a test split was scored; `test_reads` counts that, whatever the flags.
          more: anything else worth keeping.

        Raises:
          FileNotFoundError: `trained_on` has not been called for this run, or it was not trained to its end.
        """
        left = {}
        for name, needed in (("data", "run.trained_on"), ("training", "fit, which ends with it,")):
            path = self.folder / f"{name}.json"
            if not path.exists():
                raise FileNotFoundError(f"{path}: expected this file of the run; call {needed} before run.finish")
            left[name] = read_json(path)
        paths = [self.folder / name for name in ("result.json", "evaluation.json")]
        before = {path: read_json(path) for path in paths if path.exists()}
        test_reads = max((one.get("test_reads", 0) for one in before.values()), default=0) + reads_test
        result = {
            "experiment": self.task,
            **left["data"],
            **({"fingerprints": self._scored} if self._scored else {}),
            "split": split,
            "metrics": metrics,
            "published": published,
            "seed": self.config.seed,
            "examples": round(left["training"]["steps"] * examples_per_step),
            "test_reads": test_reads,
            **left["training"],
            "config": self._config_elsewhere(),
            **({"changed": self._plainly_changed(), "command": command()} if self.changed else {}),
            **more,
        }
        if self.writes:
            write_json(paths[bool(self.changed)], result)
            if self.changed and paths[0] in before:  # whoever looks at the run's own figures has to see every look at the test
                write_json(paths[0], before[paths[0]] | {"test_reads": test_reads})
        return result

    def say_end(self, result: Mapping[str, Any]) -> None:
        """The last line of an experiment, of what `finish` gave: how long it was trained, on what, and where all of it is."""
        if self.changed:
            told = ", ".join(typed(name, value) for name, value in self._plainly_changed().items())
            self.say(f"Not the run's own flags: {told}. So its result.json stays as it is, but for the test reads.")
        path = "evaluation.json is" if self.changed else "Figures, weights and result.json are"
        self.say(f"{result['seconds']:.1f} s of training on {result['device']}. {path} in {self.folder}.")

    def _config_elsewhere(self) -> dict[str, Any]:
        """The config for a card: without places, and with runs where they are by default."""
        kept = _without(_as_json(self.config), self.config.places)
        paths = {name for name in kept if isinstance(getattr(self.config, name), Path)}
        return {name: in_runs(value, self.config.runs_dir) if name in paths else value for name, value in kept.items()}

    def _plainly_changed(self) -> dict[str, Any]:
        return {name: _as_plain(value) for name, value in self.changed.items()}


def _without(config: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _as_json(config: RunConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {name: _as_plain(value) for name, value in values.items()}


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
