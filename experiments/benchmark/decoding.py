"""Tokens a second of greedy and beam search, one sentence at a time or many, beside PyTorch with the same weights.

What both give is compared before anything is timed: symbols, lengths and scores of every sentence. Where rounding has turned
two hypotheses that are about as good, both must have the same score, and the row says in how many sentences; else it is not
timed.
"""

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.benchmark import machine
from experiments.benchmark.peers import KEEPS_MEMORY
from experiments.benchmark.pool import Failed, Pool, ask_all
from experiments.benchmark.program import Peer, Program, cores
from experiments.benchmark.report import Report, legend
from experiments.benchmark.timing import Plan, interleaved, ratio
from experiments.benchmark.workload import Workload, with_params
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding.beam import beam_search
from s2s_jax.decoding.search import greedy
from s2s_jax.models.seq2seq import decoder_step
from s2s_jax.models.translator import BANNED

PLANS = {"small": Plan(5.0, 3, 40), "full": Plan(30.0, 10, 200)}
TOLERANCE = 1e-4  # of scores, relative to the greater of 1 and the score
SENTENCES = {1: 16, 64: 64}  # by batch size


def workloads() -> list[Workload]:
    """The grid: one sentence and 64 at a time, greedy and a beam of 5; without and with input feeding, and a smaller model.

    10,000 symbols are what the published model of Multi30k has (see `experiments.translation`); 4,000 are a usual choice too.
    """
    return [
        Workload(
            batch_size=batch_size, beam_size=beam_size, input_feeding=fed, sentences=sentences, vocabulary_size=vocabulary_size
        )
        for vocabulary_size, fed in ((10_000, False), (10_000, True), (4_000, False))
        for batch_size, sentences in SENTENCES.items()
        for beam_size in (1, 5)
    ]


# Ours and PyTorch's ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _decoded(graphdef: Any, params: Any, source: Any, lengths: Any, beam_size: int, max_length: int) -> Any:
    model = nnx.merge(graphdef, params, copy=True)
    context, state = model.start(source, lengths)
    step, of_decoder = decoder_step(model)
    options: dict[str, Any] = {"start": START, "end": END, "pad": PAD, "max_length": max_length, "banned": BANNED}
    if beam_size == 1:
        found = greedy(step, of_decoder, context, state, **options)
        return found.tokens, found.lengths, found.scores
    options |= {"beam_size": beam_size, "length_penalty": "average", "early_stopping": "enough"}  # as PyTorch's stops
    best = beam_search(step, of_decoder, context, state, **options)
    return best.tokens[:, 0], best.lengths[:, 0], best.scores[:, 0]


def _ours(workload: Workload, platform: str) -> Program:
    graphdef, state = nnx.split(workload.model())

    def run(params: Any, batches: Any, _: Any) -> list[Any]:
        size = workload.beam_size, workload.max_length
        with jax.default_matmul_precision("float32"):  # as in PyTorch; on a GPU it would be less, and symbols others
            return [jax.device_get(_decoded(graphdef, params, *batch, *size)) for batch in batches]

    return Program(lambda given: with_params(state, given), _inputs(workload), {"decode": run}, _answer)


def _torch(threads: int, workload: Workload, platform: str) -> Program:
    import torch

    from experiments.benchmark.torch_decoding import Translator

    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if platform == "gpu" else "cpu"

    def run(model: Any, batches: Any, _: Any) -> list[Any]:
        torch.set_num_threads(threads)
        found = []
        for source, lengths in batches:
            given = torch.from_numpy(source), torch.from_numpy(lengths), workload.max_length
            result = model.greedy(*given) if workload.beam_size == 1 else model.beam(*given, workload.beam_size)
            found.append(tuple(part.cpu().numpy() for part in result))
        return found

    def params(given: Any) -> Any:
        return Translator(given, workload.input_feeding, BANNED).to(device)

    return Program(params, _inputs(workload), {"decode": run}, _answer)


def _inputs(workload: Workload) -> Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]:
    return lambda source, lengths: (workload.batches(source, lengths), None)


def _answer(result: Sequence[Any]) -> dict[str, Any]:
    names = "tokens", "lengths", "scores"
    return {name: np.concatenate([batch[k] for batch in result]) for k, name in enumerate(names)}


def peers(platform: str, backend: str = "auto") -> dict[str, Peer]:
    """All by name, "ours" first."""
    found = {"ours": Peer(_ours, "encoder and search in one jitted call, each batch from NumPy to NumPy", "s2s_jax")}
    how = "inference_mode, eager: see experiments/benchmark/torch_decoding.py"
    if platform == "gpu":
        return found | {"torch": Peer(functools.partial(_torch, 1), f"cuDNN, {how}", "torch")}
    for threads in sorted({1, cores()}):
        number = f"{threads} thread{'s' if threads > 1 else ''}"
        setting = f"{number}, {how}; glibc keeps its memory"
        build = functools.partial(_torch, threads)
        found[f"torch, {number}"] = Peer(build, setting, "torch", environment=KEEPS_MEMORY, spins=True)
    return found


# Equal first, then timed -------------------------------------------------------------------------------------------------


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[int, float]:
    """In how many sentences symbols or lengths differ; and the greatest difference of scores, infinite if not a number."""
    other = (ours["tokens"] != theirs["tokens"]).any(1) | (ours["lengths"] != theirs["lengths"])
    apart = np.abs(ours["scores"] - theirs["scores"]) / np.maximum(1, np.abs(ours["scores"]))
    return int(other.sum()), float(apart.max()) if np.isfinite(apart).all() else float("inf")


