"""The mark `alone`, for tests that measure time; conftest.py takes it from here."""

import pathlib

import pytest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test marked `alone` waits until no other worker tests, and none begins before it has ended: it measures time."""
    if fcntl is None or not hasattr(item.config, "workerinput"):
        return (yield)
    folder = pathlib.Path(item.config.option.basetemp).parent  # that of the whole run; pytest removes it in time
    with open(folder / "gate", "a") as gate, open(folder / "testing", "a") as testing:
        fcntl.flock(gate, fcntl.LOCK_EX)  # whoever waits to be alone keeps it, so that nobody else can go on before
        fcntl.flock(testing, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(testing, fcntl.LOCK_UN)  # closing would not do where a forked process holds the file as well
