"""From the encoder's final states to those that a decoder starts from."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from s2s_jax.layers.recurrent import Recurrent
from s2s_jax.models.decoders import hidden_of
from s2s_jax.models.encoder import Encoded

BRIDGES = ("last", "zero", "learned")


class Bridge(nnx.Module):
    """Puts what a decoder is to start from in the place of the encoder's final states.

    Args:
      kind: "last", the final states themselves, directions added up, which asks for as many layers of the same states;
        "zero", the decoder's own start; "learned", `tanh(W h + b)` for each array of each layer's state, where h are the hidden
        states of all directions of the encoder's layer, of its last one for layers beyond (Bahdanau et al., arXiv 1409.0473,
        appendix A.2.2, with one direction).
      encoder: the encoder's recurrent stack.
      decoder: whose `initial_states(batch_size, dtype)` are the decoder's own start.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an unknown kind, or "last" between stacks whose states differ.
    """

    def __init__(self, kind: str, encoder: Recurrent, decoder: Any, *, rngs: nnx.Rngs):
        if kind not in BRIDGES:
            raise ValueError(f"bridge: expected one of {', '.join(BRIDGES)}, got {kind!r}")
        self.kind = kind
        theirs, ours = (
            jax.eval_shape(lambda stack=stack: stack.initial_states(1, jnp.float32)) for stack in (encoder, decoder)
        )
        if kind == "last" and [directions[:1] for directions in theirs] != [directions[:1] for directions in ours]:
            raise ValueError(
                'bridge: expected encoder and decoder of as many layers, the same cell and width with "last", '
                f"got states {_widths(theirs)} and {_widths(ours)}; learned takes any"
            )
        self.layers = nnx.List([])
        if kind == "learned":
            for layer, (state,) in enumerate(ours):
                features = sum(hidden_of(h).shape[-1] for h in theirs[min(layer, len(theirs) - 1)])
                self.layers.append(nnx.List(nnx.Linear(features, leaf.shape[-1], rngs=rngs) for leaf in jax.tree.leaves(state)))

    def __call__(self, encoded: Encoded, decoder: Any) -> Encoded:
        """`encoded` with the states that the decoder starts from, one direction a layer."""
        if self.kind == "last":
            return encoded
        start = decoder.initial_states(len(encoded.outputs), encoded.outputs.dtype)
        if self.kind == "learned":
            made = []
            for layer, (linears, (state,)) in enumerate(zip(self.layers, start, strict=True)):
                directions = encoded.states[min(layer, len(encoded.states) - 1)]
                hidden = jnp.concatenate([hidden_of(h) for h in directions], axis=-1)
                leaves, structure = jax.tree.flatten(state)
                values = [jnp.tanh(linear(hidden)).astype(leaf.dtype) for linear, leaf in zip(linears, leaves, strict=True)]
                made.append((jax.tree.unflatten(structure, values),))
            start = tuple(made)
        return encoded._replace(states=start)


def _widths(states: Any) -> list[list[int]]:
    return [[leaf.shape[-1] for leaf in jax.tree.leaves(directions[0])] for directions in states]
