"""A tiny training of a tokenizer, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.tokenizer.config import TokenizerConfig, WhisperShape
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.train import run
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics

SENTENCES = ["the cat sat", "a dog ran off", "birds sing", "one red boat", "the old house", "rain and wind"]


def config(speech: Path, out: Path, **train_settings: Any) -> TokenizerConfig:
    return TokenizerConfig(
        out=out,
        speech=(speech,),
        held_out=(speech,),
        whisper=WhisperShape(width=32, encoder_layers=2, decoder_layers=1, heads=2, vocab_size=40),
        model=BottleneckConfig(
            layer=1,
            log_mel_floor="fixed",
            quantizer=QuantizerConfig(num_codes=16, decay=0.9, commitment=1.0, restart_every_steps=2),
        ),
        train=replace(
            TrainConfig(
                steps=8, lr=2e-3, warmup_steps=2, checkpoint_every_steps=2, log_every_steps=1, precision="fp32"
            ),
            **train_settings,
        ),
        batch_sec=4.0,
        quantize_from_step=3,
        ctc_outputs=3,
    )


def metrics_of(recipe: TokenizerConfig) -> list[dict[str, float]]:
    run(recipe)
    return list(read_metrics(recipe.out / "log"))
