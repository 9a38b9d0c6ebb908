"""All that ours is measured against, each set up as its own users would for speed, and the list of everybody.

A peer takes our weights, keeps its own layout of weights and sequences, and gives its results back in ours. `setting` says what
was chosen. Nothing here is imported before the process of the peer that needs it runs.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.benchmark.case import Case, params_of
from experiments.benchmark.program import Peer, Program, cores, is_lstm, on_jax, ours
from s2s_jax.recurrence.choice import BACKENDS

# Flax --------------------------------------------------------------------------------------------------------------------


def _flax_linen(case: Case, platform: str) -> Program:
    import flax.linen as nn

    hidden = case.shape[3]
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
        b_n = g["hn"]["bias"] if case.cell == "gru" else None
        return ((params_of(case.cell, joined("i", "kernel"), joined("h", "kernel"), b, b_n),),)

    def apply(params: Any, xs: Any) -> Any:
        carry, outputs = layer.apply(params, xs)
        return outputs, carry

    return on_jax(case, apply, into, out_of, lambda c: c[::-1] if is_lstm(case) else [c], time_major=True)


def _flax_nnx(case: Case, platform: str) -> Program:
    from flax import nnx

    _, _, features, hidden = case.shape
    kind: Any = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}[case.cell]
    cell = kind(features, hidden, dtype=case.dtype, param_dtype=case.dtype, rngs=nnx.Rngs(0))
    layer = nnx.RNN(cell, return_carry=True, time_major=True)
    graphdef, weights, rest = nnx.split(layer, nnx.Param, ...)
    biased = "dense_h" if case.cell == "lstm" else "dense_i"
    sides = {"dense_i": "w", "dense_h": "u"}

    def into(params: Any) -> Any:
        p = params[0][0]
        values: dict[Any, Any] = {("cell", side, "kernel"): getattr(p, name) for side, name in sides.items()}
        values["cell", biased, "bias"] = p.b
        flat = nnx.to_flat_state(weights)
        assert {path for path, _ in flat} == set(values), "flax nnx: its parameters are not what they were"
        return nnx.from_flat_state([(path, variable.replace(values[path])) for path, variable in flat])

    def out_of(gradients: Any) -> Any:
        g = {path: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(gradients)}
        w, u = g["cell", "dense_i", "kernel"], g["cell", "dense_h", "kernel"]
        return ((params_of(case.cell, w, u, g["cell", biased, "bias"]),),)

    def apply(params: Any, xs: Any) -> Any:
        carry, outputs = nnx.merge(graphdef, params, rest, copy=True)(xs)
        return outputs, carry

    return on_jax(case, apply, into, out_of, lambda c: c[::-1] if is_lstm(case) else [c], time_major=True)


# Keras, and JAX's own binding of cuDNN -----------------------------------------------------------------------------------


def _keras(case: Case, platform: str) -> Program:
    import keras

    hidden = case.shape[3]
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
            return ((params_of(case.cell, w, u, b),),)
        return ((params_of(case.cell, swapped(w), swapped(u), swapped(b[0]), b[1][2 * hidden :]),),)

    def apply(params: Any, xs: Any) -> Any:
        (outputs, *state), _ = layer.stateless_call(params, rest, xs, training=False)
        return outputs, state

    return on_jax(case, apply, into, out_of)


def _jax_cudnn(case: Case, platform: str) -> Program:
    from jax.experimental import rnn

    batch, time, features, hidden = case.shape
    sizes = (features, hidden, 1, 0.0, False)

    def into(params: Any) -> Any:
        p = params[0][0]
        return np.concatenate([p.w.T.ravel(), p.u.T.ravel(), p.b, np.zeros_like(p.b)])

    def out_of(gradient: Any) -> Any:
        w, u, b, _ = rnn.unpack_lstm_weights(gradient, features, hidden, 1, False)
        return ((params_of(case.cell, w[0].T, u[0].T, b[0]),),)

    lengths = jnp.full(batch, time, jnp.int32)

    def apply(params: Any, xs: Any) -> Any:
        zero = jnp.zeros((1, batch, hidden), xs.dtype)
        outputs, h, c = rnn.lstm(xs, zero, zero, params, lengths, *sizes)
        return outputs, (h[0], c[0])

    return on_jax(case, apply, into, out_of)


# PyTorch -----------------------------------------------------------------------------------------------------------------


def _torch(case: Case, platform: str) -> Program:
    import torch

    _, time, features, hidden = case.shape
    device = "cuda" if platform == "gpu" else "cpu"
    threads = 1 if case.kind == "streaming" else cores()  # one row and one step: a second thread only waits
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.cell]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[case.dtype]
    options = {"num_layers": case.layers, "bidirectional": len(case.directions) == 2, "device": device, "dtype": dtype}
    module = kind(features, hidden, **options)
    weights = dict(module.named_parameters())
    suffixes = [f"l{layer}{way}" for layer in range(case.layers) for way in ("", "_reverse")[: len(case.directions)]]

    def params(given: Any) -> None:
        """Into the module itself, whose weights cuDNN wants side by side in memory."""
        with torch.no_grad():
            for suffix, p in zip(suffixes, [p for layer in given for p in layer], strict=True):
                inner = np.zeros_like(p.b)
                if case.cell == "gru":
                    inner[2 * hidden :] = p.b_n
                values = {"weight_ih": p.w.T, "weight_hh": p.u.T, "bias_ih": p.b, "bias_hh": inner}
                for name, value in values.items():
                    weights[f"{name}_{suffix}"].copy_(torch.tensor(value))

    def inputs(xs: np.ndarray, dy: np.ndarray) -> Any:
        x, back = (torch.tensor(np.ascontiguousarray(a.swapaxes(0, 1)), dtype=dtype, device=device) for a in (xs, dy))
        if case.kind == "streaming":
            return x.split(1), back
        return x.requires_grad_(), back

    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int64)
    rnn = torch.nn.utils.rnn

    def apply(x: Any) -> Any:
        torch.set_num_threads(threads)  # here, as other cases of this process may have set another number
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
        torch.set_num_threads(threads)
        outputs, state = [], None
        with torch.inference_mode():
            for at in x:
                y, state = module(at, state)
                done()
                outputs.append(y)
        return outputs, state

    def numbers(x: Any) -> np.ndarray:
        return x.detach().float().cpu().numpy()

    def answer(result: Any) -> dict[str, Any]:
        outputs, state, *gradients = result
        outputs = torch.cat(outputs) if case.kind == "streaming" else outputs
        ends = state if isinstance(state, tuple) else (state,)
        # Layer by layer and direction by direction, and there h before c: as the leaves of our states.
        told: dict[str, Any] = {
            "outputs": numbers(outputs).swapaxes(0, 1),
            "state": [numbers(end[k]) for k in range(len(suffixes)) for end in ends],
        }
        if gradients:
            dx, *rest = gradients[0]
            g = {name: numbers(x) for name, x in zip(weights, rest, strict=True)}
            flat = [
                params_of(
                    case.cell,
                    g[f"weight_ih_{s}"].T,
                    g[f"weight_hh_{s}"].T,
                    g[f"bias_ih_{s}"],
                    g[f"bias_hh_{s}"][2 * hidden : 3 * hidden],
                )
                for s in suffixes
            ]
            count = len(case.directions)
            told["params"] = tuple(tuple(flat[k : k + count]) for k in range(0, len(flat), count))
            told["xs"] = numbers(dx).swapaxes(0, 1)
        return told

    run = {"forward": streaming} if case.kind == "streaming" else {"forward": forward, "forward+grad": gradient}
    return Program(params, inputs, run, answer)


# The list ----------------------------------------------------------------------------------------------------------------

# Buffers of hundreds of megabytes are otherwise given back to the system after each call, and faulted in anew.
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


def peers(platform: str, backend: str = "auto") -> dict[str, Peer]:
    """All by name; "ours" first, then those whose names the table compares with it."""
    threads = f"{cores()} threads" if platform == "cpu" else "cuDNN"

    def everything(case: Case, platform: str) -> bool:
        return True

    def our(name: str, setting: str) -> Peer:
        return Peer(lambda case, platform: ours(name, case), setting, "s2s_jax", everything)

    found = {"ours": our(backend, f'unroll(backend="{backend}"), batch-major')}
    extra = " (streaming: 1)" if platform == "cpu" else ""
    torch = Peer(
        _torch,
        f"torch.nn, {threads}{extra}, time-major, forward in inference_mode, packed where ragged",
        "torch",
        lambda case, platform: case.common,
        spins=True,
    )
    found["torch"] = torch
    if platform == "cpu":
        tuned = f"{threads}{extra}, time-major, glibc keeps its memory ({', '.join(KEEPS_MEMORY)})"
        found["torch, allocator tuned"] = torch._replace(setting=f"torch.nn, {tuned}", environment=KEEPS_MEMORY)
    found["flax linen"] = Peer(_flax_linen, "nn.RNN, OptimizedLSTMCell, time_major, jit; GRUCell for GRU", "flax")
    found["flax nnx"] = Peer(
        _flax_nnx,
        "nnx.RNN, OptimizedLSTMCell, time_major, plain jit; its GRUCell lacks a bias, zero there in both",
        "flax",
        inner_bias=False,
    )
    keras = {"KERAS_BACKEND": "jax"}
    found["keras"] = Peer(_keras, "keras.layers on JAX, stateless_call in jit, batch-major", "keras", environment=keras)
    if platform == "gpu":

        def takes(case: Case, platform: str) -> bool:
            return case.kind == "layer" and is_lstm(case) and case.dtype == "float32"

        found["jax cudnn"] = Peer(_jax_cudnn, "jax.experimental.rnn.lstm, batch-major", "jax", takes)
    found |= {name: our(name, f'unroll(backend="{name}"), batch-major') for name in BACKENDS}
    return found
