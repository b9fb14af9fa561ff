import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.corpus import TextCorpus, read_manifest, read_texts
from weft.data.job import share
from weft.data.skipped import Skipped
from weft.errors import UserError

ROWS = [{"id": f"d{i}", "text": f"Text number {i}.\nIt has {'many ' * (i % 40)}words — naïve 词."} for i in range(300)]
BOOK = "".join(f"Paragraph {i} of a book, " + "which goes on and on " * (i % 30) + "and ends.\n\n" for i in range(400))


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_corpus(path, rows):
    """Write rows in the format that the path's name asks for."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as stream:
            stream.write_table(table)
    else:
        with pa.output_stream(str(path), compression="detect") as f:
            f.write(jsonl(rows))
    return path


def read_in_tasks(corpus, num_tasks):
    skipped = Skipped()
    documents = [d for t in range(num_tasks) for d in corpus.read(share(corpus.size_bytes, t, num_tasks), skipped)]
    return documents, skipped


@pytest.mark.parametrize("num_tasks", [1, 2, 7, 301])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_shares_give_every_document_once_and_in_order(tmp_path, name, num_tasks):
    corpus = TextCorpus.of(write_corpus(tmp_path / name, ROWS))
    documents, skipped = read_in_tasks(corpus, num_tasks)
    assert [(d.id, d.text) for d in documents] == [(row["id"], row["text"]) for row in ROWS]
    assert (skipped.num_good, skipped.bad) == (300, [])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20), st.integers(1, 60))
def test_any_text_survives_any_cut_of_a_jsonl(tmp_path_factory, texts, num_tasks):
    path = tmp_path_factory.mktemp("c") / "a.jsonl"
    path.write_bytes(jsonl({"text": text} for text in [*texts, "end"]))
    documents, skipped = read_in_tasks(TextCorpus.of(path), num_tasks)
    assert [d.text for d in documents] == [*(text.strip() for text in texts if text.strip()), "end"]
    assert len(skipped.bad) == sum(not text.strip() for text in texts)


@pytest.mark.parametrize("num_tasks", [1, 3, 50])
def test_a_book_becomes_many_documents_cut_between_paragraphs(tmp_path, num_tasks):
    (tmp_path / "book.txt").write_text(BOOK)
    documents, _ = read_in_tasks(TextCorpus.of(tmp_path / "book.txt"), num_tasks)
    assert "\n\n".join(d.text for d in documents) == BOOK.strip()
    assert len({d.id for d in documents}) == len(documents) == round(len(BOOK) / 4096)
    assert all(2000 < len(d.text) < 8000 for d in documents)


@pytest.mark.parametrize(
    "unit", ["a line of words\n", "one sentence. ", "word ", "无空格的中文", "很好。", "\r\n\r\nx"]
)
def test_a_txt_without_paragraphs_is_cut_and_loses_no_letter(tmp_path, unit):
    text = unit * (30_000 // len(unit.encode()))
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents = list(read_texts(tmp_path / "a.txt"))
    assert len(documents) == round(len(text.encode()) / 4096)
    assert "".join("".join(d.text.split()) for d in documents) == "".join(text.split())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 9))
def test_a_txt_of_anything_loses_no_letter(tmp_path_factory, piece, num_tasks):
    text = "begin " + piece * (9000 // len(piece.encode()))
    path = tmp_path_factory.mktemp("c") / "a.txt"
    path.write_bytes(text.encode())
    documents, _ = read_in_tasks(TextCorpus.of(path), num_tasks)
    assert "".join("".join(d.text.split()) for d in documents) == "".join(text.split())


def test_folders_and_files_are_read_in_order_with_ids_of_their_own(tmp_path):
    for name in ("x/a.txt", "x/b.txt", "y/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "x/notes.md").write_text("not read")
    documents = list(read_texts(tmp_path / "y", tmp_path / "x"))
    assert [(d.id, d.text) for d in documents] == [(n, f"text of {n}") for n in ("y/a.txt", "x/a.txt", "x/b.txt")]


def test_identity_follows_names_and_contents_and_not_the_place(tmp_path):
    for folder, text in (("p", "abc"), ("q", "abc"), ("r", "abcd")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)
    p, q, r = (TextCorpus.of(tmp_path / n).identity for n in "pqr")
    assert p == q != r


@pytest.mark.parametrize("num_words", [1000, 2_000_000])  # all of a short file is looked at, and samples of a long one
def test_identity_follows_contents_of_the_same_size(tmp_path, num_words):
    words = [f"word{i:09}" for i in range(num_words)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    before = TextCorpus.of(tmp_path).identity
    (tmp_path / "a.txt").write_text(" ".join(reversed(words)))
    assert TextCorpus.of(tmp_path).identity != before


def test_a_text_given_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Some words.")
    with pytest.raises(UserError, match=r"a\.txt is given twice"):
        TextCorpus.of(tmp_path, tmp_path / "a.txt")


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
        "not JSON", "no `text`", "empty", "no `text`", "not JSON", "`text` is no string",
    ]  # fmt: skip


def test_a_txt_that_is_not_utf8_fails_above_the_threshold(tmp_path):
    (tmp_path / "a.txt").write_bytes("Füße ".encode("latin-1") * 5000)
    with pytest.raises(UserError, match=r"6 of 6 items are bad.*a.txt byte 0 \(not UTF-8"):
        list(read_texts(tmp_path))
    assert list(read_texts(tmp_path, max_bad_share=1)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 nonsense", r"1 of 1 items are bad.*a.parquet \(cannot be read"),
        ("a.arrow", b"nonsense", r"1 of 1 items are bad.*a.arrow \(cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00", r"1 of 1 items are bad.*a.jsonl.gz \(cannot be read"),
        ("a.json.zst", b"no zstd", r"1 of 1 items are bad.*a.json.zst \(cannot be read"),
        ("a.txt", b"", "every text file is empty"),
        ("a.pdf", b"x", "holds no text: give .txt"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(tmp_path))


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.arrow"])
def test_damage_costs_what_is_damaged_and_is_counted(tmp_path, name, num_tasks):
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
        assert all("a.parquet rows 1" in where and "row group cannot" in why for where, why in skipped.bad)
    else:
        assert (texts * 10)[: len(documents) - 300] == [d.text for d in documents[:-300]]
        assert [where for where, _ in skipped.bad] == [str(path)]


def test_a_table_may_hold_texts_that_are_not_utf8(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"fine"])
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, texts.buffers())}), tmp_path / "a.parquet")
    documents, skipped = read_in_tasks(TextCorpus.of(tmp_path), 1)
    assert [d.text for d in documents] == ["good", "fine"]
    assert [where for where, _ in skipped.bad] == [f"{tmp_path}/a.parquet row 1"]


def test_trouble_with_the_disk_is_no_damage(tmp_path):
    corpus = TextCorpus.of(write_corpus(tmp_path / "a.parquet", ROWS))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a.parquet cannot be read \(.*No such file.*see that it is there"):
        read_in_tasks(corpus, 1)


def test_hugging_face_dataset_folders(tmp_path):
    """What `save_to_disk` writes, with a cache of a later `map`; and a folder as on the hub, downloaded."""
    for split, rows in (("test", ROWS[:10]), ("train", ROWS[10:])):
        (tmp_path / "saved" / split).mkdir(parents=True)
        write_corpus(tmp_path / "saved" / split / "data-00000-of-00001.arrow", rows)
        (tmp_path / "saved" / split / "state.json").write_text("{}")
        (tmp_path / "saved" / split / "dataset_info.json").write_text("{}")
        write_corpus(tmp_path / "saved" / split / "cache-0123456789abcdef.arrow", rows)
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        write_corpus(tmp_path / "hub/data" / f"{split}-00000-of-00001.parquet", rows)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "hub/README.md").write_text("# Data")
    (tmp_path / "hub/.cache/huggingface").mkdir(parents=True)
    write_corpus(tmp_path / "hub/.cache/huggingface/old.parquet", ROWS)
    for folder in ("saved", "hub"):
        assert [d.text for d in read_texts(tmp_path / folder)] == [row["text"] for row in ROWS]
    assert [d.text for d in read_texts(tmp_path / "saved/train")] == [row["text"] for row in ROWS[10:]]


def test_a_table_without_text_says_which_columns_it_has(tmp_path):
    with pytest.raises(UserError, match="no column `text` \\(it has id, body\\)"):
        list(read_texts(write_corpus(tmp_path / "a.parquet", [{"id": "1", "body": "x"}])))


def test_a_manifest_keeps_its_fields_and_makes_audio_absolute(tmp_path):
    row = {
        "id": "u1",
        "audio": "wav/u1.wav",
        "text": "hi",
        "speaker": "s",
        "language": "en",
        "seconds": 2,
        "source": "b",
    }
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl([row, {"id": "u2", "audio": "/x.wav", "no": 1}]))
    first, second = read_manifest(tmp_path)
    assert (first.audio, first.text, first.speaker, first.language, first.seconds, first.source) == (
        str(tmp_path / "wav/u1.wav"), "hi", "s", "en", 2.0, "b",
    )  # fmt: skip
    assert (second.audio, second.text, second.seconds) == ("/x.wav", None, None)
    assert read_manifest(tmp_path / "manifest.jsonl") == [first, second]


def test_a_folder_of_sound_files_is_a_manifest(tmp_path):
    for name in ("b.flac", "s/a.WAV", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(u.id, u.audio) for u in read_manifest(tmp_path)] == [
        ("b", str(tmp_path / "b.flac")),
        ("s/a", str(tmp_path / "s/a.WAV")),
    ]
    assert [u.id for u in read_manifest(tmp_path / "b.flac", tmp_path / "s/a.WAV")] == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "line 2 is not JSON"),
        (b"[]", "line 2 is not a JSON object"),
        (b'{"id": "b"}', "line 2 lacks `audio`"),
        (b'{"audio": "b.wav"}', "line 2 lacks `id`"),
        (b'{"id": "b", "audio": "b.wav", "text": 3}', "line 2: `text` is 3"),
        (b'{"id": "b", "audio": "b.wav", "seconds": "1"}', "line 2: `seconds` is '1'"),
        (b'{"id": "a", "audio": "b.wav"}', "line 2: id 'a' is also at .*manifest.jsonl line 1"),
        (b'{"id": "\xff", "audio": "b.wav"}', "line 2 is not JSON"),
    ],
)
def test_a_bad_manifest_names_file_and_line(tmp_path, line, message):
    (tmp_path / "manifest.jsonl").write_bytes(b'{"id": "a", "audio": "a.wav"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"manifest.jsonl {message}"):
        read_manifest(tmp_path)


def test_missing_and_empty_sources_are_refused(tmp_path):
    (tmp_path / "a.mid").touch()
    (tmp_path / "empty.jsonl").touch()
    for path, message in (
        ("nowhere", "does not exist"),
        ("a.mid", "neither a .jsonl"),
        ("empty.jsonl", "is empty"),
        (".", "has neither manifest.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            read_manifest(tmp_path / path)
