"""A long job over a corpus: numbered tasks that datatrove runs, each finished whole or not at all.

    class Count:                                     # any picklable callable: a task's number in, a report out
        def __call__(self, task: int) -> Report:
            for i in share(len(items), task, num_tasks): ...
            return Report(Counter(items=...))

    with artifacts.build(out, kind, settings | {"tasks": num_tasks}, parents) as draft:
        total = job.run(Count(), draft.folder, num_tasks, workers=4, title="count")

A task writes its own files, whole (write beside, rename), and nothing else, and what it writes depends on its number
and the job's settings alone. So a job killed at any instant and run again ends with the same bytes. The number of
tasks decides which items a task has and belongs to the artifact's plan; the number of workers does not, and neither
does where they run: in this process, in others, or on a cluster (`weft.data.cluster`).
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import orjson
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from weft import progress
from weft.artifacts import write_bytes
from weft.data import cluster
from weft.data.cluster import HERE, Executor
from weft.data.skipped import Skipped
from weft.errors import UserError

MARKERS = Path("log/job")
REPORTS = Path("log/tasks")
MAX_TASKS = 4096


@dataclass
class Report:
    """What a task did, or all of them together: counts that add up, what it skipped, and how long it worked."""

    counts: Counter[str] = field(default_factory=Counter)
    skipped: Skipped = field(default_factory=Skipped)
    busy_sec: float = 0.0

    def __iadd__(self, other: Report) -> Report:
        self.counts.update(other.counts)
        self.skipped += other.skipped
        self.busy_sec += other.busy_sec
        return self

    def save(self, path: Path) -> None:
        write_bytes(path, orjson.dumps(self))

    @classmethod
    def load(cls, path: Path) -> Report:
        row = orjson.loads(path.read_bytes())
        skipped = Skipped(**row["skipped"])
        skipped.bad = [(where, why) for where, why in skipped.bad]
        return cls(Counter(row["counts"]), skipped, row["busy_sec"])


class Work(Protocol):
    """What a job does in a task. It is pickled once for each worker, which keeps it (and what it loaded) to the end."""

    def __call__(self, task: int) -> Report: ...


def share(num_items: int, task: int, num_tasks: int) -> range:
    """The items of a task: contiguous, nearly equal shares that cover all items once."""
    return range(task * num_items // num_tasks, (task + 1) * num_items // num_tasks)


def tasks_for(amount: float, per_task: float) -> int:
    """How many tasks make each about `per_task` of `amount`: at least 1, at most MAX_TASKS."""
    return int(min(max(-(-amount // per_task), 1), MAX_TASKS))


class Step(PipelineStep):
    """One datatrove pipeline step that is a whole task: it does the work and leaves the task's report."""

    name = "task"
    type = "weft"

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__()
        self.work, self.folder = work, folder
        self.working_folder = os.getcwd()  # of paths that are relative, on whatever machine

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        os.chdir(self.working_folder)
        begun_sec = time.perf_counter()
        report = self.work(rank)
        report.busy_sec = time.perf_counter() - begun_sec
        report.save(_report_file(self.folder, rank))


def run(
    work: Work,
    folder: Path,
    num_tasks: int,
    workers: int,
    title: str,
    max_bad_share: float = 0.01,
    executor: Executor = HERE,
) -> Report:
    """Run the tasks of `work` that are not finished in `folder`, and return what all of them did.

    Here, with one worker everything happens in this process; with more, in processes that die with it. The items that
    tasks skipped are listed in log/skipped.jsonl; a share over `max_bad_share` raises UserError.
    """
    folder = folder.absolute()
    markers, step = folder / MARKERS, Step(work, folder)
    if executor.kind != "slurm" or not cluster.is_at_work(markers):
        _sweep(folder)
    local = _Executor([step], tasks=num_tasks, workers=workers, logging_dir=str(markers))
    left = local.get_incomplete_ranks()
    total, skipped_file = Report(), folder / "log/skipped.jsonl"
    for task in sorted(set(range(num_tasks)) - set(left)):
        total += Report.load(_report_file(folder, task))
    with ExitStack() as stack:
        advance = stack.enter_context(progress.bar(title, num_tasks, done=num_tasks - len(left)))
        if executor.kind == "local" or not left:
            finished = stack.enter_context(local.finish(left))
        else:
            finished = stack.enter_context(cluster.finish(executor, step, markers, left, num_tasks, workers, title))
        for task in finished:
            total += Report.load(_report_file(folder, task))
            total.skipped.check(max_bad_share, skipped_file, early=True)
            advance()
    total.skipped.bad.sort()
    total.skipped.check(max_bad_share, skipped_file)
    total.skipped.write(skipped_file)
    _sweep(folder)  # of tasks that a cluster killed and did again
    return total


def _sweep(folder: Path) -> None:
    """Remove what killed tasks have left."""
    for leftover in folder.rglob("*.tmp"):
        leftover.unlink()


def _report_file(folder: Path, task: int) -> Path:
    return folder / REPORTS / f"{task:05d}.json"


class _Executor(LocalPipelineExecutor):
    """datatrove's local executor, save that one worker means this process, and that no process outlives it."""

    @contextmanager
    def finish(self, tasks: list[int]) -> Iterator[Iterator[int]]:
        """Yield the tasks, each as it is finished; leaving the block abandons those that are not."""
        if min(self.workers, len(tasks)) <= 1:
            yield (self.do(task) for task in tasks)
            return
        with self._pool(len(tasks)) as pool:
            futures = [pool.submit(_do, task) for task in tasks]
            yield (future.result() for future in as_completed(futures))

    def do(self, task: int) -> int:
        """Do a task as datatrove does, save for its logging, which costs 15 ms a task and prints over our bar."""
        self.pipeline[0](None, task, self.world_size)
        self.mark_rank_as_completed(task)
        return task

    @contextmanager
    def _pool(self, num_tasks: int) -> Iterator[ProcessPoolExecutor]:
        context = get_context("spawn")
        workers = min(self.workers, num_tasks)
        threads = max(1, (os.cpu_count() or 1) // workers)
        life_line, our_end = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(workers, context, _begin, (pickle.dumps(self), life_line, threads))
        try:
            yield pool
            pool.shutdown()
        except BrokenProcessPool as e:
            raise UserError(
                "a worker process was killed, perhaps for want of memory: run again, perhaps with fewer workers"
            ) from e
        finally:
            our_end.close()
            pool.shutdown(cancel_futures=True)
            life_line.close()


_executor: _Executor  # of this worker process: made once, so that what the work has loaded stays loaded


def _begin(pickled: bytes, life_line: Connection, threads: int) -> None:
    """Start of a worker, which dies when the other end of `life_line` closes, as it does when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with, args=(life_line,), daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before the work's modules are imported
    if torch := sys.modules.get("torch"):  # or after, where the main module of a script imports them
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    global _executor
    _executor = pickle.loads(pickled)


def _die_with(life_line: Connection) -> None:
    life_line.poll(None)
    os._exit(1)


def _do(task: int) -> int:
    return _executor.do(task)
