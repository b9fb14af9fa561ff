"""Runs of weft commands for bench/faults.py: each in its own process, with limits of time and memory.

    run = Run(["info", "world/tokenize"], folder)       # a fork of this process, which has imported weft
    run.kill()                                          # SIGKILL, which leaves its workers behind
    ended = run.wait()
    problem = unreadable(ended) or refused("damaged")(ended, folder)

A check returns what is wrong as one line, or None.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from weft import cli

J = TypeVar("J")
MAX_PEAK_BYTES = 3 << 29  # of memory above this process's, 1.5 GB
MAX_SEC = 120.0
_QUICK_JOBS = ("documents-text", "tokenize", "sft")
_ADDRESS_BYTES = 3 << 30  # of address space above this process's, so that a failing case does not take the machine
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MEASURED = re.compile(r"_sec$|^worker_hours$")  # counts that depend on the speed of the machine


@dataclass(frozen=True)
class Options:
    """How much a section tries, and its random numbers."""

    rounds: int
    rng: random.Random
    is_quick: bool = False
    only: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether a name contains one of `only`."""
        return not self.only or any(part in name for part in self.only)

    def jobs(self, jobs: Mapping[str, J]) -> list[J]:
        """Return those of the jobs, by name, that are wanted."""
        names = [name for name in jobs if self.wants(name) and (not self.is_quick or name in _QUICK_JOBS)]
        return [jobs[name] for name in names]


@dataclass(frozen=True)
class Trial:
    """A tried case: its section, its group in the table, its description, and what is wrong (None: passed)."""

    section: str
    group: str
    name: str
    problem: str | None


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its status (None: stopped at the time limit; negative: by a signal) and its output."""

    status: int | None
    output: str
    peak_bytes: int
    sec: float

    @property
    def messages(self) -> list[str]:
        """The lines that report errors."""
        lines = (line.removeprefix("> ") for line in self.output.splitlines())  # the prompt of `weft chat`
        return [line for line in lines if line.startswith("weft: ")]


Check = Callable[[Ended, Path], str | None]


class Run:
    """A command that runs in `folder`, in a process group of its own.

    It runs in a fork of this process, or with `is_program` as `python -m weft`. Without a reader, its standard output
    is a pipe that nobody reads.
    """

    def __init__(
        self,
        arguments: Sequence[str | bytes],
        folder: Path,
        stdin: bytes = b"",
        is_program: bool = False,
        environment: Mapping[str, str] | None = None,
        has_reader: bool = True,
    ) -> None:
        self.arguments = [os.fsdecode(argument) for argument in arguments]
        self._log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        self._start_sec = time.monotonic()
        self._baseline_bytes = _resident_bytes()
        self.is_running = True
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update({"HF_HUB_OFFLINE": "1", **(environment or {})})
            self._execute(folder, stdin, is_program, has_reader)

    def _execute(self, folder: Path, stdin: bytes, is_program: bool, has_reader: bool) -> None:
        """Run the command in this new process, and end it."""
        status = 1
        try:
            os.setsid()
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            read, write = os.pipe()
            os.write(write, stdin)
            os.close(write)
            os.dup2(read, 0)
            if not has_reader:
                read, write = os.pipe()
                os.close(read)
                os.dup2(write, 1)
            os.chdir(folder)
            limit = _virtual_bytes() + _ADDRESS_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if is_program:
                os.execv(sys.executable, [sys.executable, "-m", "weft", *self.arguments])
            cli.main(self.arguments)
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        except BaseException:  # noqa: BLE001 - as the interpreter does
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def kill(self) -> None:
        """End the process, but not its children."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, max_sec: float = MAX_SEC) -> Ended:
        """Wait for the end, and end what remains of the process group after ten seconds."""
        status, usage = None, None
        while usage is None:
            pid, code, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() - self._start_sec > max_sec:
                os.killpg(self.pid, signal.SIGKILL)
                _, _, usage = os.wait4(self.pid, 0)
            else:
                usage = None
                time.sleep(0.005)
        self.is_running = False
        sec = time.monotonic() - self._start_sec
        remains = self._end_group()
        output = self._log.read_text(errors="backslashreplace")
        self._log.unlink()
        if remains:
            output += "\nprocesses remain after the end"
        return Ended(status, output, max(0, usage.ru_maxrss * 1024 - self._baseline_bytes), sec)

    def poll(self) -> bool:
        """Whether the process still runs."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def _end_group(self) -> bool:
        """Wait up to ten seconds for the children of the process; end those that remain, and return whether any did."""
        stop_sec = time.monotonic() + 10
        while time.monotonic() < stop_sec:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        return True


def finish(arguments: Sequence[str | bytes], folder: Path, max_sec: float = MAX_SEC, **how: Any) -> Ended:
    """Run a command to its end; `how` are arguments of `Run`."""
    return Run(arguments, folder, **how).wait(max_sec)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# Checks


def unreadable(ended: Ended) -> str | None:
    """Return what no run may do: end by a signal or at the time limit, print a traceback, or take much memory."""
    if ended.status is None:
        return f"did not end within {ended.sec:.0f} s"
    if "Traceback (most recent call last)" in ended.output:
        return f"traceback: {ended.output.strip().splitlines()[-1]}"
    if ended.status < 0:
        return f"ended by signal {-ended.status}"
    if "processes remain after the end" in ended.output:
        return "processes remain after the end"
    if ended.peak_bytes > MAX_PEAK_BYTES:
        return f"took {ended.peak_bytes / 1e9:.1f} GB"
    if found := _CONTROL.search(ended.output):
        return f"printed the control character {found[0]!r}: {_last_line(ended)}"
    if ended.status == 2 and len(ended.messages) != 1:
        return f"status 2 with {len(ended.messages)} messages: {_last_line(ended)}"
    return None if ended.status in (0, 2) else f"status {ended.status}: {_last_line(ended)}"


def refused(*words: str) -> Check:
    """Expect status 2 with one line that contains `words`, and no artifact `out`."""

    def check(ended: Ended, folder: Path) -> str | None:
        if ended.status != 2:
            return f"status {ended.status}, expected 2: {_last_line(ended)}"
        if missing := [word for word in words if word.lower() not in ended.messages[0].lower()]:
            return f"the message lacks {', '.join(missing)}: {ended.messages[0]}"
        return "left an artifact" if (folder / "out").is_dir() else None

    return check


def makes(skipped: int | None = None, says: str = "", **counts: int) -> Check:
    """Expect status 0, counts of the manifest of `out`, a number of lines in its skipped.jsonl, and printed words."""

    def check(ended: Ended, folder: Path) -> str | None:
        if ended.status != 0:
            return f"status {ended.status}, expected 0: {_last_line(ended)}"
        found = json.loads((folder / "out/manifest.json").read_text())["counts"] if counts else {}
        for name, count in counts.items():
            if found.get(name) != count:
                return f"{name} is {found.get(name)}, expected {count}"
        if skipped is not None and (num := len(skipped_items(folder))) != skipped:
            return f"skipped {num} items, expected {skipped}"
        return None if says in ended.output else f"{says!r} is not printed"

    return check


def any_of(*checks: Check) -> Check:
    """Expect the outcome of one of `checks`."""

    def check(ended: Ended, folder: Path) -> str | None:
        problems = [problem(ended, folder) for problem in checks]
        return None if None in problems else "; ".join(str(problem) for problem in problems)

    return check


def ends(ended: Ended, folder: Path) -> str | None:
    """Expect status 0, or status 2 with one line."""
    return None


def skipped_items(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the skipped.jsonl of `out`, or of its partial directory."""
    files = [path for path in sorted(folder.glob("out*/log/skipped.jsonl")) if path.is_file()]
    return [json.loads(line) for path in files[:1] for line in path.read_bytes().splitlines()]


