"""Everybody who is measured, ours among them, each at the best setting that was found for it.

A peer takes our weights, keeps its own layout of weights and sequences, and gives its results back in ours. The settings
were found by trying the others at the six shapes of the small grid on two CPU cores. Nothing here is imported before the
process of the peer that needs it runs.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.case import CELLS, Case
from s2s_jax import LSTMState, unroll, unroll_stack
from s2s_jax.cells import GRUParams, LSTMParams, RNNParams
from s2s_jax.recurrence.unroll import BACKENDS


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
    the reset gate: it is then compared, with ours, where that bias is zero.
    """

    build: Callable[[Case, str], Program]
    setting: str
    package: str
    takes: Callable[[Case, str], bool] = lambda case, platform: case.kind == "layer"
    environment: Mapping[str, str] = {}
    inner_bias: bool = True

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_lstm(case: Case) -> bool:
    return case.cell == "lstm"


# Ours, and all on JAX ----------------------------------------------------------------------------------------------------

Apply = Callable[[Any, Any], tuple[Any, Any]]  # (params, xs) -> (outputs, state)


def _on_jax(
    case: Case, apply: Apply, into: Callable, out_of: Callable, state_of: Callable = list, time_major: bool = False
) -> Program:
    """`into` and `out_of` turn our parameters into the peer's and the peer's gradients into ours."""
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

    def ours(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float32)
        return x.swapaxes(0, 1) if time_major else x

    def inputs(*arrays: np.ndarray) -> Any:
        # A copy: an array that shared NumPy's memory would be spared page faults that a user's batch has.
        return tuple(jnp.array(x.swapaxes(0, 1) if time_major else x, dtype) for x in arrays)

    def answer(result: Any) -> dict[str, Any]:
        outputs, state, *gradients = result
        told = {"outputs": ours(outputs), "state": [np.asarray(x, np.float32) for x in state_of(state)]}
        if gradients:
            params = jax.tree.map(lambda x: np.asarray(x, np.float32), gradients[0][0])
            told |= {"params": out_of(params), "xs": ours(gradients[0][1])}
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


def _ours(backend: str, case: Case, platform: str) -> Program:
    cell: Any = CELLS[case.cell]
    if case.kind == "streaming":
        return _ours_streaming(cell, backend, case)
    if case.kind == "layer":

        def apply(params: Any, xs: Any) -> Any:
            return unroll(cell, params[0][0], xs, backend=backend)
    else:
        lengths = jnp.asarray(case.lengths)

        def apply(params: Any, xs: Any) -> Any:
            return unroll_stack(cell, params, xs, lengths=lengths, directions=case.directions, backend=backend)

    return _on_jax(case, lambda p, xs: tuple(apply(p, xs)), lambda p: p, lambda p: p, jax.tree.leaves)


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


# Flax --------------------------------------------------------------------------------------------------------------------


def _flax_linen(case: Case, platform: str) -> Program:
    import flax.linen as nn

    _, _, features, hidden = case.shape
    kind: Any = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}[case.cell]
    gates = {"lstm": "ifgo", "gru": "rzn", "rnn": "_"}[case.cell]
    layer = nn.RNN(kind(hidden, dtype=case.dtype, param_dtype=case.dtype), return_carry=True, time_major=True)

    def into(params: Any) -> Any:
        p, named = params[0][0], {}
        for k, gate in enumerate(gates):
            at = slice(k * hidden, (k + 1) * hidden)
            i, h = ("i", "h") if gate == "_" else (f"i{gate}", f"h{gate}")
            named[i], named[h] = {"kernel": p.w[:, at]}, {"kernel": p.u[:, at]}
            named[h if case.cell == "lstm" else i]["bias"] = p.b[at]
        if case.cell == "gru":
            named["hn"]["bias"] = p.b_n
        return {"params": {"cell": named}}

    def out_of(gradients: Any) -> Any:
        g = gradients["params"]["cell"]

        def joined(side: str, what: str) -> np.ndarray:
            return np.concatenate([g[side if gate == "_" else f"{side}{gate}"][what] for gate in gates], axis=-1)

        b = joined("h" if case.cell == "lstm" else "i", "bias")
        return _params(case, joined("i", "kernel"), joined("h", "kernel"), b, g["hn"]["bias"] if case.cell == "gru" else None)

    def apply(params: Any, xs: Any) -> Any:
        carry, outputs = layer.apply(params, xs)
        return outputs, carry

    return _on_jax(case, apply, into, out_of, lambda c: c[::-1] if _is_lstm(case) else [c], time_major=True)


