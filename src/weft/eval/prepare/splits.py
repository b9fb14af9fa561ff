"""Splits of a set by the names of its tables.

splits, paths = tables_by_split(request, (".jsonl",))       # ["val"], {"train": [...], "val": [Path("val.jsonl")]}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.data.speech_formats.files import files_below
from weft.errors import UserError
from weft.eval.prepare.items import Request, chosen
from weft.text.inputs import id_of

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(?:-[0-9a-f]+)?")


def tables_by_split(request: Request, suffixes: Sequence[str]) -> tuple[list[str], dict[str, list[Path]]] | None:
    """Return the wanted splits and the tables of all splits, by the names of the files; None without any table.

    A split is `test` in test.jsonl, test-00000-of-00002.parquet, test/0000.parquet and NQ-open.test.jsonl. Raises
    UserError for an unknown split, and for links that leave the directory.
    """
    source, is_table = request.source, _has(suffixes)
    found: dict[str, list[Path]] = {}
    for path, problem in [(source, None)] if source.is_file() else files_below(source, is_table):
        if problem is not None:
            raise UserError(f"{path}: {problem}")
        if is_table(path):
            found.setdefault(id_of(_split_of(path, suffixes)) or "", []).append(path)
    return (chosen("split", found, request.split, source), found) if found else None


def _has(suffixes: Sequence[str]) -> Callable[[Path], bool]:
    return lambda path: path.name.lower().endswith(tuple(suffixes)) and not path.name.startswith(".")


def _split_of(path: Path, suffixes: Sequence[str]) -> str:
    stem = next(path.name[: -len(suffix)] for suffix in suffixes if path.name.lower().endswith(suffix))
    if stem.isdigit():
        return path.absolute().parent.name
    shard = _SHARD.fullmatch(stem)
    return shard["split"] if shard else stem.removeprefix("NQ-open.")
