"""Lines of files of written dialogues, and what cannot be read of the files.

    for line in lines_in(corpus): line.problem or line.content

Bad lines and damaged files are entries of the sequence, so each belongs to one task, which counts it as skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from weft.data.compression import is_damage
from weft.data.corpus import TextCorpus
from weft.data.file_range import TOO_LONG, FileRange
from weft.data.formats import suffix_of
from weft.data.lines import Line, damage_of, lines_of, unpacked
from weft.errors import UserError, reason_of
from weft.text.inputs import BOM, parse_json

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True, slots=True)
class DialogueLine:
    """A line that is not blank or, with a `problem`, a line or the rest of a file that cannot be read, and its size."""

    where: str
    default_id: str = ""
    content: bytes = b""
    problem: str | None = None
    lost_bytes: int = 0


def lines_in(corpus: TextCorpus) -> Iterator[DialogueLine]:
    """Yield the lines of all files in order; what cannot be read of a file follows its lines.

    Raises UserError for files of other formats, and if a disk or a store fails.
    """
    for file in corpus.files:
        if suffix_of(file.name) not in _SUFFIXES:
            raise UserError(f"{file.path} is not a file of dialogues: give JSON lines ({', '.join(_SUFFIXES)})")
        try:
            yield from _lines(file)
        except (OSError, pa.ArrowException) as e:
            if not is_damage(e):
                raise UserError(f"{file.path} cannot be read ({reason_of(e)}): check the file and run again") from e
            problem = f"cannot be read: {reason_of(e)}"
            yield DialogueLine(file.path, problem=problem, lost_bytes=file.size_bytes)


def _lines(file: FileRange) -> Iterator[DialogueLine]:
    too_long: list[tuple[int, Line]] = []
    num_bytes = 0  # decompressed
    with file.open() as packed, unpacked(packed, file.name) as f:
        for number, line in enumerate(lines_of(f), 1):
            num_bytes += line.size_bytes
            if line.content is None:
                too_long.append((number, line))
            elif content := line.content.removeprefix(BOM).strip():
                is_last = not line.content.endswith(b"\n")
                if not (is_last and damage_of(f) and _is_cut(content)):
                    yield DialogueLine(f"{file.path} line {number}", f"{file.name}:{number}", content)
        damage = damage_of(f)
    for number, line in too_long:
        lost_bytes = line.size_bytes * file.size_bytes // num_bytes
        yield DialogueLine(f"{file.path} line {number}", problem=TOO_LONG, lost_bytes=lost_bytes)
    if damage:
        lost_bytes = 0 if damage.position is None else file.size_bytes - damage.position
        problem = "is damaged" if damage.position is None else "cannot be read to its end"
        yield DialogueLine(file.path, problem=f"{problem}: {damage.reason}", lost_bytes=lost_bytes)


def _is_cut(content: bytes) -> bool:
    """Whether the last line before damaged data is not complete."""
    try:
        parse_json(content)
    except ValueError:
        return True
    return False
