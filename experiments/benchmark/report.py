"""The table as it grows, the JSON file beside it, and what it comes to in the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.case import KINDS, PARTS, Case
from experiments.benchmark.program import Peer
from experiments.benchmark.timing import summary
from s2s_jax.files import write_json
from s2s_jax.recurrence.choice import BACKENDS

NEAR = 1.05


class Report:
    """Prints each figure when it is there, and keeps a JSON file of all until then.

    The file: {"machine": {...}, "rows": [...], ...}. `rows` are single layers over whole sequences; stacks and streaming,
    which have a `kind` of their own, are in `further_rows`.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any]):
        self.path = path
        self.found: dict[str, Any] = {"machine": dict(machine), "rows": [], "further_rows": [], "refused": []}
        self.last: Any = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        write_json(self.path, self.found)

    def keep(self, name: str, value: Any) -> None:
        self.found[name] = value
        self.write()

    def row(self, row: dict[str, Any]) -> None:
        self.found["rows" if row["kind"] == "layer" else "further_rows"].append(row)
        self.write()
        place = {name: row[name] for name in ("cell", "shape", "dtype", "part", "kind")}
        if place != self.last:
            self.last = place
            print(
                f"\n{_named(row['cell'], row['shape'], row['kind'])}, {row['part']}, {row['dtype']}: ours "
                f"{_ms(row['ours_ms'])} ms{' a step' if row['kind'] == 'streaming' else ''}, {row['ours_over_floor']:.3g} "
                f"times the floor, first call {row['ours_first_call_s']:.2f} s, {row['rounds']} rounds, {row['backend']}"
                + (f", 99th percentile of calls {row['ours_tail']:.2f} medians" if "ours_tail" in row else "")
            )
        low, high = row["ratio_quartiles"]
        print(
            f"  {row['peer']:<24}{_ms(row['peer_ms']):>9} ms   {row['ratio']:6.2f} times ours ({low:.2f} to {high:.2f})   "
            f"{row['peer_over_floor']:6.3g} floors   first call {row['peer_first_call_s']:5.2f} s   differs by "
            f"{row['difference']:.0e}" + (" (the same program in another process)" if row["peer"] == row["backend"] else ""),
            flush=True,
        )

    def refused(self, case: Case, peer: str, why: str) -> None:
        self.found["refused"].append({"cell": case.cell, "shape": list(case.shape), "peer": peer, "why": why})
        self.write()
        # JAX ends a traceback with a notice about itself; the error stands before it.
        last = why.split("\n--------------------\nFor simplicity")[0].strip().splitlines()[-1]
        print(f"\n{_named(case.cell, case.shape, case.kind)}: {peer} is left out: {last}", flush=True)


def legend(peers: Mapping[str, Peer]) -> str:
    lines = [f"  {name:<24}{'missing' if peer.missing else peer.setting}" for name, peer in peers.items()]
    return "\n".join(["Each with the same weights, in its own layout, at its best setting:", *lines])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Geometric mean and least of the ratios by peer, cell and part; and the three cells beside each other."""
    lines = [f"\n{'':<15}{'':<14}{'peer over ours':<24}{'mean':>6}{'least':>7}   at B, T, D, H"]
    for one in summary(rows):
        at = ", ".join(map(str, one["least_at"]))
        lines.append(
            f"{one['cell'].upper():<15}{one['part']:<14}{one['peer']:<24}{one['mean']:6.2f}{one['least']:7.2f}   {at}"
            f" (of {one['shapes']})"
        )
    lines += [_beside_backends(part, [row for row in rows if row["part"] == part]) for part in PARTS]
    by_place: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        by_place.setdefault((tuple(row["shape"]), row["part"]), {})[row["cell"]] = row["ours_ms"]
    for (shape, part), cells in by_place.items():
        if set(cells) >= {"rnn", "lstm", "gru"}:
            told = ", ".join(f"{cell.upper()} {_ms(cells[cell])} ms" for cell in ("rnn", "lstm", "gru"))
            lines.append(f"Ours, {part}, at {', '.join(map(str, shape))}: {told}")
    return "\n".join(line for line in lines if line is not None)


def _beside_backends(part: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """How near ours is to the best of the other backends, where any was measured; not beside its own program."""
    least: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        place = row["cell"], tuple(row["shape"])
        if row["peer"] in BACKENDS and row["peer"] != row["backend"]:
            least[place] = min(row, least.get(place, row), key=lambda one: one["ratio"])
    if not least:
        return None
    over = {place: 1 / row["ratio"] for place, row in least.items()}
    cell, shape = worst = max(over, key=lambda place: over[place])
    near, row = sum(value <= NEAR for value in over.values()), least[worst]
    return (
        f"Ours, {part}: within {NEAR - 1:.0%} of the fastest other backend at {near} of {len(over)} shapes; at worst "
        f"{row['backend']} took {over[worst]:.2f} times as long as {row['peer']}, {cell.upper()} {', '.join(map(str, shape))}"
    )


def peak_line(case: Case, part: str, peaks: Mapping[str, int | None]) -> str:
    told = ", ".join(f"{name} {peak / 2**20:.1f}" for name, peak in peaks.items() if peak is not None)
    return f"{_named(case.cell, case.shape, case.kind)}, {part}: {told or 'cannot be told here'}"


def _named(cell: str, shape: Sequence[int], kind: str) -> str:
    return f"{cell.upper()} B {shape[0]}, T {shape[1]}, D {shape[2]}, H {shape[3]}{KINDS[kind].words}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
