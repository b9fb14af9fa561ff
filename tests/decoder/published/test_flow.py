import math

import pytest
import torch
from torch import nn

from weft.decoder.published.conformer import BlockEncoder, EncoderShape, relative_positions
from weft.decoder.published.flow import PublishedConfig, PublishedFlow
from weft.decoder.published.unet import UNet, UNetShape

TINY = PublishedConfig(
    num_codes=20,
    num_mels=8,
    speaker_width=4,
    encoder=EncoderShape(width=16, heads=2, layers=2, ffn=32, block_codes=4),
    estimator=UNetShape(channels=16, mid_blocks=1, transformers=1, heads=2, head_width=8),
    euler_steps=3,
)


def randomized(module: nn.Module, std: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=std)
    return module.eval()


def test_the_flow_model_has_its_published_size() -> None:
    """111.2 million parameters."""
    with torch.device("meta"):
        flow = PublishedFlow(PublishedConfig())
    assert sum(p.numel() for p in flow.parameters()) == 111_166_208


@torch.no_grad()
def test_a_code_sees_its_block_and_those_before_it() -> None:
    encoder, x = randomized(BlockEncoder(TINY.encoder)), torch.randn(1, 11, 16)
    whole = encoder(x)
    for last in (4, 8):
        changed = x.clone()
        changed[:, last:] = torch.randn(1, 11 - last, 16)
        assert torch.allclose(encoder(changed)[:, :last], whole[:, :last], atol=1e-5)
    changed = x.clone()
    changed[:, 3] += 1
    assert (encoder(changed) - whole)[0].abs().amax(1).min() > 1e-4


@torch.no_grad()
def test_attention_is_by_content_and_distance() -> None:
    """As computed for every pair of codes from its definition."""
    encoder = randomized(BlockEncoder(EncoderShape(width=8, heads=2, layers=1, ffn=8, block_codes=3)))
    layer, x = encoder.layers[0], torch.randn(1, 5, 8)
    hidden = layer.attention_norm(x)[0]
    expected = torch.zeros(5, 8)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(5):
            scores = torch.full((5,), -torch.inf)
            for j in range(5):
                if j // 3 <= i // 3:
                    distance = relative_positions(5, 8)[4 - (i - j)]
                    query, key = layer.query(hidden[i])[part], layer.key(hidden[j])[part]
                    position = layer.position(distance)[part]
                    score = (query + layer.content_bias[head]) @ key + (query + layer.position_bias[head]) @ position
                    scores[j] = score / math.sqrt(4)
            expected[i, part] = scores.softmax(0) @ layer.value(hidden)[:, part]
    attended = x + layer.attention_out(expected)[None]
    whole = attended + layer.contract(nn.functional.silu(layer.expand(layer.ffn_norm(attended))))
    block = torch.arange(5) // 3
    assert torch.allclose(layer(x, relative_positions(5, 8), block[:, None] >= block), whole, atol=1e-5)


def test_positions_are_sines_of_the_distance() -> None:
    positions = relative_positions(4, 6)
    assert positions.shape == (7, 6)
    assert torch.equal(positions[3], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    assert positions[0, 0] == pytest.approx(math.sin(3))
    assert positions[6, 0] == pytest.approx(math.sin(-3))


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 13, 20])
def test_the_estimator_keeps_any_number_of_frames(num_frames: int) -> None:
    unet = randomized(UNet(TINY.estimator, num_mels=8))
    x, conditions = torch.randn(3, 8, num_frames), torch.randn(3, 24, num_frames)
    together = unet(x, torch.tensor([0.1, 0.5, 0.9]), conditions)
    assert together.shape == (3, 8, num_frames)
    alone = unet(x[1:2], torch.tensor([0.5]), conditions[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@torch.no_grad()
def test_codes_have_6_89_frames_and_the_sample_depends_on_all_inputs() -> None:
    flow = randomized(PublishedFlow(TINY))
    assert isinstance(flow, PublishedFlow)
    assert [TINY.num_frames(n) for n in (1, 10, 64)] == [6, 68, 441]
    codes, noise = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.randn(1, 8, 41)
    mel = flow.sample(codes, noise)
    assert mel.shape == (1, 8, 41)
    assert torch.equal(flow.sample(codes, noise), mel)
    for other in (
        flow.sample(codes.flip(1), noise),
        flow.sample(codes, -noise),
        flow.sample(codes, noise, prompt=torch.ones(1, 8, 5)),
    ):
        assert (other - mel).abs().max() > 1e-4
