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
from weft.digests import sha256_of
from weft.errors import UserError
from weft.plan import Draft

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
        written = [self.folder / f"{task}.txt", self.folder / f"sub/{task}"]
        for path in written:
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(task**2))
        with (self.folder / "log/calls").open("a") as f:
            f.write(f"{task} {os.getpid()}\n")
        skipped = Skipped(1, [(f"item {task}", "broken")] if task == self.bad else [])
        return Report(Counter(squares=task**2), skipped, written=written)


def run(work, workers=1, **settings):
    draft = Draft(work.folder)
    total = job.run(work, draft, NUM_TASKS, JobConfig(workers, **settings), "square")
    assert draft.digests == {n: sha256_of(work.folder / n) for t in range(NUM_TASKS) for n in (f"{t}.txt", f"sub/{t}")}
    return total


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
        state = [title, total, done, 0]
        if "checksums" not in title:
            found.append(state)

        def advance():
            state[3] += 1

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


DAMAGE = {
    "missing": (lambda folder: (folder / "2.txt").unlink(), "2.txt is missing"),
    "truncated": (lambda folder: os.truncate(folder / "2.txt", 0), "2.txt has changed"),
    "other contents": (lambda folder: (folder / "sub/2").write_text("5"), "sub/2 has changed"),
    "no report": (lambda folder: (folder / "log/tasks/00002.json").unlink(), "00002.json is missing or damaged"),
    "half a report": (lambda folder: os.truncate(folder / "log/tasks/00002.json", 9), "00002.json is missing or"),
    "an old report": (lambda folder: change_report(folder, drop_digest), "00002.json is missing or damaged"),
    "another count": (lambda folder: change_report(folder, raise_count), "00002.json is missing or damaged"),
}


def change_report(folder, change):
    path = folder / "log/tasks/00002.json"
    path.write_text(change(path.read_text()))


def drop_digest(report):
    return report.partition("\n")[0]


def raise_count(report):
    return report.replace('"squares":4', '"squares":5')


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_task_whose_files_have_changed_runs_again(folder, capsys, how, is_finished):
    if is_finished:
        run(Square(folder))
    else:
        with pytest.raises(UserError, match="task 3 is invalid"):
            run(Square(folder, fails=3))
    change, message = DAMAGE[how]
    change(folder)
    assert run(Square(folder)).counts == {"squares": 55}
    assert f"weft: task 2 runs again: {folder}" in (shown := capsys.readouterr().err)
    assert f"{message}" in shown
    assert Counter(calls(folder)[0]) == {**dict.fromkeys(range(NUM_TASKS), 1), 2: 2}
    assert (folder / "2.txt").read_text() == (folder / "sub/2").read_text() == "4"
    assert run(Square(folder)).counts == {"squares": 55}
    assert "runs again" not in capsys.readouterr().err


def test_files_and_their_directories_are_synced_before_the_marker(folder, monkeypatch):
    events = []
    monkeypatch.setattr(job, "sync", lambda path: events.append(path.relative_to(folder).as_posix()))
    mark = job._LocalExecutor.mark_rank_as_completed
    monkeypatch.setattr(job._LocalExecutor, "mark_rank_as_completed", lambda *a: (events.append("marker"), mark(*a)))
    run(Square(folder))
    first = events[: events.index("marker")]
    assert first[:2] == ["0.txt", "sub/0"]
    assert set(first[2:-1]) == {".", "sub"}
    assert first[-1] == "log/tasks"


def test_worker_processes_are_replaced_after_some_tasks(folder, quick_workers):
    job.run(Square(folder), Draft(folder), NUM_TASKS, JobConfig(2), "square", tasks_per_process=2)
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
