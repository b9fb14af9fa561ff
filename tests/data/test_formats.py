"""Text files of every format: split at the same places by any number of tasks, and bad items reported."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.corpora import BOOK, ROWS, jsonl, read_in_tasks, write_corpus
from weft.data import file_range, lines
from weft.data.corpus import TextCorpus, read_texts
from weft.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(TEXTS, max_size=20), st.integers(1, 60))
def test_any_text_of_a_jsonl_is_read_by_any_number_of_tasks(tmp_path_factory, texts, num_tasks):
    path = tmp_path_factory.mktemp("c") / "a.jsonl"
    path.write_bytes(jsonl({"text": text} for text in [*texts, "end"]))
    documents, skipped = read_in_tasks(TextCorpus.of(path), num_tasks)
    assert [d.text for d in documents] == [*(text.strip() for text in texts if text.strip()), "end"]
    assert len(skipped.bad) == sum(not text.strip() for text in texts)


@pytest.mark.parametrize("num_tasks", [1, 3, 50])
def test_a_book_is_split_between_paragraphs(tmp_path, num_tasks):
    (tmp_path / "book.txt").write_text(BOOK)
    documents, _ = read_in_tasks(TextCorpus.of(tmp_path / "book.txt"), num_tasks)
    assert "\n\n".join(d.text for d in documents) == BOOK.strip()
    assert len({d.id for d in documents}) == len(documents) == round(len(BOOK) / 4096)
    assert all(2000 < len(d.text) < 8000 for d in documents)


@pytest.mark.parametrize(
    "unit", ["a line of words\n", "one sentence. ", "word ", "无空格的中文", "很好。", "\r\n\r\nx"]
)
def test_a_txt_without_paragraphs_is_split_without_loss(tmp_path, unit):
    text = unit * (30_000 // len(unit.encode()))
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents = list(read_texts(tmp_path / "a.txt"))
    assert len(documents) == round(len(text.encode()) / 4096)
    assert "".join("".join(d.text.split()) for d in documents) == "".join(text.split())


@given(TEXTS.filter(bool), st.integers(1, 9))
def test_any_txt_is_split_without_loss(tmp_path_factory, piece, num_tasks):
    text = "begin " + piece * (9000 // len(piece.encode()))
    path = tmp_path_factory.mktemp("c") / "a.txt"
    path.write_bytes(text.encode())
    documents, _ = read_in_tasks(TextCorpus.of(path), num_tasks)
    assert "".join("".join(d.text.split()) for d in documents) == "".join(text.split())


def test_bad_items_are_skipped_with_their_place_and_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        jsonl(ROWS[:2]) + b'{"text": broken}\n{"id": "x"}\n\n{"text": ""}\n[1]\n{"text": "\xff"}\n{"text": 5}\n'
    )
    documents, skipped = read_in_tasks(TextCorpus.of(path), 3)
    assert [d.id for d in documents] == ["d0", "d1"]
    first = len(jsonl(ROWS[:2]))
    assert [where for where, _ in skipped.bad][:2] == [f"{path} byte {first}", f"{path} byte {first + 17}"]
    assert [why.split(":")[0] for _, why in skipped.bad] == [
        "not JSON", "no `text`", "empty", "no `text`", "not UTF-8", "`text` is not a string",
    ]  # fmt: skip


def test_a_txt_that_is_not_utf8_fails_above_the_limit(tmp_path):
    (tmp_path / "a.txt").write_bytes("Füße ".encode("latin-1") * 5000)
    with pytest.raises(UserError, match=r"6 of 6 items are bad.*a.txt byte 0 \(not UTF-8"):
        list(read_texts(tmp_path))
    assert list(read_texts(tmp_path, max_bad_fraction=1)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 nonsense", r"1 of 1 items are bad.*a.parquet \(cannot be read"),
        ("a.arrow", b"nonsense", r"1 of 1 items are bad.*a.arrow \(cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00", r"1 of 1 items are bad.*a.jsonl.gz \(cannot be read"),
        ("a.json.zst", b"not zstd", r"1 of 1 items are bad.*a.json.zst \(cannot be read"),
        ("a.txt", b"", "all text files are empty"),
        ("a.pdf", b"x", "contains no text: give .txt"),
    ],
)
def test_unreadable_files_are_reported(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(tmp_path))


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.arrow"])
def test_only_damaged_parts_are_lost_and_they_are_counted(tmp_path, name, num_tasks):
    path = write_corpus(tmp_path / name, ROWS * 10)
    content = bytearray(path.read_bytes())
    if name == "a.parquet":
        group = pq.ParquetFile(path).metadata.row_group(2)  # rows 128 to 191
        start = group.column(1).dictionary_page_offset
        content[start : start + 50] = bytes(50)
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    write_corpus(tmp_path / "b.jsonl", ROWS)
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), num_tasks)
    texts = [row["text"] for row in ROWS]
    assert [d.text for d in documents[-300:]] == texts
    if name == "a.parquet":
        assert [d.text for d in documents[:-300]] == (texts * 10)[:128] + (texts * 10)[192:]
        assert (skipped.num_bad, skipped.num_items) == (64, 3300)
        assert all("a.parquet rows 1" in where and "they cannot be read" in why for where, why in skipped.bad)
    else:
        assert (texts * 10)[: len(documents) - 300] == [d.text for d in documents[:-300]]
        assert [where for where, _ in skipped.bad] == [str(path)]


def test_json_that_other_writers_emit_is_read(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"id": 12, "text": "one", "score": NaN}', b'{"text": "tw\\ud800o\\u0000"}',
        b'{"id": NaN, "text": "three"}', b'{"text": NaN}', b'{"text": "four"}'.decode().encode("utf-16"),
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), 2)
    assert [d.text for d in documents] == ["one", "tw\ufffdo", "three"]
    assert [d.id for d in documents] == ["12", "a.jsonl:43", "a.jsonl:71"]
    assert [why for _, why in skipped.bad] == ["no `text`", "it is UTF-16: convert it to UTF-8"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_txt_in_another_unicode_encoding_is_a_bad_item(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("A text that is short.".encode(encoding))
    _, skipped = read_in_tasks(TextCorpus.of(tmp_path), 1)
    assert "UTF-16" in skipped.bad[0][1]


def test_a_file_whose_name_is_not_utf8_is_read_with_an_id_that_can_be_stored(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_bytes(b'{"text": "good"}\n{"text": bad}\n')
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), 1)
    assert [d.id for d in documents] == ["caf\\udce9.jsonl:0"]
    skipped.write(tmp_path / "skipped.jsonl")
    assert "caf\\\\udce9" in (tmp_path / "skipped.jsonl").read_text()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.arrow", "a.parquet"])
@pytest.mark.parametrize("num_tasks", [1, 4])
def test_the_lost_bytes_of_a_damaged_file_are_counted(tmp_path, name, num_tasks):
    path = write_corpus(tmp_path / name, ROWS * 10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])
    write_corpus(tmp_path / "b.jsonl", ROWS)
    _, skipped = read_in_tasks(TextCorpus.of(tmp_path), num_tasks)
    size = path.stat().st_size
    assert skipped.total_bytes == size + (tmp_path / "b.jsonl").stat().st_size
    assert 0 <= skipped.bad_bytes <= size
    if name in ("a.parquet", "a.arrow"):  # without its end, respectively in its only batch
        assert skipped.bad_bytes > 0.9 * size


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_bad_lines_count_by_their_share_of_the_file(tmp_path, name):
    path = tmp_path / name
    with pa.output_stream(str(path), compression="detect") as f:
        f.write(jsonl(ROWS) + b"x" * len(jsonl(ROWS)) + b"\n")
    _, skipped = read_in_tasks(TextCorpus.of(path), 1)
    assert abs(skipped.bad_bytes / path.stat().st_size - 0.5) < 0.01
    assert skipped.num_bad == 1


def test_the_complete_documents_before_a_cut_line_are_read_and_the_file_is_one_bad_item(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}')[:-3])
    documents, skipped = read_in_tasks(TextCorpus.of(path), 1)
    assert ([d.text for d in documents], skipped.num_good) == (["one", "two"], 2)
    assert [(where, why) for where, why in skipped.bad] == [(str(path), "cannot be read to its end: it is truncated")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_a_long_document_is_skipped(tmp_path, monkeypatch, name):
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 300)
    monkeypatch.setattr(file_range, "MAX_DOCUMENT_BYTES", 300)
    path = write_corpus(tmp_path / name, [{"text": "one"}, {"text": "long " * 100}, {"text": "two"}])
    for num_tasks in (1, 5):
        documents, skipped = read_in_tasks(TextCorpus.of(path), num_tasks)
        assert [d.text for d in documents] == ["one", "two"]
        assert [why for _, why in skipped.bad] == ["longer than 64 MiB: split it"]


def test_texts_of_a_table_that_are_not_utf8_are_bad_items(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"])
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, texts.buffers())}), tmp_path / "a.parquet")
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), 1)
    assert [d.text for d in documents] == ["good", "fine"]
    assert [where for where, _ in skipped.bad] == [f"{tmp_path}/a.parquet row 1"]


def test_a_missing_file_is_an_error_and_not_a_bad_item(tmp_path):
    corpus = TextCorpus.of(write_corpus(tmp_path / "a.parquet", ROWS))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a.parquet cannot be read \(.*No such file.*check the file and run again"):
        read_in_tasks(corpus, 1)


def test_a_table_without_text_is_rejected_with_its_columns(tmp_path):
    with pytest.raises(UserError, match="no column `text` \\(it has id, body\\)"):
        list(read_texts(write_corpus(tmp_path / "a.parquet", [{"id": "1", "body": "x"}])))
