import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.decoder.conftest import NUM_CODES, make_decoder
from tests.tokenizer.conftest import make_tokenizer, save_whisper
from weft.artifacts import base_manifest, read
from weft.audio import save
from weft.data.datasets import write_codes_part
from weft.lm.init import InitLmConfig
from weft.lm.init import run as init_lm
from weft.lm.model import LmConfig, llama_config, new_lm
from weft.lm.model import save as save_lm
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.vocab import extend_tokenizer, train_text_tokenizer

TEXTS = ["The cat sat.", "On the mat Ann sat.", "The 9 cats", "..."]


def noise(num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num_samples).astype(np.float32) * 0.1


def write_bundle(folder: Path, tokenizer: SpeechTokenizer, whisper: Path) -> Path:
    """Write a bundle of models with random weights, and the codes that its text-to-token model was trained on."""
    plan = Plan("tokenizer", {"model": asdict(tokenizer.model.config)}, {"base": base_manifest(whisper)})
    with open_draft(folder / "tokenizer", plan) as draft:
        tokenizer.write_files(draft.folder)
    parents = {"tokenizer": read(folder / "tokenizer")}
    with open_draft(folder / "decoder", Plan("decoder", {}, parents)) as draft:
        make_decoder().write_files(draft.folder)
    for name in ("codes", "other_codes"):
        with open_draft(folder / name, Plan("codes", {}, parents)) as draft:
            write_codes_part(draft.folder, 0, [CodedUtterance(name, [1, 2], "The cat, the cat!")])
    plan = Plan("text_to_token", {"temperature": 0.5}, {**parents, "codes 0": read(folder / "codes")})
    with open_draft(folder / "text_to_token", plan) as draft:
        text_tokenizer = extend_tokenizer(train_text_tokenizer(TEXTS, 300), NUM_CODES)
        shape = LmConfig(hidden=32, layers=1, heads=2, ffn=32, max_position_tokens=256)
        save_lm(new_lm(shape, text_tokenizer, 0), text_tokenizer, draft.folder)
        draft.counts.update(frame_rate_hz=12.5, max_codes_per_character=1.5)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> SpeechTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("judge") / "whisper", multilingual=False)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: SpeechTokenizer, whisper: Path) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), tokenizer, whisper)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of noise with a manifest whose transcripts are `TEXTS`."""
    folder = tmp_path_factory.mktemp("speech")
    rows = [
        {"id": str(i), "audio": f"{i}.wav", "text": text, "language": "en", "speaker": f"speaker-{i % 2}"}
        for i, text in enumerate(TEXTS)
    ]
    for i in range(len(TEXTS)):
        save(folder / f"{i}.wav", noise(9_000, i), 16_000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def text_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of Hugging Face without speech tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("lm") / "base", train_text_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    shape = LmConfig(hidden=16, layers=1, heads=2, ffn=16, max_position_tokens=256)
    AutoModelForCausalLM.from_config(llama_config(shape, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm(text_lm: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a language model."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("with_lm") / "bundle"))
    init_lm(InitLmConfig(folder / "lm", folder / "tokenizer", base=text_lm))
    return folder
