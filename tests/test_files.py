"""Atomic writing of files, and identities that follow the contents."""

import copy
import errno
import json
import os
import pickle

import pytest

from weft import files
from weft.digests import file_digests
from weft.errors import UserError
from weft.files import content_id, rows_id


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_file_is_complete_or_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "new/x.json"
    files.write_json(path, {"a": "ü"})

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.json"):
        files.write_json(path, {"a": "much longer than before"})
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert names_in(tmp_path) == ["new/x.json"]


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    def write():
        with files.atomic_writer(tmp_path / "x") as f:
            f.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert names_in(tmp_path) == []


def test_a_path_that_cannot_be_written_is_rejected_before_the_work(tmp_path):
    files.check_writable(tmp_path / "new/x.WAV", ".wav")
    with pytest.raises(UserError, match="is a directory: give a file name"):
        files.check_writable(tmp_path)
    with pytest.raises(UserError, match=r"x.mp3 must have the suffix .wav: rename it"):
        files.check_writable(tmp_path / "x.mp3", ".wav")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        files.check_writable(tmp_path / "file/x.json")
    with pytest.raises(OSError, match="too long"):
        files.check_writable(tmp_path / ("x" * 250 + ".json"))
    assert names_in(tmp_path) == ["file"]


def test_a_check_of_a_path_changes_no_other_file(tmp_path):
    (tmp_path / "page.html.tmp").write_text("mine")
    files.check_writable(tmp_path / "page.html", ".html")
    assert (tmp_path / "page.html.tmp").read_text() == "mine"
    assert names_in(tmp_path) == ["page.html.tmp"]


def test_an_identity_notices_that_a_file_has_changed_since(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one")
    b.write_text("two")
    times = os.stat(b).st_atime_ns, os.stat(b).st_mtime_ns
    identity = content_id("x", file_digests([a, b, tmp_path / "missing"]))
    assert identity.changed_file() is None
    a.touch()  # the same contents
    assert identity.changed_file() is None
    b.write_text("six")
    os.utime(b, ns=times)
    assert identity.changed_file() == b
    b.unlink()
    assert identity.changed_file() == b
    copies = json.loads(json.dumps(identity)), pickle.loads(pickle.dumps(identity)), copy.deepcopy(identity)
    assert all(type(c) is str and c == identity for c in copies)


def test_an_appearing_file_is_a_change(tmp_path):
    identity = content_id("x", file_digests([tmp_path / "a"]))
    (tmp_path / "a").touch()
    assert identity.changed_file() == tmp_path / "a"


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_identity_follows_the_value():
    assert content_id([("a", 1)]) == content_id([("a", 1)]) != content_id([("a", 2)])
    assert content_id("\udc80").startswith("sha256:")
    assert len(content_id("x")) == len("sha256:") + 16


def test_the_identity_of_rows_is_that_of_their_list():
    for rows in ([], [("a", None)], [("a", "é", 1.5), ("b\udcff",), "x"]):
        assert rows_id(iter(rows)) == content_id(rows)
