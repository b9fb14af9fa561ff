"""Progress bars with the time left, and tables.

    with progress.bar("tokenizer", total=2500) as advance:
        advance(1, f"loss {loss:.2f}")

On a terminal, a bar is one line that updates itself; elsewhere, a line is printed every ten seconds. Both go to stderr.
Of the processes of one run, only process 0 prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from weft import launch

_PRINT_EVERY_SEC = 10.0

Advance = Callable[..., None]


def note(line: str) -> None:
    """Print a line to stderr."""
    if not launch.rank():
        print(line, file=sys.stderr)


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
            TextColumn("{task.description:<16}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total, completed=done, note="")
            yield lambda count=1, note="": progress.update(task, advance=count, **({"note": note} if note else {}))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. The first column is left-aligned, the others are right-aligned."""
    if launch.rank():
        return
    shown = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = Console(stderr=True)
    console.print(shown, width=max(console.width, console.measure(shown).maximum), crop=False)


def _lines(title: str, total: int, done: int) -> Advance:
    """Return a function that prints a line every ten seconds."""
    start_sec = printed_sec = time.monotonic()
    num_done, last_note = done, ""

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal num_done, last_note, printed_sec
        num_done, last_note = num_done + count, note or last_note
        now_sec = time.monotonic()
        if now_sec - printed_sec < _PRINT_EVERY_SEC:
            return
        printed_sec = now_sec
        rate = (num_done - done) / (now_sec - start_sec)
        left = f"{(total - num_done) / rate:.0f} s left" if rate else "time left unknown"
        print(f"{title}: {num_done}/{total}, {left} {last_note}".rstrip(), file=sys.stderr, flush=True)

    return advance
