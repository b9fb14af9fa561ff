"""Tables of texts: every kind of column and file, in bounded memory, up to the first damage."""

import subprocess
import sys
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from tests.data.corpora import read_in_tasks
from weft import parquet_pages
from weft.data import arrow_stream
from weft.data.corpus import TextCorpus, read_texts
from weft.errors import UserError

TEXTS = [f"text {i} " + "and more words " * (i % 50) for i in range(1000)]
VALUES = [text.strip() for text in TEXTS]


def write(path, table, **options):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300, **options)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=300, **options)
    else:
        kind = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with kind(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as f:
            f.write_table(table, max_chunksize=300)
    return path


FILES = ["a.parquet", "stream.arrow", "file.arrow", "a.feather"]
COLUMNS = {
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array([text.encode() for text in TEXTS]),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", COLUMNS)
def test_every_type_of_text_is_read_by_any_number_of_tasks(tmp_path, name, kind):
    path = write(tmp_path / name, pa.table({"id": pa.array(range(1000)), "text": COLUMNS[kind]}))
    for num_tasks in (1, 7):
        documents, skipped = read_in_tasks(TextCorpus.of(path), num_tasks)
        assert [(d.id, d.text) for d in documents] == [(str(i), text) for i, text in enumerate(VALUES)]
        assert (skipped.bad, skipped.bad_bytes, skipped.total_bytes) == ([], 0, path.stat().st_size)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_every_encoding_of_parquet_is_read(tmp_path, encoding):
    path = write(tmp_path / "a.parquet", pa.table({"text": TEXTS}), use_dictionary=False, column_encoding=encoding)
    documents, skipped = read_in_tasks(TextCorpus.of(path), 3)
    assert [d.text for d in documents] == VALUES
    assert skipped.bad == []


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_arrow_files_are_read(tmp_path, compression):
    write(tmp_path / "file.arrow", pa.table({"text": TEXTS}), compression=compression)
    write(tmp_path / "a.feather", pa.table({"text": TEXTS}), compression=compression)
    assert [d.text for d in read_texts(tmp_path)] == VALUES * 2


UNREPRESENTABLE = {  # by Python, with a value that is
    "times": (pa.timestamp("ms"), 1_000, -(10**15)),
    "nanoseconds": (pa.timestamp("ns"), 1_000, 1_001),
    "time zone": (pa.timestamp("ms", "Mars/Phobos"), 1_000, 1_000),
    "dates": (pa.date32(), 1, 2**30),
    "durations": (pa.duration("s"), 1, 2**62),
}


@pytest.mark.parametrize(("name", "is_dictionary"), [("a.parquet", False), ("file.arrow", False), ("file.arrow", True)])
@pytest.mark.parametrize("kind", UNREPRESENTABLE)
def test_ids_that_python_cannot_represent_count_as_missing(tmp_path, name, kind, is_dictionary):
    dtype, good, bad = UNREPRESENTABLE[kind]
    ids = pa.array([good, bad, good], dtype)
    write(tmp_path / name, pa.table({"id": ids.dictionary_encode() if is_dictionary else ids, "text": TEXTS[:3]}))
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path / name), 1)
    assert [d.text for d in documents] == VALUES[:3]
    assert documents[1].id == f"{name}:1"
    assert skipped.bad == []


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow"])
@pytest.mark.parametrize("twice", ["id", "text"])
def test_a_column_that_occurs_twice_is_rejected(tmp_path, name, twice):
    columns = {"id": pa.array(["1"]), "text": pa.array(["a"])}
    table = pa.Table.from_arrays([*columns.values(), columns[twice]], names=[*columns, twice])
    write(tmp_path / name, table)
    with pytest.raises(UserError, match=f"{name} has several columns `{twice}`: rename all but one"):
        read_in_tasks(TextCorpus.of(tmp_path / name), 1)


@pytest.mark.parametrize("name", FILES)
def test_other_columns_and_values_are_bad_items(tmp_path, name):
    for column, reason in [
        (pa.nulls(3), "no `text`"), (pa.array([1, 2, 3]), "not a string"), (pa.array([["a"]] * 3), "not a string"),
        (pa.array([None, None, ""]), "no `text`"), (pa.array([1, 2, 3]).dictionary_encode(), "not a string"),
    ]:  # fmt: skip
        write(tmp_path / name, pa.table({"text": column}))
        documents, skipped = read_in_tasks(TextCorpus.of(tmp_path / name), 2)
        assert (documents, skipped.num_bad) == ([], 3)
        assert reason in skipped.bad[0][1]


