"""What a peer is, what it makes of a case, and how that is done by all that run on JAX, ours among them."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.case import CELLS, Case
from s2s_jax import unroll, unroll_stack
from s2s_jax.recurrence.choice import traced_backends


class Program(NamedTuple):
    """A case as a peer computes it: `run[part](params, x, dy)` returns when everything is computed.

    `params` and `inputs` bring ours into the peer's form. Of what "forward" and "forward+grad" return, `answer` makes
    {"outputs": [B, T, K], "state": [...]}, and where there are gradients "params", as ours, and "xs". `compiled` gives what
    runs a part, compiled for these arguments but not run yet; None where nothing is compiled.
    """

    params: Callable[[Any], Any]
    inputs: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
    run: Mapping[str, Callable[[Any, Any, Any], Any]]
    answer: Callable[[Any], dict[str, Any]]
    compiled: Callable[[str, Any, Any, Any], Callable[[Any, Any, Any], Any]] | None = None


class Peer(NamedTuple):
    """How to build a peer's programs, in a process with `environment`; `setting` is what its line in the table says.

    `takes` tells whether it has the case at all, on the platform. `inner_bias` is False where its GRU lacks the bias inside
    the reset gate: it is then compared, with ours, where that bias is zero. `spins` tells that its threads wait by spinning,
    and crawl while others compute: it is built when they have been.
    """

    build: Callable[[Any, str], Program]
    setting: str
    package: str
    takes: Callable[[Case, str], bool] = lambda case, platform: case.kind == "layer" and case.common
    environment: Mapping[str, str] = {}
    inner_bias: bool = True
    spins: bool = False

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_lstm(case: Case) -> bool:
    return case.cell == "lstm"


Apply = Callable[[Any, Any], tuple[Any, Any]]  # (params, xs) -> (outputs, state)


def on_jax(
    case: Case,
    apply: Apply,
    into: Callable[[Any], Any],
    out_of: Callable[[Any], Any],
    state_of: Callable[[Any], Any] = list,
    time_major: bool = False,
) -> Program:
    """`into` and `out_of` turn our parameters into the peer's and the peer's gradients into ours; `state_of` lists h and c."""
    dtype = jnp.dtype(case.dtype)
    forward = jax.jit(apply)

    @jax.jit
    def gradient(params: Any, xs: Any, dy: Any) -> Any:
        outputs, back, state = jax.vjp(apply, params, xs, has_aux=True)
        return outputs, state, back(dy)

    def compiled(part: str, params: Any, xs: Any, dy: Any) -> Any:
        if part == "forward":
            program = forward.lower(params, xs).compile()
            return lambda params, xs, dy: jax.block_until_ready(program(params, xs))
        program = gradient.lower(params, xs, dy).compile()
        return lambda params, xs, dy: jax.block_until_ready(program(params, xs, dy))

    def numbers(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float32)
        return x.swapaxes(0, 1) if time_major else x

    def inputs(*arrays: np.ndarray) -> Any:
        # A copy: an array that shared NumPy's memory would be spared page faults that a user's batch has.
        return tuple(jnp.array(x.swapaxes(0, 1) if time_major else x, dtype) for x in arrays)

    def answer(result: Any) -> dict[str, Any]:
        outputs, state, *gradients = result
        told = {"outputs": numbers(outputs), "state": [np.asarray(x, np.float32) for x in state_of(state)]}
        if gradients:
            params = jax.tree.map(lambda x: np.asarray(x, np.float32), gradients[0][0])
            told |= {"params": out_of(params), "xs": numbers(gradients[0][1])}
        return told

    return Program(
        lambda params: jax.tree.map(lambda x: jnp.array(x, dtype), into(params)),
        inputs,
        {
            "forward": lambda params, xs, dy: jax.block_until_ready(forward(params, xs)),
            "forward+grad": lambda params, xs, dy: jax.block_until_ready(gradient(params, xs, dy)),
        },
        answer,
        compiled,
    )


def ours(backend: str, case: Case) -> Program:
    """`unroll` for a layer, one call a step for streaming, and `unroll_stack` for the other kinds."""
    if case.kind == "streaming":
        return _ours_streaming(CELLS[case.cell], backend, case)
    return on_jax(case, _apply(backend, case), lambda p: p, lambda p: p, jax.tree.leaves)


def backends_of(backend: str, case: Case) -> list[str]:
    """Those that ours runs on, of all layers and directions; each once."""
    batch, time, features, _ = case.shape
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, case.dtype), case.params())
    xs = jax.ShapeDtypeStruct((batch, 1 if case.kind == "streaming" else time, features), case.dtype)
    return traced_backends(jax.jit(_apply(backend, case)).trace(params, xs).jaxpr)


def _apply(backend: str, case: Case) -> Apply:
    cell: Any = CELLS[case.cell]
    if case.kind not in ("layer", "streaming"):
        lengths = None if case.lengths is None else jnp.asarray(case.lengths)
        options: dict[str, Any] = {"lengths": lengths, "directions": case.directions, "backend": backend}
        return lambda params, xs: tuple(unroll_stack(cell, params, xs, **options))
    return lambda params, xs: tuple(unroll(cell, params[0][0], xs, backend=backend))


def _ours_streaming(cell: Any, backend: str, case: Case) -> Program:
    batch, time, _, _ = case.shape

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        done = unroll(cell, params, x, state, backend=backend)
        return done.state, done.outputs

    def run(params: Any, xs: Any, dy: Any) -> Any:
        state, outputs = cell.initial_state(params[0][0], batch, jnp.float32), []
        for x in xs:
            state, y = step(params[0][0], state, x)
            outputs.append(y.block_until_ready())  # whoever streams waits for each
        return outputs, state

    def answer(result: Any) -> dict[str, Any]:
        outputs, state = result
        return {
            "outputs": np.concatenate([np.asarray(y, np.float32) for y in outputs], axis=1),
            "state": [np.asarray(x, np.float32) for x in jax.tree.leaves(state)],
        }

    return Program(
        lambda params: jax.tree.map(lambda x: jnp.array(x, case.dtype), params),
        lambda xs, dy: ([jnp.array(xs[:, t : t + 1], case.dtype) for t in range(time)], None),
        {"forward": run},
        answer,
    )