def _flax_nnx(case: Case, platform: str) -> Program:
    from flax import nnx

    _, _, features, hidden = case.shape
    kind: Any = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}[case.cell]
    cell = kind(features, hidden, dtype=case.dtype, param_dtype=case.dtype, rngs=nnx.Rngs(0))
    layer = nnx.RNN(cell, return_carry=True, time_major=True)
    graphdef, weights, rest = nnx.split(layer, nnx.Param, ...)
    biased, other = ("dense_h", "dense_i") if case.cell == "lstm" else ("dense_i", "dense_h")
    sides = {"dense_i": "w", "dense_h": "u"}

    def into(params: Any) -> Any:
        p = params[0][0]
        values = {("cell", side, "kernel"): getattr(p, name) for side, name in sides.items()}
        values["cell", biased, "bias"] = p.b
        flat = nnx.to_flat_state(weights)
        assert {path for path, _ in flat} == set(values), "flax nnx: its parameters are not what they were"
        return nnx.from_flat_state([(path, variable.replace(values[path])) for path, variable in flat])

    def out_of(gradients: Any) -> Any:
        g = {path: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(gradients)}
        w, u = g["cell", "dense_i", "kernel"], g["cell", "dense_h", "kernel"]
        return _params(case, w, u, g["cell", biased, "bias"], None)

    def apply(params: Any, xs: Any) -> Any:
        carry, outputs = nnx.merge(graphdef, params, rest, copy=True)(xs)
        return outputs, carry

    return _on_jax(case, apply, into, out_of, lambda c: c[::-1] if _is_lstm(case) else [c], time_major=True)


def _params(case: Case, w: Any, u: Any, b: Any, b_n: Any) -> Any:
    if case.cell == "gru":
        return (GRUParams(w, u, b, b_n),),
    return ((LSTMParams if case.cell == "lstm" else RNNParams)(w, u, b),),


# Keras, and JAX's own binding of cuDNN -----------------------------------------------------------------------------------


def _keras(case: Case, platform: str) -> Program:
    import keras

    _, _, _, hidden = case.shape
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[case.cell]
    layer = kind(hidden, return_sequences=True, return_state=True, dtype=case.dtype)
    layer.build((None, None, case.shape[2]))
    rest = [variable.value for variable in layer.non_trainable_variables]

    def swapped(x: Any) -> Any:
        """GRU: gates z, r, n there, and r, z, n here; the same way back."""
        r, z, n = np.split(x, 3, axis=-1)
        return np.concatenate([z, r, n], axis=-1)

    def into(params: Any) -> Any:
        p = params[0][0]
        if case.cell != "gru":
            return [p.w, p.u, p.b]
        inner = np.concatenate([np.zeros(2 * hidden, p.b.dtype), p.b_n])
        return [swapped(p.w), swapped(p.u), np.stack([swapped(p.b), inner])]

    def out_of(gradients: Any) -> Any:
        w, u, b = gradients
        if case.cell != "gru":
            return _params(case, w, u, b, None)
        return _params(case, swapped(w), swapped(u), swapped(b[0]), b[1][2 * hidden :])

    def apply(params: Any, xs: Any) -> Any:
        (outputs, *state), _ = layer.stateless_call(params, rest, xs, training=False)
        return outputs, state

    return _on_jax(case, apply, into, out_of)


def _jax_cudnn(case: Case, platform: str) -> Program:
    from jax.experimental import rnn

    batch, time, features, hidden = case.shape
    sizes = (features, hidden, 1, 0.0, False)

    def into(params: Any) -> Any:
        p = params[0][0]
        return np.concatenate([p.w.T.ravel(), p.u.T.ravel(), p.b, np.zeros_like(p.b)])

    def out_of(gradient: Any) -> Any:
        w, u, b, _ = rnn.unpack_lstm_weights(gradient, features, hidden, 1, False)
        return _params(case, w[0].T, u[0].T, b[0], None)

    lengths = jnp.full(batch, time, jnp.int32)

    def apply(params: Any, xs: Any) -> Any:
        zero = jnp.zeros((1, batch, hidden), xs.dtype)
        outputs, h, c = rnn.lstm(xs, zero, zero, params, lengths, *sizes)
        return outputs, (h[0], c[0])

    return _on_jax(case, apply, into, out_of)


# PyTorch -----------------------------------------------------------------------------------------------------------------


