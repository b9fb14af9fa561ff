import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.decoder.published.test_flow import MEL
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.published.names import FLOW, HIFT, folded, renamed
from weft.errors import UserError

SHAPE = HiFTShape(channels=16, f0_channels=8, harmonics=2)


def vocoder() -> HiFT:
    torch.manual_seed(0)
    return HiFT(SHAPE, MEL).eval()


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 17])
def test_every_frame_has_its_samples(num_frames: int) -> None:
    model = vocoder()
    mel, source = torch.randn(2, 8, num_frames), 0.1 * torch.randn(2, num_frames * SHAPE.frame_samples)
    samples = model.synthesize(mel, source)
    assert samples.shape == (2, num_frames * 256)
    assert torch.allclose(model.synthesize(mel[:1], source[:1]), samples[:1], atol=1e-5)


@torch.no_grad()
def test_the_source_has_the_harmonics_of_f0_and_noise_where_it_is_unvoiced() -> None:
    model = vocoder()
    nn.init.constant_(model.source_mix.weight, 1.0)
    nn.init.zeros_(model.source_mix.bias)
    f0 = torch.tensor([[200.0] * 50 + [0.0] * 50])
    noise = torch.randn(1, 3, 100 * 256)
    source = model.source(f0, noise, torch.zeros(1, 3))[0].atanh()
    voiced, unvoiced = source[: 50 * 256], source[50 * 256 :]
    spectrum = torch.fft.rfft(voiced * torch.hann_window(len(voiced))).abs()
    hz = torch.arange(len(spectrum)) * MEL.sample_rate_hz / len(voiced)
    assert sorted(round(float(f) / 10) * 10 for f in hz[spectrum.topk(9).indices]) == [200] * 3 + [400] * 3 + [600] * 3
    assert unvoiced.std() == pytest.approx(math.sqrt(3) * 0.1 / 3, rel=0.05)


def test_f0_is_not_negative() -> None:
    assert (vocoder().f0_hz(torch.randn(2, 8, 30)) >= 0).all()


@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_folded_convolutions_equal_those_with_weight_normalization(kind: str) -> None:
    conv = weight_norm(nn.Conv1d(3, 4, 5) if kind == "conv" else nn.ConvTranspose1d(3, 4, 5))
    nn.init.uniform_(conv.parametrizations.weight.original0, 0.5, 2)  # type: ignore[union-attr]
    state = {f"x.{name}": value for name, value in conv.state_dict().items()}
    assert torch.allclose(folded(state)["x.weight"], conv.weight, atol=1e-6)
    older = {"x.weight_g": state["x.parametrizations.weight.original0"], "x.bias": state["x.bias"]}
    older["x.weight_v"] = state["x.parametrizations.weight.original1"]
    assert torch.allclose(folded(older)["x.weight"], conv.weight, atol=1e-6)
    assert folded(older).keys() == {"x.weight", "x.bias"}


def test_released_names_become_ours() -> None:
    released = [
        ("decoder.estimator.up_blocks.0.1.3.attn1.to_out.0.bias", "estimator.up_half.layers.3.attention_out.bias"),
        ("decoder.estimator.up_blocks.0.2.conv.weight", "estimator.upsample.weight"),
        ("decoder.estimator.mid_blocks.11.0.mlp.1.weight", "estimator.middle.11.time.weight"),
        ("decoder.estimator.final_block.block.1.bias", "estimator.last.norm.bias"),
        ("encoder.encoders.5.self_attn.pos_bias_u", "encoder.layers.5.content_bias"),
        ("length_regulator.model.9.weight", "convs.3.weight"),
        ("length_regulator.model.12.bias", "conv_out.bias"),
    ]
    for name, ours in released:
        assert list(renamed({name: torch.zeros(1)}, FLOW)) == [ours]
    assert list(renamed({"resblocks.4.activations2.1.alpha": torch.zeros(1)}, HIFT)) == [
        "filters.4.plain_snakes.1.frequency"
    ]
    with pytest.raises(UserError, match="not a weight of the released decoder"):
        renamed({"conv_pre.bias": torch.zeros(1), "input.bias": torch.zeros(1)}, HIFT)
