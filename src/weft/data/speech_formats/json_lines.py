"""Lines of JSON in a file that may be compressed, each a row, a bad entry, or the lost end of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.data.lines import TOO_LONG, damage_of, lines_of, unpacked
from weft.data.speech_formats.entries import Lost, bad
from weft.text.inputs import BOM, parse_json

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each line that is not blank; a bad Entry or Lost part in place of a value."""
    with path.open("rb") as packed, unpacked(packed, path.name) as f:
        for number, line in enumerate(lines_of(f), 1):
            where = f"{path} line {number}"
            if line.content is None:
                yield where, bad(where, TOO_LONG)
                continue
            if not (content := line.content.removeprefix(BOM).strip()):
                continue
            if not line.content.endswith(b"\n") and damage_of(f):
                break  # the damage is in this line
            try:
                value = parse_json(content)
            except ValueError as e:
                value = bad(where, str(e))
            yield where, value
        if damage := damage_of(f):
            lost = 0 if damage.position is None else path.stat().st_size - damage.position
            yield str(path), Lost(path, damage.reason, lost)
