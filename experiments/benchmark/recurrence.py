"""One recurrent layer against its peers: equal first, then timed in turns."""

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark.case import Case
from experiments.benchmark.pool import Failed, Pool, ask_all
from experiments.benchmark.program import Peer
from experiments.benchmark.timing import Plan, interleaved, ratio, tail
from s2s_jax.recurrence.choice import BACKENDS

# Greatest difference, relative to the greatest number of an array, under which two implementations are taken to compute the
# same; between our own backends, in float32 on a CPU, a tenth of it. On a GPU float32 products are TF32 by default, in ours as
# in the peers.
TOLERANCE = {
    ("cpu", "float32"): 1e-4,
    ("gpu", "float32"): 2e-2,
    ("cpu", "bfloat16"): 6e-2,
    ("gpu", "bfloat16"): 6e-2,
    ("gpu", "float16"): 2e-2,
}
SUMMED = 3.0  # in bfloat16 gradients of weights may be so many times as far apart: some peers add those of all steps in it
TOGETHER = 30_000_000  # numbers of all the outputs that are compiled and compared before any of them is timed


class Refused(NamedTuple):
    """A peer that is not timed at a case, and why: it failed, or differs from ours."""

    case: Case
    peer: str
    why: str
    failed: bool = True


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], params: float = 1.0) -> float:
    """The greatest |ours - theirs|, each array's relative to the greatest number in ours; infinite where one is not a number.

    Both as {part: answer}, see `Program`. None in place of an array: the peer has no such parameter. What gradients of
    parameters differ by is divided by `params`.
    """
    return max(
        _apart(value, theirs[part][name]) / (params if name == "params" else 1.0)
        for part, answer in ours.items()
        for name, value in answer.items()
    )


def _apart(ours: Any, theirs: Any) -> float:
    if ours is None or theirs is None:
        return 0.0
    if not isinstance(ours, np.ndarray):
        return max(_apart(a, b) for a, b in zip(ours, theirs, strict=True))
    if ours.shape != np.shape(theirs):
        return float("inf")
    apart = np.max(np.abs(ours - theirs), initial=0.0) / max(float(np.max(np.abs(ours), initial=0.0)), 1e-30)
    return float(apart) if np.isfinite(apart) else float("inf")


def measure(
    cases: Sequence[Case],
    workers: Mapping[str, Any],
    peers: Mapping[str, Peer],
    platform: str,
    plan: Plan,
    floor: Callable[[Case, str], float],
) -> Iterator[dict[str, Any] | Refused]:
    """A row for each case, part and peer, as they are measured; `Refused` for a peer that failed or differs from ours.

    `floor` gives the seconds of the arithmetic at the machine's rate.
    """
    for chunk in _chunks(cases):
        built = _build(chunk, workers, peers, platform)
        for case in chunk:
            names = {}
            for name, outcome in _compared(case, built.pop(case), workers, peers, platform).items():
                if isinstance(outcome, Refused):
                    yield outcome
                else:
                    names[name] = outcome
            if "ours" not in names:
                continue
            ask_all(workers, names, "prepare", case)
            for part in case.parts:
                yield from _timed(case, part, names, workers, peers, plan, floor(case, part))
        ask_all(workers, workers, "forget")


