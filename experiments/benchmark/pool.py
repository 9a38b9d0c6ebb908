"""The processes of the peers, as whoever measures sees them."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from experiments.benchmark.program import Peer


class Failed(Exception):
    """What a peer was asked for raised there; the text is its traceback."""


class Process:
    """A peer's process; `ask` calls a method of its `Worker` and waits for what it returns, `patience` seconds at most."""

    def __init__(self, name: str, peer: Peer, platform: str, backend: str, part: str, patience: float | None = None):
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
            if not self.connection.poll(self.patience):
                self.process.kill()
                raise Failed(f"no answer in {self.patience:.0f} s, and its process was ended")
            good, value = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise Failed(f"its process ended ({self.process.wait(10)})") from error
        if not good:
            raise Failed(value)
        return value

    def close(self) -> None:
        self.connection.close()  # which ends it
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """One process for each peer of a part of the benchmark; closed at the end of a `with` block."""

    def __init__(
        self,
        peers: Mapping[str, Peer],
        platform: str,
        backend: str,
        part: str = "recurrence",
        patience: float | None = None,
    ):
        self.workers: dict[str, Any] = {
            name: Process(name, peer, platform, backend, part, patience) for name, peer in peers.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()


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
