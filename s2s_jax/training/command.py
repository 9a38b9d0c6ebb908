"""The command line that all experiments share: train (over several seeds, in several processes), evaluate, predict."""

import dataclasses
import difflib
import functools
import itertools
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s2s_jax import plots
from s2s_jax.files import read_json, write_json
from s2s_jax.training import interrupts
from s2s_jax.training.provenance import describe_device, flag, program
from s2s_jax.training.recipe import TrainingConfig
from s2s_jax.training.run import ConfigType, Run

COMMANDS = ("train", "evaluate", "predict")
FLAG_OF = {"name": "dataset", "size": "vocabulary_size"}  # what functions call the values of these flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Which finished run to evaluate or to predict with."""

    name: str = "default"
    """Name of the run."""
    runs_dir: Path = Path("runs")
    """Where the runs are."""
    data_dir: Path | None = None
    """Folder of the real data, if it moved since training."""


def main(
    task: str,
    config_type: type[ConfigType],
    *,
    train: Callable[[Run[ConfigType]], None],
    evaluate: Callable[[Run[ConfigType]], None],
    predict: Callable[[Run[ConfigType], list[str]], None],
    arguments: list[str] | None = None,
) -> None:
    """`[train|evaluate|predict] [--flags] [inputs of predict]`; train if nothing is said."""
    arguments = sys.argv[1:] if arguments is None else arguments
    started = program()
    try:
        import tyro

        command, rest = _command(arguments)
        about = sys.modules["__main__"].__doc__ or ""
        if command == "train":
            description = f"{about}\n\nAlso: {started} evaluate, {started} predict (each has its own --help)."
            only = dataclasses.make_dataclass(
                "Flags", [], bases=config_type.flags_of.get("train", ()), frozen=True, kw_only=True
            )
            # Checked only when it has been parsed: what a config says against its flags, tyro would tell in its own way.
            unchecked = dataclasses.make_dataclass(
                "Config",
                [],
                bases=(only, config_type),
                namespace={"__post_init__": lambda self: None},
                frozen=True,
                kw_only=True,
            )
            given = tyro.cli(unchecked, args=rest, prog=started, description=description)
            config, flags = (
                of_type(**{field.name: getattr(given, field.name) for field in dataclasses.fields(of_type)})
                for of_type in (config_type, only)
            )
            _train(task, config, flags, train)
            return
        stays = "What is not said stays as the run has it, whatever the defaults below, which are those of a run without flags."
        description = {
            "evaluate": f"Scores the test split again with a finished run. {stays}",
            "predict": f"{started} predict INPUT ... [--flags] [-- INPUT ...]. {stays}\n\n{about}",
        }[command]
        # They are checked in the config of the run, which may have other values beside them than the defaults.
        flags = dataclasses.make_dataclass(
            "Flags",
            [],
            bases=(*config_type.flags_of.get(command, ()), FinishedRun),
            namespace={"__post_init__": lambda self: None},
            frozen=True,
            kw_only=True,
        )
        rest, behind = _cut_at_dashes(rest) if command == "predict" else (rest, [])
        parsed = functools.partial(
            tyro.cli,
            flags,
            args=rest,
            prog=f"{started} {command}{' INPUT ...' * (command == 'predict')}",
            description=description,
            return_unknown_args=True,
        )
        kept = {field.name: field.default for field in dataclasses.fields(config_type)}
        shown = {field.name: kept[field.name] for field in dataclasses.fields(flags) if field.name in kept}
        where, inputs = parsed(default=flags(**shown))
        unknown = [text for text in inputs if (text.startswith("-") and text != "-") or command == "evaluate"]
        if unknown:
            hint = ", and -- before inputs that begin with a dash" * (command == "predict")
            raise ValueError(f"{command}: unknown argument {unknown[0]}; see --help{hint}")
        run = Run.finished(task, config_type, where.name, where.runs_dir)
        own = {field.name for field in dataclasses.fields(run.config)} & {field.name for field in dataclasses.fields(flags)}
        # Once more, now that the run is known: what is not said stays as the run has it.
        given = parsed(default=flags(**{name: getattr(run.config, name) for name in own}))[0]
        unsaid = {name for name in own if getattr(where, name) == shown[name]}
        run.use(_following(config_type, given, unsaid))
        if command == "predict":
            if run.is_of_generated_data():
                print("The run was trained on generated data: what it says of any other means little.", file=sys.stderr)
            predict(run, [*inputs, *behind])
        else:
            evaluate(run)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"{started}: {_as_flags(str(error), config_type)}")
    except ModuleNotFoundError as error:
        sys.exit(f"{started}: {error}; the experiments need more than the package: pip install -e '.[experiments]'")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)  # what was saved, if anything, the training has said by itself
        sys.exit(130)


