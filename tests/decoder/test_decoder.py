from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoder.conftest import FLOW, NUM_CODES, make_decoder
from tests.format1 import as_format_1
from weft.artifacts import read
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowDecoder
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.errors import UserError

DECODER = make_decoder()  # the properties below hold for any weights
CODES = np.random.default_rng(0).integers(0, NUM_CODES, 14)
WHOLE = DECODER.synthesize(CODES, seed=3)


def in_chunks(sizes: list[int], codes: np.ndarray = CODES) -> np.ndarray:
    stream, samples, start = DECODER.stream(seed=3), [], 0
    for size in sizes:
        samples.append(stream.push(codes[start : start + size]))
        start += size
    return np.concatenate([*samples, stream.push(codes[start:]), stream.finish()])


@settings(max_examples=10)
@given(st.lists(st.integers(0, 9), max_size=12))
def test_any_division_into_pushes_gives_the_same_bits(sizes: list[int]) -> None:
    assert np.array_equal(in_chunks(sizes), WHOLE)


@pytest.mark.parametrize("num_codes", [0, 1, 2, 3, 7, 8, 11])
def test_every_code_gives_its_number_of_samples(num_codes: int) -> None:
    samples = DECODER.synthesize(CODES[:num_codes])
    assert samples.shape == (num_codes * 1280,)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()


def test_the_audio_of_a_block_is_out_when_its_last_code_arrives() -> None:
    stream, delay = DECODER.stream(), DECODER.vocoder.delay_samples
    sizes = [len(stream.push([int(c)])) for c in CODES[:12]]
    assert sizes == [0, 2 * 1280 - delay, 0, 0, 0, 0, 5 * 1280, 0, 0, 0, 0, 5 * 1280]
    assert len(stream.finish()) == delay


@pytest.mark.parametrize("changed_from", [2, 7, 10, 12])
def test_later_codes_do_not_change_the_audio_that_is_out(changed_from: int) -> None:
    other = CODES.copy()
    other[changed_from:] = (other[changed_from:] + 7) % NUM_CODES
    stream = DECODER.stream(seed=3)
    out = stream.push(CODES[:changed_from])
    changed = DECODER.synthesize(other, seed=3)
    assert np.array_equal(changed[: len(out)], out)
    assert not np.array_equal(changed, WHOLE)


def test_a_block_depends_on_the_codes_and_the_audio_before_it() -> None:
    other = CODES.copy()
    other[6] = (other[6] + 7) % NUM_CODES  # the last code of the second block
    changed = DECODER.synthesize(other[:12], seed=3)[7 * 1280 : 11 * 1280]
    assert not np.array_equal(changed, WHOLE[7 * 1280 : 11 * 1280])


def test_streams_are_independent_of_each_other_and_of_the_global_generator() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    a, b = DECODER.stream(seed=3), DECODER.stream(seed=4)
    samples = []
    for c in CODES:
        samples.append(a.push([int(c)]))
        b.push([int(NUM_CODES - 1 - c)])
        torch.rand(1)
    samples.append(a.finish())
    assert np.array_equal(np.concatenate(samples), WHOLE)
    torch.random.set_rng_state(before)
    DECODER.synthesize(CODES[:7], seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_seed_determines_the_noise() -> None:
    assert not np.array_equal(DECODER.synthesize(CODES, seed=4), WHOLE)
    assert np.array_equal(DECODER.synthesize(CODES, seed=3), WHOLE)


def test_the_state_has_the_same_size_after_every_block() -> None:
    stream, sizes = DECODER.stream(), set()
    for _ in range(4):
        stream.push(CODES[:7])
        tensors = (stream._codes, stream._mel, stream._vocoder.mel, stream._vocoder.samples)
        sizes.add(tuple(t.shape for t in tensors))
    assert len(sizes) == 1


def test_a_code_outside_the_codebook_is_rejected_and_changes_nothing() -> None:
    stream = DECODER.stream(seed=3)
    for wrong in ([5, 32], [-1]):
        with pytest.raises(UserError, match=r"code (32|-1) is outside the codebook 0\.\.31: "):
            stream.push(wrong)
    assert np.array_equal(np.concatenate([stream.push(CODES), stream.finish()]), WHOLE)


def test_a_saved_decoder_gives_the_same_audio_and_manifest(tmp_path: Path) -> None:
    manifest = DECODER.save_pretrained(tmp_path / "decoder")
    loaded = SpeechDecoder.from_pretrained(tmp_path / "decoder", device="cpu")
    assert loaded.manifest == manifest == read(tmp_path / "decoder", "decoder")
    assert np.array_equal(loaded.synthesize(CODES, seed=3), WHOLE)
    with pytest.raises(UserError, match="already exists"):
        loaded.save_pretrained(tmp_path / "decoder")
    (tmp_path / "decoder/decoder.json").unlink()
    with pytest.raises(UserError, match=r"decoder.json is missing"):
        SpeechDecoder.from_pretrained(tmp_path / "decoder")
    as_format_1(tmp_path / "decoder")
    with pytest.raises(UserError, match="cannot be loaded as a decoder"):
        SpeechDecoder.from_pretrained(tmp_path / "decoder")


def test_a_decoder_has_the_rates_of_its_spectrogram() -> None:
    assert (DECODER.mel_frames_per_code, DECODER.samples_per_code, DECODER.sample_rate_hz) == (5, 1280, 16_000)


def with_vocoder(look_ahead: int) -> SpeechDecoder:
    torch.manual_seed(0)
    shape = VocoderShape(width=16, layers=1, look_ahead_frames=look_ahead)
    return SpeechDecoder(DECODER.flow, DECODER.mel, vocoder=Vocoder(shape, DECODER.mel).eval())


@pytest.mark.parametrize("look_ahead", [0, 2, 6])
@pytest.mark.parametrize("num_codes", [0, 1, 2, 9])
def test_a_trained_vocoder_gives_every_code_its_samples_in_any_division(look_ahead: int, num_codes: int) -> None:
    """Also when its delay is longer than a code."""
    decoder = with_vocoder(look_ahead)
    whole = decoder.synthesize(CODES[:num_codes], seed=1)
    assert whole.shape == (num_codes * 1280,)
    stream = decoder.stream(seed=1)
    parts = [stream.push([int(c)]) for c in CODES[:num_codes]]
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), whole)


