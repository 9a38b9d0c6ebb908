"""Where the time of a training goes."""

import time


class Clock:
    """Where the time goes: each lap adds the seconds since the last one to its part."""

    def __init__(self):
        self._parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def add(self, times: dict[str, float]) -> None:
        """Those of earlier sittings."""
        for part, seconds in times.items():
            self._parts[part] = self._parts.get(part, 0.0) + seconds

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def times(self) -> dict[str, float]:
        return dict(self._parts)

    def seconds(self) -> float:
        return sum(self._parts.values()) + time.perf_counter() - self._last

    def told(self) -> str:
        whole = sum(self._parts.values())
        parts = sorted(self._parts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in parts) + f" of {whole:.1f} s"
