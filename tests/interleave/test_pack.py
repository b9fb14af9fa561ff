"""Token shards contain the ids of all documents, for any language model of the same speech tokenizer."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.interleave.conftest import TOKENIZER
from tests.interleave.fakes import NUM_CODES, load
from weft.artifacts import Manifest
from weft.data.corpus import read_texts
from weft.data.datasets import Rows, write_codes_part
from weft.data.token_shards import TokenShards
from weft.errors import UserError
from weft.interleave import documents, interleave, pack
from weft.interleave.config import InterleaveConfig
from weft.interleave.pack import PackConfig
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer


@pytest.fixture(scope="module")
def inputs(corpus, tmp_path_factory):
    """A directory with the datasets interleaved, asr and text, and the tokenizers of two language models."""
    folder = tmp_path_factory.mktemp("pack")
    with open_draft(folder / "text_to_token", Plan("text_to_token", {}, {"tokenizer": TOKENIZER})):
        pass
    with open_draft(folder / "codes", Plan("codes", {}, {"tokenizer": TOKENIZER})) as draft:
        write_codes_part(draft.folder, 0, (CodedUtterance(f"u{i}", [i, 2 * i], f"number {i}") for i in range(9)))
    interleave.run(InterleaveConfig((corpus,), folder / "interleaved", folder / "text_to_token", tasks=3), load)
    documents.run(documents.DocumentsConfig("asr", (folder / "codes",), folder / "asr"))
    documents.run(documents.DocumentsConfig("text", (corpus,), folder / "text"))
    texts = [document.text for document in read_texts(corpus)]
    for name, vocab_size in (("lm", 300), ("other", 400)):
        extend_tokenizer(train_text_tokenizer(texts, vocab_size), NUM_CODES).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def vocab(inputs):
    return SpeechVocab.of(AutoTokenizer.from_pretrained(inputs / "lm"))


@pytest.fixture(scope="module")
def datasets(inputs):
    return inputs / "interleaved", inputs / "asr", inputs / "text"


def test_shards_contain_the_ids_of_all_documents(datasets, inputs, vocab, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_ROWS_PER_TASK", 50)
    counts = pack.run(PackConfig(datasets, inputs / "lm", tmp_path / "tokens")).counts
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
    ratio = counts["datasets"]["interleaved"]["speech_tokens_per_replaced_text_token"]
    assert ratio == pytest.approx(sum(len(s.codes) for s in spoken) / replaced, abs=1e-3)
    assert ratio == counts["speech_tokens_per_replaced_text_token"]
    assert "speech_tokens_per_replaced_text_token" not in counts["datasets"]["asr"]


def test_documents_can_be_packed_for_any_language_model(datasets, inputs, tmp_path):
    codes = []
    for name in ("lm", "other"):
        vocab = SpeechVocab.of(AutoTokenizer.from_pretrained(inputs / name))
        pack.run(PackConfig(datasets[:1], inputs / name, tmp_path / name))
        ids = np.concatenate([shard.ids for shard in TokenShards(tmp_path / name / datasets[0].name)])
        codes.append(vocab.ids_to_codes(ids[vocab.is_audio(ids)]).tolist())
    assert codes[0] == codes[1]
    assert len(codes[0]) > 100


def test_an_error_for_codes_outside_the_vocabulary_names_the_document(make_codes, inputs, tmp_path):
    codes = make_codes("codes", [[CodedUtterance("u0", [0, NUM_CODES], "x")]])
    documents.run(documents.DocumentsConfig("tts", (codes,), tmp_path / "tts"))
    with pytest.raises(UserError, match=r"tts, document 'u0': codes 0\.\.512 do not fit"):
        pack.run(PackConfig((tmp_path / "tts",), inputs / "lm", tmp_path / "tokens"))


def test_documents_and_model_of_different_tokenizers_are_an_error(datasets, make_codes, inputs, vocab, tmp_path):
    other = make_codes("other_codes", [[CodedUtterance("u0", [0], "x")]], Manifest("tokenizer", "bbbb"))
    documents.run(documents.DocumentsConfig("tts", (other,), tmp_path / "other"))
    with pytest.raises(UserError, match=r"different tokenizers \(interleaved: aaaa, other: bbbb\)"):
        pack.run(PackConfig((datasets[0], tmp_path / "other"), inputs / "lm", tmp_path / "tokens"))
    plan = Plan("language_model", {}, {"tokenizer": Manifest("tokenizer", "cccc")})
    with open_draft(tmp_path / "trained", plan) as draft:
        vocab.tokenizer.save_pretrained(draft.folder)
    with pytest.raises(UserError, match="interleaved: aaaa, the language model: cccc"):
        pack.run(PackConfig(datasets[:1], tmp_path / "trained", tmp_path / "tokens"))


def test_wrong_directories_are_errors(datasets, inputs, tmp_path):
    for lm, sets, message in (
        ("nowhere", datasets, "nowhere does not exist"),
        ("interleaved", datasets, "cannot be loaded as a language model"),
        ("lm", (datasets[0], datasets[0]), "two datasets have the same name"),
        ("lm", (inputs / "codes",), "is a codes dataset.*a documents dataset"),
    ):
        with pytest.raises(UserError, match=message):
            pack.run(PackConfig(sets, inputs / lm, tmp_path / "tokens"))
