"""A progress bar with time left, for anything that takes over two seconds.

    with progress.bar("tokenizer", total=2500) as advance:
        advance(1, f"loss {loss:.2f}")

On a terminal it is one line that updates itself; elsewhere a plain line every ten seconds. `table(columns, rows)` tells
beforehand what is to come. Both write to stderr, and of many processes on one job only the first does.
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

_PLAIN_EVERY_SEC = 10.0

Advance = Callable[..., None]


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`. `done` items of `total` were finished by an earlier run."""
    if launch.rank():
        yield lambda count=1, note="": None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, total, done)
        return
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

        def advance(count: int = 1, note: str = "") -> None:
            progress.advance(task, count)
            if note:
                progress.update(task, note=note)

        yield advance


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show `rows` of words and numbers, the first column to the left and the others to the right."""
    if launch.rank():
        return
    shown = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = Console(stderr=True)
    console.print(shown, width=max(console.width, console.measure(shown).maximum), crop=False)


def _plain(title: str, total: int, done: int) -> Advance:
    begun_sec = shown_sec = time.monotonic()
    now_done, first_done = done, done

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal now_done, shown_sec
        now_done += count
        now_sec = time.monotonic()
        if now_sec - shown_sec < _PLAIN_EVERY_SEC:
            return
        shown_sec = now_sec
        rate = (now_done - first_done) / (now_sec - begun_sec)
        left = f"{(total - now_done) / rate:.0f} s left" if rate else "time left unknown"
        print(f"{title}: {now_done}/{total}, {left} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
