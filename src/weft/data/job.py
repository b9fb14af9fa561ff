"""The runner of all data jobs: numbered tasks, each finished completely or not at all.

    class CountItems:                                # any picklable callable that maps a task number to a report
        def __call__(self, task: int) -> Report:
            for i in task_range(len(items), task, num_tasks): ...
            return Report(Counter(items=...), written=[path])

    report = job.run(CountItems(), draft, num_tasks, config.job, title="count")

A task writes its own files and nothing else, and its output depends only on its number and the settings of the job, so
that a job that is killed and run again ends with the same bytes. Its report has the SHA-256 of its files. When a job is
resumed, they are compared, and a task whose files are missing or changed runs again. The number of tasks is part of the
plan, because it determines which items a task has. The number of workers and the executor are not: tasks run in this
process, in others, or on a cluster (`weft.data.cluster`), by datatrove's executors.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from weft import progress
from weft.config import Fraction, PositiveInt
from weft.data import cluster
from weft.data.cluster import Executor
from weft.data.skipped import Skipped
from weft.digests import sha256_of
from weft.errors import UserError
from weft.files import remove_temporary_files, sync, write_bytes
from weft.plan import Draft

MAX_TASKS = 4096
_MARKERS = Path("log/job")
UTTERANCES = _MARKERS / "utterances.arrow"
"""Where a job in an artifact shares a list with its workers. `run` removes it when the job has finished."""


@dataclass(frozen=True)
class JobConfig:
    """Settings of every data command: where its tasks run, and how many bad items it tolerates."""

    workers: PositiveInt = 1
    """Worker processes, each with its own model, or jobs at a time on a cluster. With 1, tasks run in this process."""
    executor: Executor = field(default_factory=Executor)
    """Where the workers run: on this machine, on Slurm or on Ray."""
    max_bad_fraction: Fraction = 0.01
    """Fraction of unreadable items above which the command fails."""


@dataclass
class Report:
    """Result of a task, or of all of them: counts to add up, skipped items, working time, and files.

    A task returns the paths of its files as `written`. `digests` are their SHA-256, by name in the job's directory.
    """

    counts: Counter[str] = field(default_factory=Counter)
    skipped: Skipped = field(default_factory=Skipped)
    busy_sec: float = 0.0
    written: list[Path] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def __iadd__(self, other: Report) -> Report:
        self.counts.update(other.counts)
        self.skipped += other.skipped
        self.busy_sec += other.busy_sec
        self.digests |= other.digests
        return self

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read the report of a task. Raises OSError, ValueError, KeyError or TypeError if it is damaged."""
        content, _, digest = path.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest() != digest.decode():
            raise ValueError("its checksum is that of other content")
        row = orjson.loads(content)
        skipped = Skipped(**row["skipped"])
        skipped.bad = [(where, reason) for where, reason in skipped.bad]
        return cls(Counter(row["counts"]), skipped, row["busy_sec"], digests=row["digests"])

    def save(self, path: Path, folder: Path) -> None:
        """Sync the files of a task in `folder` to disk, compute their digests, and write the report with its own."""
        for file in self.written:
            sync(file)
            self.digests[file.absolute().relative_to(folder).as_posix()] = sha256_of(file)
        for parent in {file.parent for file in self.written}:
            sync(parent)
        row = {"counts": self.counts, "skipped": self.skipped, "busy_sec": self.busy_sec, "digests": self.digests}
        content = orjson.dumps(row)
        write_bytes(path, content + b"\n" + hashlib.sha256(content).hexdigest().encode())
        sync(path.parent)


Work = Callable[[int], Report]
"""A function of the number of a task. Each worker process unpickles it once, so that it can keep what it loads."""


