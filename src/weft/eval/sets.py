"""Evaluation sets as artifacts of `weft eval prepare`: their items, and what protocols say of them.

    path = items_in(Path("sets/storycloze"), "pairs")       # its items.jsonl, or a file as it is given
    protocol |= described(Path("sets/storycloze"))          # {"set": "storycloze", "split": None, "voices": [...]}

The directory has `items.jsonl`, in the format of `weft.eval.questions` or `weft.eval.cloze`, and `audio/`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from weft.artifacts import Manifest, read, read_manifest
from weft.errors import UserError

KIND = "eval_set"
ITEMS = "items.jsonl"
Items = Literal["questions", "pairs"]
_METRICS = {"questions": "qa", "pairs": "likelihood"}


def items_in(path: Path, items: Items) -> Path:
    """Return the file of the items of a set, or `path` if it is not a directory.

    Raises UserError for other directories, for a set that was changed, and for a set of other items.
    """
    if not path.is_dir():
        return path
    found = read(path, KIND).settings.get("items")
    if found != items:
        raise UserError(
            f"{path} is a set of {found}: give a set of {items}, or use weft eval {_METRICS.get(str(found))}"
        )
    return path / ITEMS


def described(path: Path) -> dict[str, Any]:
    """Return name, subset, split and voices of a set for protocols; {} for another path."""
    if (manifest := manifest_of(path)) is None:
        return {}
    settings = manifest.settings
    subset = {"subset": settings["subset"]} if settings.get("subset") else {}
    voices = manifest.counts.get("voices", [])
    return {"set": settings.get("name"), **subset, "split": settings.get("split"), "voices": voices}


def manifest_of(path: Path) -> Manifest | None:
    """Return the manifest of a set; None for another path, which may have a manifest.json of other software."""
    with suppress(UserError):
        return read_manifest(path, KIND)
    return None
