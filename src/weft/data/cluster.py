"""Data jobs on a cluster, by datatrove's Slurm and Ray executors.

    executor = Executor("slurm", partition="gpu")
    with run_tasks(executor, step, folder, tasks, num_tasks, workers=64, title="x") as finished:
        for task in finished: ...                   # each task when its marker appears

Code, models, local corpora and the output directory must be on a file system that all machines share. This process
waits for the tasks. If it is killed and started again, it finds its Slurm job.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from weft.config import NonNegativeInt, PositiveInt
from weft.errors import UserError
from weft.files import write_bytes

_POLL_SEC = 5.0
_JOB_ID = "slurm_job"
_COMPLETIONS = "completions"


@dataclass(frozen=True)
class Executor:
    """Where the tasks of a job run. All settings but `kind` are for clusters."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """This machine, or datatrove's Slurm or Ray executor."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores per worker."""
    mem_per_cpu_gb: PositiveInt = 4
    """Memory per CPU core, in GB."""
    gpus_per_worker: NonNegativeInt = 0
    """GPUs per worker."""
    partition: str = ""
    """Slurm partition."""
    time: str = "24:00:00"
    """Slurm time limit of a worker. Run the same command again for what is unfinished by then."""
    qos: str = ""
    """Slurm quality of service."""
    env_command: str = ""
    """Shell command that Slurm workers run first; by default, one that puts this Python on their PATH. Run only recipes
    that you trust, because this can be any program."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Other arguments of sbatch, such as `account`."""

    def __post_init__(self) -> None:
        if self.kind == "slurm" and not self.partition:
            raise UserError("executor.kind is slurm without a partition: give --executor.partition")


@contextmanager
def run_tasks(
    executor: Executor, step: PipelineStep, folder: Path, tasks: list[int], num_tasks: int, workers: int, title: str
) -> Iterator[Iterator[int]]:
    """Yield `tasks` as they finish. datatrove keeps its markers and logs in `folder`.

    Raises UserError for tasks that failed, with the last line of the first log, and for a cluster that is unavailable.
    """
    settings = {
        "pipeline": [step],
        "tasks": num_tasks,
        "workers": workers,
        "logging_dir": str(folder),
        "cpus_per_task": executor.cpus_per_worker,
        "mem_per_cpu_gb": executor.mem_per_cpu_gb,
        "gpus_per_task": executor.gpus_per_worker,
    }
    is_slurm = executor.kind == "slurm"
    tasks_per_worker = -(-len(tasks) // workers)
    job = _start_slurm(executor, folder, tasks_per_worker, title, settings) if is_slurm else _start_ray(settings)
    try:
        yield _finished(folder, tasks, job)
    except UserError:
        job.cancel()
        raise


def is_running(folder: Path) -> bool:
    """Whether a Slurm job that was started for `folder` is queued or runs."""
    job_id = folder / _JOB_ID
    return job_id.is_file() and _SlurmJob(job_id.read_text()).is_alive()


def remove_files(folder: Path) -> None:
    """Remove what a finished job has left in `folder` beside its markers.

    datatrove pickles the step, in which the commands of voices may contain keys, and logs what it runs.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file():
            path.unlink()
        elif path.name != _COMPLETIONS:
            shutil.rmtree(path, ignore_errors=True)  # of logs, which the last worker may still write


def _finished(folder: Path, tasks: list[int], job: _SlurmJob | _RayJob) -> Iterator[int]:
    remaining = dict.fromkeys(tasks)
    completions = folder / _COMPLETIONS
    while remaining:
        is_alive = job.is_alive()  # before the markers are listed, so that all are found when it has ended
        done = {int(name) for name in os.listdir(completions)} if completions.is_dir() else set()
        for task in [task for task in remaining if task in done]:
            del remaining[task]
            yield task
        if remaining and not is_alive:
            raise UserError(
                f"{len(remaining)} of {len(tasks)} tasks did not finish{_last_log_line(folder, remaining)}: "
                f"see {folder / 'logs'}, and run the same command again for the rest"
            )
        if remaining:
            time.sleep(_POLL_SEC)


def _last_log_line(folder: Path, remaining: dict[int, None]) -> str:
    """Return the last line that a failed task logged, in parentheses."""
    for task in remaining:
        log = folder / f"logs/task_{task:05d}.log"
        if log.is_file() and (lines := log.read_text(errors="replace").split("\n")):
            last = next((line for line in reversed(lines) if line.strip()), "")
            return f" (task {task}: {last[:300]})"
    return ""


class _Slurm(SlurmPipelineExecutor):
    """datatrove's executor without the job that merges its statistics."""

    def launch_merge_stats(self) -> None:
        pass


@dataclass(frozen=True)
class _SlurmJob:
    """A submitted job."""

    job_id: str

    def is_alive(self) -> bool:
        status = _call("squeue", "--noheader", "--jobs", self.job_id)
        if status.returncode:
            return "Invalid job id" not in status.stderr  # otherwise the controller is busy
        return bool(status.stdout.strip())

    def cancel(self) -> None:
        _call("scancel", self.job_id)


def _start_slurm(
    executor: Executor, folder: Path, tasks_per_worker: int, title: str, settings: dict[str, Any]
) -> _SlurmJob:
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError("executor.kind is slurm inside a Slurm array task: start the command outside of it")
    if is_running(folder):
        return _SlurmJob((folder / _JOB_ID).read_text())
    slurm = _Slurm(
        **settings,
        time=executor.time,
        partition=executor.partition,
        job_name=f"weft-{title.replace(' ', '-')}",
        qos=executor.qos,
        env_command=executor.env_command or f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"',
        sbatch_args=dict(executor.sbatch),
        max_array_size=settings["workers"],
        slurm_logs_folder=str(folder / "slurm_logs"),
        tasks_per_job=tasks_per_worker,  # in one array element, which loads its model once
    )
    try:
        with _slurm_commands():
            slurm.run()
    except subprocess.CalledProcessError as e:
        raise UserError(f"sbatch rejected the job with status {e.returncode}: see its message above") from e
    write_bytes(folder / _JOB_ID, str(slurm.job_id).encode())
    return _SlurmJob(str(slurm.job_id))


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    with _slurm_commands():
        return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def _slurm_commands() -> Iterator[None]:
    """Raise UserError for a missing command of Slurm."""
    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"{e.filename} is not installed: start this command where Slurm's commands are") from e


class _RayJob(threading.Thread):
    """datatrove's Ray executor in a thread, which ends when all tasks are finished or one has failed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(target=RayPipelineExecutor(**settings).run, daemon=True)
        self.start()

    def cancel(self) -> None:
        import ray

        ray.shutdown()


def _start_ray(settings: dict[str, Any]) -> _RayJob:
    try:
        import ray
    except ImportError as e:
        raise UserError("executor.kind is ray, but Ray is not installed: pip install ray") from e
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)  # the cluster of $RAY_ADDRESS, or a new local one
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise UserError(f"Ray cannot be reached ({e}): check RAY_ADDRESS") from e
    return _RayJob(settings)
