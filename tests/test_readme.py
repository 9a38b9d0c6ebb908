"""What the README and the pages of docs/ show is what happens."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
README = PAGES["README.md"]


def fenced(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


(TREE,) = fenced("text", PAGES["docs/files.md"])


def test_the_first_two_blocks_are_commands_of_one_line():
    commands = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)[:2]
    assert [(language, block.count("\n")) for language, block in commands] == [("bash", 1)] * 2


@pytest.mark.parametrize("block", [block for page in PAGES.values() for block in fenced("python", page)])
def test_code_runs_and_prints_what_its_comments_say(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    said = [comment.split(":")[0] for comment in re.findall(r"print\(.*# (.*)", block)]
    progress = re.compile(r"step \d+/\d+ |Time: ")
    assert [line for line in capsys.readouterr().out.splitlines() if not progress.match(line)] == said


def files_of_the_tree():
    folders, found = [], []
    for line in TREE.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        found.append(ROOT.joinpath(*folders))
    return found


def test_the_tree_is_what_there_is():
    told = files_of_the_tree()
    assert [path for path in told if not path.exists()] == []
    there = {path for folder in ("s2s_jax", "experiments") for path in (ROOT / folder).rglob("*.py")}
    assert sorted(path for path in there - {*told} if not path.name.startswith("__")) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page):
    """But those to other sites, which no test should need."""
    found = re.findall(r"\]\((?!https://)([^)#]+)(?:#([^)]+))?\)", PAGES[page])
    assert found or page == "docs/files.md"
    for target, heading in found:
        path = (ROOT / page).parent / target
        assert path.exists(), target
        titles = re.findall(r"(?m)^#+ (.*)", path.read_text(encoding="utf-8")) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize(("section", "page"), [("Results", "docs/results.md"), ("Speed", "docs/speed.md")])
def test_the_figures_of_the_short_tables_are_those_of_the_pages(section, page):
    (text,) = re.findall(rf"(?ms)^## {section}$(.*?)^## ", README)
    told = {figure for row in text.splitlines() if row.startswith("|") for figure in re.findall(r"\d+\.\d+(?:e-\d+)?", row)}
    assert len(told) > 20
    assert told <= set(re.findall(r"\d+\.\d+(?:e-\d+)?", PAGES[page]))


def test_rows_that_the_report_made_are_as_it_made_them():
    """A table that has the header of one in RESULTS.md has rows of that one; three of them do."""
    made, told = (
        [table.splitlines() for table in re.findall(r"(?m)(?:^\|.*\n)+", text)]
        for text in ((ROOT / "experiments/RESULTS.md").read_text(encoding="utf-8"), PAGES["docs/results.md"])
    )
    headers = {table[0] for table in made}
    found = [table for table in told if table[0] in headers or " | from | " in table[0]]
    assert [len(table) > 5 for table in found] == [True] * 3
    for table in found:
        assert any(table[0] == one[0] and set(table) <= set(one) for one in made), table


SMALL = ("airline-passengers-24-12", "monthly-sunspots-132-12", "daily-min-temperatures-96-7")


def test_the_baselines_of_the_small_series_are_those_of_the_cards():
    """The squared error of each, of all columns of a row, stands in it."""
    (row,) = [line for line in PAGES["docs/results.md"].splitlines() if line.startswith("| air passengers 12 months ahead")]
    results = ROOT / "experiments/results"
    for baseline in ("naive", "seasonal naive", "linear"):
        found = []
        for name in SMALL:
            cards = [json.loads(path.read_text()) for path in results.glob(f"forecasting-{name}-attention-seed*.json")]
            found.append(statistics.mean(card["details"]["baselines"]["test"][baseline]["mse"] for card in cards))
        told = ", ".join(f"{mse:.3f}" for mse in found)
        called = "least squares" if baseline == "linear" else baseline
        assert re.search(rf"(?<!seasonal ){called}:? \(?{told}[;)]", row), (baseline, told)
