"""What the README shows is what happens."""

import re
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
