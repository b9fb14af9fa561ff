"""What the readers of published evaluation sets are asked for, and what they return: items with their recordings.

    def read(request: Request) -> Found:            # a reader, registered in weft.eval.prepare.registry
        ...
        return Found([Item("a.csv row 1", "1", {"question": ..., "answers": [...]}, {"audio": Sound("1.wav")})], [path])

The keys of an item are those of `weft.eval.questions` or `weft.eval.cloze`. Recordings are not opened by readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.eval.prepare.sounds import Sound

ALL = "all"


@dataclass(frozen=True)
class Item:
    """An item: where it was found, its id, its texts and other keys of items.jsonl, and recordings by key."""

    where: str
    id: str
    row: Mapping[str, Any]
    sounds: Mapping[str, Sound]


@dataclass(frozen=True)
class Request:
    """What to read: a set by its name, the directory or file that was published, and parts of it.

    Items that cannot be read are added to `skipped`.
    """

    name: str
    source: Path
    subset: str | None = None
    split: str | None = None
    skipped: Skipped = field(default_factory=Skipped)


@dataclass(frozen=True)
class Found:
    """Items, the files that list them, and the subset and split that they are of."""

    items: Sequence[Item]
    files: Sequence[Path] = ()
    subset: str | None = None
    split: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def chosen(flag: str, found: Collection[str], wanted: str | None, source: Path) -> list[str]:
    """Return the wanted ones of some subsets or splits: one, the only one, or all ("all").

    Raises UserError, which lists them, if none was chosen among several, and for an unknown one.
    """
    names = sorted(found)
    listed = f"{', '.join(names)}, or {ALL}"
    if wanted is None and len(names) > 1:
        raise UserError(f"{source} has several {flag}s: give --{flag} with one of {listed}")
    if wanted is not None and wanted not in (*names, ALL):
        raise UserError(f"{source} has no {flag} {wanted!r}: give one of {listed}")
    return names if wanted in (None, ALL) else [wanted]  # type: ignore[list-item]


def reject(request: Request, *flags: str) -> None:
    """Raise UserError if a flag was given that the set does not have."""
    for flag in flags:
        if (value := getattr(request, flag)) is not None:
            raise UserError(f"{request.name} has no {flag} {value!r}, as it has no {flag}s: leave out --{flag}")


def usable(items: Iterable[Item], skipped: Skipped) -> list[Item]:
    """Return items without those that repeat an id, or that lack a part of a pair; these are added to `skipped`."""
    seen: set[str] = set()
    found = []
    for item in items:
        if item.id in seen:
            skipped.add(item.where, f"its id {item.id!r} occurs before: make ids unique")
        elif problem := lacking(item.row, item.sounds):
            skipped.add(item.where, problem)
        else:
            found.append(item)
        seen.add(item.id)
    return found


def lacking(row: Mapping[str, Any], sounds: Collection[str]) -> str | None:
    """Return what an item lacks to be used, or None: an ending of a pair with neither a text nor a recording."""
    if "question" in row:
        return None
    missing = (part for part in ("right", "wrong") if part not in row and f"{part}_audio" not in sounds)
    return next((f"it has no {part} ending" for part in missing), None)
