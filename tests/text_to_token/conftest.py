"""Text-to-token models of speech whose codes are the letters of its text."""

import random

import pytest
import torch
from safetensors.torch import save_file

from weft import artifacts
from weft.data.datasets import write_codes_part
from weft.files import write_json
from weft.lm.model import LmConfig
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance
from weft.text.normalize import spoken_form
from weft.text_to_token.synthesize import Synthesizer
from weft.text_to_token.train import TextToTokenConfig, run
from weft.tokenizer.artifact import CONFIG, WEIGHTS
from weft.training.config import TrainConfig

LETTERS = " abdegilmnorstu"
WORDS = ("a", "red", "dog", "ran", "to", "me", "and", "sat", "bird", "all", "is", "old", "mill")


def codes_of(text: str) -> list[int]:
    return [LETTERS.index(c) for c in spoken_form(text)]


def sentences(num: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))).capitalize() + "." for _ in range(num)]


class LetterTranscriber:
    """Transcribes codes as the letters that they are."""

    def transcribe(self, codes, languages):
        return ["".join(LETTERS[c] for c in row) for row in codes]


def new_tokenizer(folder, seed=0):
    """Create a speech tokenizer that has only a codebook."""
    codebook = torch.randn(len(LETTERS), 8, generator=torch.Generator().manual_seed(seed))
    with open_draft(folder, Plan("tokenizer", {})) as draft:
        save_file({"quantizer.codebook": codebook}, draft.folder / WEIGHTS)
        write_json(draft.folder / CONFIG, {"pooling": 4, "quantizer": {"num_codes": len(LETTERS)}})
    return folder


def new_codes(folder, tokenizer, utterances):
    with open_draft(folder, Plan("codes", {}, {"tokenizer": artifacts.read(tokenizer)})) as draft:
        write_codes_part(draft.folder, 0, utterances)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The configuration of a trained model. Two of its utterances are left out: one has no text, one is too long."""
    folder = tmp_path_factory.mktemp("text_to_token")
    tokenizer = new_tokenizer(folder / "tokenizer")
    utterances = [CodedUtterance(str(i), codes_of(t), t) for i, t in enumerate(sentences(400, seed=1))]
    utterances += [CodedUtterance("without text", [1, 2], None), CodedUtterance("too long", [1] * 300, "a " * 90)]
    config = TextToTokenConfig(
        out=folder / "model",
        codes=(new_codes(folder / "codes", tokenizer, utterances),),
        tokenizer=tokenizer,
        model=LmConfig(hidden=64, layers=2, heads=2, ffn=128, max_position_tokens=256),
        vocab_size=300,
        batch_utterances=16,
        max_seq_len=96,
        train=TrainConfig(steps=260, lr=5e-3, warmup_steps=20, precision="fp32"),
    )
    run(config)
    return config


@pytest.fixture(scope="session")
def synthesizer(trained):
    return Synthesizer.from_pretrained(trained.out)


@pytest.fixture(scope="session")
def trained_with_speakers(tmp_path_factory):
    """The configuration of a model of two voices with different codes, trained on the same texts."""
    folder = tmp_path_factory.mktemp("speakers")
    tokenizer = new_tokenizer(folder / "tokenizer")
    voices = [("low", 0, 80), ("high: up", 7, 60), (None, 3, 9)]
    utterances = [
        CodedUtterance(f"{name} {i}", [first + code % 7 for code in codes_of(text)], text, speaker=name)
        for name, first, num in voices
        for i, text in enumerate(sentences(num, seed=1))
    ]
    config = TextToTokenConfig(
        out=folder / "model",
        codes=(new_codes(folder / "codes", tokenizer, utterances),),
        tokenizer=tokenizer,
        speakers=True,
        model=LmConfig(hidden=48, layers=2, heads=2, ffn=96, max_position_tokens=128),
        vocab_size=300,
        batch_utterances=16,
        max_seq_len=96,
        train=TrainConfig(steps=60, lr=5e-3, warmup_steps=10, precision="fp32"),
    )
    run(config)
    return config
