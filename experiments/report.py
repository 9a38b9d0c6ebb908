"""The report trains nothing: it makes RESULTS.md from the cards of finished runs, ours beside the published figure.

    python -m experiments.report                                            the table
    python -m experiments.report --keep runs/addition/default --what lstm   also keeps that run's result.json as a card

A card is `<task>-<dataset>-<what>-seed<N>.json`. Cards of the same task, data set and `what` are one row: mean, and standard
deviation over seeds with their number; their runs may have ended at different steps, as they do when they stop early. Where
a card says less of its flags than the others of its row, or counted by another signature, the row says so.
Generated data, which stands in for real data, is refused; drawn data, which the task itself is, is not.
"""

import collections
import dataclasses
import itertools
import json
import math
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HEADER = (
    "| data | what | split | metric | ours | baselines | published "
    "| seeds | steps | test reads | training, s | parameters | read of a text | hardware | command |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    keep: Path | None = None
    """Folder of a run whose result.json becomes a card."""
    what: str | None = None
    """The part of the card's name that tells this kind of run from others on the same data."""
    results: Path = FOLDER / "results"
    """Folder of the cards."""


def keep(run: Path, what: str, results: Path) -> Path:
    """Copies a run's result.json to its card.

    Raises:
      FileNotFoundError: the run has no result.
      ValueError: it was trained or scored on generated data, or not scored on a test split.
      FileExistsError: there is a card of that name already, of another run.
    """
    path = run / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected the result of a finished run, found none")
    result = json.loads(path.read_text(encoding="utf-8"))
    _check(result, str(path))
    card = results / f"{result['experiment']}-{result['dataset']}-{what}-seed{result['seed']}.json"
    if card.exists() and card.read_bytes() != path.read_bytes():
        raise FileExistsError(f"{card}: is the card of another run, which stays; give this one another --what")
    results.mkdir(exist_ok=True)
    card.write_bytes(path.read_bytes())
    return card


def table(results: Path) -> str:
    """RESULTS.md from all cards of a folder.

    Raises:
      ValueError: a card of generated data or without test figures, or cards of one row that differ in data, hardware or a flag
        other than the seed.
    """
    rows = collections.defaultdict(list)
    for path in sorted(results.glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        _check(card, str(path))
        rows[path.stem.rsplit("-seed", 1)[0]].append(card)
    lines = collections.defaultdict(list)
    for name, cards in rows.items():
        lines[cards[0]["experiment"]] += _lines(name, cards)
    made = f"Made by `python -m experiments.report` from the cards in `{results.name}/`; no figure is entered by hand.\n"
    read = (
        "Accuracies and error rates are fractions from 0 to 1; losses are nats. Mean over seeds, and standard deviation where "
        "there is more than one. Steps: of the run that ended first to the one that ended last, where they differ. "
        "Test reads: how often the finished run was scored on its test split. Seconds are those of "
        "training on the hardware named, compiling and validation included. Baselines of forecasts are the last value, the "
        "last season and least squares on the same windows; their metrics are errors, and what is lower than ours is bold. "
        "Where forecasts stand side by side, the least mean of a column is bold, however many seeds it has; ours and the "
        "baselines are of all test windows. "
        "Scores that compare lower-cased output with cased references, which older cards hold, are left out.\n"
    )
    again = (
        "A command finds real data in the folder that the variable `S2S_DATA_DIR` names, or `--data-dir`; without either some "
        "take made-up data, and say so. Of several seeds it is that of the first; the others say another `--seed`.\n"
    )
    contents = "".join(f"- [{task}](#{task})\n" for task in lines)
    tables = "".join(f"\n## {task}\n\n{_at_a_glance(task, rows)}{HEADER}{''.join(of_task)}" for task, of_task in lines.items())
    return f"# Results\n\n{made}{read}\n{again}\n{contents}{tables}"


def _at_a_glance(task: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """What is set side by side before the rows of a task: forecasts by how far ahead they are, and networks that classify."""
    makers = {"forecasting": _by_horizon, "text_classification": _by_network}
    if task not in makers:
        return ""
    return makers[task](
        {row: cards for row, cards in rows.items() if cards[0]["experiment"] == task and cards[0].get("config")}
    )


def _by_horizon(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Tables of series that were forecast from as many steps at several horizons, one for each metric."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = collections.defaultdict(dict)
    for row, cards in rows.items():
        config = cards[0]["config"]
        groups[cards[0]["dataset"], *config.get("targets", ()), config.get("look_back")][row] = cards
    told = ""
    for (dataset, *targets, look_back), of_group in groups.items():
        horizons = sorted({cards[0]["config"]["horizon"] for cards in of_group.values()})
        for metric in ("mse", "mae", "coverage") if len(horizons) > 1 else ():
            of = f"{dataset}, {', '.join(targets) or 'all series'}, from {look_back} steps: {metric} by steps ahead"
            table = [
                [*name, *(_spread(values[horizon], 3) if horizon in values else "" for horizon in horizons)]
                for name, values in _side_by_side(of_group, metric).items()
            ]
            told += f"{of}\n\n{_markdown(['', 'from', *horizons], table if metric == 'coverage' else _least_bold(table))}\n"
    return told


def _side_by_side(rows: dict[str, list[dict[str, Any]]], metric: str) -> dict[tuple[str, str], dict[int, list[float]]]:
    """A metric by name and source, and by horizon: ours, of each seed, and then baselines and what was published."""
    names = {row: _without_horizon(row, cards[0]) for row, cards in rows.items()}
    columns = zip(*(name[:-1] for name in names.values()), strict=False)
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))  # "multivariate" say
    ours: dict[tuple[str, str], dict[int, list[float]]] = collections.defaultdict(dict)
    beside: dict[tuple[str, str], dict[int, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for row, cards in rows.items():
        name, horizon = "-".join(names[row][shared:]), cards[0]["config"]["horizon"]
        if having := [card["metrics"][metric] for card in cards if metric in card["metrics"]]:
            if horizon in ours[name, "ours"]:
                raise ValueError(
                    f"{row}: expected one row of {name} at {horizon} steps, got another; give its cards another name"
                )
            ours[name, "ours"][horizon] = having
        for card in cards:
            for baseline, values in card.get("details", {}).get("baselines", {}).get("test", {}).items():
                if metric in values:
                    beside[baseline, "baseline"][horizon].append(values[metric])
            for entry in card["published"]:
                if entry["metric"] == metric:
                    beside[entry["how"], entry["source"]][horizon].append(entry["value"])
    means = {name: {horizon: [statistics.mean(of)] for horizon, of in values.items()} for name, values in beside.items()}
    return ours | dict(sorted(means.items(), key=lambda item: item[0][1] != "baseline"))


def _without_horizon(row: str, card: dict[str, Any]) -> list[str]:
    """The parts of a row's name but for the horizon, which is the first of them that says it."""
    what = row.removeprefix(f"forecasting-{card['dataset']}-").split("-")
    if (horizon := str(card["config"]["horizon"])) in what:
        what.remove(horizon)
    return what


def _least_bold(table: list[list[str]]) -> list[list[str]]:
    """The same with the least mean of each column bold, to the places that are shown; the first two columns are names."""
    means = [[float(cell.split()[0]) if cell else math.inf for cell in line[2:]] for line in table]
    least = [min(column) for column in zip(*means, strict=True)]
    return [
        [*line[:2], *(f"**{cell}**" if mean == low else cell for cell, mean, low in zip(line[2:], of_line, least, strict=True))]
        for line, of_line in zip(table, means, strict=True)
    ]


def _by_network(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All networks that classify, those of the same texts from the best to the worst."""
    found = []
    for row, cards in rows.items():
        first, accuracies = cards[0], [card["metrics"]["accuracy"] for card in cards]
        what = row.removeprefix(f"text_classification-{first['dataset']}-")
        parameters = f"{first['parameters']:,}" if first.get("parameters") else ""
        seconds = f"{statistics.mean(card['seconds'] for card in cards):.0f}"
        cells = [
            first["dataset"],
            what,
            _read_of_a_text(first["config"]),
            parameters,
            _steps(cards),
            seconds,
            _spread(accuracies),
        ]
        found.append((first["dataset"], -statistics.mean(accuracies), cells))
    header = ["data", "network", "read of a text", "parameters", "steps", "training, s", "test accuracy"]
    return f"{_markdown(header, [cells for *_, cells in sorted(found)])}\n" if found else ""


def _markdown(header: list[Any], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _lines(row: str, cards: list[dict[str, Any]]) -> list[str]:
    first = cards[0]
    what = row.removeprefix(f"{first['experiment']}-{first['dataset']}-")
    seconds = statistics.mean(card["seconds"] for card in cards)
    command = shlex.join(shlex.split(first["command"]))  # an older card has brackets that a shell would not take
    _check_alike(row, cards)
    what += "".join(f"; {told}" for told in _unlike(cards))
    lines = []
    metrics = dict.fromkeys(name for card in cards for name in card["metrics"] if not _is_cased(card, name))
    for metric in sorted(metrics, key=lambda name: name.endswith("_validation")):  # those of the test first
        having = [card for card in cards if metric in card["metrics"] and not _is_cased(card, metric)]
        ours = _spread([card["metrics"][metric] for card in having])
        if len(having) < len(cards):
            ours += f" (seeds {', '.join(str(card['seed']) for card in having)})"
        if on := having[0].get("details", {}).get("measured_on", {}).get(metric):  # the row tells where it was trained
            ours += f" on {on}"
        of_metric = [entry for entry in having[0]["published"] if entry["metric"] == metric]
        published = "; ".join(f"{entry['value']} ({entry['how']}; {entry['source']})" for entry in of_metric)
        seeds, reads = (", ".join(str(card[field]) for card in cards) for field in ("seed", "test_reads"))
        sizes = [f"{first['parameters']:,}" if first.get("parameters") else "", _read_of_a_text(first.get("config") or {})]
        run = [seeds, _steps(cards), reads, f"{seconds:.0f}", *sizes, first["device"], f"`{command}`"]
        name = [first["dataset"], what, first["split"]]
        if lines:  # said in the line above
            name, run = [""] * len(name), [""] * len(run)
        lines.append("| " + " | ".join([*name, metric, ours, _baselines(having, metric), published, *run]) + " |\n")
    return lines


def _steps(cards: list[dict[str, Any]]) -> str:
    ended = [card["steps"] for card in cards]
    return " to ".join(map(str, sorted({min(ended), max(ended)})))


def _baselines(cards: list[dict[str, Any]], metric: str) -> str:
    """What stands beside a metric of a forecaster, mean over the cards; what is lower, and so better, than ours is bold."""
    split, name = ("validation", metric.removesuffix("_validation")) if metric.endswith("_validation") else ("test", metric)
    kept = [card.get("details", {}).get("baselines", {}).get(split, {}) for card in cards]
    ours = statistics.mean(card["metrics"][metric] for card in cards)
    told = []
    for baseline in kept[0]:
        values = [of_card[baseline][name] for of_card in kept if name in of_card.get(baseline, {})]
        if values:
            value = statistics.mean(values)
            told.append(f"{baseline} **{value:.4f}**" if value < ours else f"{baseline} {value:.4f}")
    return "; ".join(told)


def _read_of_a_text(config: dict[str, Any]) -> str:
    """How much of a text a classifier reads, by its flags."""
    if config.get("max_length"):
        return f"last {config['max_length']:,} {config['symbols']}"
    return f"last {config['last_bytes']:,} bytes" if config.get("labels") else ""  # without labels it is a language model


def _check_alike(row: str, cards: list[dict[str, Any]]) -> None:
    """Different steps are fine where the cards tell that the flags were the same."""
    configs = [card.get("config") for card in cards]
    fields = ["data", "split", "device", *(["steps"] if None in configs else [])]
    told: dict[str, list[Any]] = {field: [card[field] for card in cards] for field in fields}
    told["fingerprint"] = [card["fingerprint"] for card in cards if "fingerprint" in card]
    for config in filter(None, configs):
        for flag, value in config.items():
            if flag not in ("seed", "name"):
                told.setdefault(f"--{flag.replace('_', '-')}", []).append(value)
    for field, values in told.items():
        different = sorted(set(map(str, values)))
        if len(different) > 1:
            raise ValueError(f"{row}: expected one {field} in all its cards, got {', '.join(different)}")


def _unlike(cards: list[dict[str, Any]]) -> list[str]:
    """What some cards of a row do not tell, so that nobody knows whether it was the same, and where signatures differ."""
    flags = [set(card.get("config") or {}) for card in cards]
    told = []
    for card, own in zip(cards, flags, strict=True):
        if lacking := sorted(set.union(*flags) - own):
            which = ", ".join(f"--{flag.replace('_', '-')}" for flag in lacking) if own else "flags"
            told.append(f"seed {card['seed']} tells no {which}")
    signatures: dict[str, set[str]] = collections.defaultdict(set)
    for card in cards:
        for name, signature in _signatures(card).items():
            if not _is_cased(card, name):
                signatures[name].add(signature)
    if different := sorted(name for name, found in signatures.items() if len(found) > 1):
        told.append(f"signatures differ of {', '.join(different)}")
    return told


def _signatures(card: dict[str, Any]) -> dict[str, str]:
    return card.get("details", {}).get("signatures", {})


def _is_cased(card: dict[str, Any], metric: str) -> bool:
    """Whether a metric compares lower-cased output with cased references, which says nothing of the output."""
    if not (card.get("config") or {}).get("lowercase"):
        return False
    # That of the longest name: of bleu_lowercased_tokens_validation not bleu_lowercased's.
    name = max((name for name in _signatures(card) if metric.startswith(name)), key=len, default=None)
    return name is not None and not any(told in _signatures(card)[name] for told in ("case:lc", "lowercase", "lower-cased"))


def _spread(values: list[float], places: int | None = None) -> str:
    """Mean, and of several deviation and number, to so many places; if not said to four, or three digits of what is small."""

    def figure(value: float) -> str:
        if places is None and value != 0 and abs(value) < 1e-3:
            return f"{value:.2e}"
        return f"{value:.{4 if places is None else places}f}"

    mean = figure(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {figure(statistics.stdev(values))} (n={len(values)})"


def _check(result: dict[str, Any], where: str) -> None:
    if result["data"] == "generated":
        expected = "real data, or such as is drawn by the rule of its task"
        raise ValueError(f"{where}: expected {expected}, got generated data; such results are not kept")
    # Hyper-parameters may have been chosen by a validation split; its figures stay such when the test has been read otherwise.
    if not result["test_reads"] or result["split"].startswith("validation"):
        expected = "figures of a test split, which evaluate adds"
        raise ValueError(f"{where}: expected {expected}, got those of {result['split']}; such results are not kept")


def main(config: Config) -> None:
    if config.keep is not None:
        if not config.what:
            raise ValueError("what: expected a name for this kind of run with --keep, got none")
        print(f"Kept {keep(config.keep, config.what, config.results)}")
    path = config.results.parent / "RESULTS.md"
    path.write_text(table(config.results), encoding="utf-8")
    print(f"Wrote {path}")


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config, prog="python -m experiments.report"))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"python -m experiments.report: {error}")
