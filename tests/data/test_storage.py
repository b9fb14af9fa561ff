"""Corpora at URLs: read like local files, in ranges, with retries."""

import os
from typing import ClassVar

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem

from tests.data.corpora import BOOK, ROWS, read_in_tasks, write_corpus
from weft.data import storage
from weft.data.corpus import TextCorpus, read_texts
from weft.errors import UserError

NAMES = ["a.jsonl", "b.jsonl.gz", "b.jsonl.zst", "c.parquet", "d.arrow", "e/f.txt"]


@pytest.fixture
def folder(tmp_path):
    """A directory with files of every format."""
    (tmp_path / "text/e").mkdir(parents=True)
    for name in NAMES[:-1]:
        write_corpus(tmp_path / "text" / name, ROWS)
    (tmp_path / "text/e/f.txt").write_text(BOOK)
    (tmp_path / "text/.hidden.txt").write_text("not read")
    return tmp_path / "text"


@pytest.fixture
def url(folder):
    """The URL of the same files in a store."""
    store = fsspec.filesystem("memory")
    store.pipe({f"/bucket/text/{name}": (folder / name).read_bytes() for name in (*NAMES, ".hidden.txt")})
    yield "memory://bucket/text"
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("num_tasks", [1, 7])
def test_a_url_is_read_like_a_directory(folder, url, num_tasks):
    here, there = TextCorpus.of(folder), TextCorpus.of(url)
    assert [(f.name, f.size_bytes) for f in here.files] == [(f.name, f.size_bytes) for f in there.files]
    assert read_in_tasks(here, num_tasks) == read_in_tasks(there, num_tasks)
    assert [f.path for f in there.files] == [f"memory:///bucket/text/{name}" for name in NAMES]
    for name in NAMES:
        documents = read_in_tasks(TextCorpus.of(f"{url}/{name}"), num_tasks)[0]
        assert documents == read_in_tasks(TextCorpus.of(folder / name), num_tasks)[0]


class SignedStore(AbstractFileSystem):
    """A store whose requests need the signature in their URLs, as presigned URLs do."""

    protocol = "https"
    files: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return path

    def unstrip_protocol(self, name):
        return name

    def _content(self, path):
        base, _, query = path.partition("?")
        if not query.startswith("X-Signature="):
            raise PermissionError(f"{path} is not signed")
        return self.files[base]

    def info(self, path, **kwargs):
        return {"name": path, "type": "file", "size": len(self._content(path)), "ETag": "v1"}

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._content(path)[start:end]


@pytest.mark.parametrize("name", NAMES)
def test_presigned_urls_are_read_and_their_signatures_are_stored_nowhere(folder, monkeypatch, name):
    monkeypatch.setitem(_registry, "https", SignedStore)
    content = (folder / name).read_bytes()
    SignedStore.files = {f"https://me:key@host/{name}": content, f"https://host/{name}": content}
    corpora = [
        TextCorpus.of(f"https://{user}host/{name}?X-Signature={s}/1") for user, s in (("me:key@", "ab"), ("", "cd"))
    ]
    assert corpora[0].identity == corpora[1].identity
    documents, _ = read_in_tasks(corpora[0], 3)
    expected = [d.text for d in read_in_tasks(TextCorpus.of(folder / name), 3)[0]]
    assert [d.text for d in documents] == expected
    assert not any(secret in d.id for d in documents for secret in ("Signature", "key", "ab/1"))
    with pytest.raises(UserError, match=r"^https://host/\S+ is given twice"):
        TextCorpus.of(*(f"https://host/{name}?X-Signature={s}" for s in "ab"))
    SignedStore.files = {f"https://me:key@host/{name}": b"\xff{\x00" * 9999}
    with pytest.raises(UserError, match="https://host/") as error:
        list(read_texts(f"https://me:key@host/{name}?X-Signature=ab"))
    assert not any(secret in str(error.value) for secret in ("Signature", "key"))


def test_every_byte_is_fetched_once_in_small_ranges(url, monkeypatch):
    fetched = []
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(storage, "_BUFFER_BYTES", 1024)
    monkeypatch.setattr(
        type(store),
        "cat_file",
        lambda self, path, start, end: fetched.append(end - start) or self.store[path].getvalue()[start:end],
    )
    corpus = TextCorpus.of(f"{url}/a.jsonl")
    read_in_tasks(corpus, 1)
    assert corpus.size_bytes <= sum(fetched) < corpus.size_bytes + 2048
    assert max(fetched) <= 1024


def test_failed_requests_are_repeated(folder, url, monkeypatch):
    store, waits, calls = fsspec.filesystem("memory"), [], []
    fetch = type(store).cat_file

    def unreliable(self, path, start, end):
        calls.append(path)
        if len(calls) % 3 == 1:
            raise ConnectionResetError("reset by peer")
        return fetch(self, path, start, end)[: 5 if len(calls) % 3 == 2 else None]  # truncated

    monkeypatch.setattr(type(store), "cat_file", unreliable)
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    assert read_in_tasks(TextCorpus.of(url), 2) == read_in_tasks(TextCorpus.of(folder), 2)
    assert set(waits) == {1.0, 2.0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError("no answer"), r"cannot be read after 5 attempts \(TimeoutError: no answer\)"),
        (OSError("without a number"), r"cannot be read after 5 attempts \(OSError: without a number\)"),
        (PermissionError("not yours"), r"cannot be read \(PermissionError: not yours\): check that you have access"),
        (FileNotFoundError("gone"), "no longer exists"),
    ],
)
def test_a_store_that_keeps_failing_is_an_error(url, monkeypatch, name, error, message):
    def fail(self, path, start, end):
        raise error

    corpus = TextCorpus.of(f"{url}/{name}")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    monkeypatch.setattr(storage.time, "sleep", lambda sec: None)
    with pytest.raises(UserError, match=f"memory.*{name} {message}"):
        read_in_tasks(corpus, 1)


def test_urls_without_files_are_rejected(url):
    for wrong, message in (
        (f"{url}/nothing", "nothing does not exist"),
        (f"{url}/e/f.pdf", "f.pdf does not exist"),
        ("nonsense://x/y", "nonsense://x/y cannot be read .*install the fsspec package for it"),
    ):
        with pytest.raises(UserError, match=message):
            TextCorpus.of(wrong)


def test_a_file_without_a_version_is_identified_by_its_time_of_modification(folder):
    """Local files at file:// and files of simple web servers have none."""
    url = f"file://{folder}"
    first = TextCorpus.of(url).identity
    assert TextCorpus.of(url).identity == first
    path = folder / "e/f.txt"
    path.write_text(path.read_text().swapcase())
    os.utime(path, (0, 0))
    assert TextCorpus.of(url).identity != first
