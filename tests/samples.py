"""The cells under test, random data for them, and one jitted function that gives values and all gradients.

Everything at rest is a NumPy array; float32 values throughout, so that a run in float32 and one in float64 see the same.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import s2s_jax
from s2s_jax import cells
from s2s_jax.types import Cell, Unrolled

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
B, T, D, H = 4, 6, 3, 4


def _counting_cell() -> Cell:
    """A user's own cell: a dict as state, in it an integer that counts the steps."""

    def init(key, in_features, hidden_features):
        return {"w": jnp.zeros((in_features, hidden_features)), "u": jnp.zeros((hidden_features, hidden_features))}

    def initial_state(params, batch_size, dtype):
        h = jnp.zeros((batch_size, params["u"].shape[0]), dtype)
        return {"h": h, "steps": jnp.zeros(batch_size, jnp.int32)}

    def step(params, state, z, context):
        h = jnp.tanh(z + state["h"] @ params["u"]) / (1 + state["steps"])[:, None].astype(z.dtype)
        return {"h": h, "steps": state["steps"] + 1}, h

    return Cell(init, initial_state, lambda params, x: x @ params["w"], step)


def _embedding_cell() -> Cell:
    """A user's own cell whose `xs` are token ids, [B, T]."""

    def init(key, in_features, hidden_features):
        return cells.GRUParams(*cells.gru.init(key, in_features, hidden_features)), jnp.zeros((VOCABULARY, in_features))

    return Cell(
        init,
        lambda params, batch_size, dtype: cells.gru.initial_state(params[0], batch_size, dtype),
        lambda params, ids: cells.gru.project(params[0], params[1][ids]),
        lambda params, state, z, context: cells.gru.step(params[0], state, z, context),
    )


def _tree_cell() -> Cell:
    """A user's own cell with pytrees for `xs` and for `y`, among the outputs an integer."""

    def step(params, h, z, context):
        features, keep = z
        h = keep * h + (1 - keep) * jnp.sin(features + h @ params["u"])
        return h, {"h": h, "largest": jnp.argmax(h, axis=-1).astype(jnp.int32)}

    return Cell(
        lambda key, in_features, hidden_features: {
            "w": jnp.zeros((in_features, hidden_features)),
            "u": jnp.zeros((hidden_features, hidden_features)),
        },
        lambda params, batch_size, dtype: jnp.zeros((batch_size, params["u"].shape[0]), dtype),
        lambda params, x: (x["features"] @ params["w"], jax.nn.sigmoid(x["keep"])),
        step,
    )


def spying_cell(shown) -> Cell:
    """A cell that does nothing but show `shown(input, context)`, in which the masks of dropout can be seen."""
    return Cell(
        lambda key, in_features, hidden_features: cells.RNNParams(jnp.eye(in_features), jnp.eye(hidden_features), None),
        lambda params, batch_size, dtype: jnp.zeros((batch_size, params.u.shape[0]), dtype),
        lambda params, x: x,
        lambda params, state, z, context: (state, shown(z, context)),
    )


