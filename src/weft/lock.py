"""Locks of artifacts that are being written, so that two processes never write the same one.

    with locked(out):       # holds OUT.partial.lock, which names host and process
        ...

The lock file is locked by flock, which the kernel releases when the process ends, and removed at the end of the block.
Worker processes do not hold the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weft.errors import UserError

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # by the file system
_held: set[int] = set()  # descriptors of the lock files of this process


@dataclass(frozen=True)
class Owner:
    """The process that has written a lock file. `boot` identifies a running kernel, which containers share."""

    host: str
    pid: int
    boot: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_of_this_machine(self) -> bool:
        return self.host == socket.gethostname() or self.boot == _boot_id() != ""

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine has its number."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


def lock_file(out: Path) -> Path:
    """Return the lock file of the artifact `out`, which exists while it is written, and after a kill."""
    return out.with_name(f"{out.name}.partial.lock")


def owner_of(out: Path) -> Owner | None:
    """Return the process that has written the lock file of `out`, or None."""
    try:
        return _owner(lock_file(out).read_bytes(), lock_file(out))
    except FileNotFoundError:
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of the artifact `out`.

    Raises UserError at once if another process holds it, and for a lock file of another machine, whose process may
    still run: some file systems do not share locks between machines.
    """
    path = lock_file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = _open(out, path)
    while not _is_at(fd, path):  # the process that held it has just removed it
        os.close(fd)
        fd = _open(out, path)
    _held.add(fd)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{socket.gethostname()} {os.getpid()} {_boot_id()}".encode(), 0)
        yield
    finally:
        if _is_at(fd, path):
            path.unlink()
        _held.discard(fd)
        os.close(fd)


def remove_abandoned_lock(out: Path) -> None:
    """Remove the lock file that a process left when it was killed after it had created `out`."""
    if lock_file(out).exists():
        with suppress(UserError, OSError), locked(out):  # unless a process holds it, or it cannot be removed
            pass


def _open(out: Path, path: Path) -> int:
    """Return a descriptor of the lock file, locked. Raises UserError as `locked` does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UserError(f"{path} is not a lock file of weft: move it, or choose another --out")
        _lock(fd, out, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, out: Path, path: Path) -> None:
    owner, has_locks = _owner(os.pread(fd, 1000, 0), path), True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise UserError(f"{out} is being written by {owner or 'another process'}: wait for it, or stop it") from e
    except OSError as e:
        if e.errno not in _UNSUPPORTED:
            raise
        has_locks = False
    if owner and not owner.is_of_this_machine:
        raise UserError(f"{out} may be being written by {owner}: wait for it or, if it has ended, delete {path}")
    if owner and not has_locks and owner.is_running:
        raise UserError(f"{out} is being written by {owner}: wait for it, or stop it")


def _owner(content: bytes, path: Path) -> Owner | None:
    """Parse a lock file. It is empty for a moment after it is created."""
    try:
        host, pid, boot = content.decode().split(" ")
        return Owner(host, int(pid), boot)
    except (ValueError, TypeError) as e:
        if not content:
            return None
        raise UserError(f"{path} is not a lock file of weft: move it, or choose another --out") from e


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _boot_id() -> str:
    """Return an identifier of the running kernel, or nothing if it has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _close_inherited() -> None:
    """Close the lock files in a forked process, which would otherwise keep the locks after its parent has ended."""
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)
