"""Text corpora: the order and the ids of their documents, and the identity of their contents."""

import errno
import os

import pytest

from tests.data.corpora import ROWS, read_in_tasks, write_corpus
from weft import digests
from weft.data.corpus import TextCorpus, read_texts
from weft.errors import UserError


@pytest.mark.parametrize("num_tasks", [1, 2, 7, 301])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_tasks_read_every_document_once_and_in_order(tmp_path, name, num_tasks):
    corpus = TextCorpus.of(write_corpus(tmp_path / name, ROWS))
    documents, skipped = read_in_tasks(corpus, num_tasks)
    assert [(d.id, d.text) for d in documents] == [(row["id"], row["text"]) for row in ROWS]
    assert (skipped.num_good, skipped.bad) == (300, [])


def test_directories_and_files_are_read_in_order_with_their_names_as_ids(tmp_path):
    for name in ("x/a.txt", "x/b.txt", "y/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "x/notes.md").write_text("not read")
    documents = list(read_texts(tmp_path / "y", tmp_path / "x"))
    assert [(d.id, d.text) for d in documents] == [(n, f"text of {n}") for n in ("y/a.txt", "x/a.txt", "x/b.txt")]


def test_the_identity_follows_names_and_contents_and_not_the_location(tmp_path):
    for folder, text in (("p", "abc"), ("q", "abc"), ("r", "abcd")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(text)
    p, q, r = (TextCorpus.of(tmp_path / n).identity for n in "pqr")
    assert p == q != r


@pytest.mark.parametrize("max_hashed_bytes", [digests.MAX_HASHED_BYTES, 10_000])  # read completely, and sampled
def test_the_identity_follows_contents_of_the_same_size(tmp_path, monkeypatch, max_hashed_bytes):
    monkeypatch.setattr(digests, "MAX_HASHED_BYTES", max_hashed_bytes)
    words = [f"word{i:09}" for i in range(2000)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    before = TextCorpus.of(tmp_path).identity
    (tmp_path / "a.txt").write_text(" ".join(reversed(words)))
    assert TextCorpus.of(tmp_path).identity != before


def test_a_file_that_is_given_twice_is_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("Some words.")
    with pytest.raises(UserError, match=r"a\.txt is given twice"):
        TextCorpus.of(tmp_path, tmp_path / "a.txt")


def test_hugging_face_datasets_are_read(tmp_path):
    """Read the output of `save_to_disk`, with the cache of a later `map`, and a download from the Hub."""
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


def test_directories_that_are_not_read_are_reported(tmp_path, monkeypatch, capsys):
    for name in ("c/a.txt", "c/closed/b.txt", "c/.hidden/c.txt", "elsewhere/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "c/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c/loop").symlink_to(tmp_path / "c")
    (tmp_path / "c/e.txt").symlink_to(tmp_path / "elsewhere/d.txt")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert [file.name for file in TextCorpus.of(tmp_path / "c").files] == ["a.txt", "e.txt"]
    notes = sorted(line.split(f"{tmp_path}/c/")[1] for line in capsys.readouterr().err.splitlines())
    assert [note.split(" is left out")[0] for note in notes] == ["closed", "link", "loop"]