def _last_line(ended: Ended) -> str:
    return (ended.messages or ended.output.strip().splitlines() or ["no output"])[-1][:300]


# Comparison of artifacts


def contents(artifact: Path) -> dict[str, str]:
    """Return a hash of each file except those in log/. Speeds are left out of the manifest."""
    found = {}
    for path in sorted(artifact.rglob("*")):
        name = path.relative_to(artifact).as_posix()
        if path.is_file() and not name.startswith("log/"):
            found[name] = hashlib.sha256(_without_speeds(path)).hexdigest()
    return found


def difference(artifact: Path, reference: Path) -> str | None:
    """Return how an artifact differs from the reference, or None."""
    if not artifact.is_dir():
        return "there is no artifact"
    own, expected = contents(artifact), contents(reference)
    if changed := sorted(name for name in own.keys() | expected.keys() if own.get(name) != expected.get(name)):
        return f"{', '.join(changed[:3])} differ from the uninterrupted run"
    return None


def leftovers(out: Path) -> str | None:
    """Return the temporary files of a finished artifact, or None."""
    beside = [p.name for p in out.parent.iterdir() if p.name.startswith(out.name) and p != out and p.suffix != ".log"]
    found = beside + [p.name for p in out.rglob("*") if p.suffix in (".tmp", ".partial", ".lock")]
    return f"left {', '.join(found[:3])}" if found else None


def _without_speeds(path: Path) -> bytes:
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text())
    manifest["counts"] = _without_measured(manifest["counts"])
    return json.dumps(manifest, sort_keys=True).encode()


def _without_measured(counts: Any) -> Any:
    if not isinstance(counts, dict):
        return counts
    return {name: _without_measured(value) for name, value in counts.items() if not _MEASURED.search(name)}
