"""Questions with answers in the rows of tables: JSON lines, CSV, and Parquet.

    found = read(Request("webquestions", Path("webquestions"), split="val"), Columns(), JSON_LINES)

Columns that are not there are refused with a list of those that are. Ids are those of the rows, or else their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from weft.data.speech_formats.entries import audio_path
from weft.errors import UserError
from weft.eval.prepare.answer_lists import answers_of
from weft.eval.prepare.items import ALL, Found, Item, Request, reject
from weft.eval.prepare.rows import Row, columns_of, rows_of
from weft.eval.prepare.sounds import Sound
from weft.eval.prepare.splits import tables_by_split
from weft.text.inputs import decode, id_of, valid_text


@dataclass(frozen=True)
class Columns:
    """The columns of a set: the first of `question` that a table has, and all of `answers`.

    `separators` divide the answers of a column that are one string. `kept` are other columns of the items, None for
    all. `folder` is a directory beside the table, with the sounds whose names are in `audio`.
    """

    question: Sequence[str] = ("question",)
    answers: Sequence[str] = ("answers", "answer")
    separators: Mapping[str, str] = field(default_factory=dict)
    audio: str = "audio"
    folder: str = ""
    kept: Sequence[str] | None = None
    needs_answers: bool = True


def read(request: Request, columns: Columns, suffixes: Sequence[str], has_splits: bool = True) -> Found:
    """Return the questions of the tables of a split. Raises UserError for other columns, and for an unknown split."""
    reject(request, "subset", *([] if has_splits else ["split"]))
    tables = tables_by_split(request, suffixes)
    if tables is None:
        raise UserError(f"{request.source} has no {' '.join(suffixes)} file: give the directory of {request.name}")
    found = of_splits(*tables, columns, request)
    return found if has_splits else replace(found, split=None)


def of_splits(splits: Sequence[str], paths: Mapping[str, Sequence[Path]], columns: Columns, request: Request) -> Found:
    """Return the questions of splits. If there are several, each item has its own, and so have numbers as ids."""
    if len(splits) == 1:
        items = list(of_tables(paths[splits[0]], "", columns, request))
    else:
        by_split = {name: of_tables(paths[name], f"{name}-", columns, request) for name in splits}
        items = [replace(i, row={**i.row, "split": name}) for name, found in by_split.items() for i in found]
    split = splits[0] if len(splits) == 1 else ALL
    return Found(items, [path for name in splits for path in paths[name]], split=split)


def of_tables(paths: Iterable[Path], prefix: str, columns: Columns, request: Request) -> Iterator[Item]:
    """Yield the questions of tables. Ids that are numbers of rows begin with a prefix."""
    numbers = count(1)
    for path in paths:
        used = _used(columns, path)
        names = None if columns.kept is None else {*used.all, *columns.kept}
        for row in rows_of(path, request.skipped, names):
            number = f"{prefix}{next(numbers)}"
            try:
                yield _item(row, used, columns, path, number)
            except ValueError as e:
                request.skipped.add(row.where, str(e))


@dataclass(frozen=True)
class _Used:
    """The columns of a table that become the question, the answers and the recording of an item."""

    question: str
    answers: Sequence[str]
    audio: str

    @property
    def all(self) -> set[str]:
        """All columns that are not kept as they are."""
        return {"id", "voice", self.question, *self.answers, self.audio}


def _used(columns: Columns, path: Path) -> _Used:
    """Choose among the columns of a table. Raises UserError, which lists them, if one is missing."""
    names = columns_of(path)
    if not names:
        raise UserError(f"{path} has no rows: copy it again")
    question = next((name for name in columns.question if name in names), None)
    answers = [name for name in columns.answers if name in names]
    if question is None or (columns.needs_answers and not answers):
        needed = " or ".join(columns.question if question is None else columns.answers)
        raise UserError(f"{path} has no column {needed}, it has {', '.join(names)}: rename the right one")
    return _Used(question, answers, columns.audio)


def _item(row: Row, used: _Used, columns: Columns, path: Path, number: str) -> Item:
    """Return the item of a row. Raises ValueError without a question or answers, and for text that is not UTF-8."""
    values = {name: decode(value) if isinstance(value, bytes) else value for name, value in row.values.items()}
    text = values.get(used.question)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"its `{used.question}` is empty")
    found: dict[str, Any] = {"question": valid_text(text.strip())}
    if used.answers:
        given = [a for name in used.answers for a in answers_of(values.get(name), columns.separators.get(name))]
        if not given:
            raise ValueError(f"its `{used.answers[0]}` is empty")
        found["answers"] = list(dict.fromkeys(given))
    if voice := values.get("voice"):
        found["voice"] = str(voice)
    kept = values.keys() - used.all if columns.kept is None else columns.kept
    more = {name: values[name] for name in values if name in kept}
    sounds = {"audio": row.sounds[used.audio]} if used.audio in row.sounds else {}
    if isinstance(name := values.get(used.audio), str) and name:
        file = Path(name).name if columns.folder else name
        sounds = {"audio": Sound(audio_path(path.parent / columns.folder, file))}
    return Item(row.where, id_of(values.get("id")) or number, found | more, sounds)
