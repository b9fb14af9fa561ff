from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import make_tokenizer
from weft.artifacts import Manifest, require_parent
from weft.errors import UserError
from weft.tokenizer.artifact import load_codebook
from weft.tokenizer.export import ExportConfig, run
from weft.tokenizer.tokenizer import SpeechTokenizer

SPEECH = [np.random.default_rng(0).standard_normal(20_000).astype(np.float32)]


def test_the_encoder_has_the_codes_of_the_rounded_tokenizer_in_half_the_bytes_per_weight(tmp_path: Path) -> None:
    whole = make_tokenizer()
    whole.save_pretrained(tmp_path / "whole")
    run(ExportConfig(tmp_path / "whole", tmp_path / "encoder"))
    encoder = SpeechTokenizer.from_pretrained(tmp_path / "encoder", device="cpu")
    for parameter in (*whole.model.parameters(), *whole.model.buffers()):
        if parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16().float()
    assert all(map(np.array_equal, encoder.encode(SPEECH), whole.encode(SPEECH)))
    assert torch.equal(load_codebook(tmp_path / "encoder"), whole.model.quantizer.decode(torch.arange(32)))
    size = (tmp_path / "encoder/model.safetensors").stat().st_size
    parameters = sum(p.numel() for p in (*encoder.model.parameters(), *encoder.model.buffers()))
    assert size < 2 * parameters + 10_000
    with pytest.raises(UserError, match="encoder_only"):
        encoder.transcribe([[1, 2]])
    with pytest.raises(UserError, match="encoder_only already"):
        run(ExportConfig(tmp_path / "encoder", tmp_path / "again"))


def test_a_tokenizer_with_the_codes_of_an_encoder_can_take_its_place() -> None:
    encoder, other = Manifest("tokenizer", "e"), Manifest("tokenizer", "o", parents={"init": "e"})
    whole = Manifest("tokenizer", "w", parents={"encoder": "e"})
    codes = Manifest("codes", "c", parents={"tokenizer": "e"})
    require_parent(codes, "tokenizer", encoder)
    require_parent(codes, "tokenizer", whole)
    with pytest.raises(UserError, match="was made with tokenizer e, not with o"):
        require_parent(codes, "tokenizer", other)
