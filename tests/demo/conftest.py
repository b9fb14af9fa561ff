"""One finished run of the demo for all tests of this folder, with tiny models and little data."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weft.config import load_recipe
from weft.decoder.config import DecoderConfig
from weft.decoder.flow import FlowConfig
from weft.demo import pipeline
from weft.demo import run as demo_run
from weft.demo.data import Sizes
from weft.demo.run import DemoConfig
from weft.lm.model import LmConfig
from weft.lm.pretrain import PretrainConfig
from weft.text_to_token.train import TextToTokenConfig
from weft.tokenizer.config import TokenizerConfig

SIZES = Sizes(
    stories=6,
    turns=4,
    span_documents=1,
    held_out=2,
    interleaved_documents=4,
    synthetic_speech_documents=2,
    text_documents=2,
    dialogues=8,
    pairs=2,
)


def load_tiny_recipe(kind: type, path: Path) -> Any:
    """Return a nano recipe with smaller models and batches.

    With few codes, a text-to-token model that is hardly trained soon samples the end marker.
    """
    recipe = load_recipe(kind, path)
    if isinstance(recipe, TokenizerConfig):
        whisper = replace(recipe.whisper, width=32, encoder_layers=2, heads=2)
        quantizer = replace(recipe.model.quantizer, num_codes=32)
        return replace(recipe, batch_sec=10, whisper=whisper, model=replace(recipe.model, quantizer=quantizer))
    if isinstance(recipe, DecoderConfig):
        flow = FlowConfig(width=32, heads=2, encoder_layers=1, estimator_layers=1, euler_steps=2)
        return replace(recipe, batch_windows=4, flow=flow)
    if isinstance(recipe, TextToTokenConfig):
        return replace(
            recipe, batch_utterances=8, model=LmConfig(hidden=32, layers=1, heads=1, ffn=64, max_position_tokens=512)
        )
    return replace(recipe, batch_tokens=600) if isinstance(recipe, PretrainConfig) else recipe


@pytest.fixture(scope="session")
def _tiny_recipes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "load_recipe", load_tiny_recipe)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, _tiny_recipes: None) -> DemoConfig:
    """The configuration of a finished run."""
    config = DemoConfig(tmp_path_factory.mktemp("demo") / "run", sizes=SIZES, steps_fraction=0.01, workers=1)
    pipeline.run(config)
    return config


@pytest.fixture
def bundle(finished: DemoConfig) -> Path:
    """The output directory of a finished run."""
    return finished.out