def task_range(num_items: int, task: int, num_tasks: int) -> range:
    """Return the items of a task: contiguous ranges of nearly equal size that cover all items once."""
    return range(task * num_items // num_tasks, (task + 1) * num_items // num_tasks)


def tasks_for(amount: float, per_task: float) -> int:
    """Return the number of tasks for `amount`, with about `per_task` each: at least 1, at most MAX_TASKS."""
    return int(min(max(-(-amount // per_task), 1), MAX_TASKS))


class Step(PipelineStep):
    """A datatrove pipeline step that does the work of a task and writes its report."""

    name = "task"
    type = "weft"

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__()
        self.work, self.folder = work, folder
        self.working_folder = os.getcwd()  # relative paths are relative to it on other machines

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        os.chdir(self.working_folder)
        start_sec = time.perf_counter()
        report = self.work(rank)
        report.busy_sec = time.perf_counter() - start_sec
        report.save(_report_file(self.folder, rank), self.folder)


def run(
    work: Work, draft: Draft, num_tasks: int, config: JobConfig, title: str, tasks_per_process: int | None = None
) -> Report:
    """Run the unfinished tasks of `work` in the directory of `draft` and return the report of all tasks.

    Skipped items are listed in log/skipped.jsonl. Local worker processes end with this one, and are replaced after
    `tasks_per_process` tasks. Raises UserError when too many items are skipped and when a worker was killed.
    """
    folder = draft.folder.absolute()
    markers, step = folder / _MARKERS, Step(work, folder)
    if config.executor.kind != "slurm" or not cluster.is_running(markers):
        remove_temporary_files(folder)
    local = _LocalExecutor([step], tasks=num_tasks, workers=config.workers, logging_dir=str(markers))
    local.tasks_per_process = tasks_per_process
    done = sorted(set(range(num_tasks)) - set(local.get_incomplete_ranks()))
    total, skipped_file = Report(), folder / "log/skipped.jsonl"
    for report in _intact(folder, done, title).values():
        total += report
    remaining = local.get_incomplete_ranks()
    if config.executor.kind == "local" or not remaining:
        running = local.run_tasks(remaining)
    else:
        running = cluster.run_tasks(config.executor, step, markers, remaining, num_tasks, config.workers, title)
    with progress.bar(title, num_tasks, done=num_tasks - len(remaining)) as advance, running as finished:
        for task in finished:
            total += Report.load(_report_file(folder, task))
            total.skipped.check(config.max_bad_fraction, skipped_file, early=True)
            advance()
    total.skipped.bad.sort()
    total.skipped.check(config.max_bad_fraction, skipped_file)
    total.skipped.write(skipped_file)
    remove_temporary_files(folder)  # of tasks that a cluster killed and repeated
    cluster.remove_files(markers)
    draft.digests |= total.digests
    return total


def _intact(folder: Path, done: list[int], title: str) -> dict[int, Report]:
    """Return the reports of the `done` tasks whose files are intact; remove the markers of the others."""
    found = {}
    with ThreadPoolExecutor(4) as threads, progress.bar(f"{title}: checksums", len(done)) as advance:
        for task, report in zip(done, threads.map(lambda task: _checked(folder, task), done), strict=True):
            advance()
            if isinstance(report, Report):
                found[task] = report
            else:
                progress.note(f"weft: task {task} runs again: {report}")
                (folder / _MARKERS / f"completions/{task:05d}").unlink()
    return found


def _checked(folder: Path, task: int) -> Report | str:
    """Return the report of a finished task, or which of its files is missing or changed."""
    try:
        report = Report.load(_report_file(folder, task))
    except (OSError, ValueError, KeyError, TypeError):
        return f"{_report_file(folder, task)} is missing or damaged"
    for name, digest in report.digests.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if sha256_of(path) != digest:
            return f"{path} has changed"
    return report


def _report_file(folder: Path, task: int) -> Path:
    return folder / f"log/tasks/{task:05d}.json"


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, except that one worker means this process, and that no worker outlives it."""

    tasks_per_process: int | None = None

    @contextmanager
    def run_tasks(self, tasks: list[int]) -> Iterator[Iterator[int]]:
        """Yield the tasks as they finish. Leaving the block abandons the others."""
        if (workers := min(self.workers, len(tasks))) <= 1:
            yield map(self.run_task, tasks)
            return
        with self._pool(workers) as pool:
            yield _completed(pool, tasks, workers)

    def run_task(self, task: int) -> int:
        """Run a task without datatrove's logging, which takes 15 ms per task and prints over the progress bar."""
        self.pipeline[0](None, task, self.world_size)
        self.mark_rank_as_completed(task)
        return task

    @contextmanager
    def _pool(self, workers: int) -> Iterator[ProcessPoolExecutor]:
        context = get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // workers)
        their_end, our_end = context.Pipe(duplex=False)
        arguments = pickle.dumps(self), their_end, threads
        pool = ProcessPoolExecutor(
            workers, context, _start_worker, arguments, max_tasks_per_child=self.tasks_per_process
        )
        try:
            yield pool
            pool.shutdown()
        except BrokenProcessPool as e:
            raise UserError(
                "a worker process was killed, possibly because memory ran out: run again, with fewer workers if needed"
            ) from e
        finally:
            our_end.close()
            pool.shutdown(cancel_futures=True)
            their_end.close()


def _completed(pool: ProcessPoolExecutor, tasks: list[int], workers: int) -> Iterator[int]:
    """Yield tasks as they finish. With more than `workers` at a time, the pool would fail to replace processes."""
    remaining = iter(tasks)
    futures = {pool.submit(_run_task, task) for task in islice(remaining, workers)}
    while futures:
        done, futures = wait(futures, return_when=FIRST_COMPLETED)
        futures |= {pool.submit(_run_task, task) for task in islice(remaining, len(done))}
        yield from (future.result() for future in done)


_executor: _LocalExecutor  # of this worker process: unpickled once, so that what the work has loaded stays loaded


def _start_worker(pickled: bytes, parent: Connection, threads: int) -> None:
    """Initialize a worker, which exits when the pipe to its parent closes, as it does when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before the modules of the work are imported
    if torch := sys.modules.get("torch"):  # or after, if the main module imports them
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    global _executor
    _executor = pickle.loads(pickled)


def _exit_with(parent: Connection) -> None:
    parent.poll(None)
    os._exit(1)


def _run_task(task: int) -> int:
    return _executor.run_task(task)