def _chunks(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases that are compiled at one go, over all peers and so over all cores."""
    chunk: list[Case] = []
    for case in cases:
        sizes = [c.shape[0] * c.shape[1] * max(c.shape[2:]) for c in [*chunk, case]]
        if chunk and sum(sizes) > TOGETHER:
            yield chunk
            chunk = []
        chunk.append(case)
    if chunk:
        yield chunk


def _build(
    chunk: Sequence[Case], workers: Mapping[str, Any], peers: Mapping[str, Peer], platform: str
) -> dict[Case, dict[str, Any]]:
    """By case and peer the seconds of the first calls, and the answers; or the failure."""

    def one(name: str) -> dict[Case, Any]:
        outcomes: dict[Case, Any] = {}
        for case in chunk:
            if peers[name].takes(case, platform):
                try:
                    outcomes[case] = workers[name].ask("build", case)
                except Failed as failed:
                    outcomes[case] = failed
        return outcomes

    together = [name for name in workers if not peers[name].spins]
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as threads:
        by_name = dict(zip(together, threads.map(one, together), strict=True))
    by_name |= {name: one(name) for name in workers if peers[name].spins}
    return {case: {name: by_name[name][case] for name in workers if case in by_name[name]} for case in chunk}


def _compared(
    case: Case, outcomes: dict[str, Any], workers: Mapping[str, Any], peers: Mapping[str, Peer], platform: str
) -> dict[str, Any]:
    """For each peer that may be timed its difference from ours and the seconds of its first calls; for others why not."""
    ours = outcomes.pop("ours")
    if isinstance(ours, Failed):
        return {"ours": Refused(case, "ours", str(ours))}
    found: dict[str, Any] = {"ours": (0.0, ours[0])}
    without = None
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            found[name] = Refused(case, name, str(outcome))
            continue
        seconds, answer = outcome
        reference = ours[1]
        if case.cell == "gru" and not peers[name].inner_bias:
            without = without or workers["ours"].ask("answer", case, False)
            reference = without
        apart = difference(reference, answer, SUMMED if case.dtype == "bfloat16" else 1.0)
        allowed = TOLERANCE[platform, case.dtype] / (
            10 if name in BACKENDS and (platform, case.dtype) == ("cpu", "float32") else 1
        )
        if apart > allowed:
            why = f"differs from ours by {apart:.1e}, more than {allowed:.0e}: it is not timed"
            found[name] = Refused(case, name, why, failed=False)
        else:
            found[name] = (apart, seconds)
    return found


def _timed(
    case: Case,
    part: str,
    names: Mapping[str, tuple[float, dict[str, float]]],
    workers: Mapping[str, Any],
    peers: Mapping[str, Peer],
    plan: Plan,
    floor: float,
) -> Iterator[dict[str, Any]]:
    def asked(name: str) -> Callable[[int, bool], Sequence[float]]:
        return lambda calls, warm: workers[name].ask("time", case, part, calls, warm)

    backend = workers["ours"].ask("backend", case)
    samples = interleaved({name: asked(name) for name in names}, plan)
    steady = {}
    if plan.in_a_row and case.kind != "streaming":
        steady["ours_tail"] = round(tail(asked("ours")(plan.in_a_row, True)), 3)
    batch, time, features, hidden = case.shape
    steps = time if case.kind == "streaming" else 1  # one call is one step there, and so is what is told
    shape = [batch, 1, features, hidden] if case.kind == "streaming" else list(case.shape)
    ours = [s / steps for s in samples["ours"]]
    for name in names:
        if name == "ours":
            continue
        theirs = [s / steps for s in samples[name]]
        compared = ratio(theirs, ours)
        mine, other = np.median(ours), np.median(theirs)
        yield {
            "cell": case.cell,
            "shape": shape,
            "dtype": case.dtype,
            "part": part,
            "peer": name,
            "ours_ms": round(1e3 * mine, 5),
            "peer_ms": round(1e3 * other, 5),
            "ratio": round(compared.value, 4),
            "ratio_quartiles": [round(compared.low, 4), round(compared.high, 4)],
            "rounds": len(ours),
            "difference": float(f"{names[name][0]:.2g}"),
            "floor_ms": float(f"{1e3 * floor / steps:.4g}"),
            "ours_over_floor": float(f"{mine * steps / floor:.3g}"),
            "peer_over_floor": float(f"{other * steps / floor:.3g}"),
            "ours_first_call_s": round(names["ours"][1][part], 3),
            "peer_first_call_s": round(names[name][1][part], 3),
            "kind": case.kind,
            "backend": backend,
            "setting": peers[name].setting,
        } | steady


def peaks(case: Case, part: str, peers: Mapping[str, Peer], platform: str, backend: str) -> dict[str, int | None]:
    """Peak memory of each peer that has the case, each in a new process; None where it failed or cannot be told."""
    taking = {name: peer for name, peer in peers.items() if peer.takes(case, platform)}
    with Pool(taking, platform, backend) as pool:
        told = ask_all(pool.workers, taking, "peak", case, part)
    return {name: None if isinstance(peak, Failed) else peak for name, peak in told.items()}
