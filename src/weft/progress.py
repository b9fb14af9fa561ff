"""Progress bars with the time left, tables, and summaries of results.

    with progress.bar("tokenizer", total=2500) as advance:
        advance(1, f"loss {loss:.2f}")

    progress.summary({"utterances": 3, "wer": asdict(rate), "datasets": {"asr": {"documents": 2}}})
    progress.note(f"weft: {path} is damaged: it is created again")

Everything that weft prints passes through this module, which escapes control characters: file names, texts, answers of
models and messages of libraries cannot control the terminal.

A bar appears after two seconds of work. On a terminal, it is one line that updates itself; elsewhere, as in the log of
a background job, a line is printed every 30 seconds, and whenever another tenth is done. Bars, tables and notes go to
stderr, summaries to stdout. Of the processes of one run, only process 0 prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Timer
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from weft import launch
from weft.errors import printable, without_secrets

_SHOW_AFTER_SEC = 2.0
_PRINT_EVERY_SEC, _PRINT_EVERY_FRACTION = 30.0, 0.1
_NAME_WIDTH = 24
_MAX_ROWS, _MAX_ITEMS = 40, 12  # of a nested value, and of a list
_ERROR_RATE = {"rate", "low", "high"}

Advance = Callable[..., None]


def note(line: str) -> None:
    """Print a line to stderr."""
    if not launch.rank():
        write([without_secrets(line)], sys.stderr)


def show(*lines: str, end: str = "\n") -> None:
    """Print lines to stdout."""
    if lines and not launch.rank():
        write(lines, sys.stdout, end)


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`. `done` of the `total` items were finished by an earlier run.

    A note is shown until another replaces it.
    """
    console = Console(stderr=True)
    if launch.rank():
        yield lambda count=1, note="": None
    elif not console.is_terminal:
        yield _lines(title, total, done)
    else:
        columns = (
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        shown = Progress(*columns, console=console)
        task = shown.add_task(printable(title), total=total, completed=done, note="")
        timer = Timer(_SHOW_AFTER_SEC, shown.start)
        timer.daemon = True
        timer.start()

        def advance(count: int = 1, note: str = "") -> None:
            fields: dict[str, Any] = {"note": printable(note)} if note else {}
            shown.update(task, advance=count, **fields)

        try:
            yield advance
        finally:
            timer.cancel()
            timer.join()
            shown.stop()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stderr. The first column is left-aligned, the others are right-aligned."""
    if not launch.rank():
        write(_aligned([columns, *rows]), sys.stderr)


def summary(values: Mapping[str, Any]) -> None:
    """Print results to stdout, as `rows` of text."""
    show(*rows(values))


def rows(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a summary.

    A value is one row, and an error rate a percentage with its interval. A mapping has one row per entry below its
    name, and is a table if its entries have values of their own. Long lists and mappings are cut.
    """
    width = max([_NAME_WIDTH, *(cell_len(name) + 2 for name in values)])
    for name, value in values.items():
        if _is_nested(value):
            shown = dict(islice(value.items(), _MAX_ROWS))
            more = [f"... and {len(value) - len(shown)} more"] if len(shown) < len(value) else []
            lines = _aligned(_cells(shown)) if _is_table(shown) else rows(shown)
            yield from (printable(name), *(f"  {line}" for line in (*lines, *more))) if value else ()
        elif isinstance(value, list | tuple) and any(isinstance(v, str) and " " in v for v in value):
            yield from (f"{printable(name):<{width}}{_shown(item)}" for item in value)  # sentences
        else:
            yield f"{printable(name):<{width}}{_shown(value)}"


def write(lines: Iterable[str], stream: TextIO, end: str = "\n") -> None:
    """Print lines from this process, whichever of a run it is."""
    print("\n".join(map(printable, lines)), end=end, file=stream, flush=True)


def _is_table(values: Mapping[str, Any]) -> bool:
    """Whether all values are mappings with at least one plain value."""
    return all(isinstance(row, Mapping) and not all(map(_is_nested, row.values())) for row in values.values())


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and not value.keys() >= _ERROR_RATE


def _cells(values: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of a table with a row per mapping. The columns of mappings inside them are named a.b."""
    found = {name: dict(_flat(row)) for name, row in values.items()}
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    return [["", *columns], *([name, *(_shown(row.get(c)) for c in columns)] for name, row in found.items())]


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if _is_nested(value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    """Return a value in one line."""
    if isinstance(value, Mapping):
        return f"{value['rate']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
    if isinstance(value, list | tuple) and value:
        more = f", ... ({len(value)} in total)" if len(value) > _MAX_ITEMS else ""
        return ", ".join(map(_shown, value[:_MAX_ITEMS])) + more
    if value is None or value in ([], ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.1f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return printable(str(value))


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines."""
    cells = [[printable(cell) for cell in row] for row in table]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    padded = [[" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return [
        "  ".join(s + c if i else c + s for i, (c, s) in enumerate(zip(row, spaces, strict=True))).rstrip()
        for row, spaces in zip(cells, padded, strict=True)
    ]


def _lines(title: str, total: int, done: int) -> Advance:
    """Return a function that prints lines at intervals."""
    start_sec = printed_sec = time.monotonic()
    num_done, printed, last_note = done, done, ""

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal num_done, printed, printed_sec, last_note
        num_done, last_note = num_done + count, note or last_note
        now_sec = time.monotonic()
        waited_sec, is_last = now_sec - printed_sec, num_done >= total > printed
        is_due = waited_sec >= _PRINT_EVERY_SEC or num_done - printed >= _PRINT_EVERY_FRACTION * total
        if now_sec - start_sec < _SHOW_AFTER_SEC or not (is_last or (is_due and waited_sec >= _SHOW_AFTER_SEC)):
            return
        printed, printed_sec = num_done, now_sec
        left_sec = (total - num_done) * (now_sec - start_sec) / max(1, num_done - done)
        line = f"{title}: {num_done}/{total}, {left_sec:.0f} s left {last_note}".rstrip()
        write([line], sys.stderr)

    return advance
