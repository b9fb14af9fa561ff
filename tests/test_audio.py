"""Reading and writing of audio files, the messages about invalid ones, and log-mel features."""

import os
import re

import numpy as np
import pytest
import soundfile
import torch

from weft.audio import LogMel, load, num_samples, resample, save
from weft.errors import UserError
from weft.sound_files.address import file_of, with_time_range

RATE_HZ = 16_000


def tone(seconds=1.0, rate_hz=RATE_HZ, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def speech_like(num_samples):
    """Return noise of varying loudness, which codecs cannot compress as well as a tone."""
    rng = np.random.default_rng(0)
    return (0.2 * rng.normal(size=num_samples) * np.abs(np.sin(np.arange(num_samples) / 3000))).astype(np.float32)


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS")],
)
def test_every_rate_channel_count_and_width_gives_the_same_samples(tmp_path, name, subtype, rate_hz, num_channels):
    soundfile.write(tmp_path / name, np.stack([tone(rate_hz=rate_hz)] * num_channels, axis=1), rate_hz, subtype)
    found = load(tmp_path / name)
    assert found.dtype == np.float32
    assert found.shape == (RATE_HZ,)
    middle = slice(1000, -1000)  # resampling and lossy codecs change the edges
    np.testing.assert_allclose(found[middle], tone()[middle], atol=0.02 if subtype == "VORBIS" else 1e-3)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0.5 * tone()], axis=1), RATE_HZ)
    np.testing.assert_allclose(load(tmp_path / "a.wav"), 0.75 * tone(), atol=1 / 32_000)


