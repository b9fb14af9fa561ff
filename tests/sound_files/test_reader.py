"""Decoding of sound files with correct, wrong and missing lengths: the whole file, or an error that names it."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from tests.sound_files.files import (
    RATE_HZ,
    declare_flac_frames,
    declare_mp3_frames,
    edit,
    noise,
    without_xing_frame,
    write,
)
from weft.audio import load, num_samples
from weft.errors import UserError
from weft.sound_files import flac, mp3
from weft.sound_files.address import address_of
from weft.sound_files.reader import Reader
from weft.sound_files.source import source_of

NUM_SAMPLES = 3 * RATE_HZ
NAMES = ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.opus", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64", "a.sph", "a.voc"]
CODECS = [
    ("a.wav", "GSM610"),
    ("a.wav", "G721_32"),
    ("a.wav", "MS_ADPCM"),
    ("a.wav", "NMS_ADPCM_32"),
    ("a.wav", "ULAW"),
    ("a.au", "G723_24"),
    ("a.caf", "ALAC_16"),
]


@pytest.mark.parametrize(("name", "subtype"), [*((name, None) for name in NAMES), *CODECS])
def test_the_length_equals_the_samples_for_every_format_and_time_range(tmp_path, name, subtype):
    path = write(tmp_path / name, noise(NUM_SAMPLES), subtype or ("PCM_16" if name.endswith("voc") else None))
    whole = load(path)
    assert len(whole) == pytest.approx(NUM_SAMPLES, abs=120)  # some codecs pad the last block
    for part in ("", "#t=1,2.5", "#t=2", "#t=2,3.01"):
        audio = f"{path}{part}"
        assert num_samples(audio) == len(load(audio))
    np.testing.assert_allclose(load(f"{path}#t=1,2.5"), whole[RATE_HZ : 5 * RATE_HZ // 2], atol=1e-6)
    for part in ("#t=50,60", "#t=2,1", "#t=0,0", "#t=,0"):
        for read in (load, num_samples):
            with pytest.raises(UserError, match=r"is empty or outside of the .*file: fix the times"):
                read(f"{path}{part}")
    for read in (load, num_samples):
        with pytest.raises(UserError, match=r"#t=1,4 ends after the .*file: fix the times"):
            read(f"{path}#t=1,4")


@pytest.mark.parametrize("num_extra", [0, 1, 7])
def test_the_padding_of_a_codec_is_left_out(tmp_path, num_extra):
    path = write(tmp_path / "a.wav", noise(NUM_SAMPLES + num_extra), "MS_ADPCM")
    assert soundfile.info(path).frames > NUM_SAMPLES + num_extra
    assert num_samples(path) == len(load(path)) == NUM_SAMPLES + num_extra


@pytest.mark.parametrize("declared", [0, 1, 60])
def test_an_mp3_with_too_small_a_count_is_read_to_its_end(tmp_path, declared):
    path = write(tmp_path / "a.mp3", noise(NUM_SAMPLES))
    expected = load(path)
    declare_mp3_frames(path, declared)
    assert num_samples(path) == NUM_SAMPLES
    np.testing.assert_array_equal(load(path), expected)


def test_an_mp3_of_variable_bit_rate_without_its_count_is_read_to_its_end(tmp_path):
    quiet_then_loud = np.concatenate([np.zeros(10 * RATE_HZ, np.float32), noise(10 * RATE_HZ)])
    path = tmp_path / "a.mp3"
    soundfile.write(path, quiet_then_loud, RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    without_xing_frame(path)
    assert soundfile.info(path).frames > 1.2 * len(quiet_then_loud)  # libsndfile's estimate is wrong
    for tags in (b"", b"ID3\4\0\0\0\0\7\0" + bytes(7 << 7)):
        path.write_bytes(tags + path.read_bytes())
        assert len(load(path)) == num_samples(path) == pytest.approx(len(quiet_then_loud), abs=3 * 576)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert len(load(path)) == num_samples(path) == pytest.approx(len(quiet_then_loud), abs=3 * 576)


def test_mp3_files_one_after_another_are_read_to_their_end(tmp_path):
    path = write(tmp_path / "a.mp3", noise(NUM_SAMPLES))
    path.write_bytes(2 * path.read_bytes())
    assert len(load(path)) == num_samples(path) == pytest.approx(2 * NUM_SAMPLES, abs=4 * 576)


def test_the_frames_of_an_mp3_are_counted(tmp_path):
    path = write(tmp_path / "a.mp3", noise(NUM_SAMPLES))
    found = mp3.scan(source_of(address_of(path)))
    assert found.num_frames == found.declared_frames
    assert not found.is_cut_off
    path.write_bytes(b"no frame in here " * 99)
    assert mp3.scan(source_of(address_of(path))) is None


@pytest.mark.parametrize("subtypes", [("OPUS", "OPUS"), ("VORBIS", "VORBIS"), ("OPUS",) * 3])
def test_all_streams_of_a_chained_ogg_file_are_read(tmp_path, subtypes):
    pieces = [noise(RATE_HZ * (1 + i), seed=i) for i in range(len(subtypes))]
    paths = [
        write(tmp_path / f"{i}.oga", piece, subtype)
        for i, (piece, subtype) in enumerate(zip(pieces, subtypes, strict=True))
    ]
    expected = np.concatenate([load(path) for path in paths])
    chained = tmp_path / "chained.ogg"
    chained.write_bytes(b"".join(path.read_bytes() for path in paths))
    np.testing.assert_array_equal(load(chained), expected)
    np.testing.assert_array_equal(load(f"{chained}#t=0.5,2.5"), expected[RATE_HZ // 2 : 5 * RATE_HZ // 2])
    assert num_samples(chained) == len(expected)
    assert num_samples(f"{chained}#t=0.5,2.5") == 2 * RATE_HZ


def test_a_chain_of_different_sample_rates_is_rejected(tmp_path):
    first, second = write(tmp_path / "a.ogg", noise(RATE_HZ)), write(tmp_path / "b.ogg", noise(RATE_HZ), rate_hz=44_100)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match=r"a\.ogg is a chain of streams with several sample rates: convert"):
        load(first)


def test_an_ogg_file_whose_last_page_declares_less_is_rejected(tmp_path):
    path = write(tmp_path / "a.opus", noise(NUM_SAMPLES))
    edit(path, path.read_bytes().rindex(b"OggS") + 6, (1000).to_bytes(8, "little"))
    for read in (load, num_samples):
        with pytest.raises(UserError, match=r"a\.opus declares a length that is less than its audio"):
            read(path)


@pytest.mark.parametrize("declared", [0, 1, NUM_SAMPLES // 2, NUM_SAMPLES - 1, 4096])
def test_a_flac_file_with_an_unknown_or_too_small_length_is_read_to_its_end(tmp_path, declared):
    path = write(tmp_path / "a.flac", noise(NUM_SAMPLES))
    expected = load(path)
    declare_flac_frames(path, declared)
    np.testing.assert_array_equal(load(path), expected)
    np.testing.assert_array_equal(load(f"{path}#t=1,2"), expected[RATE_HZ : 2 * RATE_HZ])
    assert num_samples(path) == NUM_SAMPLES


@pytest.mark.parametrize("declared", [NUM_SAMPLES + 1, 2 * NUM_SAMPLES, 2**36 - 1])
def test_a_flac_file_with_too_large_a_length_is_rejected(tmp_path, declared):
    path = write(tmp_path / "a.flac", noise(NUM_SAMPLES))
    declare_flac_frames(path, declared)
    for read in (load, num_samples):
        with pytest.raises(UserError, match=r"a\.flac is cut off"):
            read(path)


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 12_345])
@pytest.mark.parametrize("num_frames", [1, 100, 4095, 4096, 4097, 50_001])
def test_the_last_frame_of_a_flac_file_is_found(tmp_path, num_frames, rate_hz, num_channels):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([noise(num_frames)] * num_channels, axis=1), rate_hz)
    found = flac.scan(source_of(address_of(path)))
    assert found.is_exact
    assert found.declared_frames == num_frames


def halved_size(path):
    """Halve the size of the audio data in a header, and return the path."""
    place, size_bytes, order = {
        ".wav": (40, 4, "little"),
        ".aiff": (42, 4, "big"),
        ".au": (8, 4, "big"),
        ".caf": (path.read_bytes().find(b"data") + 4, 8, "big"),
        ".rf64": (28, 8, "little"),
    }[path.suffix]
    size = int.from_bytes(path.read_bytes()[place : place + size_bytes], order)
    assert size == pytest.approx(2 * NUM_SAMPLES, abs=8)
    edit(path, place, (size // 4 * 2).to_bytes(size_bytes, order))
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.caf", "a.rf64"])
def test_a_header_that_declares_half_of_the_data_is_rejected(tmp_path, name):
    path = halved_size(write(tmp_path / name, noise(NUM_SAMPLES)))
    for read in (load, num_samples):
        with pytest.raises(UserError, match=rf"{name} declares less audio than it contains, 48,0.. of"):
            read(path)


@pytest.mark.parametrize("extra", [b"LIST\x10\0\0\0" + bytes(16), b"id3 \0\4\0\0" + b"\xaa" * 1024, b"\xaa" * 900])
def test_tags_after_the_audio_are_no_audio(tmp_path, extra):
    path = write(tmp_path / "a.wav", noise(NUM_SAMPLES))
    path.write_bytes(path.read_bytes() + extra)
    assert len(load(path)) == num_samples(path) == NUM_SAMPLES


@pytest.mark.parametrize(
    ("rate_hz", "num_channels", "message"),
    [
        (1, 1, r"has a sample rate of 1 Hz: give audio of 4,000 to 384,000 Hz"),
        (3_999, 1, "has a sample rate of 3,999 Hz"),
        (1_000_000, 1, "has a sample rate of 1,000,000 Hz"),
        (16_000, 65, "has 65 channels: give audio with at most 64"),
        (16_000, 1000, "has 1,000 channels"),
    ],
)
def test_unusual_sample_rates_and_channel_counts_are_rejected(tmp_path, rate_hz, num_channels, message):
    soundfile.write(tmp_path / "a.wav", np.zeros((100, num_channels)), rate_hz)
    for read in (load, num_samples):
        with pytest.raises(UserError, match=rf"a\.wav {message}"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [bytes(9000), b"no sound at all " * 500])
@pytest.mark.parametrize("suffix", [".au", ".snd", ".voc", ".sph", ".wav"])
def test_a_file_without_a_header_is_not_audio_of_its_suffix(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as audio"):
        Reader(source_of(address_of(tmp_path / f"a{suffix}")))


@pytest.mark.parametrize("rate_hz", [4_000, 384_000])
def test_the_limits_of_the_sample_rate_are_allowed(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", np.zeros(rate_hz), rate_hz)
    assert len(load(tmp_path / "a.wav")) == RATE_HZ


def test_memory_is_that_of_the_result(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 192_000, 8) as file:
        for _ in range(5):
            file.write(np.zeros((192_000, 8), np.int16))  # 31 MB as float32
    tracemalloc.start()
    try:
        found = load(tmp_path / "a.flac")
        assert tracemalloc.get_traced_memory()[1] < 2 * found.nbytes + 6e6
    finally:
        tracemalloc.stop()
    assert len(found) == 5 * RATE_HZ


def test_audio_that_is_too_long_is_rejected_and_a_range_of_it_is_read(tmp_path, monkeypatch):
    for name in ("a.wav", "a.ogg"):
        write(tmp_path / name, noise(NUM_SAMPLES))
    monkeypatch.setattr("weft.audio._MAX_SEC", 2.0)
    for name in ("a.wav", "a.ogg"):
        for read in (load, num_samples):
            with pytest.raises(UserError, match=rf"{name} is longer than .* hours: split it"):
                read(tmp_path / name)
        assert len(load(f"{tmp_path / name}#t=1,2.5")) == 1.5 * RATE_HZ


def test_blocks_together_are_the_file(tmp_path, monkeypatch):
    samples = np.stack([noise(NUM_SAMPLES), noise(NUM_SAMPLES, seed=1)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 44_100)
    whole = load(tmp_path / "a.wav")
    monkeypatch.setattr("weft.sound_files.reader._BLOCK_SAMPLES", 2 * 997)
    with Reader(source_of(address_of(tmp_path / "a.wav"))) as reader:
        blocks = list(reader.blocks())
    assert {len(block) for block in blocks[:-1]} == {997}
    assert np.concatenate(blocks).shape == samples.shape
    np.testing.assert_array_equal(load(tmp_path / "a.wav"), whole)
