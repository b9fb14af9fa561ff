from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import SETTINGS, make_tokenizer, noise, shared_tokenizer
from weft.errors import UserError
from weft.tokenizer.tokenizer import SpeechTokenizer

WINDOW_SAMPLES = 38_400


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_codes_do_not_depend_on_the_other_recordings(number: int) -> None:
    tokenizer = shared_tokenizer(number)
    lengths = [5_000, 0, 2 * WINDOW_SAMPLES + 999, 1, WINDOW_SAMPLES, 23_456, WINDOW_SAMPLES + 1, 1280, 30_001]
    recordings = [noise(n, seed) for seed, n in enumerate(lengths)]
    alone = [tokenizer.encode([x])[0].tolist() for x in recordings]
    assert [codes.tolist() for codes in tokenizer.encode(recordings)] == alone
    assert [codes.tolist() for codes in tokenizer.encode(recordings[::-1])] == alone[::-1]
    assert [len(codes) for codes in alone] == [-(-n // tokenizer.samples_per_code) for n in lengths]


def test_a_saved_tokenizer_gives_the_same_codes_and_transcripts(tmp_path: Path) -> None:
    tokenizer = shared_tokenizer(0)
    manifest = tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = SpeechTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.manifest == manifest
    codes = tokenizer.encode([noise(50_000)])
    assert loaded.encode([noise(50_000)])[0].tolist() == codes[0].tolist()
    assert loaded.transcribe(codes) == tokenizer.transcribe(codes)
    with pytest.raises(UserError, match="already exists"):
        tokenizer.save_pretrained(tmp_path / "tokenizer")


def test_bf16_computes_codes_and_does_not_change_transcripts(tmp_path: Path) -> None:
    shared_tokenizer(0).save_pretrained(tmp_path / "t")
    exact, rounded = (SpeechTokenizer.from_pretrained(tmp_path / "t", precision) for precision in ("fp32", "bf16"))
    codes = rounded.encode([noise(38_000)])
    assert len(codes[0]) == 30
    assert rounded.transcribe(codes) == exact.transcribe(codes)
    weights, rounded_weights = exact.model.state_dict(), rounded.model.state_dict()
    changed = [name for name in weights if weights[name].dtype != rounded_weights[name].dtype]
    before = ("whisper.model.encoder.conv", "whisper.model.encoder.layers.0.", "whisper.model.encoder.layers.1.")
    assert changed
    assert all(name.startswith(before) for name in changed)
    for call in (lambda: rounded.transcribe_unquantized([noise(100)]), lambda: rounded.save_pretrained(tmp_path / "x")):
        with pytest.raises(UserError, match=r'loaded in bf16.*precision = "fp32"'):
            call()
    assert not (tmp_path / "x").exists()


def test_a_code_outside_the_codebook_is_rejected() -> None:
    with pytest.raises(UserError, match=r"code 32 is outside the codebook 0\.\.31"):
        shared_tokenizer(0).transcribe([[3, 32]])


@settings(max_examples=30)
@given(
    number=st.sampled_from([0, 6]),
    chunks=st.lists(st.integers(0, 20_000), max_size=12),
    num_samples=st.integers(1, 90_000),
)
def test_a_stream_in_chunks_gives_the_codes_of_the_whole(number: int, chunks: list[int], num_samples: int) -> None:
    tokenizer, x = shared_tokenizer(number), noise(num_samples)
    stream, codes, start = tokenizer.stream(), [], 0
    for chunk in chunks:
        codes.append(stream.push(x[start : start + chunk]))
        start += chunk
    codes += [stream.push(x[start:]), stream.finish()]
    assert np.concatenate(codes).tolist() == tokenizer.encode([x])[0].tolist()


def test_a_block_yields_its_codes_as_soon_as_it_is_complete() -> None:
    tokenizer = shared_tokenizer(0)
    stream = tokenizer.stream()
    block = tokenizer.codes_per_block * tokenizer.samples_per_code
    assert len(stream.push(noise(block + 39))) == 0
    assert len(stream.push(noise(1))) == tokenizer.codes_per_block


def test_streams_are_independent_and_start_again_after_finish() -> None:
    tokenizer = shared_tokenizer(0)
    x, y = noise(30_000), noise(50_000)[20_000:]
    one, other = tokenizer.stream(), tokenizer.stream()
    codes = [one.push(x[:20_000]), other.push(y[:20_000]), one.push(x[20_000:]), other.push(y[20_000:])]
    first = np.concatenate([codes[0], codes[2], one.finish()])
    assert first.tolist() == tokenizer.encode([x])[0].tolist()
    assert np.concatenate([codes[1], codes[3], other.finish()]).tolist() == tokenizer.encode([y])[0].tolist()
    assert np.concatenate([one.push(x), one.finish()]).tolist() == first.tolist()


@pytest.mark.parametrize(
    ("setting", "value"), [("causal_convolution", False), ("block_frames", 0), ("log_mel_floor", "window")]
)
def test_a_tokenizer_that_depends_on_later_audio_cannot_stream(setting: str, value: object) -> None:
    with pytest.raises(UserError, match=f"cannot stream.*{setting}"):
        make_tokenizer(**{setting: value}).stream()
