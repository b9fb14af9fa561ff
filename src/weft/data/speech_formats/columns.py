"""Columns of tables of speech: which one has the audio, and utterances of rows.

    columns = Columns.of(schema, path)
    columns.audio, columns.names
    for entry in columns.entries(batch, audio, path, name, first_row): ...

An audio column of the `datasets` library is a struct of `bytes` and `path`. A column of bytes or of paths that is named
`audio` works as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from weft.data.speech_formats.entries import IDS, LANGUAGES, SPEAKERS, TEXTS, Entry, bad, named_fields
from weft.data.tables import values_of
from weft.errors import UserError
from weft.files import json_object
from weft.records import Utterance
from weft.text.inputs import decode, id_of

AUDIO = "audio"


@dataclass(frozen=True)
class Columns:
    """The column with the audio, the columns with other fields, and the labels of columns with numbers of labels."""

    audio: str
    kind: pa.DataType
    names: tuple[str, ...]
    labels: dict[str, Sequence[Any]]

    @classmethod
    def of(cls, schema: pa.Schema, path: Path) -> Columns:
        """Find the columns. Raises UserError, with all columns, for a table without an audio column."""
        audio = [field.name for field in schema if _is_audio(field)]
        audio = [name for name in audio if name == AUDIO] or audio
        if len(audio) != 1:
            found = ", ".join(f"{field.name} ({_name_of(field.type)})" for field in schema) or "no columns"
            problem = f"has several audio columns ({', '.join(audio)})" if audio else "has no audio column"
            raise UserError(f"{path} {problem}, it has {found}: name one `{AUDIO}`, of bytes, paths or both")
        names = [name for name in (*IDS, *TEXTS, *SPEAKERS, *LANGUAGES) if name in schema.names and name != audio[0]]
        if twice := next((name for name in names if schema.names.count(name) > 1), None):
            raise UserError(f"{path} has several columns `{twice}`: rename all but one")
        return cls(audio[0], schema.field(audio[0]).type, tuple(names), _labels(schema, path))

    def leaf(self, field: str) -> str | None:
        """Return the name of the column with `bytes` or `path`s in a Parquet file, or None."""
        if pa.types.is_struct(self.kind):
            return f"{self.audio}.{field}" if self.kind.get_field_index(field) >= 0 else None
        is_wanted = _is_text(self.kind) if field == "path" else _is_bytes(self.kind)
        return self.audio if is_wanted else None

    def entries(
        self, batch: pa.RecordBatch, audio: Sequence[str | None], path: Path, name: str, first_row: int
    ) -> Iterator[Entry]:
        """Yield the utterances of a batch, of which the first is row `first_row` of the file, with the given `audio`.

        A row without an id has one of the `name` of the file and the number of the row.
        """
        values = {column: values_of(batch.column(column)) for column in self.names}
        for i, address in enumerate(audio):
            row = {column: next(of_rows) for column, of_rows in values.items()}
            where = f"{path} row {first_row + i}"
            try:
                yield Entry(self._utterance(row, address, f"{name}:{first_row + i}"), where)
            except ValueError as e:
                yield bad(where, str(e))

    def _utterance(self, row: dict[str, Any], audio: str | None, default_id: str) -> Utterance:
        if not audio:
            raise ValueError(f"its `{self.audio}` is empty: give bytes or a path")
        name = next((found for key in IDS if (found := id_of(row.get(key)))), default_id)
        fields = {key: self._value(key, value) for key, value in row.items() if key not in IDS}
        return Utterance(name, audio, **named_fields(fields))

    def _value(self, column: str, value: Any) -> Any:
        if isinstance(value, bytes):
            return decode(value)
        if isinstance(value, int) and column in LANGUAGES:
            labels = self.labels.get(column, ())
            return labels[value] if 0 <= value < len(labels) else None
        return value


def paths_of(column: pa.Array) -> list[str | None]:
    """Return the strings of a column of paths, with escapes for what is not UTF-8."""
    return [id_of(value) if isinstance(value, bytes) else None for value in values_of(column)]


def _is_audio(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return field.name == AUDIO and (_is_bytes(kind) or _is_text(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _name_of(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _labels(schema: pa.Schema, path: Path) -> dict[str, Sequence[Any]]:
    """Return the labels of columns by the features that the `datasets` library writes into a schema."""
    try:
        features = json_object((schema.metadata or {}).get(b"huggingface", b"{}"), path.name)["info"]["features"]
        return {name: f["names"] for name, f in features.items() if isinstance(f.get("names"), list)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
