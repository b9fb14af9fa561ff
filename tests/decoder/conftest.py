import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weft.artifacts import Manifest, read
from weft.audio import save
from weft.data.datasets import write_codes_part
from weft.decoder.config import DecoderConfig
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.files import write_json
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance
from weft.training.config import TrainConfig

NUM_CODES = 32
LENGTHS = (12, 7, 5, 3, 9)  # codes of the utterances of `voice`
FLOW = FlowConfig(
    width=16,
    heads=2,
    encoder_layers=1,
    estimator_layers=1,
    context_codes=3,
    block_codes=5,
    first_block_codes=2,
    euler_steps=2,
)


def make_decoder() -> SpeechDecoder:
    """Return a decoder with only random weights, so that every input of a layer changes its output."""
    torch.manual_seed(0)
    flow = FlowDecoder(FLOW, NUM_CODES, values_per_code=5 * 80).eval()
    for p in flow.parameters():
        nn.init.normal_(p, std=0.2)
    return SpeechDecoder(flow, MelConfig())


def write_tokenizer(out: Path, name: str = "a") -> Manifest:
    """Write a tokenizer artifact of 12.5 codes per second with only the files that decoder training reads."""
    with open_draft(out, Plan("tokenizer", {})) as draft:
        (draft.folder / "weights").write_text(name)
        write_json(draft.folder / "bottleneck.json", {"layer": 1, "pooling": 4, "quantizer": {"num_codes": NUM_CODES}})
    return read(out)


@pytest.fixture(scope="session")
def decoder() -> SpeechDecoder:
    return make_decoder()


@pytest.fixture(scope="session")
def write_voice() -> Callable[[Path], DecoderConfig]:
    """Return a function that writes a tokenizer, audio and codes, and returns the configuration of a short training."""

    def write(folder: Path) -> DecoderConfig:
        """Write square waves whose pitch follows their codes, each a little shorter than its codes."""
        rng = np.random.default_rng(0)
        (folder / "audio").mkdir()
        lines, utterances = [], []
        for i, n in enumerate(LENGTHS):
            codes = rng.integers(0, NUM_CODES, n)
            phase = np.cumsum(np.repeat(100 + 10 * codes, 1280)) / 16_000 * 2 * np.pi
            samples = 0.3 * np.sign(np.sin(phase))[: n * 1280 - 300].astype(np.float32)
            save(folder / f"audio/u{i}.wav", samples, 16_000)
            lines.append(json.dumps({"id": f"u{i}", "audio": f"u{i}.wav"}))
            utterances.append(CodedUtterance(f"u{i}", codes.tolist()))
        (folder / "audio/manifest.jsonl").write_text("\n".join(lines))
        with open_draft(folder / "codes", Plan("codes", {}, {"tokenizer": write_tokenizer(folder / "tokenizer")})) as d:
            write_codes_part(d.folder, 0, utterances)
        return DecoderConfig(
            out=folder / "decoder",
            codes=(folder / "codes",),
            audio=(folder / "audio",),
            tokenizer=folder / "tokenizer",
            flow=FLOW,
            train=TrainConfig(steps=6, warmup_steps=2, checkpoint_every_steps=2, log_every_steps=1, precision="fp32"),
            batch_windows=4,
        )

    return write


@pytest.fixture
def config(write_voice: Callable[[Path], DecoderConfig], tmp_path: Path) -> DecoderConfig:
    return write_voice(tmp_path)
