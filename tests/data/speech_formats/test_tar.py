"""Tar files: the members that `tarfile` finds, and damages that it does not report."""

import io
import tarfile

import pytest

from tests.data.speech_formats.corpora import add, content_of, write_sounds
from weft.data.compression import Damage
from weft.data.speech import load_speech, read_manifest
from weft.data.speech_formats.tar import Member, members

NAMES = ["a.txt", "b" * 99, "c/" * 60 + "d.txt", "é" * 120 + ".txt", "e" * 300]


def written(kind, names=NAMES):
    """Return a tar file with some members, links and directories between them."""
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode="w", format=kind) as tar:
        for i, name in enumerate(names):
            add(tar, name, bytes([i + 1]) * (700 * i))
            link = tarfile.TarInfo(f"link{i}")
            link.type, link.linkname = tarfile.SYMTYPE, "../" * 80 + "etc/passwd"
            tar.addfile(link)
            folder = tarfile.TarInfo(f"folder{i}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    return f.getvalue()


def found_in(content):
    return list(members(io.BytesIO(content), len(content)))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_files_of_a_tar_file_are_found(kind):
    content = written(kind)
    found = found_in(content)
    assert [m.name for m in found] == NAMES
    assert [content[m.start : m.stop] for m in found] == [bytes([i + 1]) * (700 * i) for i in range(5)]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_truncated_or_damaged_tar_file_is_reported_once_at_its_end(kind):
    content = written(kind)
    whole = found_in(content)
    end = len(content.rstrip(b"\0"))
    for stop in range(0, end, 97):
        *found, damage = found_in(content[:stop])
        assert isinstance(damage, Damage)
        assert found == whole[: len(found)]
        assert all(isinstance(member, Member) for member in found)
    for block in range(0, end, 512):
        damaged = content[:block] + bytes(byte ^ 0x55 for byte in content[block : block + 512]) + content[block + 512 :]
        found = found_in(damaged)
        assert sum(isinstance(item, Damage) for item in found) <= 1
        assert not any(isinstance(item, Damage) for item in found[:-1])


def test_several_tar_files_in_one_are_reported():
    content = written(tarfile.GNU_FORMAT)
    assert "several tar files in one" in found_in(content + content)[-1].reason


@pytest.mark.parametrize("records", [b"0 path=x\n", b"x", b"99 path=a\n", b"11 size=-9\n", b"9 size=x\n"])
def test_a_damaged_extended_header_is_reported(records):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    content = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + written(tarfile.GNU_FORMAT)
    found = found_in(content)
    assert len(found) == 1
    assert isinstance(found[0], Damage)


def test_samples_without_one_sound_and_with_bad_texts_are_bad_items(tmp_path):
    sound = content_of(write_sounds(tmp_path)[0])
    (tmp_path / "speech").mkdir()
    with tarfile.open(tmp_path / "speech/a.tar", "w") as tar:
        for name, content in [
            ("none.txt", b"text"), ("two.wav", sound), ("two.b.wav", sound), ("list.json", b"[]"), ("list.wav", sound),
            ("text.wav", sound), ("text.txt", b"\xff"), ("._hidden", b"x"), ("json.json", b"{oops"),
            ("json.wav", sound), ("number.json", b'{"text": 3}'), ("number.wav", sound),
            ("good.ref.WAV", sound), ("good.txt", b" a b \n"),
        ]:  # fmt: skip
            add(tar, name, content)
    found = {u.id.split()[-1]: u for u in read_manifest(tmp_path / "speech")}
    problems = ["it has 0 sounds", "it has 2 sounds", "its .json is not", "not UTF-8", "not JSON", "its `text` is 3"]
    assert [problem in (u.problem or "") for u, problem in zip(found.values(), problems, strict=False)] == [True] * 6
    assert list(found) == ["none", "two", "list", "text", "json", "number", "good"]
    assert (found["good"].text, len(load_speech(found["good"]))) == ("a b", 1600)
