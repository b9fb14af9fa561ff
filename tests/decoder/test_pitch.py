import numpy as np
import pytest
import torch

from weft.decoder.pitch import f0_hz

RATE, HOP = 16_000, 80


def voice(pitch: np.ndarray, rate_hz: int = RATE) -> np.ndarray:
    """Harmonics of a pitch for every sample (S,), the strongest near 700 Hz."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    levels = [1 / (1 + ((k * pitch.mean() - 700) / 300) ** 2) for k in range(1, 20)]
    return (0.1 * sum(a * np.sin(k * phase) for k, a in enumerate(levels, 1))).astype(np.float32)


def found(samples: np.ndarray, rate_hz: int = RATE) -> np.ndarray:
    return f0_hz(torch.from_numpy(samples)[None], rate_hz, rate_hz // 200)[0].numpy()


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000])
@pytest.mark.parametrize("pitch_hz", [80.0, 123.4, 310.0])
def test_f0_of_a_harmonic_sound_is_its_pitch(rate_hz: int, pitch_hz: float) -> None:
    inner = found(voice(np.full(rate_hz, pitch_hz), rate_hz), rate_hz)[20:-20]
    assert (inner > 0).all()
    assert np.abs(1200 * np.log2(inner / pitch_hz)).max() < 20


def test_f0_follows_a_glide_and_is_0_in_noise_and_silence() -> None:
    glide = found(voice(np.linspace(100, 200, RATE)))
    assert len(glide) == RATE // HOP
    times = (np.arange(len(glide)) + 0.5) * 0.005
    assert np.abs(glide - (100 + 100 * times))[20:-20].max() < 6
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert (found(noise) > 0).mean() < 0.05
    assert not found(np.zeros(RATE, np.float32)).any()


def test_each_row_is_measured_alone_and_the_last_frame_may_be_a_part_of_one() -> None:
    rows = np.stack([voice(np.full(1000, 100.0)), 1e-4 * voice(np.full(1000, 300.0))])
    together = f0_hz(torch.from_numpy(rows), RATE, 300)
    assert together.shape == (2, 4)
    alone = torch.cat([f0_hz(torch.from_numpy(row)[None], RATE, 300) for row in rows])
    assert torch.allclose(together, alone, rtol=1e-5)
