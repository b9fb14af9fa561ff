import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.tokenizer.conftest import tiny_whisper
from weft.errors import UserError
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, block_mask, kept_parameters
from weft.tokenizer.quantizer import QuantizerConfig


def model(**given: int) -> BottleneckWhisper:
    config = BottleneckConfig(**{"layer": 2, "block_frames": 40, **given}, quantizer=QuantizerConfig(num_codes=16))
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
    mask = block_mask(1500, 1500, None, hidden.device)
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


@settings(max_examples=10)
@given(
    num_mels=st.sampled_from([80, 128]),
    heads=st.sampled_from([1, 2, 4]),
    num_layers=st.integers(2, 5),
    cut=st.integers(1, 4),
    frames=st.sampled_from([50, 64, 101]),
    seed=st.integers(0, 9),
)
def test_without_a_bottleneck_it_is_whisper(
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
        open_ended = BottleneckConfig(
            layer=min(cut, num_layers - 1),
            pooling=1,
            block_frames=0,
            causal_convolution=False,
            positions_after=False,
            quantizer=QuantizerConfig(num_codes=2),
        )
        ours = BottleneckWhisper(open_ended, whisper).eval()
        everything = torch.ones(2, frames, dtype=torch.bool)
        heard = ours.second_half(ours.first_half(x), everything)
        logits = ours.text_logits(heard, everything, text)
    assert torch.allclose(heard, theirs.encoder_last_hidden_state, atol=1e-5)
    assert torch.allclose(logits, theirs.logits, atol=1e-4)
    assert all(torch.equal(value, weights[name]) for name, value in ours.whisper.state_dict().items())


def test_the_papers_model_has_the_released_number_of_parameters() -> None:
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
    assert kept_parameters(BottleneckConfig(), large_v3) == 343_599_360


@pytest.mark.parametrize("layer", [3, 0])
def test_a_cut_needs_layers_on_both_sides(layer: int) -> None:
    with pytest.raises(UserError, match="layer"):
        model(layer=layer)


def test_pooling_comes_before_the_quantizer() -> None:
    with pytest.raises(UserError, match="pooling_layer is 3"):
        BottleneckConfig(layer=2, pooling_layer=3)


def test_blocks_hold_whole_codes() -> None:
    with pytest.raises(UserError, match="multiple of pooling"):
        BottleneckConfig(block_frames=42, pooling=4)