def _following(config_type: type[Any], given: Any, unsaid: set[str]) -> Any:
    """The flags of a command, of which those that it does not say are within the limits that it sets them, see `at_most`."""
    limits = {name: getattr(given, limit) for name, limit in config_type.at_most.items() if name in unsaid}
    above = {name: limit for name, limit in limits.items() if (getattr(given, name) or 0) > limit}
    return dataclasses.replace(given, **above)


def _as_flags(message: str, config_type: type[Any]) -> str:
    """The message of an error with flags as one would type them, where it begins with arguments or says `argument='value'`."""
    types = [config_type, *itertools.chain(*config_type.flags_of.values())]
    fields = {field.name for one in types for field in dataclasses.fields(one)}

    def typed(said: re.Match[str]) -> str:
        return f"{flag(said[1])} {said[2]}" if said[1] in fields else said[0]

    message = re.sub(r"\b(\w+)='(\w+)'", typed, message)
    told, colon, rest = message.partition(": ")
    names = [FLAG_OF.get(name, name) for name in told.split(", ")]
    if not colon or not set(names) <= fields:
        return message
    return f"{', '.join(map(flag, names))}: {rest}"


def _train(task: str, config: Any, flags: Any, train: Callable[[Run[Any]], None]) -> None:
    seeds = 1
    if isinstance(config, TrainingConfig):
        config.join_processes()
        seeds = config.seeds
    if seeds == 1:
        _train_once(Run.begin(task, config), flags, train)
        return
    runs = []
    for seed in range(config.seed, config.seed + seeds):
        print(f"\nSeed {seed}:")
        run = Run.begin(task, dataclasses.replace(config, seed=seed, seeds=1, name=f"{config.name}-seed{seed}"))
        _train_once(run, flags, train)
        runs.append(run)
    _summarize(runs, config.runs_dir / task / f"{config.name}-seeds")


def _summarize(runs: Sequence[Run[Any]], folder: Path) -> None:
    """Mean and standard deviation over the seeds, printed and in summary.json, and a learning curve of all that have one."""
    results = [read_json(run.folder / "result.json") for run in runs]
    summary: dict[str, Any] = {"seeds": [result["seed"] for result in results], "runs": [str(run.folder) for run in runs]}
    print(f"\nMean and standard deviation over {len(runs)} seeds:")
    for metric in results[0]["metrics"]:
        values = [result["metrics"][metric] for result in results if metric in result["metrics"]]
        if len(values) < len(runs):  # a seed that another version scored
            continue
        summary[metric] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
        print(f"{metric.replace('_', ' ')} {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    told = "summary.json is"
    if any(histories := [run.history() for run in runs]):
        title = f"{runs[0].task}, {folder.name.removesuffix('-seeds')}"
        figure = plots.learning_curve(histories, runs[0].config.fractions, title)
        figure.savefig(folder / "learning_curve.png", dpi=150, bbox_inches="tight")
        told = "summary.json and learning_curve.png are"
    print(f"{told} in {folder}.")


def _train_once(run: Run[Any], flags: Any, train: Callable[[Run[Any]], None]) -> None:
    """Trains, unless the run has been finished and scored; the test split is not read again for nothing."""
    if run.has_result():
        metrics = read_json(run.folder / "result.json")["metrics"]
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        run.say(f"Finished already, in {run.folder}: {told}. `evaluate` scores it again.")
        return
    run.say(f"{run.task}, {run.config.steps} steps, seed {run.config.seed}, on {describe_device()}, in {run.folder}")
    run.flags = flags
    interrupts.hold()
    try:
        with run.locked():
            try:
                train(run)
            except Exception:  # flags or data that do not do, for the most part
                run.discard()
                raise
    finally:
        interrupts.release()


def _cut_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before "--", flags among it, and what stands behind it, which are inputs whatever they begin with."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    """Which of the commands is meant, and the arguments after it."""
    if not arguments or arguments[0].startswith("-"):
        for before, text in itertools.pairwise(arguments):
            if text in COMMANDS and not before.startswith("-"):  # not the value of a flag
                raise ValueError(f"{text}: the command comes first, before all flags")
        return "train", arguments
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"expected {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]} first, or flags only, got {command!r}{hint}")
    return command, rest
