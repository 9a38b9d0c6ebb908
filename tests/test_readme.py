"""What the README shows is what happens."""

import json
import re
import statistics
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FENCED = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_two_blocks_are_commands_of_one_line():
    for language, block in FENCED[:2]:
        assert language == "bash"
        assert block.count("\n") == 1


@pytest.mark.parametrize("block", [block for language, block in FENCED if language == "python"])
def test_code_runs_and_prints_what_its_comments_say(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    said = [comment.split(":")[0] for comment in re.findall(r"print\(.*# (.*)", block)]
    progress = re.compile(r"step \d+/\d+ |Time: ")
    assert [line for line in capsys.readouterr().out.splitlines() if not progress.match(line)] == said


def test_every_file_in_the_tree_exists():
    tree = next(block for language, block in FENCED if language == "text")
    root, folders = Path(__file__).parent.parent, []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        assert root.joinpath(*folders).exists(), line


def test_every_module_is_in_the_tree():
    tree = next(block for language, block in FENCED if language == "text")
    for path in (Path(__file__).parent.parent / "s2s_jax").rglob("*.py"):
        assert path.name == "__init__.py" or path.name in tree, path


ETTH1 = [f"etth1-{{}}-{horizon}-attention" for horizon in (24, 48, 168, 336, 720)]
SMALL = ("airline-passengers-24-12", "monthly-sunspots-132-12", "daily-min-temperatures-96-7")


@pytest.mark.parametrize(
    ("begins", "names"),
    [
        ("| ETTh1, oil temperature", [name.format("univariate") for name in ETTH1]),
        ("| all seven series of ETTh1, the same", [name.format("multivariate") for name in ETTH1]),
        ("| air passengers 12 months ahead", [f"{name}-attention" for name in SMALL]),
    ],
)
def test_the_baselines_of_forecasts_are_those_of_the_cards(begins, names):
    """The squared error of each, of all columns of a row, stands in it."""
    (row,) = [line for line in README.splitlines() if line.startswith(begins)]
    results = Path(__file__).parent.parent / "experiments/results"
    for baseline in ("naive", "seasonal naive", "linear"):
        found = []
        for name in names:
            cards = [json.loads(path.read_text()) for path in results.glob(f"forecasting-{name}-seed*.json")]
            found.append(statistics.mean(card["details"]["baselines"]["test"][baseline]["mse"] for card in cards))
        told = ", ".join(f"{mse:.3f}" for mse in found)
        called = "least squares" if baseline == "linear" else baseline
        assert re.search(rf"(?<!seasonal ){called}:? \(?{told}[;)]", row), (baseline, told)