def measure(
    chosen: Sequence[Workload], workers: Mapping[str, Any], peers: Mapping[str, Peer], plan: Plan
) -> Iterator[dict[str, Any]]:
    """A row for each workload and peer; for one that fails, or differs from ours, a row that says why it is not timed."""
    for workload in chosen:
        built = ask_all(workers, [name for name in workers if not peers[name].spins], "build", workload)
        for name in workers:
            if peers[name].spins:
                built |= ask_all(workers, [name], "build", workload)
        ours = built.pop("ours")
        if isinstance(ours, Failed):
            raise ours
        first_call, answer = ours[0]["decode"], ours[1]["decode"]
        equal: dict[str, tuple[int, float]] = {}
        for name, outcome in built.items():
            if isinstance(outcome, Failed):
                yield _place(workload) | {"peer": name, "why": str(outcome)}
                continue
            equal[name] = sentences, apart = difference(answer, outcome[1]["decode"])
            if apart > TOLERANCE:
                why = f"differs from ours in {sentences} of {workload.sentences} sentences, and in scores by {apart:.1e}"
                yield _place(workload) | {"peer": name, "why": f"{why}: it is not timed"}
                del equal[name]
        ask_all(workers, ["ours", *equal], "prepare", workload)

        def asked(name: str, workload: Workload = workload) -> Callable[[int, bool], Sequence[float]]:
            return lambda calls, warm: workers[name].ask("time", workload, "decode", calls, warm)

        samples = interleaved({name: asked(name) for name in ("ours", *equal)}, plan)
        mine, tokens = statistics.median(samples["ours"]), int(answer["lengths"].sum())
        for name, (sentences, apart) in equal.items():
            theirs, against = statistics.median(samples[name]), ratio(samples[name], samples["ours"])
            theirs_tokens = int(built[name][1]["decode"]["lengths"].sum())
            yield _place(workload) | {
                "peer": name,
                "tokens": tokens,
                "lengths": [int(answer["lengths"].min()), int(answer["lengths"].max())],
                "ours_ms": round(1e3 * mine, 4),
                "peer_ms": round(1e3 * theirs, 4),
                "ours_tokens_per_second": round(tokens / mine, 1),
                "peer_tokens_per_second": round(theirs_tokens / theirs, 1),
                "ratio": round(against.value, 4),
                "ratio_quartiles": [round(against.low, 4), round(against.high, 4)],
                "rounds": len(samples["ours"]),
                "sentences_that_differ": sentences,
                "score_difference": float(f"{apart:.2g}"),
                "ours_first_call_s": round(first_call, 3),
                "peer_first_call_s": round(built[name][0]["decode"], 3),
                "setting": peers[name].setting,
            }
        ask_all(workers, workers, "forget")


def _place(workload: Workload) -> dict[str, Any]:
    return {
        "search": "greedy" if workload.beam_size == 1 else f"beam {workload.beam_size}",
        "batch_size": workload.batch_size,
        "input_feeding": workload.input_feeding,
        "sentences": workload.sentences,
        "vocabulary_size": workload.vocabulary_size,
        "features": workload.features,
    }


def run(config: Any, platform: str, path: Path) -> None:
    """Every workload against PyTorch; prints, and writes what it found as it goes."""
    every = peers(platform)
    print(legend(every))
    present = {name: peer for name, peer in every.items() if not peer.missing}
    if list(present) == ["ours"]:
        raise ValueError("nothing to measure: expected PyTorch, which is not installed")
    chosen = workloads()
    one = chosen[0]
    print(
        f"\nA translator of drawn weights: {one.features} features, an encoder of GRUs in two "
        f"directions, general attention, tied embeddings.\nSources of {one.shortest} to {one.longest} drawn symbols. A unit "
        f"that counts steps makes hypotheses end about when their source would, after {one.max_length} at the latest.\n"
        "A call decodes all sentences, one batch after the other; tokens are the symbols of the best hypotheses, ends included."
    )
    report = Report(path, machine.describe(platform))
    plan = PLANS[config.grid] if config.seconds is None else Plan(config.seconds, 2, 200)
    rows: list[dict[str, Any]] = []
    with Pool(present, platform, "auto", part="decoding") as pool:
        last: Any = None
        for row in measure(chosen, pool.workers, present, plan):
            place = [row[name] for name in _place(one)]
            feeding = f"{'with' if row['input_feeding'] else 'without'} input feeding"
            told = f"\n{row['search']}, batch {row['batch_size']}, {row['vocabulary_size']} symbols, {feeding}"
            if "why" in row:
                print(f"{told}: {row['peer']} is left out: {row['why'].strip().splitlines()[-1]}", flush=True)
                report.keep("refused", [*report.found["refused"], row])
                continue
            if place != last:
                last = place
                least, most = row["lengths"]
                print(
                    f"{told}, {row['sentences']} sentences, {row['tokens']} tokens, {least} to {most} each: ours "
                    f"{row['ours_tokens_per_second']:.0f} tokens a second, {row['ours_ms']:.1f} ms, first call "
                    f"{row['ours_first_call_s']:.2f} s, {row['rounds']} rounds"
                )
            low, high = row["ratio_quartiles"]
            differ = row["sentences_that_differ"]
            print(
                f"  {row['peer']:<18}{row['peer_tokens_per_second']:8.0f} tokens a second {row['peer_ms']:9.1f} ms   "
                f"{row['ratio']:6.2f} times ours ({low:.2f} to {high:.2f})   "
                + (f"{differ} sentences differ" if differ else "all symbols equal")
                + f", scores to {row['score_difference']:.0e}",
                flush=True,
            )
            rows.append(row)
            report.keep("decoding", rows)
    if not rows:
        raise ValueError(f"nothing was measured, for the reasons above; the whole of them is in {path}")
    print(f"\nAll figures are in {path}.")
