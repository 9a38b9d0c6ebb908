"""The outside implementations that the tests compare with, each run on our parameters.

All take and give our layout ([B, T, ...], our NamedTuples) as NumPy arrays; all compute in float64, except ONNX Runtime, whose
recurrent operators know float32 only. Where gradients come back they are those of `samples.weighted_sum`, with respect
to our parameters, inputs and initial states. A row of length 0, which PyTorch refuses to pack, is left out there and takes
its closed form: the state stays and the outputs are zero.
"""

import importlib
import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax import cells
from s2s_jax.types import LSTMState, Unrolled
from tests.samples import Gradients, weighted_sum

FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}


def oracle(name: str) -> Any:
    """Imports an oracle. Where it is missing the test is skipped; in CI it fails, but for torch above Python 3.11."""
    optional = name == "torch" and sys.version_info >= (3, 12)
    if os.environ.get("CI") == "true" and not optional:
        return importlib.import_module(name)
    return pytest.importorskip(name)


class Answer(NamedTuple):
    done: Unrolled
    gradients: Gradients | None = None


# PyTorch ---------------------------------------------------------------------------------------------------------------


def torch_stack(cell, params, xs, states, lengths, weights, directions=("forward",)) -> Answer:
    """`torch.nn.RNN`, `LSTM` or `GRU` on nested params[layer][direction] and states; outputs of the directions side by side.

    PyTorch has no layer that only runs backward: for that its bidirectional layer runs, and half of it is dropped.
    """
    torch = oracle("torch")
    leaves, structure = jax.tree.flatten((params, xs, states))
    tensors = [torch.tensor(np.asarray(leaf, np.float64), requires_grad=True) for leaf in leaves]
    params, xs, states = jax.tree.unflatten(structure, tensors)
    layers, first = len(params), params[0][0]
    hidden = _hidden_features(cell, first)
    options = {"input_size": xs.shape[-1], "hidden_size": hidden, "num_layers": layers, "batch_first": True}
    options |= {"bias": first.b is not None, "bidirectional": directions != ("forward",), "dtype": torch.float64}
    if isinstance(cell.spec, cells.LSTMSpec):
        module = torch.nn.LSTM(proj_size=cell.spec.projection or 0, **options)
    elif isinstance(cell.spec, cells.GRUSpec):
        module = torch.nn.GRU(**options)
    else:
        module = torch.nn.RNN(nonlinearity=cell.spec.activation, **options)
    if directions == ("backward",):
        assert layers == 1
        params, states = [[p, p] for (p,) in params], [[s, s] for (s,) in states]

    named = {}
    for layer, of_layer in enumerate(params):
        for suffix, p in zip(("", "_reverse"), of_layer, strict=False):
            named |= {f"{key}_l{layer}{suffix}": value for key, value in _torch_weights(torch, p).items()}

    rows = torch.arange(len(xs)) if lengths is None else torch.tensor(np.flatnonzero(lengths))
    flat_states = [s for of_layer in states for s in of_layer]
    if isinstance(flat_states[0], LSTMState):
        start = tuple(torch.stack(part)[:, rows] for part in zip(*flat_states, strict=True))
    else:
        start = torch.stack(flat_states)[:, rows]
    inputs = xs[rows]
    if lengths is not None:
        kept = torch.tensor(np.asarray(lengths))[rows]
        inputs = torch.nn.utils.rnn.pack_padded_sequence(inputs, kept, batch_first=True, enforce_sorted=False)
    ran, end = torch.func.functional_call(module, named, (inputs, start))
    if lengths is not None:
        ran, _ = torch.nn.utils.rnn.pad_packed_sequence(ran, batch_first=True, total_length=xs.shape[1])
    outputs = torch.zeros(len(xs), *ran.shape[1:], dtype=torch.float64).index_put((rows,), ran)

    def scattered(old, new):
        return old.index_put((rows,), new)

    final = []
    for k, state in enumerate(flat_states):
        if isinstance(state, LSTMState):
            final.append(LSTMState(*(scattered(old, new[k]) for old, new in zip(state, end, strict=True))))
        else:
            final.append(scattered(state, end[k]))
    count = len(params[0])
    final = tuple(tuple(final[layer * count : (layer + 1) * count]) for layer in range(layers))
    if directions == ("backward",):
        outputs, final = outputs[..., outputs.shape[-1] // 2 :], tuple((s,) for _, s in final)

    done = Unrolled(outputs, final)
    loss = sum(
        (v * torch.tensor(np.asarray(w, np.float64))).sum()
        for v, w in zip(jax.tree.leaves(done), jax.tree.leaves(weights), strict=True)
    )
    gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
    numbers = [np.asarray(g) for g in gradients]
    return Answer(jax.tree.map(lambda t: t.detach().numpy(), done), Gradients(*jax.tree.unflatten(structure, numbers)))


def torch_loop(cell, params, xs, state, lengths, weights, reverse=False, mask=None) -> tuple[Unrolled, Gradients]:
    """An LSTM with what `torch.nn.LSTM` lacks, step by step in PyTorch: its layer_norm, its sigmoid and tanh, its autograd."""
    torch = oracle("torch")
    leaves, structure = jax.tree.flatten((params, xs, state))
    tensors = [torch.tensor(np.asarray(leaf, np.float64), requires_grad=True) for leaf in leaves]
    p, xs, (h, c) = jax.tree.unflatten(structure, tensors)
    size, time = c.shape[1], xs.shape[1]
    norm = torch.nn.functional.layer_norm
    kept = torch.as_tensor(1.0 if mask is None else mask)
    valid = torch.arange(time)[None] < torch.as_tensor(np.full(len(xs), time) if lengths is None else lengths)[:, None]
    outputs = [torch.zeros_like(h)] * time
    for t in reversed(range(time)) if reverse else range(time):
        from_x, from_h = xs[:, t] @ p.w, (h * kept) @ p.u
        if cell.spec.layer_norm:
            from_x, from_h = norm(from_x, [4 * size], p.norm_w), norm(from_h, [4 * size], p.norm_u)
        i, f, g, o = (from_x + from_h + (0 if p.b is None else p.b)).split(size, dim=1)
        p_i, p_f, p_o = (0, 0, 0) if p.peephole is None else p.peephole.split(size)
        new_c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        shown = norm(new_c, [size], p.norm_c, p.norm_b) if cell.spec.layer_norm else new_c
        new_h = torch.sigmoid(o + p_o * new_c) * torch.tanh(shown)
        new_h = new_h if p.projection is None else new_h @ p.projection
        rows = valid[:, t, None]
        h, c = torch.where(rows, new_h, h), torch.where(rows, new_c, c)
        outputs[t] = torch.where(rows, new_h, torch.zeros_like(new_h))
    done = Unrolled(torch.stack(outputs, dim=1), LSTMState(h, c))
    pairs = zip(jax.tree.leaves(done), jax.tree.leaves(weights), strict=True)
    loss = sum((v * torch.tensor(np.asarray(w, np.float64))).sum() for v, w in pairs)
    numbers = [np.asarray(g) for g in torch.autograd.grad(loss, tensors, materialize_grads=True)]
    return jax.tree.map(lambda t: t.detach().numpy(), done), Gradients(*jax.tree.unflatten(structure, numbers))


def _torch_weights(torch: Any, p: Any) -> dict[str, Any]:
    weights = {"weight_ih": p.w.T, "weight_hh": p.u.T}
    if isinstance(p, cells.LSTMParams) and p.projection is not None:
        weights["weight_hr"] = p.projection.T
    if p.b is not None:
        recurrent = torch.linspace(-0.5, 0.7, len(p.b), dtype=torch.float64)
        if isinstance(p, cells.GRUParams):
            recurrent = torch.cat([recurrent[: -len(p.b_n)], p.b_n])
            weights["bias_ih"] = p.b - torch.cat([recurrent[: -len(p.b_n)], torch.zeros(len(p.b_n), dtype=torch.float64)])
        else:
            weights["bias_ih"] = p.b - recurrent
        weights["bias_hh"] = recurrent
    return weights


def _hidden_features(cell: Any, params: Any) -> int:
    gates = {cells.RNNSpec: 1, cells.GRUSpec: 3, cells.LSTMSpec: 4}[type(cell.spec)]
    return params.u.shape[1] // gates


# Keras -----------------------------------------------------------------------------------------------------------------


def keras_layer(cell, params, xs, state, lengths, weights, reverse=False) -> Answer:
    """`keras.layers.SimpleRNN`, `LSTM` or `GRU` with a mask; gradients by `jax.grad` through `stateless_call`."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return _keras_layer(oracle("keras"), cell, params, xs, state, lengths, weights, reverse)


def _keras_layer(keras, cell, params, xs, state, lengths, weights, reverse) -> Answer:
    spec = cell.spec
    hidden = _hidden_features(cell, params)
    # JAX' own function: "tanh" by name gives float32 in Keras, whatever it is given.
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[spec.activation]
    options = {"activation": activation, "use_bias": spec.bias, "go_backwards": reverse, "dtype": "float64"}
    options |= {"return_sequences": True, "return_state": True, "zero_output_for_mask": True}
    if isinstance(spec, cells.LSTMSpec):
        layer = keras.layers.LSTM(hidden, **options)
    elif isinstance(spec, cells.GRUSpec):
        layer = keras.layers.GRU(hidden, reset_after=spec.reset == "after", **options)
    else:
        layer = keras.layers.SimpleRNN(hidden, **options)
    layer.build(xs.shape)
    mask = None if lengths is None else jnp.arange(xs.shape[1])[None] < jnp.asarray(lengths)[:, None]
    rest = [variable.value for variable in layer.non_trainable_variables]

    def loss(params, xs, state):
        start = list(state) if isinstance(state, LSTMState) else [state]
        (outputs, *end), _ = layer.stateless_call(
            _keras_weights(spec, params), rest, xs, initial_state=start, mask=mask, training=False
        )
        outputs = outputs[:, ::-1] if reverse else outputs
        done = Unrolled(outputs, LSTMState(*end) if isinstance(state, LSTMState) else end[0])
        return weighted_sum(done, weights), done

    args = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, xs, state))
    gradients, done = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=FAST_TO_COMPILE)(*args)
    return jax.tree.map(np.asarray, Answer(done, Gradients(*gradients)))


def _keras_weights(spec: Any, p: Any) -> list[Any]:
    if not isinstance(spec, cells.GRUSpec):
        return [p.w, p.u] if p.b is None else [p.w, p.u, p.b]

    def zrn(x):
        r, z, n = jnp.split(x, 3, axis=-1)
        return jnp.concatenate([z, r, n], axis=-1)

    if p.b is None:
        return [zrn(p.w), zrn(p.u)]
    if spec.reset == "before":
        return [zrn(p.w), zrn(p.u), zrn(p.b)]
    features = len(p.b_n)
    recurrent = jnp.concatenate([jnp.linspace(-0.5, 0.7, 2 * features), p.b_n])
    inner = p.b - recurrent.at[2 * features :].set(0)
    return [zrn(p.w), zrn(p.u), jnp.stack([zrn(inner), zrn(recurrent)])]


# ONNX Runtime ----------------------------------------------------------------------------------------------------------


def onnx_layer(cell, params, xs, states, lengths, direction="forward") -> Unrolled:
    """One ONNX operator on params[direction] and states[direction]; direction "forward", "reverse" or "bidirectional"."""
    oracle("onnx")
    runtime = oracle("onnxruntime")
    from onnx import TensorProto, helper

    spec = cell.spec
    inputs = {"X": np.swapaxes(np.asarray(xs), 0, 1)}
    stacked = [_onnx_weights(spec, p) for p in params]
    inputs |= {name: np.stack([s[name] for s in stacked]).astype(np.float32) for name in stacked[0]}
    if lengths is not None:
        inputs["sequence_lens"] = np.asarray(lengths, np.int32)
    is_lstm = isinstance(spec, cells.LSTMSpec)
    inputs["initial_h"] = np.stack([s.h if is_lstm else s for s in states])
    if is_lstm:
        inputs["initial_c"] = np.stack([s.c for s in states])
    activation = spec.activation.capitalize()
    attributes = {"hidden_size": _hidden_features(cell, params[0]), "direction": direction}
    if is_lstm:
        operator, attributes["activations"] = "LSTM", ["Sigmoid", activation, activation]
        order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    elif isinstance(spec, cells.GRUSpec):
        operator, attributes["activations"] = "GRU", ["Sigmoid", activation]
        attributes["linear_before_reset"] = int(spec.reset == "after")
        order = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    else:
        operator, attributes["activations"] = "RNN", [activation]
        order = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    attributes["activations"] *= len(params)
    results = ["Y", "Y_h", "Y_c"][: 3 if is_lstm else 2]
    node = helper.make_node(operator, [name if name in inputs else "" for name in order], results, **attributes)

    def value(name):
        kind = TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, None)

    graph = helper.make_graph([node], operator, [value(name) for name in inputs], [value(name) for name in results])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs, *end = session.run(None, inputs)
    outputs = np.concatenate(np.moveaxis(outputs, 1, 0), axis=-1).swapaxes(0, 1)  # [T, directions, B, H]
    final = tuple(LSTMState(*parts) if is_lstm else parts[0] for parts in zip(*end, strict=True))
    if lengths is not None:  # ONNX does not say what the state is after no step, and ONNX Runtime gives zero.
        final, empty = jax.tree.map(np.array, final), np.asarray(lengths) == 0
        for end, start in zip(jax.tree.leaves(final), jax.tree.leaves(tuple(states)), strict=True):
            assert not np.any(end[empty])
            end[empty] = start[empty]
    return Unrolled(outputs, final)


def _onnx_weights(spec: Any, p: Any) -> dict[str, np.ndarray]:
    """Gates of ONNX: LSTM i, o, f, g (peepholes i, o, f); GRU z, r, n; transposed, and two biases in a row."""
    order = {cells.LSTMSpec: [0, 3, 1, 2], cells.GRUSpec: [1, 0, 2], cells.RNNSpec: [0]}[type(spec)]

    def reordered(x, order=order):
        blocks = np.split(np.asarray(x), len(order), axis=-1)
        return np.concatenate([blocks[k] for k in order], axis=-1)

    weights = {"W": reordered(p.w).T, "R": reordered(p.u).T}
    if p.b is not None:
        recurrent = np.linspace(-0.5, 0.7, len(p.b)).astype(np.float32)
        split = np.asarray(p.b) - recurrent
        if isinstance(spec, cells.GRUSpec) and spec.reset == "after":
            features = len(p.b_n)
            recurrent[2 * features :] = p.b_n
            split[2 * features :] = p.b[2 * features :]
        weights["B"] = np.concatenate([reordered(split), reordered(recurrent)])
    if isinstance(spec, cells.LSTMSpec) and p.peephole is not None:
        weights["P"] = reordered(p.peephole, [0, 2, 1])
    return weights


# jax.experimental.rnn --------------------------------------------------------------------------------------------------


def lstm_ref_stack(params, xs, states, lengths, weights, directions=("forward",)) -> Answer:
    """`jax.experimental.rnn.lstm_ref`, JAX's statement of what cuDNN computes; rows of length 0 left out as for PyTorch."""
    from jax.experimental.rnn import lstm_ref

    lengths = np.full(len(xs), xs.shape[1], np.int32) if lengths is None else np.asarray(lengths, np.int32)
    rows = np.flatnonzero(lengths)
    layers, count = len(params), len(directions)

    def loss(params, xs, states):
        flat = [p for of_layer in params for p in of_layer]
        flat_states = [s for of_layer in states for s in of_layer]
        half = jnp.linspace(-0.5, 0.7, len(flat[0].b))
        h, c = (jnp.stack(part) for part in zip(*flat_states, strict=True))
        w, u = ({k: getattr(p, name).T for k, p in enumerate(flat)} for name in "wu")
        b = {k: p.b - half for k, p in enumerate(flat)}
        b_hh = dict.fromkeys(b, half)
        hidden = flat[0].u.shape[0]
        sizes = (xs.shape[-1], hidden, layers, 0.0, count == 2)
        with jax.numpy_rank_promotion("allow"):
            y, h_end, c_end = lstm_ref(xs[rows], h[:, rows], c[:, rows], w, u, b, b_hh, jnp.asarray(lengths[rows]), *sizes)
        # lstm_ref has no word on what stands in the padding of the outputs.
        valid = (np.arange(xs.shape[1])[None] < lengths[rows][:, None])[..., None]
        y = jnp.where(valid, y, 0)
        outputs = jnp.zeros((*xs.shape[:2], y.shape[-1]), y.dtype).at[rows].set(y)
        h, c = h.at[:, rows].set(h_end), c.at[:, rows].set(c_end)
        final = tuple(
            tuple(LSTMState(h[layer * count + d], c[layer * count + d]) for d in range(count)) for layer in range(layers)
        )
        done = Unrolled(outputs, final)
        return weighted_sum(done, weights), done

    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, xs, states))
        gradients, done = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=FAST_TO_COMPILE)(*args)
        return jax.tree.map(np.asarray, Answer(done, Gradients(*gradients)))


