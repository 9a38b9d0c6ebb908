"""The lock of alone.py: a test marked `alone` runs while no other worker tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl")

CONFTEST = "from tests.alone import pytest_runtest_protocol"
TESTS = """
import pathlib, time, pytest

def stay(name):
    start = time.monotonic()
    time.sleep(0.1)
    with pathlib.Path("times").open("a") as file:
        file.write(f"{name} {start} {time.monotonic()}\\n")

@pytest.mark.parametrize("number", range(4))
def test_others(number):
    stay("other")

@pytest.mark.alone
def test_alone():
    stay("alone")

@pytest.mark.parametrize("number", range(4))
def test_more(number):
    stay("other")
"""


def overlaps(tmp_path):
    """With how many others the test in the middle overlaps, and whether any others do with each other."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone")
    (tmp_path / "test_times.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--maxschedchunk", "1", "-p", "xdist", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    times = [
        (name, float(start), float(end)) for name, start, end in map(str.split, (tmp_path / "times").read_text().splitlines())
    ]
    assert len(times) == 9

    def meet(one, other):
        return one[1] < other[2] and other[1] < one[2]

    (alone,) = (span for span in times if span[0] == "alone")
    others = [span for span in times if span[0] == "other"]
    return sum(meet(alone, other) for other in others), any(meet(a, b) for a in others for b in others if a is not b)


def test_a_test_that_is_to_be_alone_is_and_others_are_not(tmp_path):
    assert overlaps(tmp_path) == (0, True)
