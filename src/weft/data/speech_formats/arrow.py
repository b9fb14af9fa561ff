"""Speech in Arrow streams and files, as `save_to_disk` of the `datasets` library writes them.

Such files are not compressed, so that the bytes of a sound are a range of bytes of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from weft.data.arrow_stream import batches_of, scan
from weft.data.compression import is_damage
from weft.data.speech_formats.columns import Columns, paths_of
from weft.data.speech_formats.entries import Entry, Lost, audio_path
from weft.data.tables import check_column
from weft.errors import UserError, reason_of
from weft.sound_files.address import bytes_address

SUFFIXES = (".arrow", ".feather")


def read(path: Path, name: str) -> Iterator[Entry | Lost]:
    """Yield the rows of a file; `name` is part of the ids of rows without one.

    Raises UserError for a file without an audio column, and for compressed audio.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as f:
        found = scan(f, str(path), size_bytes)
    first, damage = 0, found.damage
    lost_bytes = size_bytes - found.stop
    try:
        for batch in _batches(path, name, found.num_rows) if found.num_rows else ():
            yield from batch
            first += len(batch)
    except (OSError, pa.ArrowException) as e:
        if not is_damage(e):
            raise
        damage, lost_bytes = reason_of(e), size_bytes * (found.num_rows - first) // found.num_rows
    if damage or not size_bytes:
        yield Lost(path, damage or "it is empty", lost_bytes)


def _batches(path: Path, name: str, num_rows: int) -> Iterator[list[Entry]]:
    with pa.memory_map(str(path)) as f:
        whole = f.read_buffer()
        f.seek(0)
        first = 0
        for batch in batches_of(f):
            columns = Columns.of(batch.schema, path)
            for column in (*columns.names, columns.audio):
                check_column(batch.column(column))
            audio = _audio(batch.column(columns.audio), path, whole)
            yield list(columns.entries(batch, audio, path, name, first))
            first += len(batch)
            if first >= num_rows:
                return


def _audio(column: pa.Array, path: Path, whole: pa.Buffer) -> list[str | None]:
    """Return the address of the bytes of each row, else the file that it names, or None."""
    if not pa.types.is_struct(column.type):
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        return _files(column, path) if is_text else _ranges(column, path, whole)
    sounds = _ranges(column.field("bytes"), path, whole)
    if column.type.get_field_index("path") >= 0 and None in sounds:
        files = _files(column.field("path"), path)
        sounds = [sound or file for sound, file in zip(sounds, files, strict=True)]
    valid = column.is_valid().to_pylist()
    return [sound if is_there else None for sound, is_there in zip(sounds, valid, strict=True)]


def _ranges(values: pa.Array, path: Path, whole: pa.Buffer) -> list[str | None]:
    _, offsets, content = values.buffers()
    if content is None or not len(values):
        return [None] * len(values)
    base = content.address - whole.address
    if not 0 <= base <= whole.size - content.size:
        raise UserError(f"{path} is compressed: write it without compression, or as Parquet")
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    places = base + np.frombuffer(offsets, kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    pairs = zip(places[:-1].tolist(), places[1:].tolist(), values.is_valid().to_pylist(), strict=True)
    name = str(path.absolute())
    return [bytes_address(name, start, stop) if is_there else None for start, stop, is_there in pairs]


def _files(values: pa.Array, path: Path) -> list[str | None]:
    return [None if name is None else audio_path(path.parent, name) for name in paths_of(values)]
