"""The runner of data jobs: every task once, nothing lost when it fails, and limits for bad items."""

import json
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from weft import progress
from weft.data import job
from weft.data.job import JobConfig, Report, task_range, tasks_for
from weft.data.skipped import Skipped
from weft.errors import UserError

NUM_TASKS = 6


@dataclass
class Square:
    """Write a file per task. Task `bad` has 1 bad item of 2, task `fails` raises a UserError, task `dies` is killed."""

    folder: Path
    bad: int = -1
    fails: int = -1
    dies: int = -1

    def __call__(self, task: int) -> Report:
        if task == self.fails:
            raise UserError(f"the input of task {task} is invalid: fix it")
        if task == self.dies:
            os._exit(9)
        (self.folder / f"{task}.txt").write_text(str(task**2))
        with (self.folder / "log/calls").open("a") as f:
            f.write(f"{task} {os.getpid()}\n")
        skipped = Skipped(1, [(f"item {task}", "broken")] if task == self.bad else [])
        return Report(Counter(squares=task**2), skipped)


def run(work, workers=1, **settings):
    return job.run(work, work.folder, NUM_TASKS, JobConfig(workers, **settings), "square")


def calls(folder):
    lines = (folder / "log/calls").read_text().split("\n")[:-1]
    return [int(line.split()[0]) for line in lines], {int(line.split()[1]) for line in lines}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log").mkdir()
    return tmp_path


@pytest.fixture
def quick_workers(monkeypatch):
    """Fork worker processes from one with all imports, instead of starting each anew."""
    from tests.ranks import CONTEXT  # imports torch, which workers that are started anew do not need

    monkeypatch.setattr(job, "get_context", lambda method: CONTEXT)


@pytest.fixture
def bars(monkeypatch):
    """The title, the total, the number of tasks that were done before, and that of advances of each progress bar."""
    found = []

    @contextmanager
    def bar(title, total, done=0):
        found.append([title, total, done, 0])

        def advance():
            found[-1][3] += 1

        yield advance

    monkeypatch.setattr(progress, "bar", bar)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_reports_add_up(folder, workers, bars):
    total = run(Square(folder), workers)
    assert bars == [["square", NUM_TASKS, 0, NUM_TASKS]]
    assert total.counts == {"squares": 55}
    assert total.skipped.num_good == NUM_TASKS
    tasks, processes = calls(folder)
    assert sorted(tasks) == list(range(NUM_TASKS))
    assert (processes == {os.getpid()}) == (workers == 1)
    assert len(processes) <= workers
    assert [(folder / f"{t}.txt").read_text() for t in range(NUM_TASKS)] == [str(t**2) for t in range(NUM_TASKS)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_job_resumes_with_the_unfinished_tasks(folder, workers, bars, quick_workers):
    with pytest.raises(UserError, match="the input of task 3 is invalid"):
        run(Square(folder, fails=3), workers)
    (folder / "half.txt.tmp").touch()
    total = run(Square(folder), workers)
    assert total.counts == {"squares": 55}
    assert not (folder / "half.txt.tmp").exists()
    done = Counter(calls(folder)[0])
    assert done[3] == 1
    assert done[0] == 1
    assert run(Square(folder), workers).counts == {"squares": 55}
    assert Counter(calls(folder)[0]) == done
    assert all(before + advanced == NUM_TASKS for _, _, before, advanced in bars[1:])
    assert bars[2][2:] == [NUM_TASKS, 0]


def test_worker_processes_are_replaced_after_some_tasks(folder, quick_workers):
    job.run(Square(folder), folder, NUM_TASKS, JobConfig(2), "square", tasks_per_process=2)
    assert len(calls(folder)[1]) >= 3


def test_a_killed_worker_ends_the_job(folder, quick_workers):
    with pytest.raises(UserError, match="a worker process was killed"):
        run(Square(folder, dies=2), 2)


def test_bad_items_are_listed_and_too_many_fail_without_losing_the_work(folder):
    with pytest.raises(
        UserError, match=r"1 of 7 items are bad, more than max_bad_fraction 0.01: the first is item 4 \(broken\)"
    ):
        run(Square(folder, bad=4))
    listed = [json.loads(line) for line in (folder / "log/skipped.jsonl").open()]
    assert listed == [{"where": "item 4", "why": "broken"}]
    total = run(Square(folder), max_bad_fraction=0.2)
    assert len(total.skipped.bad) == 1
    assert len(calls(folder)[0]) == NUM_TASKS


def test_task_ranges_cover_all_items_and_are_even():
    for num, tasks in ((0, 3), (1, 3), (10, 3), (1000, 7)):
        ranges = [task_range(num, t, tasks) for t in range(tasks)]
        assert [i for r in ranges for i in r] == list(range(num))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert [tasks_for(x, 10) for x in (0, 1, 10, 11, 1e9)] == [1, 1, 1, 2, job.MAX_TASKS]
