"""Scanning of directories: which files are read, reported, or refused."""

import os
import socket

import numpy as np
import pytest

from weft.audio import save
from weft.data.speech import audio_lengths, load_speech, read_manifest, speech_id
from weft.data.speech_formats.files import AUDIO_SUFFIXES, files_below, is_audio
from weft.errors import UserError


def names(folder):
    """Return the names of the files that are found, and those of the problems."""
    found = list(files_below(folder, is_audio))
    return [[path.name for path, problem in found if (problem is None) == good] for good in (True, False)]


def test_files_that_are_not_read_are_reported_in_one_line(tmp_path, capsys):
    for name in ("a.wav", "b.M4A", "c.m4a", "d/e.wma", "notes.txt", "f.oga", "manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == [["a.wav", "f.oga"], []]
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path}: files that weft cannot read are ignored (2 .m4a, 1 .wma): convert them to FLAC or Opus"


def test_nothing_is_reported_for_a_directory_that_is_read_completely(tmp_path, capsys):
    (tmp_path / "a.wav").touch()
    assert names(tmp_path) == [["a.wav"], []]
    assert capsys.readouterr().err == ""


def test_all_formats_that_can_be_read_are_listed(tmp_path):
    for suffix in AUDIO_SUFFIXES:
        (tmp_path / f"{suffix[1:]}{suffix.upper()}").touch()
    assert len(names(tmp_path)[0]) == len(AUDIO_SUFFIXES)


def test_links_that_leave_the_directory_are_refused_unless_allowed(tmp_path, monkeypatch):
    samples = np.full(1000, 0.1, np.float32)
    for name in ("speech/a.wav", "elsewhere/b.wav", "secret.txt"):
        save(tmp_path / name, samples, 16_000)
    folder = tmp_path / "speech"
    (folder / "inside.wav").symlink_to(folder / "a.wav")
    (folder / "out.wav").symlink_to("../elsewhere/b.wav")
    (folder / "renamed.wav").symlink_to(tmp_path / "secret.txt")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    assert names(folder) == [["a.wav", "inside.wav"], ["more", "out.wav", "renamed.wav"]]
    with pytest.raises(UserError, match="it is a link that leaves the directory: give its target"):
        [load_speech(u) for u in read_manifest(folder)]
    monkeypatch.setenv("WEFT_FOLLOW_SYMLINKS", "1")
    assert names(folder) == [["a.wav", "inside.wav", "b.wav", "out.wav", "renamed.wav"], []]
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.delenv("WEFT_FOLLOW_SYMLINKS")
    assert names(tmp_path / "link") == [["a.wav", "inside.wav"], ["more", "out.wav", "renamed.wav"]]


@pytest.mark.parametrize("follow", ["0", "1"])
def test_loops_of_links_end(tmp_path, monkeypatch, follow):
    monkeypatch.setenv("WEFT_FOLLOW_SYMLINKS", follow)
    root = tmp_path / "root"
    for folder, target in (("a", "b"), ("b", "a"), ("a/c", "a")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "link").symlink_to(root / target)
    (root / "a/up").symlink_to(tmp_path)
    (root / "a/x.wav").touch()
    (root / "a/self.wav").symlink_to("self.wav")
    found = names(root)
    assert found[0].count("x.wav") == 1
    assert "self.wav" in found[0]


def test_pipes_sockets_and_broken_links_are_bad_items_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "broken.wav").symlink_to("nowhere.wav")
    folder = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket.wav")
        os.chdir(folder)
        utterances = read_manifest(tmp_path)
        assert [u.id for u in utterances] == ["broken", "pipe", "socket"]
        assert speech_id(utterances)
        assert all("not" in str(length) for length in audio_lengths(utterances))
        for utterance in utterances:
            with pytest.raises(UserError, match=r"does not exist|is not a file"):
                load_speech(utterance)
