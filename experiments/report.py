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
import json
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
    return makers[task](rows) if task in makers else ""


def _by_horizon(rows: dict[str, list[dict[str, Any]]]) -> str:
    """For the same columns of a data set, forecast at several horizons: a table for each metric, the least errors bold."""
    tables: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[float]]]] = collections.defaultdict(dict)
    for row, cards in rows.items():
        if cards[0]["experiment"] != "forecasting" or f"-{cards[0]['config']['horizon']}-" not in row:
            continue
        horizon, baselines = cards[0]["config"]["horizon"], cards[0]["details"]["baselines"]["test"]
        of, model = row.removeprefix("forecasting-").split(f"-{horizon}-", 1)
        for metric in ("mse", "mae", "coverage"):
            found = {(model, "ours"): [card["metrics"][metric] for card in cards if metric in card["metrics"]]}
            found |= {(name, "baseline"): [told[metric]] for name, told in baselines.items() if metric in told}
            published = [entry for entry in cards[0]["published"] if entry["metric"] == metric]
            found |= {(entry["how"], entry["source"]): [entry["value"]] for entry in published}
            for name, values in found.items():
                if values:
                    tables[of, metric].setdefault(name, {})[horizon] = values
    told = ""
    for (of, metric), of_models in tables.items():
        horizons = sorted({horizon for of_model in of_models.values() for horizon in of_model})
        if len(horizons) == 1:
            continue
        means = [{horizon: statistics.mean(values) for horizon, values in found.items()} for found in of_models.values()]
        least = {horizon: min(of_model[horizon] for of_model in means if horizon in of_model) for horizon in horizons}
        lines = []
        for (name, source), found in of_models.items():
            cells = [_spread(found[horizon], 3) if horizon in found else "" for horizon in horizons]
            if metric != "coverage":
                best = [horizon in found and statistics.mean(found[horizon]) == least[horizon] for horizon in horizons]
                cells = [f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, best, strict=True)]
            lines.append([name, source, *cells])
        lines.sort(key=lambda line: {"ours": 0, "baseline": 1}.get(line[1], 2))
        told += f"{of}: {metric} of all test windows, by steps ahead\n\n{_markdown(['', 'from', *horizons], lines)}\n"
    return told


def _by_network(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All networks that classify, those of the same texts from the best to the worst."""
    found = [
        [
            cards[0]["dataset"],
            row.removeprefix(f"text_classification-{cards[0]['dataset']}-"),
            _read_of_a_text(cards[0]["config"]),
            f"{cards[0]['parameters']:,}",
            cards[0]["steps"],
            f"{statistics.mean(card['seconds'] for card in cards):.0f}",
            _spread([card["metrics"]["accuracy"] for card in cards]),
        ]
        for row, cards in rows.items()
        if cards[0]["experiment"] == "text_classification"
    ]
    found.sort(key=lambda row: row[-1], reverse=True)
    found.sort(key=lambda row: row[0])
    header = ["data", "network", "read of a text", "parameters", "steps", "training, s", "test accuracy"]
    return f"{_markdown(header, found)}\n"


def _markdown(header: list[Any], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _lines(row: str, cards: list[dict[str, Any]]) -> list[str]:
    first = cards[0]
    what = row.removeprefix(f"{first['experiment']}-{first['dataset']}-")
    seconds = statistics.mean(card["seconds"] for card in cards)
    command = shlex.join(shlex.split(first["command"]))  # an older card has brackets that a shell would not take
    _check_alike(row, cards)
    ended = [card["steps"] for card in cards]
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
        steps = " to ".join(map(str, sorted({min(ended), max(ended)})))
        sizes = [f"{first['parameters']:,}" if first.get("parameters") else "", _read_of_a_text(first.get("config") or {})]
        run = [seeds, steps, reads, f"{seconds:.0f}", *sizes, first["device"], f"`{command}`"]
        name = [first["dataset"], what, first["split"]]
        if lines:  # said in the line above
            name, run = [""] * len(name), [""] * len(run)
        lines.append("| " + " | ".join([*name, metric, ours, _baselines(having, metric), published, *run]) + " |\n")
    return lines


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
    """Of so many places; if that is not said of four, or of three digits where those would say little."""

    def figure(value: float) -> str:
        small = places is None and value != 0 and abs(value) < 1e-3
        return f"{value:.2e}" if small else f"{value:.{places or 4}f}"

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
    path.write_text(table(config.results))
    print(f"Wrote {path}")


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config, prog="python -m experiments.report"))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"python -m experiments.report: {error}")
