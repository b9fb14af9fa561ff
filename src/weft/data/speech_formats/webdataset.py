"""Speech in webdataset tar files: files with one name form an utterance.

a.flac and a.txt (or a.json, with `text`, `speaker` and `language`) are the utterance "a". The sound is not extracted,
but addressed by its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from weft.data.compression import Damage
from weft.data.lines import MAX_DOCUMENT_BYTES, TOO_LONG
from weft.data.speech_formats.entries import IDS, Entry, Lost, bad, checked_texts, named_fields, value_of
from weft.data.speech_formats.files import AUDIO_SUFFIXES
from weft.data.speech_formats.tar import Member, members
from weft.records import Utterance
from weft.sound_files.address import bytes_address
from weft.text.inputs import decode, id_of, parse_json

SUFFIXES = (".tar",)


def read(path: Path, name: str) -> Iterator[Entry | Lost]:
    """Yield the utterances of a tar file. Their ids do not depend on its `name`."""
    size_bytes = path.stat().st_size
    damage: Damage | None = None

    def files() -> Iterator[Member]:
        nonlocal damage
        for member in members(f, size_bytes):
            if isinstance(member, Damage):
                damage = member
                return
            yield member

    with path.open("rb") as f, path.open("rb") as texts:
        last: tuple[Entry, int] | None = None  # the last utterance may lack the files after a damage
        for key, group in groupby(files(), key=lambda member: _key_and_field(member.name)[0]):
            if last:
                yield last[0]
            sample = list(group)
            last = (_entry(path, key, sample, texts), sample[0].start) if key else None
        if last and damage is None:
            yield last[0]
        if damage is not None:
            place = last[1] if last else damage.position or 0
            yield Lost(path, damage.reason, size_bytes - place)


def _key_and_field(name: str) -> tuple[str, str]:
    """Return what the names of the files of an utterance have in common, and the rest. ("", "") for hidden files."""
    folder, slash, file = name.rpartition("/")
    key, dot, field = file.partition(".")
    return (folder + slash + key, field.lower()) if key and dot else ("", "")


def _entry(path: Path, key: str, sample: list[Member], f: BinaryIO) -> Entry:
    where = f"{path} {key}"
    fields = {_key_and_field(member.name)[1]: member for member in sample}
    try:
        sounds = [member for field, member in fields.items() if f".{field.rpartition('.')[2]}" in AUDIO_SUFFIXES]
        if len(sounds) != 1:
            raise ValueError(f"it has {len(sounds)} sounds (it has {', '.join(fields)}): give one")
        row = parse_json(_content(fields["json"], f)) if "json" in fields else {}
        if not isinstance(row, Mapping):
            raise ValueError("its .json is not a JSON object")
        texts = named_fields(row)
        if "txt" in fields:
            texts = checked_texts({**texts, "text": decode(_content(fields["txt"], f)).strip()})
        audio = bytes_address(str(path.absolute()), sounds[0].start, sounds[0].stop)
        name = id_of(value_of(row, IDS)) or id_of(key) or where
        return Entry(Utterance(name, audio, **texts), where)
    except ValueError as e:
        return bad(where, str(e))


def _content(member: Member, f: BinaryIO) -> bytes:
    if member.stop - member.start > MAX_DOCUMENT_BYTES:
        raise ValueError(f"its {_key_and_field(member.name)[1]} is {TOO_LONG}")
    f.seek(member.start)
    return f.read(member.stop - member.start)
