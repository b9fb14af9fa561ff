"""Kills, concurrent writers and full disks for bench/faults.py, for every command that creates an artifact."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_eval import output_files
from fault_runs import Ended, Options, Run, Trial, difference, finish, leftovers, unreadable
from fault_world import Job, World

MAX_SEC = 240.0
_START_SEC = 6.0  # that worker processes, or a program, take to start, about


def kills(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Kill every command at random times, and run it again to its end."""
    for job in options.jobs(world.jobs):
        for i in range(options.rounds):
            out = folder / f"{job.name}-{i}/out"
            out.parent.mkdir(parents=True)
            workers = ("--workers", "2") if job.has_workers and i % 4 == 3 else ()
            is_program = i % 5 == 4
            max_sec = job.sec + (_START_SEC if workers else 0) + (_START_SEC if is_program else 0)
            killed_at = [
                _kill(Run(job.arguments(out, *workers), out.parent, is_program=is_program), options.rng, max_sec)
                for _ in range(options.rng.choice((1, 1, 2)))
            ]
            ended = finish(job.arguments(out, *workers), out.parent, max_sec=MAX_SEC)
            times = ", ".join(f"{sec:.2f} s" for sec in killed_at)
            problem = _problem(ended, out, world.folder / job.name)
            yield Trial("kills", job.name, f"killed after {times}{' with two workers' if workers else ''}", problem)
            shutil.rmtree(out.parent)


def _kill(run: Run, rng: random.Random, max_sec: float) -> float:
    """Kill a command after a random part of `max_sec`; return the seconds. Its workers may still run."""
    time.sleep(sec := rng.uniform(0, max_sec))
    if run.poll():
        run.kill()
    os.waitpid(run.pid, 0)
    return sec


def writers(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Start two processes with one output directory, with the same settings and with others."""
    for job in options.jobs(world.jobs):
        other = folder / f"{job.name}-other"
        if job.variant:
            other.mkdir(parents=True)
            finish(job.arguments(other / "out", *job.variant), other, max_sec=MAX_SEC)
        for i in range(options.rounds):
            for more in ((), job.variant) if job.variant else ((),):
                out = folder / f"{job.name}-{i}-{len(more)}/out"
                out.parent.mkdir(parents=True)
                first = Run(job.arguments(out), out.parent)
                time.sleep(delay_sec := options.rng.uniform(0, job.sec))
                second = Run(job.arguments(out, *more), out.parent)
                both = [first.wait(MAX_SEC), second.wait(MAX_SEC)]
                name = f"second process after {delay_sec:.2f} s{' with ' if more else ''}{' '.join(more)}"
                references = [world.folder / job.name, other / "out"] if more else [world.folder / job.name]
                yield Trial("writers", job.name, name, _problem_of_writers(both, out, references))
                shutil.rmtree(out.parent)


def _problem_of_writers(both: list[Ended], out: Path, references: list[Path]) -> str | None:
    statuses = [ended.status for ended in both]
    for ended in both:
        if problem := unreadable(ended):
            return f"statuses {statuses}: {problem}"
    if 0 not in statuses:
        return f"statuses {statuses}: {both[0].messages[0]}"
    if len(references) == 2 and statuses == [0, 0]:
        return "both processes succeeded with different settings"
    reference = references[statuses.index(0)] if len(references) == 2 else references[0]
    return difference(out, reference) or leftovers(out)


def disk(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Run every command on a file system that becomes full, and again after it has grown."""
    folder.mkdir()
    if not _can_mount(folder):
        print("disk: not tried, because this process cannot mount a small file system (it needs root)")
        return
    for job in options.jobs(world.jobs):
        with _mounted(folder / "measure", 1 << 30) as mount:
            peak_bytes = _peak_bytes(job, mount)
        for _ in range(options.rounds):
            size_bytes = int(options.rng.uniform(0.02, 0.98) * peak_bytes)
            with _mounted(folder / "small", size_bytes) as mount:
                full = finish(job.arguments(mount / "out"), folder, max_sec=MAX_SEC)
                problem = unreadable(full) or (_problem_of_full_disk(full, mount) if full.status else None)
                subprocess.run(["mount", "-o", "remount,size=1g", mount], check=True)
                ended = finish(job.arguments(mount / "out"), folder, max_sec=MAX_SEC)
                problem = problem or _problem(ended, mount / "out", world.folder / job.name)
            yield Trial("disk", job.name, f"{size_bytes / 1024:.0f} KiB of {peak_bytes / 1024:.0f} KiB", problem)
    for command, (arguments, suffix) in output_files(world).items():
        if options.wants(command):
            with _mounted(folder / "small", 1 << 16) as mount:
                yield Trial("disk", command, "an output file", _problem_of_file(arguments, mount, f"out{suffix}"))


def _problem_of_file(arguments: list[str], mount: Path, name: str) -> str | None:
    """Return what is wrong with a command whose output file has no space, and after there is some."""
    (mount / "full").write_bytes(bytes(os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize))
    full = finish([*arguments, "--out", str(mount / name)], mount.parent, max_sec=MAX_SEC)
    problem = unreadable(full) or (_problem_of_full_disk(full, mount) if full.status else "succeeded on a full disk")
    if left := [path.name for path in mount.iterdir() if path.name != "full"]:
        problem = problem or f"left {', '.join(left)}"
    subprocess.run(["mount", "-o", "remount,size=1g", mount], check=True)
    ended = finish([*arguments, "--out", str(mount / name)], mount.parent, max_sec=MAX_SEC)
    problem = problem or unreadable(ended)
    return problem or (None if ended.status == 0 and (mount / name).stat().st_size else "wrote nothing with space")


def _problem_of_full_disk(ended: Ended, mount: Path) -> str | None:
    message = ended.messages[0]
    if "space" not in message or str(mount) not in message:
        return f"the message does not name the path and the full disk: {message}"
    return "left a partial artifact under its final name" if (mount / "out").exists() else None


def _peak_bytes(job: Job, mount: Path) -> int:
    """Return the most bytes that a command occupies while it runs."""
    run, peak_bytes = Run(job.arguments(mount / "out"), mount.parent), 0
    ended: list[Ended] = []
    waiting = threading.Thread(target=lambda: ended.append(run.wait(MAX_SEC)))
    waiting.start()
    while waiting.is_alive():
        state = os.statvfs(mount)
        peak_bytes = max(peak_bytes, (state.f_blocks - state.f_bfree) * state.f_frsize)
        time.sleep(0.005)
    return peak_bytes


@contextmanager
def _mounted(path: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a file system in memory."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(4096, size_bytes)}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _can_mount(folder: Path) -> bool:
    try:
        with _mounted(folder / "try", 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _problem(ended: Ended, out: Path, reference: Path) -> str | None:
    """Return what is wrong with a run that must end with the reference."""
    problem = unreadable(ended) or (f"status 2: {ended.messages[0]}" if ended.status else None)
    return problem or difference(out, reference) or leftovers(out)