inputs_cell = spying_cell(lambda z, context: z)
VOCABULARY = 7
USER_CELLS = {"counting": _counting_cell(), "embedding": _embedding_cell(), "tree": _tree_cell()}
LIBRARY_CELLS = {
    "rnn": cells.rnn,
    "rnn_relu": cells.make_rnn(activation="relu"),
    "rnn_no_bias": cells.make_rnn(bias=False),
    "lstm": cells.lstm,
    "lstm_relu": cells.make_lstm(activation="relu"),
    "lstm_no_bias": cells.make_lstm(bias=False),
    "lstm_projection": cells.make_lstm(projection=2),
    "lstm_peepholes": cells.make_lstm(peepholes=True),
    "lstm_layer_norm": cells.make_lstm(layer_norm=True),
    "lstm_layer_norm_no_bias": cells.make_lstm(layer_norm=True, bias=False),
    "lstm_everything": cells.make_lstm(projection=3, peepholes=True, layer_norm=True),
    "gru": cells.gru,
    "gru_relu": cells.make_gru(activation="relu"),
    "gru_no_bias": cells.make_gru(bias=False),
    "gru_before": cells.make_gru(reset="before"),
    "gru_before_relu": cells.make_gru(reset="before", activation="relu"),
    "gru_before_no_bias": cells.make_gru(reset="before", bias=False),
}
CELLS = LIBRARY_CELLS | USER_CELLS
DIAGONAL_CELLS = {
    "diagonal_rnn": cells.make_rnn(recurrence="diagonal"),
    "diagonal_lstm": cells.make_lstm(recurrence="diagonal"),
    "diagonal_lstm_peepholes": cells.make_lstm(recurrence="diagonal", peepholes=True),
    "diagonal_gru": cells.make_gru(recurrence="diagonal"),
    "diagonal_gru_before": cells.make_gru(recurrence="diagonal", reset="before", bias=False),
}
LINEAR_CELLS = {
    "min_gru": cells.min_gru,
    "min_lstm": cells.min_lstm,
    "min_gru_no_bias": cells.make_min_gru(bias=False),
    "lru": cells.lru,
}
# Of these two dictionaries the options that change what a step computes.
UNIT_VARIANTS = {
    "diagonal_rnn_relu": cells.make_rnn(recurrence="diagonal", activation="relu", bias=False),
    "diagonal_lstm_relu": cells.make_lstm(recurrence="diagonal", activation="relu", bias=False),
    "diagonal_gru_relu": cells.make_gru(recurrence="diagonal", activation="relu"),
    "diagonal_gru_no_bias": cells.make_gru(recurrence="diagonal", bias=False),
    "diagonal_gru_before_relu": cells.make_gru(recurrence="diagonal", reset="before", activation="relu"),
    "min_lstm_no_bias": cells.make_min_lstm(bias=False),
}
ALL_CELLS = CELLS | DIAGONAL_CELLS | LINEAR_CELLS | UNIT_VARIANTS
# One of each family and of each kind of state, where a property does not depend on the options.
FEW_CELLS = ("rnn", "lstm_everything", "gru", "counting")


class Sample(NamedTuple):
    """What one call of `unroll` takes, and random `weights` of outputs and final state that make a loss of them."""

    cell: Cell
    params: Any
    xs: Any
    state: Any
    lengths: np.ndarray | None
    weights: Unrolled
    context: Any = None


class Gradients(NamedTuple):
    params: Any
    xs: Any
    state: Any


def random_like(shapes: Any, seed: int, scale: float = 0.7) -> Any:
    """Random numbers in the shapes of a tree, none of them near zero by design of nobody: all are drawn."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return rng.integers(0, 3, leaf.shape).astype(np.int32)
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def random_params(cell: Cell, in_features: int = D, hidden_features: int = H, seed: int = 0) -> Any:
    """Every field drawn, biases, peepholes and the shifts and scales of norms too."""
    return random_like(jax.eval_shape(lambda key: cell.init(key, in_features, hidden_features), jax.random.key(0)), seed)


def random_state(cell: Cell, params: Any, batch_size: int, seed: int = 1) -> Any:
    return random_like(jax.eval_shape(lambda p: cell.initial_state(p, batch_size, jnp.float32), params), seed)


def random_inputs(name: str, batch_size: int, time: int, in_features: int, seed: int = 2) -> Any:
    rng = np.random.default_rng(seed)
    if name == "embedding":
        return rng.integers(0, VOCABULARY, (batch_size, time)).astype(np.int32)
    features = rng.normal(size=(batch_size, time, in_features)).astype(np.float32)
    if name == "tree":
        return {"features": features, "keep": rng.normal(size=(batch_size, time, 1)).astype(np.float32)}
    return features


def ragged_lengths(batch_size: int, time: int, seed: int = 3) -> np.ndarray:
    """0, 1 and T are among them as far as the batch has room; in random order."""
    rng = np.random.default_rng(seed)
    some = np.concatenate([[time, 0, min(1, time)], rng.integers(0, time + 1, batch_size)])[:batch_size]
    return rng.permutation(some).astype(np.int32)


def sample(
    name: str, batch_size: int = B, time: int = T, in_features: int = D, hidden_features: int = H, seed: int = 0
) -> Sample:
    cell = ALL_CELLS[name]
    params = random_params(cell, in_features, hidden_features, seed)
    xs = random_inputs(name, batch_size, time, in_features, seed + 1)
    state = random_state(cell, params, batch_size, seed + 2)
    shapes = jax.eval_shape(lambda *args: s2s_jax.unroll(cell, *args), params, xs, state)
    return Sample(cell, params, xs, state, ragged_lengths(batch_size, time, seed + 3), random_like(shapes, seed + 4, 1.0))


def cast(tree: Any, dtype: str) -> Any:
    """The floating leaves in `dtype`; integers and None stay."""
    return jax.tree.map(lambda x: np.asarray(x, dtype) if np.issubdtype(np.asarray(x).dtype, np.floating) else x, tree)


def weighted_sum(values: Any, weights: Any) -> jax.Array:
    """The loss: integer leaves have no gradient and do not count."""
    pairs = zip(jax.tree.leaves(values), jax.tree.leaves(weights), strict=True)
    return sum((jnp.sum(v * w.astype(v.dtype)) for v, w in pairs if jnp.issubdtype(v.dtype, jnp.floating)), jnp.zeros(()))


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "remat"))
def _values_and_gradients(cell, params, xs, state, lengths, weights, context, *, reverse, remat):
    def loss(params, xs, state):
        done = s2s_jax.unroll(cell, params, xs, state, lengths=lengths, context=context, reverse=reverse, remat=remat)
        return weighted_sum(done, weights), done

    gradients, done = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)(params, xs, state)
    return done, Gradients(*gradients)


def run(
    given: Sample, dtype: str = "float32", *, reverse: bool = False, remat: int | None = None
) -> tuple[Unrolled, Gradients]:
    """`unroll` on the sample, and the gradients of the weighted sum of outputs and state; NumPy arrays."""
    arrays = cast((given.params, given.xs, given.state, given.lengths, given.weights, given.context), dtype)
    return jax.tree.map(np.asarray, _values_and_gradients(given.cell, *arrays, reverse=reverse, remat=remat))


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Leaf by leaf: the largest difference is at most `tolerance` times the largest absolute value of `want`.

    So a leaf that should be zero must be exactly zero. Integers must be equal; NaN is never close.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape, f"{where}: shape {a.shape}, expected {b.shape}"
        if a.dtype == jax.dtypes.float0 or a.size == 0:
            continue
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b, err_msg=where)
            continue
        difference = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
        bound = tolerance * np.max(np.abs(b.astype(np.float64)))
        assert difference <= bound, f"{where}: differs by {difference:.3g}, at most {bound:.3g} allowed"


def assert_equal(got: Any, want: Any) -> None:
    """To the last few bits: the same arithmetic in another order of compilation."""
    assert_close(got, want, 2e-6)


def rows(tree: Any, index: Any) -> Any:
    """Rows of the batch."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def times(tree: Any, index: Any) -> Any:
    """Positions in time of batch-major leaves."""
    return jax.tree.map(lambda leaf: leaf[:, index], tree)


