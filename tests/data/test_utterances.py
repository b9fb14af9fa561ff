"""Lists of utterances in Arrow columns: they equal lists of objects, and ids are unique."""

import gc
import os
import pickle
import tempfile
from pathlib import Path

import pytest

from weft.data import utterances as module
from weft.data.speech_formats.entries import Entry, bad
from weft.data.utterances import Utterances, utterances_of
from weft.records import Utterance

NOT_UTF8 = os.fsdecode(b"\xff")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_BATCH_ROWS", 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def expected(num):
    """Return utterances with all kinds of values, also names of files that are not UTF-8."""
    made = []
    for i in range(num):
        texts = [None if i % 3 else f"text {i} é\n", f"s{i}" if i % 2 else None, "en", i / 3 if i % 4 else None]
        audio = f"/{NOT_UTF8}/{i}.wav" if i % 5 == 1 else f"/{i}.wav"
        made.append(Utterance(f"u{i}", audio, *texts, f"book {i}" if i > 6 else None))
    return made


@pytest.mark.parametrize("num", [0, 1, 3, 4, 5, 8, 23])
def test_a_list_of_utterances_equals_a_list_of_objects(num):
    objects = expected(num)
    found = utterances_of(Entry(u, "x") for u in objects)
    assert isinstance(found, Utterances)
    assert list(found) == objects
    assert [found[i] for i in range(-num, num)] == [*objects, *objects]
    for start in (None, 0, 1, 5, -3):
        for stop in (None, 2, 9, -1):
            for step in (None, 1, 2, 3, 7, -1, -3):
                part = slice(start, stop, step)
                assert list(found[part]) == objects[part]
                assert list(found[part][1:3]) == objects[part][1:3]
                assert len(found[part]) == len(objects[part])
    assert list(pickle.loads(pickle.dumps(found))) == objects
    assert list(pickle.loads(pickle.dumps(found[2:9:2]))) == objects[2:9:2]
    with pytest.raises(IndexError):
        found[num]


@pytest.mark.parametrize("num", [0, 3, 23])
def test_a_shared_list_is_pickled_without_its_contents(num, tmp_path):
    objects = expected(num)
    path = tmp_path / "job/utterances.arrow"
    shared = utterances_of(Entry(u, "x") for u in objects)[1:].shared(path)
    assert path.exists() == (num > 4)
    for part in (slice(None), slice(2, None, 3)):
        content = pickle.dumps(shared[part])
        assert list(pickle.loads(content)) == list(shared[part]) == objects[1:][part]
        assert num < 4 or objects[4].audio.encode("utf-8", "surrogatepass") not in content


@pytest.mark.parametrize("num", [3, 30])
def test_the_first_of_several_entries_with_one_id_is_kept(num):
    entries = [Entry(Utterance(f"u{i}", f"/{i}.wav"), f"line {i}") for i in range(num)]
    entries += [Entry(Utterance("u1", "/other.wav"), "line x"), bad("line y", "it is bad"), bad("line y", "again")]
    entries += [Entry(Utterance("u1", "/third.wav"), "line z")]
    found = utterances_of(entries)
    assert list(found[:num]) == [e.utterance for e in entries[:num]]
    assert [(u.id, u.audio, u.problem) for u in found[num:]] == [
        ("line x", "", "its id 'u1' also occurs in line 1: make ids unique"),
        ("line y", "", "it is bad"),
        ("line y", "", "its id 'line y' also occurs in line y: make ids unique"),
        ("line z", "", "its id 'u1' also occurs in line 1: make ids unique"),
    ]


def test_ids_with_the_same_hash_are_different(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda text: len(text), raising=False)
    entries = [Entry(Utterance(f"u{i}", "/a.wav"), f"line {i}") for i in range(9)]
    assert [u.problem for u in utterances_of([*entries, entries[3]])] == [None] * 9 + [
        "its id 'u3' also occurs in line 3: make ids unique"
    ]


def test_the_file_of_a_long_list_has_no_name_and_its_space_is_freed(tmp_path):
    def is_open():
        return any(os.path.realpath(f).startswith(str(tmp_path)) for f in Path("/proc/self/fd").iterdir())

    def is_mapped():
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    found = utterances_of(Entry(u, "x") for u in expected(30))
    assert not list(tmp_path.iterdir())
    if Path("/proc/self/maps").exists():
        assert is_mapped()
        utterance = found[3]
        del found
        gc.collect()
        assert utterance == expected(4)[3]
        assert not is_mapped()
        assert not is_open()


def test_an_error_while_reading_leaves_no_file(tmp_path):
    def entries():
        yield from (Entry(u, "x") for u in expected(20))
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        utterances_of(entries())
    assert not list(tmp_path.iterdir())
