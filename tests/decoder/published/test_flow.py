import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from weft.decoder.published.conformer import BlockEncoder, EncoderShape, relative_positions
from weft.decoder.published.flow import PUBLISHED_MEL, PublishedBatch, PublishedConfig, PublishedFlow
from weft.decoder.published.unet import UNet, UNetShape

TINY = PublishedConfig(
    speaker_width=4,
    encoder=EncoderShape(width=16, heads=2, layers=2, ffn=32, block_codes=4),
    estimator=UNetShape(channels=16, mid_blocks=1, transformers=1, heads=2, head_width=8),
    euler_steps=3,
)
MEL = replace(PUBLISHED_MEL, num_mels=8)


def tiny_flow() -> PublishedFlow:
    return PublishedFlow(TINY, num_codes=20, code_rate_hz=12.5, mel=MEL)


def randomized(module: nn.Module, std: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=std)
    return module.eval()


def test_the_flow_model_has_its_published_size() -> None:
    """111.2 million parameters."""
    with torch.device("meta"):
        flow = PublishedFlow(PublishedConfig(), 16_384, 12.5, PUBLISHED_MEL)
    assert sum(p.numel() for p in flow.parameters()) == 111_166_208
    assert (flow.config.encoder.block_codes, flow.config.euler_steps, flow.config.guidance) == (10, 10, 0.7)
    assert flow.samples_per_code == 1764


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
    flow = randomized(tiny_flow())
    assert isinstance(flow, PublishedFlow)
    assert [flow.num_frames(n) for n in (1, 10, 64)] == [6, 68, 441]
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


def batch_of(mel_of: torch.Tensor, seed: int, size: int = 8, num_codes: int = 4) -> PublishedBatch:
    """Clips of random codes; the mel (K, M) of each code stays the same during it."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 20, (size, num_codes), generator=g)
    num_frames = tiny_flow().num_frames(num_codes)
    mel = nn.functional.interpolate(mel_of[codes].transpose(1, 2), size=num_frames, mode="nearest")
    return PublishedBatch(
        codes=codes,
        mel=mel,
        noise=torch.randn(mel.shape, generator=g),
        time=torch.rand(size, generator=g),
        num_given=torch.zeros(size, dtype=torch.int64),
        dropped=torch.zeros(size, dtype=torch.bool),
    )


def test_training_learns_the_mel_of_codes() -> None:
    """The loss of other codes with the same mel is higher."""
    torch.manual_seed(0)
    flow, mel_of = tiny_flow(), torch.randn(20, 8)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for step in range(80):
        optimizer.zero_grad()
        flow.loss(batch_of(mel_of, step))["loss"].backward()
        optimizer.step()
    held_out = batch_of(mel_of, 1000, size=64)
    with torch.no_grad():
        right, wrong = (
            flow.loss(replace(held_out, codes=codes))["loss"] for codes in (held_out.codes, held_out.codes.flip(0))
        )
    assert wrong > 1.2 * right


@torch.no_grad()
def test_the_loss_is_the_error_of_the_velocity_under_the_given_conditions() -> None:
    flow, batch = tiny_flow(), batch_of(torch.randn(20, 8), 0, size=3)
    batch = replace(batch, num_given=torch.tensor([0, 5, 5]), dropped=torch.tensor([False, False, True]))
    seen: list[torch.Tensor] = []

    def perfect(x: torch.Tensor, time: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        seen.append(conditions)
        return batch.mel - (1 - TINY.sigma_min) * batch.noise

    flow.estimator.forward = perfect  # type: ignore[method-assign]
    assert flow.loss(batch)["loss"] == 0
    prior, speaker, given = seen[0].chunk(3, dim=1)
    assert torch.equal(given[0], torch.zeros_like(given[0]))
    assert torch.equal(given[1, :, :5], batch.mel[1, :, :5])
    assert not given[1, :, 5:].any()
    assert not seen[0][2].any()
    assert torch.allclose(prior[0], flow.prior(batch.codes[:1], batch.mel.shape[-1])[0], atol=1e-5)
    assert torch.equal(speaker[0, :, 0], flow.speaker.bias)
