"""Bad items of a job: skipped, counted, listed, and too many of them stop it.

    skipped = Skipped()
    for item in items:
        try: ...; skipped.num_good += 1
        except UserError as e: skipped.add(item.id, str(e))
    skipped.check(max_bad_share=0.01, report=folder / "log/skipped.jsonl")

A job's tasks each have their own, and the job sums them (`weft.data.job`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import orjson

from weft.artifacts import write_bytes
from weft.errors import UserError

EARLY_ITEMS = 1000  # a share of fewer items says little while a job runs


@dataclass
class Skipped:
    """How many items were good, and where the bad ones are and why they are bad. Sums with `+=`.

    `num_unlisted` counts those that one entry of `bad` stands for, beside the first.
    """

    num_good: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    num_unlisted: int = 0

    def add(self, where: str, why: str, num_items: int = 1) -> None:
        self.bad.append((where, why))
        self.num_unlisted += num_items - 1

    def __iadd__(self, other: Skipped) -> Skipped:
        self.num_good += other.num_good
        self.bad += other.bad
        self.num_unlisted += other.num_unlisted
        return self

    @property
    def num_bad(self) -> int:
        return len(self.bad) + self.num_unlisted

    @property
    def num_items(self) -> int:
        return self.num_good + self.num_bad

    def write(self, report: Path) -> None:
        """One JSON object a bad item, or a run of them; no file where there is none."""
        if self.bad:
            rows = (orjson.dumps({"where": where, "why": why}) + b"\n" for where, why in self.bad)
            write_bytes(report, b"".join(rows))

    def check(self, max_bad_share: float, report: Path | None = None, early: bool = False) -> None:
        """Raise UserError when more than `max_bad_share` of the items are bad, having written the list to `report`.

        `early` is for a job under way: it waits until the share means something.
        """
        if self.num_bad <= max_bad_share * self.num_items or (early and self.num_items < EARLY_ITEMS):
            return
        listed, remedy = "", "mend them"
        if report is not None:
            self.write(report)
            listed = f", and all are listed in {report}"
            remedy = f"raise max_bad_share, or mend them and delete {report.parent.parent}"
        where, why = self.bad[0]
        raise UserError(
            f"{self.num_bad} of {self.num_items} items are bad, and max_bad_share is {max_bad_share}: "
            f"the first is {where} ({why}){listed}; {remedy}"
        )
