import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.tokenizer.augment import AugmentConfig, at_speed, mask, samples_at_speed


@given(st.integers(0, 1000), st.integers(22, 60), st.integers(0, 3), st.integers(0, 3))
def test_masks_cover_spans_up_to_the_maximum_and_nothing_else(
    seed: int, num_frames: int, time_masks: int, frequency_masks: int
) -> None:
    config = AugmentConfig(time_masks, 7, frequency_masks, 5)
    features = torch.randn(80, num_frames, generator=torch.Generator().manual_seed(seed))
    before = features.clone()
    masked = mask(features, config, np.random.default_rng(seed))
    assert torch.equal(features, before)
    masked_out = masked != features
    in_time, in_bands = masked_out.all(0), masked_out.all(1)
    assert in_time.sum() <= time_masks * 7
    assert in_bands.sum() <= frequency_masks * 5
    assert torch.equal(masked_out, in_time | in_bands[:, None])
    assert torch.allclose(masked[masked_out], features.mean())
    assert torch.equal(masked, mask(features, config, np.random.default_rng(seed)))


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 1.37])
@pytest.mark.parametrize("num_samples", [1, 160, 12345])
def test_the_length_at_a_speed_is_known_in_advance(speed: float, num_samples: int) -> None:
    assert len(at_speed(np.zeros(num_samples, np.float32), speed)) == samples_at_speed(num_samples, speed)


def test_a_higher_speed_raises_the_pitch() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = at_speed(tone, 1.25)
    assert len(faster) == 12_800
    assert np.abs(np.fft.rfft(faster)).argmax() * 16_000 / len(faster) == pytest.approx(1250, abs=2)
