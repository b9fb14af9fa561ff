"""Pairs of recordings with texts, of slamkit: the beginning of a story, and its right and wrong ending.

    found = read(Request("cross-modal", Path("cm_tstorycloze")))

A pair X has X_mutual, X_correct and X_incorrect, each as .wav and as .txt.

Source: https://github.com/slp-rl/slamkit, slamkit/metric/cross_modal_metric.py.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from weft.eval.prepare.items import Found, Item, Request, reject
from weft.eval.prepare.sounds import Sound
from weft.eval.prepare.tree import File, files_in
from weft.text.inputs import id_of

_PARTS = {"mutual": "beginning", "correct": "right", "incorrect": "wrong"}
_NAME = re.compile(rf"(?P<id>.+)_(?P<part>{'|'.join(_PARTS)})")
_NOTES = {"speech_to_speech": "slamkit joins the recordings of beginning and ending before it tokenizes them"}


def read(request: Request) -> Found:
    """Return the pairs of a directory or zip file. Files with other names are ignored."""
    reject(request, "subset", "split")
    pairs: dict[str, dict[str, File]] = {}
    for file in files_in(request, (".wav", ".flac", ".txt")):
        name = PurePosixPath(file.name)
        if found := _NAME.fullmatch(name.with_suffix("").as_posix()):
            key = _PARTS[found["part"]] + ("" if name.suffix.lower() == ".txt" else "_audio")
            pairs.setdefault(id_of(found["id"]) or "", {})[key] = file
    items = [_item(name, files, request) for name, files in pairs.items()]
    texts = [file.path for files in pairs.values() for key, file in files.items() if not key.endswith("_audio")]
    return Found(items, list(dict.fromkeys(texts)), notes=_NOTES)


def _item(name: str, files: dict[str, File], request: Request) -> Item:
    row: dict[str, Any] = {}
    sounds: dict[str, Sound] = {}
    for key, file in files.items():
        if key.endswith("_audio"):
            sounds[key] = file.sound
            continue
        with request.skipped.on_error(file.where):
            if text := file.text().strip():
                row[key] = text
    return Item(next(iter(files.values())).where, name, row, sounds)
