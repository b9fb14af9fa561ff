import numpy as np
import pytest
import torch

from weft.decoder.griffin_lim import GriffinLim
from weft.decoder.mel import SILENCE, MelConfig, MelSpectrogram
from weft.errors import UserError


def voiced(num_frames: int = 60) -> torch.Tensor:
    """Return samples (1, S) of a harmonic sound of rising pitch, with pauses."""
    t = torch.arange(num_frames * 256) / 16_000
    phase = 2 * np.pi * (120 * t + 15 * t.square())
    harmonics = sum(torch.sin(k * phase) / k for k in range(1, 20))
    return (0.1 * harmonics * (torch.sin(2 * np.pi * 1.5 * t) > -0.5))[None]


def push_all(vocoder: GriffinLim, mel: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Return the audio of a mel spectrogram in blocks of these sizes, without the initial delay."""
    state, noise = vocoder.new_state(batch_size=len(mel)), torch.Generator().manual_seed(0)
    samples = [
        vocoder.push(state, part, torch.randn(len(mel), part.shape[1] * 256, generator=noise))
        for part in mel.split(sizes, dim=1)
    ]
    return torch.cat([*samples, vocoder.flush(state)], dim=1)[:, vocoder.delay_samples :]


@pytest.mark.parametrize("sizes", [[60], [20, 40], [5] * 12])
def test_the_audio_of_a_mel_spectrogram_has_that_mel_spectrogram(sizes: list[int]) -> None:
    vocoder = GriffinLim(MelConfig())
    samples = voiced()
    mel = vocoder.spectrogram(samples)
    inverted = push_all(vocoder, mel, sizes)
    assert inverted.shape == samples.shape
    found = vocoder.spectrogram(inverted)
    loud = mel > -4
    assert (found - mel)[loud].abs().mean() < 0.35
    noise = vocoder.spectrogram(samples.std() * torch.randn(samples.shape, generator=torch.Generator().manual_seed(1)))
    assert (noise - mel)[loud].abs().mean() > 3 * (found - mel)[loud].abs().mean()


def test_a_frame_is_centred_on_its_hop() -> None:
    spectrogram = MelSpectrogram(MelConfig())
    samples = torch.zeros(1, 10 * 256)
    samples[0, 4 * 256 + 128] = 1.0  # the middle of frame 4
    loudness = spectrogram(samples).exp().sum(-1)[0]
    assert loudness.argmax() == 4
    assert torch.allclose(loudness[3], loudness[5], rtol=1e-3)
    assert (spectrogram(samples)[0, [0, 9]] == SILENCE).all()


def test_silence_stays_silent() -> None:
    vocoder = GriffinLim(MelConfig())
    samples = push_all(vocoder, torch.full((1, 20, 80), SILENCE), [10, 10])
    assert samples.abs().max() < 1e-3


def test_rows_of_a_batch_are_independent() -> None:
    vocoder = GriffinLim(MelConfig())
    mel = vocoder.spectrogram(voiced())
    noise = torch.randn(1, 60 * 256, generator=torch.Generator().manual_seed(0))
    alone = vocoder.push(vocoder.new_state(1), mel, noise)
    both = torch.cat([mel, torch.full_like(mel, -1.0)])
    together = vocoder.push(vocoder.new_state(2), both, noise.repeat(2, 1))
    assert torch.allclose(together[:1], alone, atol=1e-3)


@pytest.mark.parametrize("window_samples", [256, 641])
def test_a_window_must_extend_its_hop_on_both_sides(window_samples: int) -> None:
    with pytest.raises(UserError, match="give hop_samples 256 plus an even number"):
        MelConfig(window_samples=window_samples)


def test_a_mel_spectrogram_is_computed_in_fp32_under_autocast() -> None:
    spectrogram = MelSpectrogram(MelConfig())
    with torch.autocast("cpu", torch.bfloat16):
        found = spectrogram(voiced())
    assert torch.equal(found, spectrogram(voiced()))
