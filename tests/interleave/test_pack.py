import numpy as np
import pytest
from fake_synthesizer import NUM_CODES, load
from transformers import AutoTokenizer

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.corpus import read_texts
from weft.data.shards import Rows, TokenShards
from weft.errors import UserError
from weft.interleave import documents, interleave, pack
from weft.interleave.config import InterleaveConfig
from weft.interleave.pack import PackConfig
from weft.records import CodedUtterance
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer


@pytest.fixture
def vocab(corpus, tmp_path):
    texts = [document.text for document in read_texts(corpus)]
    tokenizer = extend_tokenizer(train_text_tokenizer(texts, 300), NUM_CODES)
    tokenizer.save_pretrained(tmp_path / "lm")
    return SpeechVocab.of(tokenizer)


@pytest.fixture
def datasets(corpus, text_to_token, make_codes, tmp_path):
    codes = make_codes("codes", [[CodedUtterance(f"u{i}", [i, 2 * i], f"number {i}") for i in range(9)]])
    interleave.run(InterleaveConfig((corpus,), tmp_path / "woven", text_to_token, tasks=3), load)
    documents.run(documents.DocumentsConfig("asr", (codes,), tmp_path / "asr"))
    documents.run(documents.DocumentsConfig("text", (corpus,), tmp_path / "text"))
    return tmp_path / "woven", tmp_path / "asr", tmp_path / "text"


@pytest.mark.parametrize("workers", [1, 2])
def test_packing_loses_nothing(datasets, vocab, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pack, "_ROWS_PER_TASK", 50)
    counts = pack.run(PackConfig(datasets, tmp_path / "lm", tmp_path / "tokens", workers)).counts
    all_ids = []
    for dataset in datasets:
        shards = TokenShards(tmp_path / "tokens" / dataset.name)
        rows = list(Rows.of(dataset).documents())
        assert len(shards) == len(rows)
        for i, document in enumerate(rows):
            ids, loss = vocab.document_ids(document)
            np.testing.assert_array_equal(shards[i].ids, ids)
            np.testing.assert_array_equal(shards[i].loss, loss)
            all_ids.append(ids)
    ids = np.concatenate(all_ids)
    assert counts["speech_tokens"] == vocab.is_audio(ids).sum()
    assert counts["text_tokens"] + counts["speech_tokens"] + counts["control_tokens"] == len(ids)
    assert set(counts["kinds"]) == {"interleaved", "asr", "text"}
    assert counts["kinds"]["asr"]["documents"] == counts["datasets"]["asr"]["documents"] == 9
    assert counts["kinds"]["text"]["speech_tokens"] == 0
    spoken = [s for d in Rows.of(datasets[0]).documents() for s in d.segments if s.type == "speech"]
    replaced = sum(len(vocab.text_ids(s.text)) for s in spoken)
    ratio = counts["datasets"]["woven"]["speech_tokens_per_replaced_text_token"]
    assert ratio == pytest.approx(sum(len(s.codes) for s in spoken) / replaced, abs=1e-3)
    assert ratio == counts["speech_tokens_per_replaced_text_token"]
    assert "speech_tokens_per_replaced_text_token" not in counts["datasets"]["asr"]


def test_one_corpus_serves_many_language_models(datasets, vocab, corpus, tmp_path):
    texts = [document.text for document in read_texts(corpus)]
    extend_tokenizer(train_text_tokenizer(texts, 400), NUM_CODES).save_pretrained(tmp_path / "other")
    codes = []
    for name in ("lm", "other"):
        other = SpeechVocab.of(AutoTokenizer.from_pretrained(tmp_path / name))
        pack.run(PackConfig(datasets[:1], tmp_path / name, tmp_path / f"tokens of {name}"))
        ids = np.concatenate([shard.ids for shard in TokenShards(tmp_path / f"tokens of {name}" / datasets[0].name)])
        codes.append(other.ids_to_codes(ids[other.is_audio(ids)]).tolist())
    assert codes[0] == codes[1]
    assert len(codes[0]) > 100


def test_codes_outside_the_vocabulary_name_the_document(make_codes, vocab, tmp_path):
    codes = make_codes("codes", [[CodedUtterance("u0", [0, NUM_CODES], "x")]])
    documents.run(documents.DocumentsConfig("tts", (codes,), tmp_path / "tts"))
    with pytest.raises(UserError, match=r"tts, document 'u0': codes 0\.\.512 do not fit"):
        pack.run(PackConfig((tmp_path / "tts",), tmp_path / "lm", tmp_path / "tokens"))


def test_documents_and_model_of_different_tokenizers_are_refused(datasets, make_codes, vocab, tmp_path):
    other = make_codes("other_codes", [[CodedUtterance("u0", [0], "x")]], Manifest("tokenizer", "bbbb"))
    documents.run(documents.DocumentsConfig("tts", (other,), tmp_path / "other"))
    with pytest.raises(UserError, match="different tokenizers \\(woven of aaaa, other of bbbb\\)"):
        pack.run(PackConfig((datasets[0], tmp_path / "other"), tmp_path / "lm", tmp_path / "tokens"))
    with artifacts.build(
        tmp_path / "trained", "language_model", {}, {"tokenizer": Manifest("tokenizer", "cccc")}
    ) as draft:
        vocab.tokenizer.save_pretrained(draft.folder)
    with pytest.raises(UserError, match="woven of aaaa, the language model of cccc"):
        pack.run(PackConfig(datasets[:1], tmp_path / "trained", tmp_path / "tokens"))


def test_wrong_folders_are_refused(datasets, vocab, tmp_path):
    for lm, sets, message in (
        ("nowhere", datasets, "nowhere does not exist"),
        ("woven", datasets, "does not load as a language model"),
        ("lm", (datasets[0], datasets[0]), "share a name"),
        ("lm", (tmp_path / "codes",), "is a codes dataset, and a documents dataset is needed"),
    ):
        with pytest.raises(UserError, match=message):
            pack.run(PackConfig(sets, tmp_path / lm, tmp_path / "tokens"))
