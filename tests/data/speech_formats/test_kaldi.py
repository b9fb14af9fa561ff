"""Kaldi data directories: segments, commands that are not executed, and bad lines."""

import pytest

from tests.data.speech_formats.corpora import write_kaldi, write_sounds
from weft.data.speech import audio_lengths, read_manifest
from weft.errors import UserError


@pytest.fixture
def rows(tmp_path):
    return write_sounds(tmp_path)


@pytest.mark.parametrize("command", ["touch {} |", "sph2pipe -f wav {} |", "cat {}|"])
def test_a_command_is_a_bad_item_and_is_not_executed(tmp_path, rows, command):
    write_kaldi(tmp_path, rows[:2])
    with (tmp_path / "wav.scp").open("a") as f:
        f.write(f"c {command.format(tmp_path / 'executed')}\n")
    first, second, bad = read_manifest(tmp_path)
    assert first.problem is second.problem is None
    assert "which is not executed: run it, and give the path of its output" in bad.problem
    assert isinstance(audio_lengths([bad])[0], str)
    assert not (tmp_path / "executed").exists()


def test_segments_are_parts_of_recordings(tmp_path, rows):
    write_kaldi(tmp_path, rows)
    lines = ["a u1 0.01 0.03", "b u1 0.03 -1", "u2 u2 0 0.1", "c u9 0 1", "d u1 0.5 0.2", "e u1 x 1", "f", "g u1 0 inf"]
    (tmp_path / "segments").write_text("\n".join(lines))
    found = read_manifest(tmp_path)
    assert [u.problem is None for u in found] == [True] * 3 + [False] * 5
    assert list(audio_lengths(found[:3])) == [320, 1760 - 480, 1600]
    assert [(u.id, u.source, u.text) for u in found[:3]] == [
        ("a", "u1", None), ("b", "u1", None), ("u2", "u2", "text u2 é"),
    ]  # fmt: skip
    assert "has no recording 'u9'" in found[3].problem
    assert all("is not a segment" in u.problem for u in found[4:])


def test_bad_lines_of_any_file_are_bad_items(tmp_path, rows):
    write_kaldi(tmp_path, rows[:2])
    for name, line in {"text": b"u0 \xff", "wav.scp": b"x \xff", "utt2spk": b"u0 s\n\n  \nu1 s"}.items():
        with (tmp_path / name).open("ab") as f:
            f.write(line + b"\n")
    with (tmp_path / "wav.scp").open("a") as f:
        f.write("ark wav.ark:123\nnothing\nstdin -\n")
    found = read_manifest(tmp_path)
    assert [u.id for u in found if u.problem is None] == ["u0", "u1"]
    problems = [u.problem for u in found if u.problem]
    assert sum("not UTF-8" in problem for problem in problems) == 2
    assert sum("is not a path" in problem for problem in problems) == 3


def test_paths_are_relative_to_the_directory_and_an_empty_one_is_rejected(tmp_path, rows):
    (tmp_path / "wav.scp").write_text("u0 u0.wav\n")
    assert list(audio_lengths(read_manifest(tmp_path))) == [1600]
    (tmp_path / "wav.scp").write_text("\n")
    with pytest.raises(UserError, match=r"wav\.scp is empty"):
        read_manifest(tmp_path)