def _torch(case: Case, platform: str) -> Program:
    import torch

    batch, time, features, hidden = case.shape
    device = "cuda" if platform == "gpu" else "cpu"
    torch.set_num_threads(1 if case.kind == "streaming" else cores())  # one row and one step: a second thread only waits
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.cell]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[case.dtype]
    options = {"num_layers": case.layers, "bidirectional": len(case.directions) == 2, "device": device, "dtype": dtype}
    module = kind(features, hidden, **options)
    weights = dict(module.named_parameters())
    suffixes = [f"l{layer}{way}" for layer in range(case.layers) for way in ("", "_reverse")[: len(case.directions)]]

    def params(ours: Any) -> None:
        """Into the module itself, whose weights cuDNN wants side by side in memory."""
        with torch.no_grad():
            for suffix, p in zip(suffixes, [p for layer in ours for p in layer], strict=True):
                inner = np.zeros_like(p.b)
                if case.cell == "gru":
                    inner[2 * hidden :] = p.b_n
                values = {"weight_ih": p.w.T, "weight_hh": p.u.T, "bias_ih": p.b, "bias_hh": inner}
                for name, value in values.items():
                    weights[f"{name}_{suffix}"].copy_(torch.tensor(value))

    def inputs(xs: np.ndarray, dy: np.ndarray) -> Any:
        x, dy = (torch.tensor(np.ascontiguousarray(a.swapaxes(0, 1)), dtype=dtype, device=device) for a in (xs, dy))
        return x.requires_grad_(), dy

    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int64)
    rnn = torch.nn.utils.rnn

    def apply(x: Any) -> Any:
        if lengths is None:
            return module(x)
        packed, state = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=True))
        return rnn.pad_packed_sequence(packed, total_length=time)[0], state

    def done() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward(_: Any, x: Any, dy: Any) -> Any:
        with torch.inference_mode():
            result = apply(x)
        done()
        return result

    def gradient(_: Any, x: Any, dy: Any) -> Any:
        outputs, state = apply(x)
        result = outputs, state, torch.autograd.grad(outputs, [x, *weights.values()], dy)
        done()
        return result

    def streaming(_: Any, x: Any, dy: Any) -> Any:
        outputs, state = [], None
        with torch.inference_mode():
            for at in x.split(1):
                y, state = module(at, state)
                done()
                outputs.append(y)
        return torch.cat(outputs), state

    def ours(x: Any) -> np.ndarray:
        return x.detach().float().cpu().numpy()

    def answer(result: Any) -> dict[str, Any]:
        outputs, state, *gradients = result
        ends = state if isinstance(state, tuple) else (state,)
        # Layer by layer and direction by direction, and there h before c: as the leaves of our states.
        told = {"outputs": ours(outputs).swapaxes(0, 1), "state": [ours(end[k]) for k in range(len(suffixes)) for end in ends]}
        if gradients:
            dx, *rest = gradients[0]
            g = {name: ours(x) for name, x in zip(weights, rest, strict=True)}
            flat = [
                _params(
                    case, g[f"weight_ih_{s}"].T, g[f"weight_hh_{s}"].T, g[f"bias_ih_{s}"], g[f"bias_hh_{s}"][2 * hidden :]
                )[0][0]
                for s in suffixes
            ]
            count = len(case.directions)
            told["params"] = tuple(tuple(flat[k : k + count]) for k in range(0, len(flat), count))
            told["xs"] = ours(dx).swapaxes(0, 1)
        return told

    run = {"forward": streaming} if case.kind == "streaming" else {"forward": forward, "forward+grad": gradient}
    return Program(params, inputs, run, answer)


# The list ----------------------------------------------------------------------------------------------------------------

# Buffers of hundreds of megabytes are otherwise given back to the system after each call, and faulted in anew.
_TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


def peers(platform: str, backend: str = "auto") -> dict[str, Peer]:
    """All by name; "ours" first, then those whose names the table compares with it."""
    threads = f"{cores()} threads" if platform == "cpu" else "cuDNN"

    def everything(case: Case, platform: str) -> bool:
        return True

    def our(name: str, setting: str) -> Peer:
        return Peer(lambda case, platform: _ours(name, case, platform), setting, "s2s_jax", everything)

    found = {"ours": our(backend, f'unroll(backend="{backend}"), batch-major')}
    torch = Peer(_torch, f"torch.nn, {threads}, time-major, forward in inference_mode", "torch", everything)
    found["torch"] = torch
    if platform == "cpu":
        tuned = f"{threads}, time-major, glibc keeps its memory ({', '.join(_TUNED)})"
        found["torch, allocator tuned"] = torch._replace(setting=f"torch.nn, {tuned}", environment=_TUNED)
    found["flax linen"] = Peer(_flax_linen, "nn.RNN, OptimizedLSTMCell, time_major, jit", "flax")
    found["flax nnx"] = Peer(_flax_nnx, "nnx.RNN, OptimizedLSTMCell, time_major, plain jit", "flax", inner_bias=False)
    keras = {"KERAS_BACKEND": "jax"}
    found["keras"] = Peer(_keras, "keras.layers on JAX, stateless_call in jit, batch-major", "keras", environment=keras)
    if platform == "gpu":

        def takes(case: Case, platform: str) -> bool:
            return case.kind == "layer" and _is_lstm(case) and case.dtype == "float32"

        found["jax cudnn"] = Peer(_jax_cudnn, "jax.experimental.rnn.lstm, batch-major", "jax", takes)
    found |= {name: our(name, f'unroll(backend="{name}"), batch-major') for name in BACKENDS}
    return found
