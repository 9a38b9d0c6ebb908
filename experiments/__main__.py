"""Lists the experiments: what stands in the first lines of their own docstrings."""

import ast
import re
import sys
from pathlib import Path


def listed() -> dict[str, tuple[str, list[str]]]:
    """For each experiment its first sentence and its commands, read without importing it."""
    folder = Path(__file__).parent
    files = {path.stem: path for path in folder.glob("*.py")} | {
        path.parent.name: path for path in folder.glob("*/__init__.py")
    }
    found = {}
    for name, path in sorted(files.items()):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        whole = re.sub(r"\s*\\\n\s*", " ", doc).splitlines()  # commands that go on in the next line
        commands = [line.strip() for line in whole if line.strip().startswith(f"python -m experiments.{name}")]
        if commands:
            found[name] = (doc.split("\n\n")[0].replace("\n", " "), commands)
    return found


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"python -m experiments takes no argument; did you mean python -m experiments.{' '.join(sys.argv[1:])}")
    for name, (sentence, commands) in listed().items():
        print(f"{name}: {sentence}", *(f"    {command}" for command in commands), "", sep="\n")