def fill_padding(tree: Any, lengths: np.ndarray, value: float) -> Any:
    """`value` at every padded position; where leaves are integers, an id that is in no vocabulary."""

    def fill(leaf):
        leaf = np.array(leaf)
        padded = np.arange(leaf.shape[1])[None] >= lengths[:, None]
        leaf[padded] = 10**6 if np.issubdtype(leaf.dtype, np.integer) else value
        return leaf

    return jax.tree.map(fill, tree)


def further_derivatives(given, backend):
    """Forward mode, second derivatives, and gradients under `vmap` over parameters, of a sample that is read in reverse."""
    along = random_like((given.params, given.xs), 9)
    many = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf]), given.params)

    def loss(params, xs):
        done = s2s_jax.unroll(given.cell, params, xs, given.state, lengths=given.lengths, reverse=True, backend=backend)
        return weighted_sum(done, given.weights)

    @jax.jit
    def all_of_them():
        point = given.params, given.xs
        forward = jax.jvp(loss, point, along)
        second = jax.vjp(jax.grad(loss, argnums=(0, 1)), *point)[1](along)
        summed = jax.grad(lambda p, x: jnp.sum(jax.vmap(loss, (0, None))(p, x)), argnums=(0, 1))(many, given.xs)
        return forward, second, summed

    return all_of_them()


def gradients_in_parts(given, backend):
    """Gradients by parameters and inputs of outputs: [B] at once, and under `jax.shard_map` with the batch over 8 devices.

    Returns:
      Both, and a function that gives them for arrays of one's own: parameters, inputs, state, lengths.
    """
    batch_size, time = given.xs.shape[:2]
    lengths, every = ragged_lengths(batch_size, time), jax.sharding.PartitionSpec("batch")

    def forward(params, xs, state, lengths):
        return s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, backend=backend).outputs

    def gradients(f):
        return jax.jit(jax.grad(lambda *args: weighted_sum(f(*args), given.weights.outputs), argnums=(0, 1)))

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices("cpu")[:8])
    specs = (jax.sharding.PartitionSpec(), every, every, every)
    sharded = jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=every)
    arrays = (*given[1:4], lengths)
    return gradients(forward)(*arrays), gradients(sharded)(*arrays), gradients(forward)
