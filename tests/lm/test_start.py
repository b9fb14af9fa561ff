import json

import pytest
import torch
from safetensors.torch import save_file

from weft import artifacts
from weft.errors import UserError
from weft.lm import start
from weft.lm.model import LanguageModel, LmConfig
from weft.lm.start import StartConfig

TINY = LmConfig(hidden=32, layers=1, heads=2, ffn=64)


@pytest.fixture
def tokenizer(tmp_path):
    codebook = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with artifacts.build(tmp_path / "tokenizer", "tokenizer", {"model": {"pooling": 4}}) as draft:
        save_file({"quantizer.codebook": codebook}, draft.folder / "model.safetensors")
    return tmp_path / "tokenizer"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"the cat sat on mat {i}, and a dog barked"}) + "\n" for i in range(50))
    )
    return (path,)


def test_a_model_from_nothing_knows_its_texts_and_the_codes(tmp_path, tokenizer, texts):
    config = StartConfig(tmp_path / "lm", tokenizer, texts=texts, vocab_size=300, model=TINY)
    manifest = start.run(config)
    lm = LanguageModel.load(config.out)
    assert lm.vocab.num_codes == 16
    assert lm.vocab.size <= 300 + 16 + 5
    assert len(lm.vocab.text_ids(" the cat")) < len(" the cat") / 2
    assert manifest.counts["frame_rate_hz"] == 12.5
    artifacts.require_parent(lm.manifest, "tokenizer", artifacts.read(tokenizer))
    assert start.run(config) == manifest


def test_a_base_model_is_given_the_codes(tmp_path, tokenizer, texts):
    start.run(StartConfig(tmp_path / "base", tokenizer, texts=texts, vocab_size=300, model=TINY))
    start.run(StartConfig(tmp_path / "lm", tokenizer, base=tmp_path / "base"))
    assert LanguageModel.load(tmp_path / "lm").vocab.num_codes == 16


def test_neither_base_nor_texts_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="needs a base, or texts"):
        start.run(StartConfig(tmp_path / "lm", tokenizer))
