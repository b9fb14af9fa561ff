"""SALMon: pairs of recordings that differ in background, room, speaker, gender or sentiment.

    found = read(Request("salmon", Path("salmon_benchmark"), subset="speaker_consistency"))

Each of the 8 parts is a directory with `sample_I_K.wav`. Sorted by name, the first of the recordings I is right, and
the second is wrong.

Source: https://github.com/slp-rl/salmon, and slamkit/metric/modelling_metric.py of https://github.com/slp-rl/slamkit.
"""

from __future__ import annotations

import re

from weft.errors import UserError
from weft.eval.prepare.items import ALL, Found, Item, Request, chosen, reject
from weft.eval.prepare.tree import File, files_in
from weft.text.inputs import id_of

_NAME = re.compile(r"sample_(?P<number>[0-9]+)_.+\.(?:wav|flac)")


def read(request: Request) -> Found:
    """Return the pairs of a part, or of all. Raises UserError for an unknown part."""
    reject(request, "split")
    parts: dict[str, dict[int, list[File]]] = {}
    for file in files_in(request, (".wav", ".flac")):
        if found := _NAME.fullmatch(file.base):
            part = id_of((request.source.absolute() / file.name).parent.name) or ""
            parts.setdefault(part, {}).setdefault(int(found["number"]), []).append(file)
    if not parts:
        raise UserError(f"{request.source} has no files sample_I_K.wav: give the directory of {request.name}")
    names = chosen("subset", parts, request.subset or ALL, request.source)
    items = [item for part in names for item in _pairs(part, parts[part], request)]
    return Found(items, subset=request.subset or ALL)


def _pairs(part: str, samples: dict[int, list[File]], request: Request) -> list[Item]:
    """Return the pairs of a part. A sample with one recording is skipped."""
    items = []
    for number, files in sorted(samples.items()):
        if len(files) < 2:
            request.skipped.add(files[0].where, "the other file of its pair is missing")
            continue
        sounds = {"right_audio": files[0].sound, "wrong_audio": files[1].sound}
        items.append(Item(files[0].where, f"{part}/{number}", {"part": part}, sounds))
    return items
