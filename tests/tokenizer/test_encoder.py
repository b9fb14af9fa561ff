import pytest
import torch

from tests.tokenizer.conftest import tiny_whisper
from weft.errors import UserError
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, block_mask
from weft.tokenizer.quantizer import QuantizerConfig


def model(**settings: int) -> BottleneckWhisper:
    config = BottleneckConfig(**{"layer": 2, "block_frames": 40, **settings}, quantizer=QuantizerConfig(num_codes=16))
    return BottleneckWhisper(config, tiny_whisper()).eval()


def features(num_codes: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 80, num_codes * 8, generator=torch.Generator().manual_seed(5))


def test_layers_are_whispers_own() -> None:
    """With the bottleneck open, one block and Whisper's own padding, the encoder is transformers' encoder."""
    ours = model(pooling=1, block_frames=1500)
    whisper = ours.whisper
    x = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(5))
    theirs = whisper.model.encoder(x).last_hidden_state
    convs = torch.nn.functional.gelu(whisper.model.encoder.conv1(x))
    convs = torch.nn.functional.gelu(whisper.model.encoder.conv2(convs)).transpose(1, 2)
    hidden = convs + whisper.model.encoder.embed_positions.weight
    mask = block_mask(1500, 1500, 0, None, hidden.device)
    for layer in whisper.model.encoder.layers:
        hidden = layer(hidden, mask)
    assert torch.allclose(whisper.model.encoder.layer_norm(hidden), theirs, atol=1e-4)


def test_later_sound_never_changes_earlier_blocks() -> None:
    m = model()
    x = features(30)
    changed = x.clone()
    changed[:, :, 160:] += 1.0  # from code 20 on, and blocks are of 10 codes
    a, b = m.first_half(x), m.first_half(changed)
    assert torch.equal(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_padding_never_changes_what_is_heard() -> None:
    m = model()
    x = features(25)
    valid = torch.zeros(1, 30, dtype=torch.bool)
    valid[:, :25] = True
    padded = torch.cat([x, torch.randn(1, 80, 40)], dim=-1)
    alone = m.first_half(x, torch.ones(1, 25, dtype=torch.bool))
    assert torch.allclose(m.first_half(padded, valid)[:, :25], alone, atol=1e-5)
    text = torch.tensor([[1, 7, 9]])
    heard = m.second_half(alone, torch.ones(1, 25, dtype=torch.bool))
    logits = m.text_logits(heard, torch.ones(1, 25, dtype=torch.bool), text)
    longer = torch.cat([alone, torch.randn(1, 5, 16)], dim=1)
    again = m.text_logits(m.second_half(longer, valid), valid, text)
    assert torch.allclose(logits, again, atol=1e-4)


def test_codes_are_averages_of_their_frames() -> None:
    fine, coarse = model(pooling=1), model(pooling=4)
    x = features(10)
    assert torch.allclose(fine.first_half(x).unflatten(1, (-1, 4)).mean(2), coarse.first_half(x), atol=1e-6)


@pytest.mark.parametrize("settings", [{"layer": 3}, {"layer": 0}])
def test_a_cut_needs_layers_on_both_sides(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="layer"):
        model(**settings)


def test_blocks_hold_whole_codes() -> None:
    with pytest.raises(UserError, match="multiple of pooling"):
        BottleneckConfig(block_frames=42, pooling=4)
