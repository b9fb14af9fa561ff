import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.tokenizer.conftest import tiny_whisper
from weft.errors import UserError
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, block_mask, encoder_parameters
from weft.tokenizer.quantizer import QuantizerConfig


def model(**given: int) -> BottleneckWhisper:
    config = BottleneckConfig(**{"layer": 2, "block_frames": 40, **given}, quantizer=QuantizerConfig(num_codes=16))
    return BottleneckWhisper(config, tiny_whisper()).eval()


def features(num_codes: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 80, num_codes * 8, generator=torch.Generator().manual_seed(5))


def test_the_layers_compute_what_transformers_computes() -> None:
    """One block that is the whole window gives the encoder output of transformers."""
    whisper = tiny_whisper(window_frames=120)
    encoder = whisper.model.encoder
    x = torch.randn(1, 80, 240, generator=torch.Generator().manual_seed(5))
    theirs = encoder(x).last_hidden_state
    hidden = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(x)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight
    mask = block_mask(120, 120, None, hidden.device)
    for layer in encoder.layers:
        hidden = layer(hidden, mask)
    assert torch.allclose(encoder.layer_norm(hidden), theirs, atol=1e-4)


def test_later_audio_does_not_change_earlier_blocks() -> None:
    m = model()
    x = features(30)
    changed = x.clone()
    changed[:, :, 160:] += 1.0  # from code 20; a block has 10 codes
    a, b = m.to_bottleneck(x), m.to_bottleneck(changed)
    assert torch.equal(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_padding_changes_neither_hidden_states_nor_logits() -> None:
    m = model()
    x = features(25)
    valid = torch.zeros(1, 30, dtype=torch.bool)
    valid[:, :25] = True
    padded = torch.cat([x, torch.randn(1, 80, 40)], dim=-1)
    alone = m.to_bottleneck(x, torch.ones(1, 25, dtype=torch.bool))
    assert torch.allclose(m.to_bottleneck(padded, valid)[:, :25], alone, atol=1e-5)
    text = torch.tensor([[1, 7, 9]])
    encoded = m.from_bottleneck(alone, torch.ones(1, 25, dtype=torch.bool))
    logits = m.text_logits(encoded, torch.ones(1, 25, dtype=torch.bool), text)
    longer = torch.cat([alone, torch.randn(1, 5, 16)], dim=1)
    again = m.text_logits(m.from_bottleneck(longer, valid), valid, text)
    assert torch.allclose(logits, again, atol=1e-4)


def test_average_pooling_averages_the_frames_of_a_token() -> None:
    fine, coarse = model(pooling=1), model(pooling=4)
    x = features(10)
    assert torch.allclose(fine.to_bottleneck(x).unflatten(1, (-1, 4)).mean(2), coarse.to_bottleneck(x), atol=1e-6)


@settings(max_examples=10)
@given(
    num_mels=st.sampled_from([80, 128]),
    heads=st.sampled_from([1, 2, 4]),
    num_layers=st.integers(2, 5),
    cut=st.integers(1, 4),
    frames=st.sampled_from([50, 64, 101]),
    seed=st.integers(0, 9),
)
def test_with_every_change_turned_off_it_is_whisper(
    num_mels: int, heads: int, num_layers: int, cut: int, frames: int, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = WhisperConfig(
        vocab_size=40,
        num_mel_bins=num_mels,
        d_model=16,
        encoder_layers=num_layers,
        decoder_layers=2,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=frames,
        pad_token_id=0,
        init_std=0.3,
    )
    whisper = WhisperForConditionalGeneration(shape).eval()
    x, text = torch.randn(2, num_mels, 2 * frames), torch.randint(1, 40, (2, 5))
    with torch.no_grad():
        theirs = whisper(input_features=x, decoder_input_ids=text)
        weights = {name: value.clone() for name, value in whisper.state_dict().items()}
        unchanged = BottleneckConfig(
            layer=min(cut, num_layers - 1),
            pooling=1,
            block_frames=0,
            causal_convolution=False,
            positions_after=False,
            quantizer=QuantizerConfig(num_codes=2),
        )
        ours = BottleneckWhisper(unchanged, whisper).eval()
        valid = torch.ones(2, frames, dtype=torch.bool)
        encoded = ours.from_bottleneck(ours.to_bottleneck(x), valid)
        logits = ours.text_logits(encoded, valid, text)
    assert torch.allclose(encoded, theirs.encoder_last_hidden_state, atol=1e-5)
    assert torch.allclose(logits, theirs.logits, atol=1e-4)
    assert all(torch.equal(value, weights[name]) for name, value in ours.whisper.state_dict().items())


def test_the_paper_model_has_the_released_number_of_parameters() -> None:
    large_v3 = WhisperConfig(
        vocab_size=51_866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    )
    assert encoder_parameters(BottleneckConfig(), large_v3) == 343_599_360


@pytest.mark.parametrize("layer", [3, 0])
def test_the_bottleneck_needs_layers_on_both_sides(layer: int) -> None:
    with pytest.raises(UserError, match=rf"layer is {layer}: give 1 to 2 for a Whisper of 3 layers"):
        model(layer=layer)


def test_pooling_after_the_quantizer_is_rejected() -> None:
    with pytest.raises(UserError, match="pooling_layer is 3: give at most 2"):
        BottleneckConfig(layer=2, pooling_layer=3)


def test_a_block_must_contain_whole_codes() -> None:
    with pytest.raises(UserError, match="block_frames is 42: give a multiple of pooling, 4"):
        BottleneckConfig(block_frames=42, pooling=4)
