"""Rows of tables: CSV, JSON lines (also .gz and .zst) and Parquet, whose columns of audio become recordings.

    for row in rows_of(Path("test-00000-of-00001.parquet"), skipped): row.values["prompt"], row.sounds["audio"]

A table that cannot be read to its end is an error, because a part of an evaluation set has other results. A bad row is
skipped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from weft.data.lines import MAX_DOCUMENT_BYTES, TOO_LONG
from weft.data.skipped import Skipped
from weft.data.speech_formats import json_lines
from weft.data.speech_formats.entries import Entry, Lost
from weft.errors import UserError, reason_of
from weft.eval.prepare.parquet import parquet_rows, schema_of
from weft.eval.prepare.sounds import Sound
from weft.text.inputs import decode

JSON_LINES, CSV, PARQUET = json_lines.SUFFIXES, (".csv",), (".parquet",)


class Row(NamedTuple):
    """A row: its place, its values by column, with strings that may be bytes, and its recordings by column."""

    where: str
    values: Mapping[str, Any]
    sounds: Mapping[str, Sound]


def columns_of(path: Path) -> list[str]:
    """Return the columns of a table, of JSON lines those of the first row. Raises UserError if it cannot be read."""
    if path.name.lower().endswith(PARQUET):
        return list(schema_of(path).names)
    if path.name.lower().endswith(CSV):
        return header_of(_text(path))
    return list(next((row.values for row in rows_of(path, Skipped())), {}))


def rows_of(path: Path, skipped: Skipped, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table; of Parquet only some columns (None: all). Raises UserError if it cannot be read."""
    if path.name.lower().endswith(PARQUET):
        for number, (values, sounds) in enumerate(parquet_rows(path, columns)):
            yield Row(f"{path} row {number}", values, sounds)
    elif path.name.lower().endswith(CSV):
        yield from csv_rows(_text(path), str(path), skipped)
    else:
        for where, value in json_lines.rows_of(path):
            if isinstance(value, Lost):
                raise UserError(f"{path} cannot be read to its end ({value.reason}): copy it again")
            if isinstance(value, Mapping):
                yield Row(where, value, {})
            else:
                is_bad = isinstance(value, Entry)
                skipped.add(where, value.utterance.problem or "" if is_bad else "it is not a JSON object")


def csv_rows(text: str, where: str, skipped: Skipped) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header. Raises UserError for text that is not CSV."""
    header, lines = header_of(text), csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, values in enumerate(lines):
            if not number or not values:
                continue
            place = f"{where} line {lines.line_num}"
            if len(values) == len(header):
                yield Row(place, dict(zip(header, values, strict=True)), {})
            else:
                skipped.add(place, f"it has {len(values)} values, and the header {len(header)}")
    except csv.Error as e:
        raise UserError(f"{where} line {lines.line_num} cannot be read ({reason_of(e)}): give a CSV file") from e


def header_of(text: str) -> list[str]:
    """Return the columns of a CSV file."""
    with suppress(csv.Error):
        return [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    return []


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise ValueError(TOO_LONG)
        return decode(path.read_bytes())
    except ValueError as e:
        raise UserError(f"{path} cannot be read ({reason_of(e)}): give a CSV file in UTF-8") from e
