import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from weft.data import job
from weft.data.job import Report, share, tasks_for
from weft.data.skipped import Skipped
from weft.errors import UserError

NUM_TASKS = 6


@dataclass
class Square:
    """Writes a file a task; task `bad` has 1 bad item in 2, task `fails` is a user's mistake, task `dies` is killed."""

    folder: Path
    bad: int = -1
    fails: int = -1
    dies: int = -1

    def __call__(self, task: int) -> Report:
        if task == self.fails:
            raise UserError(f"task {task} was given nonsense: mend it")
        if task == self.dies:
            os._exit(9)
        (self.folder / f"{task}.txt").write_text(str(task**2))
        with (self.folder / "log/calls").open("a") as f:
            f.write(f"{task} {os.getpid()}\n")
        skipped = Skipped(1, [(f"item {task}", "broken")] if task == self.bad else [])
        return Report(Counter(squares=task**2), skipped)


def calls(folder):
    lines = (folder / "log/calls").read_text().split("\n")[:-1]
    return [int(line.split()[0]) for line in lines], {int(line.split()[1]) for line in lines}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log").mkdir()
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_reports_add_up(folder, workers):
    total = job.run(Square(folder), folder, NUM_TASKS, workers, "square")
    assert total.counts == {"squares": 55}
    assert total.skipped.num_good == NUM_TASKS
    tasks, processes = calls(folder)
    assert sorted(tasks) == list(range(NUM_TASKS))
    assert (processes == {os.getpid()}) == (workers == 1)
    assert len(processes) <= workers
    assert [(folder / f"{t}.txt").read_text() for t in range(NUM_TASKS)] == [str(t**2) for t in range(NUM_TASKS)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_job_does_only_what_is_left(folder, workers):
    with pytest.raises(UserError, match="task 3 was given nonsense"):
        job.run(Square(folder, fails=3), folder, NUM_TASKS, workers, "square")
    (folder / "half.txt.tmp").touch()
    total = job.run(Square(folder), folder, NUM_TASKS, workers, "square")
    assert total.counts == {"squares": 55}
    assert not (folder / "half.txt.tmp").exists()
    done = Counter(calls(folder)[0])
    assert done[3] == 1
    assert done[0] == 1
    assert job.run(Square(folder), folder, NUM_TASKS, workers, "square").counts == {"squares": 55}
    assert Counter(calls(folder)[0]) == done


def test_a_killed_worker_is_told_and_not_waited_for(folder):
    with pytest.raises(UserError, match="a worker process was killed"):
        job.run(Square(folder, dies=2), folder, NUM_TASKS, 2, "square")


def test_bad_items_are_listed_and_too_many_fail_without_losing_the_work(folder):
    with pytest.raises(
        UserError, match=r"1 of 7 items are bad, and max_bad_share is 0.01: the first is item 4 \(broken\)"
    ):
        job.run(Square(folder, bad=4), folder, NUM_TASKS, 1, "square")
    assert [json.loads(line) for line in (folder / "log/skipped.jsonl").open()] == [
        {"where": "item 4", "why": "broken"}
    ]
    total = job.run(Square(folder), folder, NUM_TASKS, 1, "square", max_bad_share=0.2)
    assert len(total.skipped.bad) == 1
    assert len(calls(folder)[0]) == NUM_TASKS


def test_a_share_of_few_items_does_not_stop_a_job_under_way():
    few, many = Skipped(10, [("a", "b")]), Skipped(1500, [("a", "b")] * 300)
    few.check(0.01, early=True)
    with pytest.raises(UserError, match="11 items"):
        few.check(0.01)
    with pytest.raises(UserError, match="1800 items"):
        many.check(0.01, early=True)


def test_shares_tile_and_are_even():
    for num, tasks in ((0, 3), (1, 3), (10, 3), (1000, 7)):
        shares = [share(num, t, tasks) for t in range(tasks)]
        assert [i for s in shares for i in s] == list(range(num))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [tasks_for(x, 10) for x in (0, 1, 10, 11, 1e9)] == [1, 1, 1, 2, job.MAX_TASKS]