# The equations, slowly -------------------------------------------------------------------------------------------------


def plain(cell, params, xs, state, lengths, reverse=False, mask=None) -> Unrolled:
    """The equations of each cell, one row and one step at a time; complex numbers pass through them for `plain_gradients`.

    Sources: Hochreiter & Schmidhuber 1997, Gers et al. 2002 (peepholes), Sak et al. 2014 (projection), Ba et al. 2016
    (layer norm, equations 20 to 22), Cho et al. 2014, Gal & Ghahramani 2016 (recurrent mask).
    """
    is_lstm = isinstance(cell.spec, cells.LSTMSpec)
    batch_size, time = xs.shape[:2]
    kind = np.result_type(np.float64, *jax.tree.leaves((params, xs, state)))
    outputs = np.zeros((batch_size, time, (state.h if is_lstm else state).shape[1]), kind)
    final = jax.tree.map(lambda leaf: np.array(leaf, kind), state)
    for b in range(batch_size):
        at = jax.tree.map(lambda leaf: leaf[b], final)  # noqa: B023
        steps = range(time if lengths is None else lengths[b])
        for t in reversed(steps) if reverse else steps:
            at = _plain_step(cell.spec, params, at, xs[b, t].astype(kind), 1.0 if mask is None else mask[b])
            outputs[b, t] = at.h if is_lstm else at
        for whole, row in zip(jax.tree.leaves(final), jax.tree.leaves(at), strict=True):
            whole[b] = row
    return Unrolled(outputs, final)


