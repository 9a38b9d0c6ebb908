"""The processes of the peers, as whoever measures sees them."""

import concurrent.futures
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from experiments.benchmark.program import Peer


class Failed(Exception):
    """What a peer was asked for raised there; the text is its traceback."""


class Patience(NamedTuple):
    """How long is waited: `each` time so many seconds, and never beyond `until`, a time of `time.monotonic`."""

    each: float = math.inf
    until: float = math.inf

    def seconds(self) -> float:
        """From now on."""
        return max(0.0, min(self.each, self.until - time.monotonic()))


ENDLESS = Patience()


class Process:
    """A peer's process; `ask` calls a method of its `Worker` and waits for what it returns, as long as `patience` has it."""

    def __init__(self, name: str, peer: Peer, platform: str, backend: str, part: str, patience: Patience = ENDLESS):
        self.patience = patience
        self.connection, child = multiprocessing.Pipe()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, **peer.environment}
        if platform == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        command = [sys.executable, "-m", "experiments.benchmark.worker", str(child.fileno()), name, platform, backend, part]
        self.process = subprocess.Popen(command, env=environment, pass_fds=[child.fileno()], stdin=subprocess.DEVNULL)
        child.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        try:
            self.connection.send((method, arguments))
            seconds = self.patience.seconds()
            if not self.connection.poll(None if math.isinf(seconds) else seconds):
                self.process.kill()
                raise Failed(f"no answer in {seconds:.0f} s, and its process was ended")
            good, value = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise Failed(f"its process ended ({self._ended(10.0)})") from error
        if not good:
            raise Failed(value)
        return value

    def close(self, seconds: float = 5.0) -> None:
        self.connection.close()  # which ends it
        self._ended(seconds)

    def _ended(self, seconds: float) -> int:
        """Its exit status; of a process that has not ended in so many seconds, after it was killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Pool:
    """One process for each peer of a part of the benchmark; closed at the end of a `with` block."""

    def __init__(
        self,
        peers: Mapping[str, Peer],
        platform: str,
        backend: str,
        part: str = "recurrence",
        patience: Patience = ENDLESS,
    ):
        self.workers: dict[str, Any] = {
            name: Process(name, peer, platform, backend, part, patience) for name, peer in peers.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.connection.close()  # so that they end at the same time
        until = time.monotonic() + 5.0
        for worker in self.workers.values():
            worker.close(max(0.0, until - time.monotonic()))


def ask_all(workers: Mapping[str, Any], names: Iterable[str], method: str, *arguments: Any) -> dict[str, Any]:
    """The same question to several at a time: by name what each returned, or the `Failed` that it raised."""

    def ask(name: str) -> Any:
        try:
            return workers[name].ask(method, *arguments)
        except Failed as failed:
            return failed

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(names))) as threads:
        return dict(zip(names, threads.map(ask, names), strict=True))
