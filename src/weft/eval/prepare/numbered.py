"""Pairs of recordings: numbered files, as in SpokenStoryCloze, or rows of a Parquet file.

    found = read(Request("storycloze", Path("sStoryCloze.zip")), separator="_")

The files `NUMBER_...wav` are sorted by their number. Two consecutive ones are a pair, of which the first is right. On
the Hub, the columns `positive` and `negative` of a Parquet file are a pair. A recording is a whole story without texts.

Source: https://github.com/slp-rl/slamkit, slamkit/metric/modelling_metric.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from weft.errors import UserError
from weft.eval.prepare.items import ALL, Found, Item, Request, reject
from weft.eval.prepare.rows import PARQUET, columns_of, rows_of
from weft.eval.prepare.splits import tables_by_split
from weft.eval.prepare.tree import File, files_in

SOUNDS = (".wav", ".flac")
_COLUMNS = ("positive", "negative")


def read(request: Request, separator: str = "_") -> Found:
    """Return the pairs of a directory, a zip file, or Parquet files. Raises UserError if pairs cannot be told."""
    reject(request, "subset")
    if tables := tables_by_split(request, PARQUET):
        splits, paths = tables
        used = [path for name in splits for path in paths[name]]
        return Found(list(_pairs_of_rows(used, request)), used, split=splits[0] if len(splits) == 1 else ALL)
    reject(request, "split")
    return Found(list(pairs_of(files_in(request, SOUNDS), request, separator)))


def _pairs_of_rows(paths: Sequence[Path], request: Request) -> Iterator[Item]:
    numbers = count()
    for path in paths:
        for row in rows_of(path, request.skipped, ()):
            if missing := [name for name in _COLUMNS if name not in row.sounds]:
                columns = ", ".join(columns_of(path))
                raise UserError(f"{path} has no columns of audio {', '.join(missing)}, it has {columns}: rename them")
            sounds = {"right_audio": row.sounds["positive"], "wrong_audio": row.sounds["negative"]}
            yield Item(row.where, str(next(numbers)), {}, sounds)


def pairs_of(files: Sequence[File], request: Request, separator: str) -> Iterator[Item]:
    """Yield the pairs of numbered files in one directory. Files that are not part of a pair are skipped."""
    if len(folders := sorted({file.folder for file in files})) > 1:
        raise UserError(f"{request.source} has recordings in several directories ({', '.join(folders)}): give one")
    numbers: dict[int, File] = {}
    repeated = Counter(number for file in files if (number := _number(file, separator)) is not None)
    for file in files:
        if (number := _number(file, separator)) is None:
            request.skipped.add(file.where, f"its name does not begin with a number and {separator}")
        elif repeated[number] > 1:
            request.skipped.add(file.where, f"its number {number} occurs twice, so that the right one is unknown")
        else:
            numbers[number] = file
    for first, second in _pairs(numbers, request):
        right, wrong = numbers.pop(first), numbers.pop(second)
        yield Item(right.where, str(first), {}, {"right_audio": right.sound, "wrong_audio": wrong.sound})
    for file in numbers.values():
        request.skipped.add(file.where, "the other file of its pair is missing")


def _number(file: File, separator: str) -> int | None:
    found = re.match(rf"([0-9]{{1,18}}){re.escape(separator)}", file.base)
    return int(found[1]) if found else None


def _pairs(numbers: Mapping[int, File], request: Request) -> list[tuple[int, int]]:
    """Return the numbers of each pair: of neighbours, so that a missing file costs one pair and shifts no other.

    Pairs begin with an even number if there is a 0, else with whichever gives more pairs. If few are neighbours, all
    are paired in their order. Raises UserError if the first or the last one may be missing.
    """
    ordered = sorted(numbers)
    even, odd = ([(n, n + 1) for n in ordered if n % 2 == parity and n + 1 in numbers] for parity in (0, 1))
    best = even if 0 in numbers else max(even, odd, key=len)
    if 4 * len(best) >= len(ordered) and (0 in numbers or len(even) != len(odd)):
        return best
    if len(ordered) % 2:
        raise UserError(f"{request.source} has an odd number of files, {len(ordered)}: copy the missing one")
    return list(zip(ordered[::2], ordered[1::2], strict=True))
