"""Datasets of documents and codes: complete parts, any range of rows, and messages about damage."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from weft.artifacts import Manifest, read
from weft.data import datasets
from weft.data.datasets import Rows, tokenizer_parent, write_codes_part, write_document_part
from weft.errors import UserError
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance, Document, Meta, Segment

DOCUMENTS = [
    Document(
        f"d{i}",
        "interleaved",
        (Segment.of_text(f"text {i}"), Segment.of_speech([i % 512] * (i % 5 + 1), " spoken", loss=False)),
        Meta(speech_ratio=0.5, words=3),
    )
    for i in range(2500)
]


def test_documents_are_read_back_in_any_range_of_rows(tmp_path):
    assert write_document_part(tmp_path, 0, DOCUMENTS[:1800]) == [tmp_path / "part-00000.parquet"]
    assert write_document_part(tmp_path, 1, []) == []
    assert write_document_part(tmp_path, 2, iter(DOCUMENTS[1800:])) == [tmp_path / "part-00002.parquet"]
    rows = Rows.of(tmp_path)
    assert len(rows) == 2500
    assert list(rows.documents()) == DOCUMENTS
    for start, stop in ((0, 0), (0, 1), (10, 20), (999, 1001), (1799, 1801), (2400, 2500), (500, 2300)):
        assert list(rows.documents(range(start, stop))) == DOCUMENTS[start:stop]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part-00000.parquet", "part-00002.parquet"]


def test_long_texts_and_codes_are_written_in_small_row_groups(tmp_path, monkeypatch):
    long = [
        replace(d, segments=(Segment.of_text("a" * 900), Segment.of_speech([1] * 400, " b")) if i % 2 else d.segments)
        for i, d in enumerate(DOCUMENTS[:40])
    ]
    utterances = [
        CodedUtterance(str(i), np.ones(500 * (i % 2), np.uint16), "x", 1.0, "s", "en", None) for i in range(9)
    ]
    monkeypatch.setattr(datasets, "_BYTES_PER_GROUP", 4000)
    write_document_part(tmp_path / "documents", 0, long)
    write_codes_part(tmp_path / "codes", 0, utterances)
    for folder, least in ((tmp_path / "documents", 20), (tmp_path / "codes", 4)):
        part = pq.ParquetFile(folder / "part-00000.parquet")
        assert part.num_row_groups >= least
    assert list(Rows.of(tmp_path / "documents").documents()) == long
    assert [len(u.codes) for u in Rows.of(tmp_path / "codes").utterances()] == [len(u.codes) for u in utterances]


def test_documents_of_an_older_version_without_span_wer_are_read(tmp_path):
    write_document_part(tmp_path, 0, DOCUMENTS[:3])
    part = tmp_path / "part-00000.parquet"
    table = pq.read_table(part)
    fields = [f for f in table.schema.field("meta").type if f.name != "span_wer"]
    meta = [{f.name: row["meta"][f.name] for f in fields} for row in table.to_pylist()]
    pq.write_table(table.set_column(3, "meta", pa.array(meta, pa.struct(fields))), part)
    assert list(Rows.of(tmp_path).documents()) == DOCUMENTS[:3]


def test_codes_are_read_back_from_lists_and_arrays(tmp_path):
    utterances = [CodedUtterance(str(i), [i, 65535], None, i / 4, "s", "en", None) for i in range(3)]
    arrays = [replace(u, codes=np.array(u.codes, np.uint16)) for u in utterances]
    write_codes_part(tmp_path / "lists", 0, utterances)
    write_codes_part(tmp_path / "arrays", 0, arrays)
    assert list(Rows.of(tmp_path / "lists").utterances()) == utterances
    assert list(Rows.of(tmp_path / "arrays").utterances()) == utterances
    spoken = [Document("d", "speech", (Segment.of_speech(u.codes, "x"),)) for u in arrays]
    write_document_part(tmp_path / "documents", 0, spoken)
    assert [d.segments[0].codes for d in Rows.of(tmp_path / "documents").documents()] == [u.codes for u in utterances]


def test_a_part_is_complete_or_absent(tmp_path):
    def documents():
        yield from DOCUMENTS[:1500]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_document_part(tmp_path, 0, documents())
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_part_is_rejected(tmp_path):
    write_document_part(tmp_path, 0, DOCUMENTS[:10])
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"part-00000.parquet is damaged"):
        Rows.of(tmp_path)


def test_a_part_of_an_artifact_must_have_its_number_of_rows(tmp_path, monkeypatch):
    with open_draft(tmp_path / "documents", Plan("documents", {})) as draft:
        for task in range(2):
            write_document_part(draft.folder, task, DOCUMENTS[: 10 + task])
    folder = tmp_path / "documents"
    assert [about["rows"] for about in read(folder).files.values()] == [10, 11]
    assert len(Rows.of(folder)) == 21
    made = read(folder)
    part = made.files["part-00001.parquet"]
    monkeypatch.setattr(datasets, "read", lambda _: replace(made, files={"part-00001.parquet": {**part, "rows": 12}}))
    with pytest.raises(UserError, match=r"part-00001.parquet has 11 rows, expected 12: create the dataset again"):
        Rows.of(folder)


def test_a_dataset_without_one_of_its_parts_is_rejected(tmp_path):
    with open_draft(tmp_path / "documents", Plan("documents", {})) as draft:
        for task in range(2):
            write_document_part(draft.folder, task, DOCUMENTS[:10])
    (tmp_path / "documents/part-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00000.parquet is missing"):
        Rows.of(tmp_path / "documents")


def test_a_part_with_damaged_pages_is_rejected(tmp_path):
    write_document_part(tmp_path, 0, DOCUMENTS[:500])
    part = tmp_path / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
    part.write_bytes(content)
    rows = Rows.of(tmp_path)  # the footer is not damaged
    with pytest.raises(UserError, match=r"part-00000.parquet is damaged .*create the dataset again"):
        list(rows.documents())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "d"}, "lacks columns .*kind"),
        (
            {"id": "d", "kind": "poem", "segments": [], "meta": None},
            "document 'd' has kind 'poem'.*: create the dataset again",
        ),
        ({"id": "d", "kind": "text", "segments": "words", "meta": None}, "is damaged"),
    ],
)
def test_rows_that_are_not_documents_are_rejected_with_their_part(tmp_path, row, message):
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "part-00000.parquet")
    with pytest.raises(UserError, match=f"part-00000.parquet.* {message}"):
        list(Rows.of(tmp_path).documents())


def test_codes_of_different_tokenizers_are_rejected():
    a, b, text = (Manifest("documents", "f", parents=p) for p in ({"tokenizer": "aa"}, {"tokenizer": "bb"}, {}))
    assert tokenizer_parent({"x": text}) == {}
    assert tokenizer_parent({"x": a, "y": text, "z": a})["tokenizer"].fingerprint == "aa"
    with pytest.raises(UserError, match=r"different tokenizers \(x: aa, y: bb\): use one tokenizer"):
        tokenizer_parent({"x": a, "y": b})
