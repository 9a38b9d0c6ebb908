"""One peer in a process of its own: builds, answers, and times a call when it is asked to, and sleeps in between.

Each peer has its own environment (allocator, backend of Keras), its own pool of threads that no other one shares, and its own
memory. As all but one of them wait on their pipes, peers in different processes can be timed in turns.
"""

import ctypes
import dataclasses
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.benchmark.case import Case
from experiments.benchmark.program import Program, backends_of

# Whose `peers` a part of the benchmark measures; imported when it is, as another part needs not what it needs.
_PEERS = {
    "recurrence": "experiments.benchmark.peers",
    "decoding": "experiments.benchmark.decoding",
    "persistent": "experiments.benchmark.persistent",
}


class Worker:
    """What the process can be asked for. Every method returns plain values or NumPy arrays.

    A case is a `Case`, or where the part is decoding a `Workload`; `backend` and `peak` are for the former alone.
    """

    def __init__(self, name: str, platform: str, backend: str = "auto", part: str = "recurrence"):
        self.name, self.platform, self.chosen = name, platform, backend
        self.peer = importlib.import_module(_PEERS[part]).peers(platform, backend)[name]
        self.built: dict[Any, Program] = {}
        self.ready: tuple[Any, ...] = ()  # the case, its weights and its inputs in the peer's form, and whose turn it is

    def build(self, case: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Compiles all parts, and runs each once: seconds that this took, and what came out."""
        program = self.peer.build(case, self.platform)
        self.built[case] = program
        params, inputs = program.params(case.params(self.peer.inner_bias)), program.inputs(*case.inputs(0))
        seconds, results = {}, {}
        for part in case.parts:
            start = time.perf_counter()
            results[part] = program.run[part](params, *inputs)
            seconds[part] = time.perf_counter() - start
        return seconds, {part: program.answer(result) for part, result in results.items()}

    def answer(self, case: Case, inner_bias: bool) -> dict[str, Any]:
        """What comes out with or without the bias inside the reset gate."""
        program = self.built[case]
        params, inputs = program.params(case.params(inner_bias)), program.inputs(*case.inputs(0))
        return {part: program.answer(program.run[part](params, *inputs)) for part in case.parts}

    def backend(self, case: Case) -> str:
        """Which of our backends the case runs on; of several each."""
        return ", ".join(backends_of(self.chosen, case))

    def prepare(self, case: Any) -> None:
        """Weights and inputs, of this case only."""
        self.ready = ()
        program = self.built[case]
        inputs = [program.inputs(*case.inputs(k)) for k in range(case.prepared)]
        self.ready = (case, program.params(case.params(self.peer.inner_bias)), _round_and_round(inputs))

    def time(self, case: Any, part: str, calls: int, warm: bool) -> list[float]:
        """Seconds of each of so many calls, each with the next input; `warm` has one more run before them."""
        ready, params, inputs = self.ready
        assert ready == case, f"{case} was not prepared"
        run, seconds = self.built[case].run[part], []
        for k in range(calls + warm):
            x, dy = next(inputs)
            start = time.perf_counter()
            result = run(params, x, dy)
            seconds.append(time.perf_counter() - start)
            del result
            if k == 0 and warm:
                seconds.clear()
        return seconds

    def forget(self) -> None:
        """Programs, inputs and free memory, which would pile up over a grid: with little left in large pieces all crawl."""
        import jax

        self.ready = ()
        self.built.clear()
        jax.clear_caches()
        gc.collect()
        _give_back()

    def peak(self, case: Case, part: str) -> int | None:
        """Bytes of resident memory that calls take beyond what is resident when all is there but none has been made.

        To be asked of a process that has done nothing else: PyTorch and XLA both take from malloc, which would find room
        without growing in what earlier calls gave back. So libraries, threads (which a tiny case has started), weights, inputs
        and compiled code do not count, and what compiling left behind free is given back to the system before. All that a
        call allocates counts for all peers alike: outputs, gradients, what is kept for them, and scratch memory, kept from call
        to call or not. Some megabytes may hide in what malloc could not give back. None where the system does not tell.
        """
        reset = Path("/proc/self/clear_refs")
        if not reset.exists() or self.platform != "cpu":
            return None
        self.build(dataclasses.replace(case, shape=(2, 3, 4, 4)))
        program = self.peer.build(case, self.platform)
        params, inputs = program.params(case.params(self.peer.inner_bias)), program.inputs(*case.inputs(0))
        run = program.compiled(part, params, *inputs) if program.compiled else program.run[part]
        gc.collect()
        _give_back()
        before = _status("VmRSS")
        reset.write_text("5")  # puts the high-water mark down to what is resident now
        for _ in range(3):
            result = run(params, *inputs)
            del result
        return _status("VmHWM") - before

    def rate(self, dtype: str) -> float:
        """Operations in a second of a large matrix product, the best of some: what this peer's library makes of the machine.

        Of random numbers: of ones or zeros a GPU takes less power, and is faster.
        """
        size, runs = (2048, 8) if self.platform == "cpu" else (8192, 20)
        if self.peer.package == "torch":
            import torch

            device = "cuda" if self.platform == "gpu" else "cpu"
            factor = torch.randn(size, size, device=device).to(getattr(torch, dtype))

            def product() -> None:
                factor @ factor
                if device == "cuda":
                    torch.cuda.synchronize()
        else:
            import jax
            import jax.numpy as jnp

            a, multiplied = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype), jax.jit(jnp.matmul)

            def product() -> None:
                multiplied(a, a).block_until_ready()

        product()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / min(seconds)


def _round_and_round(inputs: list[Any]) -> Iterator[Any]:
    while True:
        yield from inputs


def _give_back() -> None:
    """What malloc keeps free goes to the system, where that is glibc's."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def serve(connection: Any, worker: Worker) -> None:
    """Answers (method, arguments) with (True, value) or (False, traceback), until the other end is closed."""
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply = True, getattr(worker, method)(*arguments)
        except Exception:
            reply = False, traceback.format_exc()
        connection.send(reply)


if __name__ == "__main__":
    from multiprocessing.connection import Connection

    descriptor, name, platform, backend, part = sys.argv[1:]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU all peers share one memory
    connection = Connection(int(descriptor))
    try:
        worker = Worker(name, platform, backend, part)
    except Exception:
        connection.recv()
        connection.send((False, traceback.format_exc()))
        sys.exit(1)
    serve(connection, worker)
