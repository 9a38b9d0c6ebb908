"""What was found in a folder of data: counts, and what is no error but worth knowing."""

import hashlib
from typing import Any


class Report:
    """What was found in a folder: the examples of each split, and what is no error but worth knowing.

    Attributes:
      examples: how many each split has.
      columns: of a csv series, the names of the numbers in `values`.
      findings: what was found, to how often and the first five places. What was not found is not in it.
    """

    def __init__(self, examples: dict | None = None, columns: dict | None = None, findings: dict | None = None):
        self.examples: dict[str, int] = examples or {}
        self.columns: dict[str, list[str]] = columns or {}
        self.findings: dict[str, dict[str, Any]] = findings or {}

    def found(self, what: str, where: str) -> None:
        finding = self.findings.setdefault(what, {"count": 0, "first": []})
        finding["count"] += 1
        if len(finding["first"]) < 5:
            finding["first"].append(where)

    def __str__(self) -> str:
        lines = [", ".join(f"{split} {count}" for split, count in self.examples.items())]
        lines += [f"{what}: {found['count']}, first {'; '.join(found['first'])}" for what, found in self.findings.items()]
        return "\n".join(lines)


class Duplicates:
    """Finds what stands in two splits, and counts it: real sets hold some, multi30k's and imdb's among them."""

    def __init__(self, report: Report, what: str):
        self._report, self._what = report, what
        self._first: dict[bytes, tuple[str, str]] = {}

    def add(self, content: bytes, split: str, where: str) -> None:
        first = self._first.setdefault(hashlib.blake2b(content, digest_size=16).digest(), (split, where))
        if first[0] != split:
            self._report.found(self._what, f"{first[1]} and {where}")