def test_feather_version_1_is_named(tmp_path):
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(UserError, match=r"a\.feather is Feather version 1"):
        list(read_texts(tmp_path))


@pytest.mark.parametrize("name", FILES[1:])
def test_record_batches_before_a_damage_are_read(tmp_path, name):
    path = write(tmp_path / name, pa.table({"text": TEXTS}))
    content = path.read_bytes()
    for stop in range(100, len(content), 9973):
        path.write_bytes(content[:stop])
        documents, skipped = read_in_tasks(TextCorpus.of(path), 2)
        assert [d.text for d in documents] == VALUES[: len(documents)]
        assert len(documents) in (0, 300, 600, 900, 1000)
        assert skipped.num_bad == 1
        assert 0 < skipped.bad_bytes <= stop


@pytest.mark.parametrize("name", FILES)
def test_a_damage_anywhere_gives_texts_and_bad_items(tmp_path, name):
    path = write(tmp_path / name, pa.table({"text": TEXTS}))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for i in rng.integers(0, len(content), 3):
            damaged[i] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with suppress(UserError):  # a damaged name of the column
            documents, skipped = read_in_tasks(TextCorpus.of(path), 2)
            assert len(documents) + skipped.num_bad >= 1


def test_pages_of_a_row_group_before_a_damage_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    options = {"use_dictionary": False, "data_page_size": 1000, "compression": "none", "write_page_checksum": True}
    pq.write_table(pa.table({"text": TEXTS * 10}), path, write_batch_size=50, **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    documents, skipped = read_in_tasks(TextCorpus.of(path), 3)
    assert 3000 < len(documents) < 6000
    assert [d.text for d in documents] == (VALUES * 10)[: len(documents)]
    assert len(documents) + skipped.num_bad == 10_000
    assert abs(skipped.bad_bytes / skipped.total_bytes - skipped.num_bad / 10_000) < 0.01


def test_an_arrow_batch_that_decompresses_to_too_much_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_stream, "_MAX_BATCH_BYTES", 10_000)
    write(tmp_path / "a.feather", pa.table({"text": ["good"] * 300 + ["a" * 1000] * 300}), compression="zstd")
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), 2)
    assert len(documents) == 300
    assert "decompresses to 30" in skipped.bad[0][1]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])
def test_a_page_that_decompresses_to_too_much_is_not_read(tmp_path, monkeypatch, version, encoding):
    """Row groups that expand much are read if all of their pages are small."""
    monkeypatch.setattr(parquet_pages, "_MAX_GROUP_BYTES", 10_000)
    monkeypatch.setattr(parquet_pages, "_MAX_PAGE_BYTES", 200_000)
    options = {"use_dictionary": False, "column_encoding": encoding, "data_page_version": version}
    for name, page_bytes in (("small", 50_000), ("large", 1 << 30)):
        path = tmp_path / f"{name}.parquet"
        table = pa.table({"text": ["a" * 1000] * 1000})
        pq.write_table(table, path, compression="zstd", write_batch_size=20, data_page_size=page_bytes, **options)
        documents, skipped = read_in_tasks(TextCorpus.of(path), 2)
        assert len(documents) == (1000 if name == "small" else 0)
        assert len(documents) + skipped.num_bad == 1000
    assert "have a page that decompresses to 100" in skipped.bad[0][1]
    assert skipped.bad_bytes == pytest.approx(path.stat().st_size, abs=2)


def test_the_memory_for_long_texts_is_that_of_a_few(tmp_path):
    texts = [f"{i} " + "long " * 50_000 for i in range(500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd", write_batch_size=10)
    before, held = pa.total_allocated_bytes(), 0
    for document, text in zip(read_texts(tmp_path / "a.parquet"), texts, strict=True):
        assert document.text == text.strip()
        held = max(held, pa.total_allocated_bytes() - before)
    assert 0 < held < 30_000_000  # of 125 MB


MEASURE = """
import resource, sys
from weft.data.corpus import TextCorpus
from weft.data.skipped import Skipped
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus, skipped = TextCorpus.of(sys.argv[1]), Skipped()
total = sum(len(d.text) for d in corpus.read(range(corpus.size_bytes), skipped))
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, skipped.num_bad)
"""


def test_the_memory_for_a_small_file_of_much_text_is_bounded(tmp_path):
    table = pa.table({"text": pa.DictionaryArray.from_arrays([0] * 500, ["x" * 1_000_000])})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet")]
    total, mebibytes, num_bad = map(int, subprocess.check_output(command).split())
    assert (total, num_bad) == (500_000_000, 0)
    assert mebibytes < 100
