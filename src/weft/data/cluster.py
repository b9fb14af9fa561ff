"""Where the tasks of a job run: in processes of this machine, or by datatrove's Slurm or Ray executor on many.

    with finish(Executor("slurm", partition="gpu"), step, folder, left, num_tasks, workers=64, title="...") as finished:
        for task in finished: ...                   # each task as its marker appears

What a task needs (code, models, local corpora, the folder it writes to) is on a disk that all machines share. This
process waits for them. Killed and started again it finds its Slurm job, and waits on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from weft.artifacts import write_bytes
from weft.config import Count, Natural
from weft.errors import UserError

_POLL_SEC = 5.0
_JOB = "slurm_job"


@dataclass(frozen=True)
class Executor:
    """Where a job's tasks run. All but `kind` is for the machines of a cluster."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """This machine, or datatrove's Slurm or Ray executor."""
    cpus_per_worker: Count = 1
    """Processors of a worker."""
    mem_per_cpu_gb: Count = 4
    """Memory for each of its processors, in GB."""
    gpus_per_worker: Natural = 0
    """GPUs of a worker."""
    partition: str = ""
    """Slurm partition."""
    time: str = "24:00:00"
    """Time that Slurm gives a worker; what it has not done by then, the same command does when it is given again."""
    qos: str = ""
    """Slurm quality of service."""
    env_command: str = ""
    """Shell command before Slurm's workers; by default, one that puts this Python on their PATH."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Other arguments of sbatch, such as `account`."""

    def __post_init__(self) -> None:
        if self.kind == "slurm" and not self.partition:
            raise UserError("executor.kind is slurm, and needs the partition to run in: give --executor.partition")


HERE = Executor()


@contextmanager
def finish(
    executor: Executor, step: PipelineStep, folder: Path, left: list[int], num_tasks: int, workers: int, title: str
) -> Iterator[Iterator[int]]:
    """Yield the tasks `left`, each as it is finished; datatrove keeps its markers and logs in `folder`.

    Raises UserError for tasks that have failed, with what the first of them said, and for a cluster that is not there.
    """
    run = _on_slurm if executor.kind == "slurm" else _on_ray
    job = run(executor, step, folder, left, num_tasks, workers, title)
    try:
        yield _finished(folder, left, job)
    except UserError:
        job.cancel()
        raise


def is_at_work(folder: Path) -> bool:
    """Whether a Slurm job that was begun for `folder` waits or runs."""
    job = folder / _JOB
    return job.is_file() and _SlurmJob(job.read_text()).is_alive()


def _finished(folder: Path, left: list[int], job: _SlurmJob | _RayJob) -> Iterator[int]:
    waiting = dict.fromkeys(left)
    while waiting:
        is_alive = job.is_alive()  # before the look: what it has done by then is seen
        done = (
            {int(name) for name in os.listdir(folder / "completions")} if (folder / "completions").is_dir() else set()
        )
        for task in [task for task in waiting if task in done]:
            del waiting[task]
            yield task
        if waiting and not is_alive:
            raise UserError(
                f"{len(waiting)} of {len(left)} tasks did not finish{_said(folder, waiting)}: "
                f"see {folder / 'logs'}, and run the same command again for what is left"
            )
        if waiting:
            time.sleep(_POLL_SEC)


def _said(folder: Path, waiting: dict[int, None]) -> str:
    """The last line that a task that has failed left in its log."""
    for task in waiting:
        log = folder / f"logs/task_{task:05d}.log"
        if log.is_file() and (lines := log.read_text(errors="replace").split("\n")):
            said = next((line for line in reversed(lines) if line.strip()), "")
            return f" (task {task}: {said[:300]})"
    return ""


class _Slurm(SlurmPipelineExecutor):
    """datatrove's, without the job that sums up its own statistics: reports are summed here."""

    def launch_merge_stats(self) -> None:
        pass


@dataclass(frozen=True)
class _SlurmJob:
    number: str

    def is_alive(self) -> bool:
        asked = _call("squeue", "--noheader", "--jobs", self.number)
        if asked.returncode:
            return "Invalid job id" not in asked.stderr  # else the controller is busy
        return bool(asked.stdout.strip())

    def cancel(self) -> None:
        _call("scancel", self.number)


def _on_slurm(
    executor: Executor, step: PipelineStep, folder: Path, left: list[int], num_tasks: int, workers: int, title: str
) -> _SlurmJob:
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError("executor.kind is slurm, and this is a task of a Slurm array: start it outside of one")
    if is_at_work(folder):
        return _SlurmJob((folder / _JOB).read_text())
    launched = _Slurm(
        [step],
        num_tasks,
        executor.time,
        executor.partition,
        cpus_per_task=executor.cpus_per_worker,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        gpus_per_task=executor.gpus_per_worker,
        workers=workers,
        job_name=f"weft-{title.replace(' ', '-')}",
        qos=executor.qos,
        env_command=executor.env_command or f'export PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"',
        sbatch_args=dict(executor.sbatch),
        max_array_size=workers,
        logging_dir=str(folder),
        slurm_logs_folder=str(folder / "slurm_logs"),
        tasks_per_job=-(-len(left) // workers),  # one job a worker, which loads its model once
    )
    try:
        launched.run()
    except FileNotFoundError as e:
        raise UserError(f"{e.filename} is not here: start this where Slurm's commands are") from e
    except subprocess.CalledProcessError as e:
        raise UserError(f"sbatch refused the job with status {e.returncode}; its words are above") from e
    write_bytes(folder / _JOB, str(launched.job_id).encode())
    return _SlurmJob(str(launched.job_id))


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as e:
        raise UserError(f"{command[0]} is not here: start this where Slurm's commands are") from e


class _RayJob:
    """datatrove's Ray executor in a thread of its own: it returns when all is done, or has failed."""

    def __init__(self, launched: PipelineExecutor) -> None:
        self._thread = threading.Thread(target=launched.run, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def cancel(self) -> None:
        import ray

        ray.shutdown()


def _on_ray(
    executor: Executor, step: PipelineStep, folder: Path, left: list[int], num_tasks: int, workers: int, title: str
) -> _RayJob:
    try:
        import ray
    except ImportError as e:
        raise UserError("executor.kind is ray, and Ray is not installed here: pip install ray") from e
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)  # of $RAY_ADDRESS, of this machine, or begun here
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise UserError(f"Ray cannot be reached ({e}): see RAY_ADDRESS") from e
    return _RayJob(
        RayPipelineExecutor(
            [step],
            num_tasks,
            workers,
            logging_dir=str(folder),
            cpus_per_task=executor.cpus_per_worker,
            mem_per_cpu_gb=executor.mem_per_cpu_gb,
            gpus_per_task=executor.gpus_per_worker,
        )
    )
