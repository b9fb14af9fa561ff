"""A case of bench/faults.py with a bad input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fault_runs import MAX_SEC, Check


@dataclass(frozen=True)
class Case:
    """`arguments` writes the input into an empty directory, in which the command then runs, and returns its arguments.

    The artifact of the command, if any, is `out` in the same directory.
    """

    group: str
    name: str
    arguments: Callable[[Path], list[str | bytes]]
    check: Check
    stdin: bytes = b""
    max_sec: float = MAX_SEC
    environment: Mapping[str, str] = field(default_factory=dict)
    has_reader: bool = True
    """Whether anything reads its standard output, as in `weft info DIR | head -n 1`."""
