import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.format1 import as_format_1
from tests.tokenizer.conftest import shared_tokenizer, tiny_whisper
from weft.errors import UserError
from weft.tokenizer.artifact import load_bottleneck_config, load_codebook, load_frame_rate
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.init import train_text_tokenizer
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    shared_tokenizer(0).save_pretrained(folder)
    return folder


def test_configuration_and_codebook_are_those_of_the_model(folder: Path) -> None:
    model = shared_tokenizer(0).model
    assert load_bottleneck_config(folder) == model.config
    assert torch.equal(load_codebook(folder), model.quantizer.decode(torch.arange(32)))
    assert load_frame_rate(folder) == 12.5


def test_the_codebook_of_a_grid_has_its_points(tmp_path: Path) -> None:
    text_tokenizer = train_text_tokenizer(["a cat"], 40)
    config = BottleneckConfig(layer=2, pooling=2, quantizer=QuantizerConfig(kind="fsq", levels=(4, 3)))
    model = BottleneckWhisper(config, tiny_whisper(len(text_tokenizer), 120)).eval()
    SpeechTokenizer(model, text_tokenizer).save_pretrained(tmp_path / "fsq")
    with torch.no_grad():
        assert torch.equal(load_codebook(tmp_path / "fsq"), model.quantizer.decode(torch.arange(12)))
    assert load_frame_rate(tmp_path / "fsq") == 25


def test_settings_of_earlier_versions_are_read(folder: Path, tmp_path: Path) -> None:
    shared_tokenizer(0).save_pretrained(tmp_path / "old")
    as_format_1(tmp_path / "old")
    settings = json.loads((tmp_path / "old/bottleneck.json").read_text())
    del settings["quantizer"]["restart_fraction"]
    settings["quantizer"]["restart_share"] = 0.1
    (tmp_path / "old/bottleneck.json").write_text(json.dumps(settings))
    config = load_bottleneck_config(folder)
    assert load_bottleneck_config(tmp_path / "old") == replace(
        config, quantizer=replace(config.quantizer, restart_fraction=0.1)
    )


@pytest.mark.parametrize("damage", ["{", "\xff", '{"quantizer": []}', '{"quantizer": {"unknown": 1}}', "[]"])
def test_a_damaged_configuration_is_reported(damage: str, tmp_path: Path) -> None:
    shared_tokenizer(0).save_pretrained(tmp_path / "damaged")
    (as_format_1(tmp_path / "damaged") / "bottleneck.json").write_text(damage)
    for load in (load_bottleneck_config, load_codebook, load_frame_rate, SpeechTokenizer.from_pretrained):
        with pytest.raises(UserError, match="damaged cannot be loaded as a tokenizer"):
            load(tmp_path / "damaged")
