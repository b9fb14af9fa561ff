import copy
import math

import numpy as np
import pytest
import torch

from tests.decoder.published.test_flow import MEL, randomized, tiny_flow
from weft.decoder.published.flow import PublishedFlow
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.published.stream import REACH_FRAMES, PublishedStream, _Sound
from weft.errors import UserError

FLOW = randomized(tiny_flow())
VOCODER = randomized(HiFT(HiFTShape(channels=16, f0_channels=8, harmonics=2), MEL), 0.15)
CODES = np.random.default_rng(0).integers(0, 20, 45)


def stream(seed: int = 0) -> PublishedStream:
    assert isinstance(FLOW, PublishedFlow)
    assert isinstance(VOCODER, HiFT)
    return PublishedStream(FLOW, VOCODER, seed)


def whole(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    one = stream(seed)
    return np.concatenate([one.push(codes), one.finish()])


@pytest.mark.parametrize("num_codes", [0, 1, 3, 4, 5, 8, 30, 45])
def test_every_code_has_its_samples(num_codes: int) -> None:
    """80 ms of 22,050 Hz, which are 6.89 mel frames."""
    samples = whole(CODES[:num_codes])
    assert samples.shape == (num_codes * 1764,)
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_any_division_into_pushes_gives_the_same_bits(size: int) -> None:
    one = stream()
    parts = [one.push(CODES[i : i + size]) for i in range(0, len(CODES), size)]
    assert np.array_equal(np.concatenate([*parts, one.finish()]), whole(CODES))


def test_later_codes_do_not_change_the_audio_that_is_out() -> None:
    one = stream()
    out = one.push(CODES[:24])
    other = np.concatenate([CODES[:24], (CODES[24:] + 3) % 20])
    assert len(out) == 24 * 1764 // 256 * 256 - REACH_FRAMES * 256
    assert np.array_equal(whole(other)[: len(out)], out)
    assert not np.array_equal(whole(other), whole(CODES))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[60], [1] * 60, [20, 5, 30, 5]])
def test_the_vocoder_gives_the_audio_of_the_whole_mel_spectrogram(sizes: list[int]) -> None:
    """In fp64, in which a missing frame of context and a jump of the source's phases differ from rounding."""
    vocoder = copy.deepcopy(VOCODER).double()
    assert isinstance(vocoder, HiFT)
    vocoder.f0_out.weight *= 300
    vocoder.f0_out.bias *= 0  # a part of the frames is voiced
    mel = torch.randn(1, 8, 60, generator=torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(1, 3, n * 256, generator=generator) for n in sizes], dim=-1).double()
    f0 = vocoder.f0_hz(mel)
    assert 5 < (f0 > 10).sum() < 55, f0
    expected = vocoder.synthesize(mel, vocoder.source(f0, noise, torch.zeros(1, 3)))[0].numpy()
    sound, generator = _Sound(vocoder), torch.Generator().manual_seed(0)
    ends = np.cumsum(sizes)
    parts = [
        sound.push(part, generator, is_last=end == 60) for part, end in zip(mel.split(sizes, dim=-1), ends, strict=True)
    ]
    assert np.allclose(np.concatenate(parts), expected, rtol=0, atol=1e-6)


def test_the_cost_of_a_block_does_not_depend_on_its_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model gets the same number of codes and frames."""
    one, sizes = stream(), []
    sample = PublishedFlow.sample

    def counted(self: PublishedFlow, codes: torch.Tensor, noise: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        sizes.append((codes.shape[1], noise.shape[-1]))
        return sample(self, codes, noise, prompt)

    monkeypatch.setattr(PublishedFlow, "sample", counted)
    for _ in range(10):
        one.push(CODES[:40])
    assert {codes for codes, _ in sizes[3:]} == {16}
    assert max(frames for _, frames in sizes) - min(frames for _, frames in sizes[3:]) <= 1
    assert one._sound._mel.shape[-1] <= 28 + 2 * REACH_FRAMES
    assert math.isclose(one._mel.shape[-1] / len(one._codes), 6.89, rel_tol=0.02)


def test_codes_outside_the_codebook_are_rejected() -> None:
    one = stream()
    with pytest.raises(UserError, match="code 20 is outside the codebook"):
        one.push([1, 20])
    assert np.array_equal(np.concatenate([one.push(CODES), one.finish()]), whole(CODES))
