import pytest
import torch

from weft.decoder.mel import MelConfig
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.errors import UserError

RATES = {
    16_000: MelConfig(),
    22_050: MelConfig(22_050, 1024, 252),
    24_000: MelConfig(24_000, 1024, 240, 100),
}


def new_vocoder(mel: MelConfig = MelConfig(), **shape: int) -> Vocoder:  # noqa: B008 - it is frozen
    torch.manual_seed(0)
    return Vocoder(VocoderShape(**{"width": 16, "layers": 2, **shape}), mel).eval()


def push_all(vocoder: Vocoder, mel: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state = vocoder.new_state(len(mel))
    pushed = [vocoder.push(state, part) for part in mel.split(sizes, dim=1)]
    assert [p.shape[1] for p in pushed] == [size * vocoder.hop_samples for size in sizes]
    last = vocoder.flush(state)
    assert last.shape[1] == vocoder.delay_samples
    return torch.cat([*pushed, last], dim=1)[:, vocoder.delay_samples :]


@torch.no_grad()
@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("look_ahead", [0, 2, 6])
@pytest.mark.parametrize("sizes", [[1] * 24, [5, 1, 18], [23, 1]])
def test_any_division_into_blocks_gives_the_whole_utterance(rate_hz: int, look_ahead: int, sizes: list[int]) -> None:
    vocoder = new_vocoder(RATES[rate_hz], look_ahead_frames=look_ahead)
    mel = torch.randn(2, 24, RATES[rate_hz].num_mels)
    whole = vocoder(mel)
    assert whole.shape == (2, 24 * RATES[rate_hz].hop_samples)
    assert torch.allclose(push_all(vocoder, mel, sizes), whole, atol=1e-5 * float(whole.abs().max()))


@torch.no_grad()
def test_later_frames_change_only_the_audio_after_the_look_ahead() -> None:
    vocoder = new_vocoder(look_ahead_frames=2)
    mel = torch.randn(1, 30, 80)
    changed = mel.clone()
    changed[:, 20:] = torch.randn(1, 10, 80)
    first = 20 * 256 - vocoder.delay_samples
    before, after = vocoder(mel)[0], vocoder(changed)[0]
    assert torch.equal(before[:first], after[:first])
    assert not torch.allclose(before[first : first + 256], after[first : first + 256], atol=1e-4)


@torch.no_grad()
def test_rows_of_a_batch_are_independent() -> None:
    vocoder, mel = new_vocoder(), torch.randn(3, 12, 80)
    for row, alone in zip(vocoder(mel), mel, strict=True):
        assert torch.allclose(row, vocoder(alone[None])[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mel", RATES.values())
def test_frames_of_a_known_spectrum_add_up_to_its_samples(mel: MelConfig) -> None:
    """The STFT of samples, as frames, gives the samples back, except near their ends."""
    vocoder, samples = new_vocoder(mel, look_ahead_frames=0), torch.randn(1, 40 * mel.hop_samples)
    margin = vocoder.spectrogram.margin_samples
    spectrum = vocoder.spectrogram.stft(torch.nn.functional.pad(samples, (margin, margin)))
    state = vocoder.new_state(1)
    frames = vocoder._frames(torch.cat([spectrum.abs().log(), spectrum.angle()], dim=-1))
    found = torch.cat([vocoder._add(state, frames), vocoder.flush(state)], dim=1)[:, margin:]
    inner = slice(mel.window_samples, -mel.window_samples)
    assert found.shape == samples.shape
    error = found[0, inner] - samples[0, inner]
    assert error.abs().max() < 0.03 * samples.abs().max()  # the window sum is not quite constant


def test_the_default_has_2_7_million_parameters() -> None:
    with torch.device("meta"):
        num = sum(p.numel() for p in Vocoder(VocoderShape(), MelConfig()).parameters())
    assert round(num / 1e6, 1) == 2.7


def test_a_longer_look_ahead_than_the_first_convolution_is_rejected() -> None:
    with pytest.raises(UserError, match="look_ahead_frames is 7: give at most 6"):
        VocoderShape(look_ahead_frames=7)
