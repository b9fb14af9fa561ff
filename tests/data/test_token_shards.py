"""Token shards: every document read back, the layout of datatrove, and messages about damage."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.token_shards import TokenShards, write_tokens
from weft.errors import UserError


def token_documents(lengths, vocab_size=300, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, vocab_size, n), rng.random(n) < 0.5) for n in lengths]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4), st.sampled_from([300, 65536, 65537]))
def test_every_document_of_token_shards_is_read_back(tmp_path_factory, tasks, vocab_size):
    folder = tmp_path_factory.mktemp("t")
    written = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda fd: None)  # slow
        for task, lengths in enumerate([*tasks, [3]]):
            documents = token_documents(lengths, vocab_size, seed=task)
            files = write_tokens(folder, task, vocab_size, documents)
            assert sorted(files) == sorted(folder.glob(f"{task:05d}.ds*"))
            written += documents
    shards = TokenShards(folder)
    assert len(shards) == len(written)
    assert shards.num_tokens == sum(len(ids) for ids, _ in written)
    assert shards.lengths().tolist() == [len(ids) for ids, _ in written]
    for i, (ids, loss) in enumerate(written):
        found = shards[i]
        assert found.ids.dtype == (np.uint16 if vocab_size <= 65536 else np.uint32)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_array_equal(found.loss, loss)
    with pytest.raises(IndexError):
        shards[len(shards)]


@pytest.mark.parametrize(("suffix", "size", "expected"), [("", 2 * 6, 18), (".loss", 4, 9), (".index", 13, 16)])
def test_a_truncated_shard_is_rejected(tmp_path, suffix, size, expected):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / f"00000.ds{suffix}"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"00000.ds{suffix} has {size} bytes, expected {expected}: it is damaged"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".metadata", None, "metadata does not contain the width"),
        (".metadata", b"weft|3", "metadata does not contain the width"),
        (".index", np.array([5, 4], "<u8").tobytes(), "index decreases from 5 to 4 at byte 8"),
        (".index", b"", "index has 0 bytes"),
        (".loss", None, "loss has 0 bytes, expected 9"),
        ("", bytes(20), "has 20 bytes, expected 18"),
    ],
)
def test_files_of_a_shard_that_do_not_fit_each_other_are_rejected(tmp_path, suffix, content, message):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / f"00000.ds{suffix}"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"00000.ds.*{message}.*pack the dataset again"):
        TokenShards(tmp_path)


def test_an_id_outside_of_the_vocabulary_is_rejected_with_its_offset(tmp_path):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / "00000.ds"
    ids = np.fromfile(path, "<u2")
    ids[6] = 300
    ids.tofile(path)
    shards = TokenShards(tmp_path, vocab_size=300)
    assert len(shards[0].ids) == 4
    with pytest.raises(
        UserError, match=r"00000.ds contains id 300 at byte 12, beyond the vocabulary of 300: .*pack the dataset again"
    ):
        shards[1]
    assert len(TokenShards(tmp_path, vocab_size=301)[1].ids) == 5


def test_a_directory_without_shards_is_rejected(tmp_path):
    with pytest.raises(UserError, match="contains no token shards"):
        TokenShards(tmp_path)


def test_shards_have_the_bytes_of_datatroves_and_can_be_read_by_it(tmp_path):
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile
    from datatrove.utils.dataset import DatatroveFileDataset

    documents = token_documents([7, 3, 11])
    write_tokens(tmp_path / "ours", 0, 300, documents)
    theirs = TokenizedFile(str(tmp_path / "theirs"), "00000.ds", save_loss_metadata=True, token_size=2)
    for ids, loss in documents:
        theirs.write(ids.tolist(), loss)
    theirs.close()
    for name in ("00000.ds", "00000.ds.index", "00000.ds.loss"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    row = DatatroveFileDataset(str(tmp_path / "ours/00000.ds"), seq_len=20, return_positions=True)[0]
    assert row["input_ids"].tolist() == np.concatenate([ids for ids, _ in documents]).tolist()
    assert row["positions"].tolist() == [*range(7), *range(3), *range(11)]
