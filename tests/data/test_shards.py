from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.artifacts import Manifest
from weft.data.shards import Rows, TokenShards, tokenizer_of, write_codes, write_documents, write_tokens
from weft.errors import UserError
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


def token_documents(lengths, vocab_size=300, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, vocab_size, n), rng.random(n) < 0.5) for n in lengths]


def test_documents_survive_and_any_range_of_rows_can_be_read(tmp_path):
    assert write_documents(tmp_path, 0, DOCUMENTS[:1800]) == 1800
    assert write_documents(tmp_path, 1, []) == 0
    assert write_documents(tmp_path, 2, iter(DOCUMENTS[1800:])) == 700
    rows = Rows.of(tmp_path)
    assert len(rows) == 2500
    assert list(rows.documents()) == DOCUMENTS
    for start, stop in ((0, 0), (0, 1), (10, 20), (999, 1001), (1799, 1801), (2400, 2500), (500, 2300)):
        assert list(rows.documents(range(start, stop))) == DOCUMENTS[start:stop]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part-00000.parquet", "part-00002.parquet"]


def test_documents_from_before_spans_had_error_rates_are_read(tmp_path):
    write_documents(tmp_path, 0, DOCUMENTS[:3])
    part = tmp_path / "part-00000.parquet"
    table = pq.read_table(part)
    fields = [f for f in table.schema.field("meta").type if f.name != "span_wer"]
    meta = [{f.name: row["meta"][f.name] for f in fields} for row in table.to_pylist()]
    pq.write_table(table.set_column(3, "meta", pa.array(meta, pa.struct(fields))), part)
    assert list(Rows.of(tmp_path).documents()) == DOCUMENTS[:3]


def test_codes_survive(tmp_path):
    utterances = [CodedUtterance(str(i), [i, 65535], None, i / 4, "s", "en", None) for i in range(3)]
    arrays = [replace(u, codes=np.array(u.codes, np.uint16)) for u in utterances]
    write_codes(tmp_path / "lists", 0, utterances)
    write_codes(tmp_path / "arrays", 0, arrays)
    assert list(Rows.of(tmp_path / "lists").utterances()) == utterances
    assert list(Rows.of(tmp_path / "arrays").utterances()) == utterances
    spoken = [Document("d", "speech", (Segment.of_speech(u.codes, "x"),)) for u in arrays]
    write_documents(tmp_path / "documents", 0, spoken)
    assert [d.segments[0].codes for d in Rows.of(tmp_path / "documents").documents()] == [u.codes for u in utterances]


def test_a_part_is_whole_or_absent(tmp_path):
    def documents():
        yield from DOCUMENTS[:1500]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_documents(tmp_path, 0, documents())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_named(tmp_path):
    write_documents(tmp_path, 0, DOCUMENTS[:10])
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"part-00000.parquet is damaged"):
        Rows.of(tmp_path)


def test_a_part_whose_pages_are_damaged_is_named(tmp_path):
    write_documents(tmp_path, 0, DOCUMENTS[:500])
    part = tmp_path / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
    part.write_bytes(content)
    rows = Rows.of(tmp_path)  # what the footer tells is whole
    with pytest.raises(UserError, match=r"part-00000.parquet is damaged .*make its dataset again"):
        list(rows.documents())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "d"}, "lacks columns .*kind"),
        (
            {"id": "d", "kind": "poem", "segments": [], "meta": None},
            "document 'd' is of kind 'poem'.*: make its dataset",
        ),
        ({"id": "d", "kind": "text", "segments": "words", "meta": None}, "is damaged"),
    ],
)
def test_rows_that_hold_no_document_are_named_with_their_part(tmp_path, row, message):
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "part-00000.parquet")
    with pytest.raises(UserError, match=f"part-00000.parquet.* {message}"):
        list(Rows.of(tmp_path).documents())


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=4), st.sampled_from([300, 65536, 65537]))
def test_token_shards_give_back_every_document(tmp_path_factory, tasks, vocab_size):
    folder = tmp_path_factory.mktemp("t")
    written = []
    for task, lengths in enumerate([*tasks, [3]]):
        documents = token_documents(lengths, vocab_size, seed=task)
        assert write_tokens(folder, task, vocab_size, documents) == sum(lengths)
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


@pytest.mark.parametrize(("suffix", "size", "asked"), [("", 2 * 6, 18), (".loss", 4, 9), (".index", 13, 16)])
def test_a_shard_that_is_cut_off_is_named_with_its_offset(tmp_path, suffix, size, asked):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / f"00000.ds{suffix}"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"00000.ds{suffix} ends at byte {size}, not at {asked}"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".metadata", None, "metadata does not tell the width"),
        (".metadata", b"weft|3", "metadata does not tell the width"),
        (".index", np.array([5, 4], "<u8").tobytes(), "index goes back from 5 to 4 at byte 8"),
        (".index", b"", "index ends at byte 0"),
        (".loss", None, "loss ends at byte 0, not at 9"),
        ("", bytes(20), "ends at byte 20, not at 18"),
    ],
)
def test_files_of_a_shard_that_do_not_fit_each_other_are_refused(tmp_path, suffix, content, message):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / f"00000.ds{suffix}"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"00000.ds.*{message}.*pack the dataset again"):
        TokenShards(tmp_path)


def test_an_id_outside_the_vocabulary_is_named_with_its_offset(tmp_path):
    write_tokens(tmp_path, 0, 300, token_documents([4, 5]))
    path = tmp_path / "00000.ds"
    ids = np.fromfile(path, "<u2")
    ids[6] = 300
    ids.tofile(path)
    shards = TokenShards(tmp_path, vocab_size=300)
    assert len(shards[0].ids) == 4
    with pytest.raises(UserError, match=r"00000.ds holds id 300 of 300 at byte 12: .*pack the dataset again"):
        shards[1]
    assert len(TokenShards(tmp_path, vocab_size=301)[1].ids) == 5


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no token shards"):
        TokenShards(tmp_path)


def test_datatrove_reads_our_shards_and_writes_what_we_write(tmp_path):
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


def test_codes_of_two_tokenizers_do_not_mix():
    a, b, text = (Manifest("documents", "f", parents=p) for p in ({"tokenizer": "aa"}, {"tokenizer": "bb"}, {}))
    assert tokenizer_of({"x": text}) == {}
    assert tokenizer_of({"x": a, "y": text, "z": a})["tokenizer"].fingerprint == "aa"
    with pytest.raises(UserError, match="different tokenizers \\(x of aa, y of bb\\)"):
        tokenizer_of({"x": a, "y": b})
