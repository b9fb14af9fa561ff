"""Programs that convert text: run once, or kept running.

    run(["tts", "text.txt", "out.wav"], timeout_sec=300)
    path = answer(("tts", "--server"), "Good morning.", timeout_sec=300)

Each program has a process group of its own, which is killed as a whole.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from weft.errors import printable, without_secrets

_MAX_LINE_BYTES = 1 << 16
_MIN_KEY_CHARS = 8
_EXIT_SEC = 5  # for a program whose input has ended
_running: dict[tuple[str, ...], _Server] = {}


class ProgramError(Exception):
    """A program that failed, with its last message, in which longer arguments are replaced, since they may be keys."""


def run(command: Sequence[str], timeout_sec: float) -> None:
    """Run a program to its end. Raises ProgramError if it fails or takes longer, and OSError if it cannot start."""
    with _popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=timeout_sec)
        except subprocess.TimeoutExpired as e:
            _kill(process)
            raise ProgramError(f"it took more than {timeout_sec:g} s") from e
        except BaseException:
            _kill(process)
            raise
    if process.returncode != 0:
        raise ProgramError(_last_line((errors.strip() or output).decode(errors="replace"), command) or "no message")


def answer(command: tuple[str, ...], line: str, timeout_sec: float) -> str:
    """Return the line with which a program answers a line. It is started if it is not running.

    Raises ProgramError if it ends, takes longer, or writes several lines, and OSError if it cannot start. A program
    that fails is ended, because its next line could be the answer to this one.
    """
    server = _running.pop(command, None)
    if server is not None and server.process.poll() is not None:
        server.end()
        server = None
    if server is None:
        server = _Server(command)
    try:
        found = server.answer(line, timeout_sec)
    except BaseException:
        server.end()
        raise
    _running[command] = server
    return found


def end(command: tuple[str, ...], patience_sec: float = 0) -> None:
    """End a running program after `patience_sec` at most. The next `answer` starts it again."""
    if server := _running.pop(command, None):
        server.end(patience_sec)


@atexit.register
def _end_all() -> None:
    for command in list(_running):
        end(command, _EXIT_SEC)


class _Server:
    """A program that answers each line of its standard input with a line on its standard output."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        self.process = _popen(command, stdin=subprocess.PIPE, stderr=self._errors)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    def answer(self, line: str, timeout_sec: float) -> str:
        if select.select([self._output], [], [], 0)[0]:
            raise self._error("it wrote more than one line for a text")
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(self.process)

        timer = threading.Timer(timeout_sec, stop)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # of a program that has ended, which has no answer
                self._input.write(line.encode(errors="replace") + b"\n")
                self._input.flush()
            found = b""
            while b"\n" not in found and len(found) < _MAX_LINE_BYTES:
                if not (part := os.read(self._output.fileno(), _MAX_LINE_BYTES)):
                    raise self._error(f"it took more than {timeout_sec:g} s" if late.is_set() else "it ended")
                found += part
        finally:
            timer.cancel()
        if found.find(b"\n") != len(found) - 1:
            raise self._error("it wrote more than one line for a text")
        return os.fsdecode(found).strip()

    def end(self, patience_sec: float = 0) -> None:
        """Close its input, which ends a program that reads it, and kill what is left after `patience_sec`."""
        with suppress(OSError):
            self._input.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_sec)
        _kill(self.process)
        self.process.wait()
        self._errors.close()
        self._output.close()

    def _error(self, problem: str) -> ProgramError:
        """Return an error with the last message of the program, or else `problem`."""
        size = os.fstat(self._errors.fileno()).st_size
        end = os.pread(self._errors.fileno(), _MAX_LINE_BYTES, max(0, size - _MAX_LINE_BYTES))  # keeps its position
        return ProgramError(": ".join(filter(None, (problem, _last_line(end.decode(errors="replace"), self._command)))))


def _popen(command: Sequence[str], **pipes: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **pipes)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and what it has started. What has ended is not killed."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(message: str, command: Sequence[str]) -> str:
    """Return the last line of a program's message without its longer arguments, which may be keys."""
    line = message.strip().rsplit("\n", 1)[-1]
    for argument in sorted(command[1:], key=len, reverse=True):
        if len(argument) >= _MIN_KEY_CHARS:
            line = line.replace(argument, "...")
    return printable(without_secrets(line))
