"""Utterances that could not be read during training, on any rank and before a resume.

num = check_unreadable({"id": "why"}, num_good, folder / "log/unreadable.jsonl", max_bad_fraction)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from weft.data.skipped import Skipped
from weft.training import distributed


def check_unreadable(unreadable: Mapping[str, str], num_good: int, report: Path, max_bad_fraction: float) -> int:
    """List in `report` the unreadable utterances of all ranks, by id with reasons, and return their number.

    `num_good` counts those that could be read at the start. Raises UserError if too many are unreadable.
    """
    found: dict[str, str] = {}
    if report.exists():
        found = {row["where"]: row["why"] for row in map(orjson.loads, report.read_bytes().splitlines())}
    for of_rank in distributed.all_gather_object(dict(unreadable)):
        found |= of_rank
    found = distributed.broadcast_object(found)
    skipped = Skipped(num_good - len(found), sorted(found.items()))
    skipped.write(report)
    skipped.check(max_bad_fraction, report)
    return len(found)
