"""Lhotse manifests: parts of recordings, and rows that cannot be read."""

import gzip

import pytest

from tests.data.corpora import jsonl
from tests.data.speech_formats.corpora import cut, recording, supervision, write_sounds, write_supervisions
from weft.data.speech import audio_lengths, read_manifest
from weft.errors import UserError


@pytest.fixture
def rows(tmp_path):
    return write_sounds(tmp_path)


def read_cuts(tmp_path, *cuts):
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(jsonl(cuts)))
    return read_manifest(tmp_path / "cuts.jsonl.gz")


def test_each_supervision_of_a_cut_is_an_utterance(tmp_path, rows):
    parts = [supervision(rows[0], id="a", start=-0.5, duration=0.52), supervision(rows[0], id="b", start=0.02)]
    found = read_cuts(
        tmp_path,
        cut(rows[0], start=0.01, duration=0.08, supervisions=parts),
        cut(rows[1], start=0.05, duration=0.06, supervisions=[]),
        cut(rows[2], start=0.02, duration=0.05),
    )
    assert [u.id for u in found] == ["a", "b", "u1", "u2"]
    assert list(audio_lengths(found)) == [320, 960, 960, 800]
    assert [u.source for u in found] == ["u0", "u0", None, "u2"]


def test_a_supervision_is_a_part_of_its_recording(tmp_path, rows):
    write_supervisions(tmp_path, rows)
    part = supervision(rows[3], start=0.03, duration=0.04)
    (tmp_path / "x_supervisions_y.jsonl.gz").write_bytes(gzip.compress(jsonl([part])))
    found = read_manifest(tmp_path / "x_supervisions_y.jsonl.gz")
    assert list(audio_lengths(found)) == [640]
    assert found[0].audio.endswith("u3.wav#t=0.03000,0.07000")
    (tmp_path / "x_recordings_y.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"without recordings: add x_recordings_y\.jsonl\.gz, or give cuts"):
        read_manifest(tmp_path / "x_supervisions_y.jsonl.gz")


def test_recordings_alone_are_utterances_without_text(tmp_path, rows):
    (tmp_path / "recordings.jsonl").write_bytes(jsonl([recording(row) for row in rows]))
    found = read_manifest(tmp_path / "recordings.jsonl")
    assert [(u.id, u.text, u.problem) for u in found] == [(row["id"], None, None) for row in rows]


def source(row, **changes):
    whole = recording(row)
    return {**whole, "sources": [{**whole["sources"][0], **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda row: {"type": "MixedCut"}, "it is a MixedCut"),
        (lambda row: {"recording": None}, "without one recording"),
        (lambda row: {"recording": source(row, type="command")}, "is a command, which is not read"),
        (lambda row: {"recording": source(row, type="url")}, "is a url, which is not read"),
        (lambda row: {"recording": source(row, type="memory")}, "is a memory, which is not read"),
        (lambda row: {"recording": source(row, channels=[0, 1])}, "it is channel 0 of 2"),
        (lambda row: {"recording": recording(row, sources=[])}, "has not one source"),
        (lambda row: {"recording": recording(row, transforms=[{"name": "Speed"}])}, "has transforms"),
        (lambda row: {"recording": recording(row, duration="x")}, "its `duration` is 'x'"),
        (lambda row: {"start": -1}, "its `start` is -1"),
        (lambda row: {"duration": None}, "its `duration` is None"),
        (lambda row: {"id": None, "supervisions": []}, "it lacks `id`"),
        (lambda row: {"supervisions": 3}, "are not a list of objects"),
        (lambda row: {"supervisions": [supervision(row, start=9)]}, "supervision 'u1' is outside of it"),
        (lambda row: {"supervisions": [supervision(row, text=[1])]}, r"its `text` is \[1\]"),
    ],
)
def test_a_bad_cut_is_a_bad_item(tmp_path, rows, changes, message):
    first, bad, last = read_cuts(tmp_path, cut(rows[0]), {**cut(rows[1]), **changes(rows[1])}, cut(rows[2]))
    assert (first.problem, last.problem) == (None, None)
    with pytest.raises(ValueError, match=message):
        raise ValueError(bad.problem)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_a_truncated_manifest_gives_what_is_before_the_damage(tmp_path, rows, fraction):
    cuts = [{**cut(rows[0]), "id": f"cut {i}"} for i in range(50)]
    whole = read_cuts(tmp_path, *cuts)
    content = (tmp_path / "cuts.jsonl.gz").read_bytes()
    (tmp_path / "cuts.jsonl.gz").write_bytes(content[: int(fraction * len(content))])
    found = read_manifest(tmp_path / "cuts.jsonl.gz")
    good = [u for u in found if u.problem is None]
    assert good == list(whole[: len(good)])
    assert len(good) < 50
    assert "cuts.jsonl.gz cannot be read completely: it is truncated" in found[-1].problem