def test_channels_that_cancel_each_other_are_rejected(tmp_path):
    for second in (-tone(), -0.99 * tone()):
        soundfile.write(tmp_path / "a.wav", np.stack([tone(), second], axis=1), RATE_HZ)
        with pytest.raises(UserError, match=r"a\.wav has channels that cancel each other: export one of them"):
            load(tmp_path / "a.wav")
    for samples in (np.zeros((100, 2)), np.random.default_rng(0).normal(size=(16_000, 64)) / 9):
        soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
        load(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_saved_samples_are_clipped_and_loaded_again(tmp_path, kind):
    path = tmp_path / f"new/a.{kind.lower()}"
    save(path, 3 * tone(), RATE_HZ)
    assert soundfile.info(path).format == kind
    np.testing.assert_allclose(load(path), np.clip(3 * tone(), -1, 1), atol=1 / 32_000)


@pytest.mark.parametrize("name", ["empty.wav", "empty.flac", "text.wav", "text.ogg"])
def test_a_file_that_is_not_audio_is_rejected(tmp_path, name):
    (tmp_path / name).write_text("" if name.startswith("empty") else "Dear diary, this is not audio. " * 99)
    with pytest.raises(UserError, match=rf"{name} cannot be read as audio .*: check the file"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "problem"), [("missing.wav", "does not exist"), (".", "is not a file"), ("pipe.wav", "is not a file")]
)
def test_a_path_that_is_not_a_file_is_rejected(tmp_path, name, problem):
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for a writer
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))} {problem}"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "contains no samples: copy or export it again"),
        (np.array([0.1, np.nan]), "not finite"),
        (np.array([0.1, -np.inf]), "not finite"),
        (32767 * tone(), r"contains samples up to \S+: scale them to \[-1, 1\]"),
        (8e6 * tone(), r"contains samples up to \S+: scale them to \[-1, 1\]"),
    ],
)
def test_invalid_samples_are_rejected(tmp_path, samples, message):
    soundfile.write(tmp_path / "a.wav", samples.astype(np.float32), RATE_HZ, "FLOAT")
    with pytest.raises(UserError, match=f"a.wav .*{message}"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize("kept", [0.002, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"),
        ("a.wav", "FLOAT"),
        ("a.aiff", "PCM_16"),
        ("a.w64", "PCM_16"),
        ("a.au", "PCM_16"),
        ("a.caf", "PCM_16"),
        ("a.flac", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.opus", "OPUS"),
        ("a.mp3", "MPEG_LAYER_III"),
    ],
)
def test_a_truncated_file_is_rejected(tmp_path, name, subtype, kept):
    path = tmp_path / name
    format_name = "OGG" if name == "a.opus" else None
    soundfile.write(path, speech_like(3 * RATE_HZ), RATE_HZ, subtype, format=format_name)
    assert len(load(path)) == 3 * RATE_HZ
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=rf"{name} (is cut off|cannot be read as audio|contains no samples)"):
        load(path)


@pytest.mark.parametrize("size_bytes", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_without_a_length_can_be_loaded(tmp_path, size_bytes):
    save(tmp_path / "a.wav", tone(), RATE_HZ)
    content, size = (tmp_path / "a.wav").read_bytes(), size_bytes.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content[:4] + size + content[8:40] + size + content[44:])
    np.testing.assert_allclose(load(tmp_path / "a.wav"), tone(), atol=1 / 32_000)


def test_resampling_there_and_back_keeps_the_samples():
    there = resample(tone(), RATE_HZ, 44_100)
    assert there.shape == (44_100,)
    np.testing.assert_allclose(resample(there, 44_100)[500:-500], tone()[500:-500], atol=1e-3)


def test_features_equal_whispers():
    from transformers import WhisperFeatureExtractor

    samples = speech_like(30 * RATE_HZ)  # Whisper pads shorter audio with silence
    expected = WhisperFeatureExtractor(feature_size=80)(samples, sampling_rate=RATE_HZ).input_features[0]
    np.testing.assert_allclose(LogMel(80)(torch.from_numpy(samples))[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_the_number_of_samples_equals_the_resampled_ones(tmp_path, rate_hz, suffix):
    for found in (2, 4001, 22_051):
        path = tmp_path / f"{found}.{suffix}"
        soundfile.write(path, np.zeros((found, 2)), rate_hz)
        assert num_samples(path) == len(load(path))
        assert num_samples(path, 24_000) == len(load(path, 24_000))


@pytest.mark.parametrize("num", [1, 2, 11, 12, 13, 30])
def test_a_file_of_less_than_a_sample_at_another_rate_is_rejected(tmp_path, num):
    soundfile.write(tmp_path / "a.wav", np.full(num, 0.1), 384_000)
    if num >= 12:
        assert num_samples(tmp_path / "a.wav") == len(load(tmp_path / "a.wav")) > 0
        return
    for read in (load, num_samples):
        with pytest.raises(UserError, match="contains no samples"):
            read(tmp_path / "a.wav")


def test_a_file_with_an_invalid_header_is_rejected(tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"this is not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "cut.wav", np.zeros(16_000), 16_000)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "noise": "cannot be read",
        "empty": "no samples",
        "cut": "cut off",
        "gone": "not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            num_samples(tmp_path / f"{name}.wav")


def test_a_time_range_selects_a_part_of_the_file(tmp_path):
    path = str(tmp_path / "a.flac")
    soundfile.write(path, speech_like(RATE_HZ * 3), RATE_HZ)
    whole = load(path)
    for name, piece in {"#t=1,2.5": whole[16_000:40_000], "#t=2": whole[32_000:], "#t=,0.5": whole[:8_000]}.items():
        np.testing.assert_array_equal(load(path + name), piece)
        assert num_samples(path + name) == len(piece)
        assert str(file_of(path + name)) == path
    np.testing.assert_array_equal(load(with_time_range(path + "#t=1,2.5", 0.25, 1.0)), whole[20_000:32_000])
    for name in ("#t=3,4", "#t=2,1", "#t=1,1"):
        with pytest.raises(UserError, match=r"is empty or outside of the 3\.000 s of the file: fix"):
            load(path + name)
    with pytest.raises(UserError, match="does not exist"):
        load(str(tmp_path / "b.flac#t=1,2"))


def test_the_name_of_a_file_may_look_like_a_time_range(tmp_path):
    save(tmp_path / "a.wav", tone(2.0), RATE_HZ)
    save(tmp_path / "a.wav#t=0,1", tone(0.5), RATE_HZ)
    assert len(load(tmp_path / "a.wav#t=0,1")) == RATE_HZ // 2