def plain_gradients(cell, params, xs, state, lengths, weights, reverse=False, mask=None) -> Gradients:
    """Gradients of the weighted sum, by complex steps: d f(x) = Im f(x + i e) / e, exact to rounding (Squire & Trapp 1998)."""
    leaves, structure = jax.tree.flatten((params, xs, state))
    leaves = [np.asarray(leaf, np.complex128) for leaf in leaves]
    tiny = 1e-30

    def loss():
        done = plain(cell, *jax.tree.unflatten(structure, leaves), lengths, reverse, mask)
        return sum(np.sum(v * w) for v, w in zip(jax.tree.leaves(done), jax.tree.leaves(weights), strict=True))

    gradients = []
    for leaf in leaves:
        gradient = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            leaf[index] += 1j * tiny
            gradient[index] = loss().imag / tiny
            leaf[index] -= 1j * tiny
        gradients.append(gradient)
    return Gradients(*jax.tree.unflatten(structure, gradients))


def _plain_step(spec: Any, p: Any, state: Any, x: np.ndarray, mask: Any) -> Any:
    activation = np.tanh if spec.activation == "tanh" else lambda v: v * (v.real > 0)
    b = 0.0 if p.b is None else p.b
    if isinstance(spec, cells.RNNSpec):
        return activation(x @ p.w + (state * mask) @ p.u + b)
    if isinstance(spec, cells.GRUSpec):
        size = len(state)
        w_r, w_z, w_n = (p.w[:, k * size : (k + 1) * size] for k in range(3))
        u_r, u_z, u_n = (p.u[:, k * size : (k + 1) * size] for k in range(3))
        b_r, b_z, b_n1 = np.split(np.zeros(3 * size) + b, 3)
        r = _logistic(x @ w_r + (state * mask) @ u_r + b_r)
        z = _logistic(x @ w_z + (state * mask) @ u_z + b_z)
        if spec.reset == "after":
            n = activation(x @ w_n + b_n1 + r * ((state * mask) @ u_n + (0.0 if p.b_n is None else p.b_n)))
        else:
            n = activation(x @ w_n + b_n1 + (r * state * mask) @ u_n)
        return (1 - z) * n + z * state
    size = len(state.c)
    from_x, from_h = x @ p.w, (state.h * mask) @ p.u
    if spec.layer_norm:
        from_x, from_h = p.norm_w * _standardised(from_x), p.norm_u * _standardised(from_h)
    gates = from_x + from_h + b
    i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
    if spec.peepholes:
        i, f = i + p.peephole[:size] * state.c, f + p.peephole[size : 2 * size] * state.c
    c = _logistic(f) * state.c + _logistic(i) * activation(g)
    if spec.peepholes:
        o = o + p.peephole[2 * size :] * c
    shown = p.norm_c * _standardised(c) + p.norm_b if spec.layer_norm else c
    h = _logistic(o) * activation(shown)
    return LSTMState(h @ p.projection if spec.projection else h, c)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _standardised(x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the features; 1e-5 is added to the variance."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
