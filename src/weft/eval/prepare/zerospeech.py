"""sWUGGY and sBLIMP: recordings of words and sentences of the ZeroSpeech 2021 challenge, paired by `gold.csv`.

    found = read(Request("swuggy", Path("sLM21"), split="dev"), LEXICAL)

The directories `lexical/dev` and `syntactic/dev` have a gold.csv with a row for each recording: id, filename, voice,
correct (1 or 0), and the word or transcription. The right and the wrong one of an id and a voice are a pair. Only `dev`
is published with gold.csv. Without it, numbered files are read as slamkit does.

Source: https://github.com/zerospeech/zerospeech2021, zerospeech2021/lexical.py and syntactic.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from weft.errors import UserError
from weft.eval.prepare.items import Found, Item, Request, chosen, reject
from weft.eval.prepare.numbered import SOUNDS, pairs_of
from weft.eval.prepare.rows import Row, csv_rows, header_of
from weft.eval.prepare.sounds import AbsentSound, Sound
from weft.eval.prepare.tree import File, files_in

_GOLD = "gold.csv"


@dataclass(frozen=True)
class Task:
    """A directory of the challenge, the column with texts, those that identify a pair, and that of its part.

    `separator` follows the number in the names of files without a gold.csv.
    """

    folder: str
    text: str
    keys: Sequence[str]
    part: str | None
    separator: str


LEXICAL = Task("lexical", "word", ("id", "voice"), None, "_")
SYNTACTIC = Task("syntactic", "transcription", ("type", "subtype", "id", "voice"), "type", "+")


def read(request: Request, task: Task) -> Found:
    """Return the pairs of a split. Raises UserError for a gold.csv with other columns."""
    reject(request, "subset")
    files = files_in(request, (*SOUNDS, ".csv"))
    golds = _golds(files, request, task)
    if not golds:
        reject(request, "split")
        return Found(list(pairs_of([f for f in files if f.base.lower().endswith(SOUNDS)], request, task.separator)))
    names = chosen("split", golds, request.split, request.source)
    items = [item for name in names for item in _pairs(golds[name], files, request, task)]
    return Found(items, [golds[name].path for name in names], split=request.split or names[0])


def _golds(files: Sequence[File], request: Request, task: Task) -> dict[str, File]:
    """Return the gold.csv of each split, of the task's directory if the source has others."""
    found = {(request.source.absolute() / file.name).parent: file for file in files if file.base == _GOLD}
    of_task = {folder: file for folder, file in found.items() if task.folder in folder.parts}
    return {folder.name: file for folder, file in (of_task or found).items()}


def _pairs(gold: File, files: Sequence[File], request: Request, task: Task) -> Iterator[Item]:
    """Yield the pairs of a gold.csv. An id without one right and one wrong recording is skipped."""
    try:
        text = gold.text()
    except ValueError as e:
        raise UserError(f"{gold.where} cannot be read ({e}): copy it again") from e
    needed = {"filename", "correct", "voice", task.text, *task.keys}
    if needed - set(header := header_of(text)):
        missing = ", ".join(sorted(needed - set(header)))
        raise UserError(f"{gold.where} has no {missing}, it has {', '.join(header)}: give the {task.folder} directory")
    sounds = {PurePosixPath(f.base).stem: f.sound for f in files if f.folder == gold.folder and f.base != _GOLD}
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in csv_rows(text, gold.where, request.skipped):
        group = groups.setdefault("-".join(row.values[key] for key in task.keys), {})
        group.setdefault(row.values["correct"].strip(), []).append(row)
    for name, group in groups.items():
        right, wrong = group.get("1", []), group.get("0", [])
        if len(right) == len(wrong) == 1:
            yield _item(name, right[0], wrong[0], gold, sounds, task)
        else:
            where = next(iter(group.values()))[0].where
            request.skipped.add(where, f"{name} has {len(right)} right and {len(wrong)} wrong recordings, expected one")


def _item(name: str, right: Row, wrong: Row, gold: File, sounds: Mapping[str, Sound], task: Task) -> Item:
    row: dict[str, Any] = {"right": right.values[task.text].strip(), "wrong": wrong.values[task.text].strip()}
    row["voice"] = right.values["voice"].strip()
    if task.part:
        row["part"] = right.values[task.part].strip()
    named = {key: r.values["filename"].strip() for key, r in (("right_audio", right), ("wrong_audio", wrong))}
    found = {key: sounds.get(file) or AbsentSound(str(gold.path), file) for key, file in named.items()}
    return Item(right.where, name, {key: value for key, value in row.items() if value}, found)
