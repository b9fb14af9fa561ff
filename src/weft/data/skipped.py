"""Bad items of a job, which are skipped, counted and listed; too many of them are an error.

    skipped = Skipped()
    for item in items:
        with skipped.on_error(item.id):                     # any exception skips the item
            ...
            skipped.num_good += 1
    for item, result in map_batch(model, items, skipped, lambda item: item.id): ...
    skipped.check(max_bad_fraction=0.01, report=folder / "log/skipped.jsonl")

Each task of a job has its own, and `weft.data.job` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import orjson

from weft.errors import UserError, printable, reason_of, without_secrets
from weft.files import write_bytes

EARLY_ITEMS = 1000
MAX_LISTED = 1000
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Skipped:
    """The number of good items, and the place and reason of each bad one.

    An entry of `bad` can stand for several items. `num_unlisted` counts all but the first of them, and those of a task
    after its first MAX_LISTED entries. Readers of files also count bytes of the files: all of them, and those with bad
    items, so that a lost file counts by its size.
    """

    num_good: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    num_unlisted: int = 0
    total_bytes: int = 0
    bad_bytes: int = 0

    def add(self, where: str, reason: str, num_items: int = 1, num_bytes: int = 0) -> None:
        """Add a bad item, or a run of them, and its size in a file. No item: only the size."""
        self.bad_bytes += num_bytes
        if num_items == 0 or len(self.bad) >= MAX_LISTED:
            self.num_unlisted += num_items
            return
        self.bad.append((printable(without_secrets(where)), printable(without_secrets(reason))))
        self.num_unlisted += num_items - 1

    @contextmanager
    def on_error(self, where: str) -> Iterator[None]:
        """Add the item of this block if the block raises any exception, also if memory runs out."""
        try:
            yield
        except Exception as e:  # noqa: BLE001, no kind of bad item ends a job
            self.add(where, reason_of(e))

    def __iadd__(self, other: Skipped) -> Skipped:
        self.num_good += other.num_good
        self.bad += other.bad
        self.num_unlisted += other.num_unlisted
        self.total_bytes += other.total_bytes
        self.bad_bytes += other.bad_bytes
        return self

    @property
    def num_bad(self) -> int:
        return len(self.bad) + self.num_unlisted

    @property
    def num_items(self) -> int:
        return self.num_good + self.num_bad

    def write(self, report: Path) -> None:
        """Write one JSON object per entry; no file if there is none."""
        if self.bad:
            rows = (orjson.dumps({"where": where, "why": reason}) + b"\n" for where, reason in self.bad)
            write_bytes(report, b"".join(rows))

    def check(self, max_bad_fraction: float, report: Path | None = None, early: bool = False) -> None:
        """Raise UserError if more than `max_bad_fraction` of the items or of the bytes are bad.

        The list is written to `report` first. While a job is running (`early`), fewer than EARLY_ITEMS items raise
        nothing.
        """
        are_items = self.num_bad > max_bad_fraction * self.num_items
        if not (are_items or self.bad_bytes > max_bad_fraction * self.total_bytes):
            return
        if early and (not are_items or self.num_items < EARLY_ITEMS):
            return  # a damaged file is counted as a whole by its first task
        listed, remedy = "", "fix them"
        if report is not None:
            self.write(report)
            listed = f"; they are listed in {report}"
            remedy = f"raise max_bad_fraction, or fix them and delete {report.parent.parent}"
        where, reason = self.bad[0]
        what = f"{self.num_bad} of {self.num_items} items are"
        if not are_items:
            what = f"{self.bad_bytes} of {self.total_bytes} bytes ({self.num_bad} of {self.num_items} items) are"
        raise UserError(
            f"{what} bad, more than max_bad_fraction {max_bad_fraction}: "
            f"the first is {where} ({reason}){listed}. To continue, {remedy}"
        )


def map_batch(
    function: Callable[[list[_Item]], Sequence[_Result]],
    items: Sequence[_Item],
    skipped: Skipped,
    name_of: Callable[[_Item], str],
) -> list[tuple[_Item, _Result]]:
    """Return items with their results of one call of `function`.

    If it raises an exception, the halves of the batch are tried, and so on. Items that fail alone are skipped.
    """
    if len(items) > 1:
        try:
            return list(zip(items, function(list(items)), strict=True))
        except Exception:  # noqa: BLE001, handled below, where no traceback keeps the memory of the batch
            pass
        half = len(items) // 2
        parts = (items[:half], items[half:])
        return [pair for part in parts for pair in map_batch(function, part, skipped, name_of)]
    found: list[tuple[_Item, _Result]] = []
    for item in items:
        with skipped.on_error(name_of(item)):
            found = list(zip(items, function([item]), strict=True))
    return found