def test_a_decoder_is_saved_with_its_vocoder(tmp_path: Path) -> None:
    decoder = with_vocoder(2)
    decoder.save_pretrained(tmp_path / "decoder")
    loaded = SpeechDecoder.from_pretrained(tmp_path / "decoder")
    assert isinstance(loaded.vocoder, Vocoder)
    assert np.array_equal(loaded.synthesize(CODES), decoder.synthesize(CODES))


def with_voices() -> SpeechDecoder:
    torch.manual_seed(0)
    flow = FlowDecoder(replace(FLOW, prompt_codes=4), NUM_CODES, 5 * 80, num_speakers=2).eval()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return SpeechDecoder(flow, DECODER.mel, speakers=("anna", "bob"))


def test_a_voice_is_a_speaker_or_a_prompt_and_streams_in_any_division() -> None:
    decoder = with_voices()
    noise = 0.1 * np.random.default_rng(1).standard_normal(6 * 1280).astype(np.float32)
    prompt = decoder.prompt(CODES[:6], noise, 16_000)
    both = decoder.prompt(CODES[:6], noise, 16_000, speaker="anna")
    voices = [None, decoder.speaker("anna"), decoder.speaker("bob"), prompt, both]
    found = [decoder.synthesize(CODES, seed=1, voice=voice) for voice in voices]
    for i, samples in enumerate(found):
        assert not any(np.allclose(samples, other, atol=1e-3) for other in found[:i])
    stream = decoder.stream(seed=1, voice=both)
    parts = [stream.push([int(c)]) for c in CODES]
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), found[-1])


def test_only_the_end_of_a_long_prompt_counts() -> None:
    decoder = with_voices()
    rng = np.random.default_rng(1)
    samples = rng.standard_normal(10 * 1280).astype(np.float32)
    long, other = samples.copy(), samples.copy()
    other[: 4 * 1280] = 0.5
    a, b = (decoder.prompt(CODES[:10], s, 16_000) for s in (long, other))
    assert np.array_equal(decoder.synthesize(CODES, voice=a), decoder.synthesize(CODES, voice=b))


def test_voices_that_do_not_exist_are_rejected() -> None:
    decoder, samples = with_voices(), np.full(2 * 1280, 0.1, np.float32)
    with pytest.raises(UserError, match=r"ana is not a speaker of this decoder: .* its 2 speakers, such as anna"):
        decoder.speaker("ana")
    with pytest.raises(UserError, match="anna is not a speaker of this decoder: give none"):
        DECODER.speaker("anna")
    with pytest.raises(UserError, match="no voice prompts"):
        DECODER.prompt([1, 2], samples, 16_000)
    with pytest.raises(UserError, match="22050 Hz: resample it to 16000 Hz"):
        decoder.prompt([1, 2], samples, 22_050)
    with pytest.raises(UserError, match="silent"):
        decoder.prompt([1, 2], 0 * samples, 16_000)
    with pytest.raises(UserError, match="not finite"):
        decoder.prompt([1, 2], np.nan * samples, 16_000)
    with pytest.raises(UserError, match="do not fit its 9 codes"):
        decoder.prompt([1] * 9, samples, 16_000)


def test_a_decoder_is_saved_with_its_speakers(tmp_path: Path) -> None:
    with_voices().save_pretrained(tmp_path / "decoder")
    loaded = SpeechDecoder.from_pretrained(tmp_path / "decoder")
    assert loaded.speakers == ("anna", "bob")
    assert np.array_equal(
        loaded.synthesize(CODES, voice=loaded.speaker("bob")),
        with_voices().synthesize(CODES, voice=with_voices().speaker("bob")),
    )
