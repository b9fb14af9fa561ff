import json
import shutil
from dataclasses import replace

import pytest
from transformers import BloomConfig, BloomForCausalLM

from weft import artifacts
from weft.errors import UserError
from weft.lm import init
from weft.lm.init import InitLmConfig
from weft.lm.model import LanguageModel, LmConfig

from .families import gpt2_tokenizer, save_text_lm, text_lm

TINY = LmConfig(hidden=32, layers=1, heads=2, ffn=64)


def write_texts(path, animal="cat"):
    path.parent.mkdir(exist_ok=True)
    rows = ({"text": f"the {animal} sat on mat {i}, and a dog barked"} for i in range(50))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path, speech_tokenizer):
    """A model with random weights."""
    texts = write_texts(tmp_path / "texts.jsonl")
    return InitLmConfig(tmp_path / "lm", speech_tokenizer, texts=(texts,), vocab_size=300, model=TINY)


@pytest.fixture
def based(tmp_path, speech_tokenizer):
    """A model that extends a Hugging Face directory."""
    (tmp_path / "base").mkdir()
    save_text_lm(*text_lm("qwen2", tied=True), tmp_path / "base")
    return InitLmConfig(tmp_path / "lm", speech_tokenizer, base=tmp_path / "base")


def test_a_model_without_a_base_has_a_vocabulary_for_its_texts_and_the_codes(config):
    manifest = init.run(config)
    lm = LanguageModel.from_pretrained(config.out)
    assert lm.vocab.num_codes == 16
    assert lm.vocab.size <= 300 + 16 + 5
    assert len(lm.vocab.text_ids(" the cat")) < len(" the cat") / 2
    assert manifest.counts["frame_rate_hz"] == 12.5
    artifacts.require_parent(lm.manifest, "tokenizer", artifacts.read(config.tokenizer))
    assert init.run(config) == manifest


def test_a_base_is_extended_with_the_codes(based):
    init.run(based)
    assert LanguageModel.from_pretrained(based.out).vocab.num_codes == 16


def test_a_model_that_weft_created_is_extended_too(config, tmp_path):
    first = init.run(config)
    manifest = init.run(InitLmConfig(tmp_path / "second", config.tokenizer, base=config.out))
    assert manifest.parents["base"] == first.fingerprint
    assert LanguageModel.from_pretrained(tmp_path / "second").vocab.num_codes == 16


def test_a_base_that_cannot_be_trained_on_packed_documents_is_rejected(based):
    model = BloomForCausalLM(BloomConfig(vocab_size=600, hidden_size=32, n_layer=1, n_head=2))
    save_text_lm(model, gpt2_tokenizer(), based.base)
    with pytest.raises(UserError, match="BloomForCausalLM accepts no position ids"):
        init.run(based)
    assert not based.out.exists()


def test_a_base_or_texts_are_required(config):
    with pytest.raises(UserError, match="needs a base, or texts"):
        init.run(replace(config, texts=()))


def test_texts_are_identified_by_their_contents(config, tmp_path):
    manifest = init.run(config)
    moved = write_texts(tmp_path / "elsewhere/texts.jsonl")
    assert init.run(replace(config, texts=(moved,))) == manifest
    write_texts(moved, animal="bird")
    with pytest.raises(UserError, match=f"{config.out} was created with other contents of texts: choose another --out"):
        init.run(replace(config, texts=(moved,)))


def test_a_base_is_identified_by_its_contents(based, tmp_path):
    manifest = init.run(based)
    moved = shutil.copytree(based.base, tmp_path / "moved")
    assert init.run(replace(based, base=moved)) == manifest
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=f"{based.out} was created with other contents of base: choose another --out"):
        init.run(replace(based, base=moved))


def test_a_model_with_a_base_differs_from_one_without(config, based):
    config = replace(config, vocab_size=based.vocab_size, model=based.model)
    init.run(config)
    message = r"texts = sha256:\w+ \(now None\), base = None \(now sha256:\w+\)"
    with pytest.raises(UserError, match=rf"{config.out} was created with {message}: choose another --out"):
        init.run(based)
