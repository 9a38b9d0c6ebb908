"""The option of the test run that leaves cases out."""

import subprocess
import sys
from pathlib import Path


def collected(*options):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *options, "tests/test_masks.py"]
    printed = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True).stdout
    return [line for line in printed.splitlines() if "::" in line]


def test_one_of_each_keeps_the_first_case_of_every_test():
    every, kept = collected(), collected("--one-of-each")
    firsts = {}
    for name in every:
        firsts.setdefault(name.split("[")[0], name)
    assert kept == list(firsts.values())
    assert len(kept) < len(every)
