"""One writer per artifact: a second process is refused, and a lock ends with its process."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import weft
from weft import lock
from weft.errors import UserError, line_and_status
from weft.lock import lock_file, locked, owner_of
from weft.plan import Plan, create

HOLD = """
import os, sys, time
from pathlib import Path
from weft.plan import Plan, open_draft
with open_draft(Path(sys.argv[1]), Plan("codes", {})) as draft:
    (draft.folder / "part").write_text("first")
    if "fork" in sys.argv and not os.fork():
        print("ready", flush=True)
        time.sleep(60)
        os._exit(0)
    if "fork" not in sys.argv:
        print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """writer(*flags) -> another process that writes tmp_path/codes, until its stdin is closed."""
    started = []
    environment = {**os.environ, "PYTHONPATH": str(Path(weft.__file__).parents[1])}

    def start(*flags):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "codes"), *flags]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def write(draft):
    (draft.folder / "part").write_text("second")


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_second_process_is_refused_and_changes_nothing(tmp_path, writer):
    first = writer()
    before = names_in(tmp_path)
    message = rf"codes is being written by process {first.pid} on {socket.gethostname()}: wait for it, or stop it"
    for plan in (Plan("codes", {}), Plan("codes", {"seed": 1})):
        with pytest.raises(UserError, match=message):
            create(tmp_path / "codes", plan, write)
    assert names_in(tmp_path) == before
    first.communicate()
    assert first.returncode == 0
    assert names_in(tmp_path) == ["codes/log/plan.json", "codes/manifest.json", "codes/part"]
    assert (tmp_path / "codes/part").read_text() == "first"


@pytest.mark.parametrize("flags", [(), ("fork",)])
def test_the_lock_of_a_killed_process_is_free(tmp_path, writer, flags):
    first = writer(*flags)
    first.kill()  # its forked process keeps running
    first.wait()
    assert owner_of(tmp_path / "codes").pid == first.pid
    create(tmp_path / "codes", Plan("codes", {}), write)
    assert (tmp_path / "codes/part").read_text() == "second"
    assert names_in(tmp_path) == ["codes/log/plan.json", "codes/manifest.json", "codes/part"]


def test_the_lock_of_a_process_that_was_killed_after_its_artifact_was_complete_is_removed(tmp_path):
    plan = Plan("codes", {})
    create(tmp_path / "codes", plan, write)
    lock_file(tmp_path / "codes").write_text(f"{socket.gethostname()} 1 ")
    with locked(tmp_path / "codes"):  # it is still ending
        create(tmp_path / "codes", plan, write)
        assert owner_of(tmp_path / "codes").pid == os.getpid()
    lock_file(tmp_path / "codes").write_text(f"{socket.gethostname()} 1 ")
    create(tmp_path / "codes", plan, write)
    assert names_in(tmp_path) == ["codes/log/plan.json", "codes/manifest.json", "codes/part"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, RuntimeError])
def test_an_error_removes_the_lock(tmp_path, error):
    def fail():
        with locked(tmp_path / "new/codes"):
            assert owner_of(tmp_path / "new/codes").pid == os.getpid()
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == []


def test_one_process_cannot_lock_twice(tmp_path):
    with locked(tmp_path / "a"), pytest.raises(UserError, match=f"by process {os.getpid()}"), locked(tmp_path / "a"):
        pass
    with locked(tmp_path / "a"):
        pass


def test_a_lock_file_of_another_machine_is_not_removed(tmp_path):
    path = lock_file(tmp_path / "codes")
    path.write_text("far-away 7 another-boot")
    message = rf"may be being written by process 7 on far-away: wait for it or, if it has ended, delete {path}"
    with pytest.raises(UserError, match=message), locked(tmp_path / "codes"):
        pass
    assert path.read_text() == "far-away 7 another-boot"
    path.write_text(f"another-container 7 {lock._boot_id() or 'x'}")  # of the same kernel
    if lock._boot_id():
        with locked(tmp_path / "codes"):
            pass


def test_another_file_is_not_used_as_a_lock(tmp_path):
    lock_file(tmp_path / "codes").write_text("[[package]]\nname = 'mine'\n")
    with pytest.raises(UserError, match="is not a lock file of weft: move it"), locked(tmp_path / "codes"):
        pass
    assert lock_file(tmp_path / "codes").read_text().startswith("[[package]]")
    lock_file(tmp_path / "linked").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links") as found, locked(tmp_path / "linked"):
        pass
    assert line_and_status(found.value)[1] == 2
    os.mkfifo(lock_file(tmp_path / "pipe"))
    with pytest.raises(UserError, match="is not a lock file of weft: move it"), locked(tmp_path / "pipe"):
        pass


@pytest.mark.parametrize("is_running", [True, False])
def test_a_file_system_without_locks_relies_on_the_process(tmp_path, monkeypatch, is_running):
    def unsupported(fd, operation):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid = os.getpid() if is_running else ended.pid
    lock_file(tmp_path / "codes").write_text(f"{socket.gethostname()} {pid} x")
    if is_running:
        with pytest.raises(UserError, match=f"is being written by process {pid}"), locked(tmp_path / "codes"):
            pass
        assert lock_file(tmp_path / "codes").exists()
    else:
        with locked(tmp_path / "codes"):
            pass
        assert not lock_file(tmp_path / "codes").exists()
