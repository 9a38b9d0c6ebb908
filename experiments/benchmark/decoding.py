"""Decoding: tokens a second of greedy and beam search, one sentence or many at once, beside PyTorch with the same weights."""

import functools
from typing import Any

import jax
import numpy as np

from experiments.benchmark.program import Program
from experiments.benchmark.workload import BANNED, Workload, with_params
from flax import nnx
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding.beam import beam_search
from s2s_jax.decoding.search import greedy
from s2s_jax.models.seq2seq import decoder_step


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _decoded(graphdef: Any, params: Any, source: Any, lengths: Any, beam_size: int, max_length: int) -> Any:
    model = nnx.merge(graphdef, params, copy=True)
    context, state = model.start(source, lengths)
    step, of_decoder = decoder_step(model)
    options: dict[str, Any] = {"start": START, "end": END, "pad": PAD, "max_length": max_length, "banned": BANNED}
    if beam_size == 1:
        found = greedy(step, of_decoder, context, state, **options)
        return found.tokens, found.lengths, found.scores
    best = beam_search(step, of_decoder, context, state, beam_size=beam_size, length_penalty="average", **options)
    return best.tokens[:, 0], best.lengths[:, 0], best.scores[:, 0]


def _ours(workload: Workload, platform: str) -> Program:
    graphdef: Any = None

    def params(given: Any) -> Any:
        nonlocal graphdef
        graphdef, state = with_params(workload.model(), given)
        return state

    def run(params: Any, batches: Any, _: Any) -> list[Any]:
        size = workload.beam_size, workload.max_length
        return [jax.device_get(_decoded(graphdef, params, *batch, *size)) for batch in batches]

    return Program(params, lambda *given: (workload.batches(*given), None), {"decode": run}, _answer)


def _torch(workload: Workload, platform: str) -> Program:
    import torch

    from experiments.benchmark.torch_decoding import Translator

    def params(given: Any) -> Any:
        return Translator(given, workload.input_feeding, BANNED)

    def run(model: Any, batches: Any, _: Any) -> list[Any]:
        found = []
        for source, lengths in batches:
            given = torch.from_numpy(source).long(), torch.from_numpy(lengths).long(), workload.max_length
            result = model.greedy(*given) if workload.beam_size == 1 else model.beam(*given, workload.beam_size)
            found.append(tuple(part.cpu().numpy() for part in result))
        return found

    return Program(params, lambda *given: (workload.batches(*given), None), {"decode": run}, _answer)


def _answer(result: list[Any]) -> dict[str, Any]:
    names = "tokens", "lengths", "scores"
    return {name: np.concatenate([batch[k] for batch in result]) for k, name in enumerate(names)}
