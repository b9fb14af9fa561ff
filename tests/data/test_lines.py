"""Lines of compressed files: everything before a damage, in bounded memory."""

import gzip
import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data import lines
from weft.data.lines import damage_of, lines_of, unpacked

TEXT = b"".join(b'{"text": "line %d of a file"}\n' % (i * 7919 % 10007) for i in range(400))
GZIP = gzip.compress(TEXT, mtime=0)
MAGIC = struct.pack("<II", 0x184D2A50, 5)  # a skippable frame of 5 bytes


def zstd(text):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as f:
        f.write(text)
    return sink.getvalue().to_pybytes()


ZSTD = zstd(
    np.random.default_rng(0).integers(32, 96, 200_000, np.uint8).tobytes()
)  # more than one piece, when compressed


def read(content, suffix):
    with unpacked(io.BytesIO(content), f"a{suffix}") as f:
        return b"".join(line.content for line in lines_of(f)), damage_of(f)


def readable(content):
    """The bytes that pyarrow gives one by one before it raises an error."""
    stream = pa.CompressedInputStream(pa.BufferReader(content), "zstd")
    with suppress(OSError):
        while byte := stream.read(1):
            yield byte[0]


def decoded_by_zlib(content):
    """The longest prefix that zlib decodes, byte by byte."""
    member, found = zlib.decompressobj(31), []
    try:
        for i in range(len(content)):
            found.append(member.decompress(content[i : i + 1], 1))
            while piece := member.decompress(member.unconsumed_tail, 1):
                found.append(piece)
    except zlib.error:
        pass
    return b"".join(found)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".gz", GZIP), (".gz", gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:])), (".gz", GZIP + bytes(200_000)),
        (".gz", gzip.compress(TEXT[:99]) + bytes(512) + gzip.compress(TEXT[99:]) + bytes(3)),
        (".zst", zstd(TEXT)), (".zst", zstd(TEXT[:99]) + MAGIC + b"12345" + zstd(TEXT[99:])), ("", TEXT),
    ],
)  # fmt: skip
def test_files_of_several_parts_are_read_completely(suffix, content):
    assert read(content, suffix) == (TEXT, None)


def test_any_number_of_zeros_after_a_gzip_file_is_ignored():
    assert read(GZIP + bytes(100_000_000), ".gz") == (TEXT, None)


def test_a_wrong_checksum_is_reported_and_loses_nothing():
    for wrong in (GZIP[:-8] + b"1234" + GZIP[-4:], GZIP[:-4] + b"1234"):
        for rest in (b"", gzip.compress(b"next\n")):
            text, damage = read(wrong + rest, ".gz")
            assert text == TEXT + (b"next\n" if rest else b"")
            assert "checksum" in damage.reason
            assert damage.position is None


@settings(max_examples=40)
@given(st.integers(0, 8 * len(GZIP) - 1))
def test_everything_that_zlib_decodes_before_a_wrong_bit_is_read(bit):
    content = bytearray(GZIP)
    content[bit // 8] ^= 1 << bit % 8
    text, damage = read(bytes(content), ".gz")
    assert text == decoded_by_zlib(bytes(content)) or (text == TEXT and damage is None)
    assert damage is not None or text == TEXT


@given(st.integers(0, len(GZIP) - 1))
def test_everything_before_the_end_of_a_truncated_gzip_is_read(size):
    text, damage = read(GZIP[:size], ".gz")
    assert text == decoded_by_zlib(GZIP[:size])
    assert size == 0 or (damage.reason, damage.position) == ("it is truncated", size)


def test_everything_before_the_damage_of_a_zstd_file_is_read():
    whole = read(ZSTD, ".zst")[0]
    for size in (10, 70_000, 120_000):
        text, damage = read(ZSTD[:size], ".zst")
        assert text == bytes(readable(ZSTD[:size])) == whole[: len(text)]
        assert damage.reason == "it is truncated"
    assert len(text) > 60_000
    text, damage = read(ZSTD + b"garbage", ".zst")
    assert (text, damage.position) == (whole, len(ZSTD) // 65536 * 65536)


def test_bytes_after_the_end_of_a_gzip_file_are_reported():
    text, damage = read(GZIP + b"garbage", ".gz")
    assert text == TEXT
    assert len(GZIP) <= damage.position <= len(GZIP) + 2


def test_a_long_line_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(lines, "_BUFFER_BYTES", 7)
    content = b"a" * 99 + b"\n" + b"b" * 100 + b"\n" + b"c" * 1000 + b"\nlast"
    found = list(lines_of(io.BytesIO(content)))
    assert [(line.offset, line.size_bytes) for line in found] == [(0, 100), (100, 101), (201, 1001), (1202, 4)]
    assert [line.content and line.content[:1] for line in found] == [b"a", None, None, b"l"]


def test_an_error_of_the_disk_is_not_a_damage():
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    for suffix in (".gz", ".zst"):
        with pytest.raises(OSError, match="Input/output"):
            unpacked(Broken(), f"a{suffix}").read()
