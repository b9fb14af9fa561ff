"""Token shards at URLs: the same batches, losses and plans as those of local shards, and messages about stores."""

import json
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from weft import artifacts
from weft.data import storage
from weft.data.stored_artifacts import read_manifest, read_parent
from weft.data.token_shards import TokenShards
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.datasets import mixture_of, open_datasets
from weft.lm.held_out import held_out_losses
from weft.lm.loss_meter import Units
from weft.training.config import TrainConfig

TRAIN = TrainConfig(steps=20)
SECRET = "me:key@"


@pytest.fixture
def store():
    """A store in memory, whose URLs may contain user information."""
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def upload(store):
    """A function that copies an artifact to the store and returns its URL."""

    def copy(folder, name="tokens"):
        for path in folder.rglob("*"):
            if path.is_file():
                store.pipe(f"/bucket/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://bucket/{name}"

    return copy


@pytest.mark.parametrize("max_seq_len", [5, 32, 1000])
def test_batches_of_shards_at_a_url_are_those_of_local_shards(tokens, upload, max_seq_len):
    mixtures = [
        mixture_of({folder: open_datasets(folder, max_seq_len)}, {}, {}, TRAIN, 256)
        for folder in (tokens, upload(tokens))
    ]
    assert mixtures[0].names == mixtures[1].names
    assert mixtures[0].uses() == mixtures[1].uses()
    for step in range(TRAIN.steps):
        here, there = (mixture.read(mixture.samples(step)) for mixture in mixtures)
        assert len(here) == len(there) == len(mixtures[0].samples(step))
        for j, sample, other in zip(mixtures[0].samples(step), here, there, strict=True):
            for a, b, c in zip(sample, other, mixtures[1][j], strict=True):
                assert a.dtype == b.dtype
                assert np.array_equal(a, b)
                assert np.array_equal(a, c)


def test_held_out_losses_at_a_url_are_those_of_local_shards(tiny_lm, vocab, held_out, upload, monkeypatch):
    monkeypatch.setattr("weft.lm.held_out._PIECES_PER_READ", 7)
    local, stored = (list(open_datasets(folder, 32).items()) for folder in (held_out, upload(held_out)))
    assert held_out_losses(tiny_lm, Units(vocab), local, 500) == held_out_losses(tiny_lm, Units(vocab), stored, 500)


def test_only_the_parts_that_are_needed_are_requested(tokens, upload, monkeypatch):
    shards = TokenShards(f"{upload(tokens)}/speech")
    fetched = []
    fetch = storage.StoredFile.read
    monkeypatch.setattr(storage.StoredFile, "read", lambda *args: fetched.append(args[2] - args[1]) or fetch(*args))
    found = shards.read([(3, slice(2, 6)), (7, slice(0, 3))])
    assert [len(document.ids) for document in found] == [4, 3]
    assert sorted(fetched) == sorted([4 * 2, 4, 3 * 2, 3])


def test_the_identity_of_an_artifact_is_the_same_at_a_url(tokens, upload):
    assert read_parent(upload(tokens), "tokens") == artifacts.read_parent(tokens, "tokens")


def test_a_run_with_urls_has_the_same_plan_and_result_and_stores_no_credentials(
    config, upload, store, tmp_path, capsys
):
    upload(config.tokens[0])
    upload(config.held_out[0], "held_out")
    short = replace(config, train=replace(config.train, steps=3))
    urls = {"tokens": (f"memory://{SECRET}bucket/tokens",), "held_out": (f"memory://{SECRET}bucket/held_out",)}
    for name in ("tokens", "held_out"):
        store.cp(f"/bucket/{name}", f"/{SECRET}bucket/{name}", recursive=True)
    try:
        there = pretrain.run(replace(short, **urls, out=tmp_path / "there"))
    finally:
        store.rm(f"/{SECRET}bucket", recursive=True)
    here = pretrain.run(replace(short, out=tmp_path / "here"))
    assert there.settings == here.settings
    assert there.parents == here.parents
    assert there.files == here.files
    printed = capsys.readouterr()
    written = [p.read_bytes() for p in (tmp_path / "there").rglob("*") if p.is_file()]
    assert not any(b"key@" in content for content in [*written, printed.out.encode(), printed.err.encode()])


def test_files_that_differ_from_the_manifest_are_found_by_the_listing(tokens, upload, store):
    url = upload(tokens)
    store.pipe("/bucket/tokens/speech/00000.ds.loss", b"short")
    store.rm("/bucket/tokens/interleaved/00000.ds")
    store.pipe("/bucket/tokens/other.ds", b"")
    with pytest.raises(
        UserError,
        match=r"^memory://bucket/tokens is not the tokens dataset that was created: interleaved/00000.ds is missing; "
        r"other.ds is not part of it; speech/00000.ds.loss has 5 bytes, expected \d+: restore it",
    ):
        read_manifest(url, "tokens")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "memory://bucket/tokens has no manifest.json: give the URL of a tokens dataset"),
        (b"\xff{", "memory://bucket/tokens/manifest.json is damaged"),
        ({"kind": "codes"}, "memory://bucket/tokens is a codes dataset: give the directory of a tokens dataset"),
        ({"settings": {"vocab": "x"}}, "the settings, parents or files in manifest.json were edited"),
    ],
)
def test_other_manifests_at_a_url_are_rejected(tokens, upload, store, content, message):
    url, path = upload(tokens), "/bucket/tokens/manifest.json"
    if content is None:
        store.rm(path)
    else:
        edited = (
            json.dumps(json.loads(store.cat_file(path)) | content).encode() if isinstance(content, dict) else content
        )
        store.pipe(path, edited)
    with pytest.raises(UserError, match=message):
        open_datasets(url, 32)


def test_failed_requests_are_repeated_and_a_store_that_keeps_failing_is_an_error(tokens, upload, store, monkeypatch):
    shards, local = TokenShards(f"{upload(tokens)}/speech"), TokenShards(tokens / "speech")
    fetch, calls = type(store).cat_file, []

    def unreliable(self, path, start, end):
        calls.append(path)
        if len(calls) % 2:
            raise ConnectionResetError("reset by peer")
        return fetch(self, path, start, end)

    monkeypatch.setattr(storage.time, "sleep", lambda sec: None)
    monkeypatch.setattr(storage, "_MAX_REQUESTS", 1)
    monkeypatch.setattr(type(store), "cat_file", unreliable)
    assert np.array_equal(shards[5].ids, local[5].ids)
    assert len(calls) == 4

    def fail(self, path, start, end):
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(store), "cat_file", fail)
    with pytest.raises(
        UserError, match=r"^memory://\S+00000.ds cannot be read after 5 attempts \(TimeoutError: no answer\)"
    ):
        shards[5]
