from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer.conftest import save_whisper, tiny_whisper
from weft.asr.transcribe import Transcriber, must_end, split_at_pauses
from weft.errors import UserError
from weft.tokenizer.init import train_text_tokenizer

WINDOW = 38_400


def recordings(*num_samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(n, np.float32) for n in num_samples]


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    return Transcriber(save_whisper(tmp_path_factory.mktemp("whisper") / "multilingual"))


def test_a_transcript_does_not_depend_on_the_other_windows(multilingual: Transcriber) -> None:
    windows = recordings(WINDOW, 8_000, 20_000, 12_345)
    alone = [multilingual([window], ["en"])[0] for window in windows]
    together = multilingual(windows, ["en"] * 4, batch_size=3)
    assert [t.text for t in together] == [t.text for t in alone]
    assert [t.log_prob for t in together] == pytest.approx([t.log_prob for t in alone], abs=1e-4)


def test_confidence_is_the_mean_log_probability_of_the_tokens(multilingual: Transcriber) -> None:
    """Recomputed token by token."""
    window = recordings(20_000)[0]
    found = multilingual([window], ["zh"])[0]
    whisper, extract = multilingual._whisper, multilingual._extract
    features = extract(window, sampling_rate=16_000, max_length=WINDOW, return_tensors="pt").input_features
    prompt = multilingual.prompt.ids("zh")
    ids, log_probs = list(prompt), []
    with torch.no_grad():
        while len(ids) < 24 and (len(ids) == len(prompt) or ids[-1] != whisper.config.eos_token_id):
            step = whisper(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(step.argmax()))
            log_probs.append(float(step.max()))
    assert found.text == multilingual._text_tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert found.log_prob == pytest.approx(np.mean(log_probs), abs=1e-4)


def test_a_long_recording_is_transcribed_in_pieces(multilingual: Transcriber) -> None:
    long, short = recordings(2 * WINDOW, 8_000)
    pieces = [long[piece.start : piece.stop] for piece in split_at_pauses(long, WINDOW)]
    texts = [t.text for t in multilingual(pieces, ["en"] * len(pieces))]
    alone = multilingual([short], ["en"])[0].text
    empty = np.zeros(0, np.float32)
    assert len(pieces) > 1
    assert multilingual.long([long, empty, short], ["en"] * 3) == [" ".join(texts), "", alone]


def test_a_language_is_given_or_detected(multilingual: Transcriber, tmp_path: Path) -> None:
    found = multilingual(recordings(9_000, 9_000, 9_000), ["English", None, "zh"])
    assert (found[0].language, found[2].language) == ("en", "zh")
    assert found[1].language in ("en", "zh")
    with pytest.raises(UserError, match="'fr'"):
        multilingual(recordings(9_000), ["fr"])
    english = Transcriber(save_whisper(tmp_path / "english", multilingual=False))
    assert english(recordings(9_000), [None])[0].language is None


def test_a_whisper_without_its_own_text_tokenizer_is_rejected(tmp_path: Path) -> None:
    text_tokenizer = train_text_tokenizer(["a cat"], 40)
    tiny_whisper(len(text_tokenizer)).save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has a text tokenizer without"):
        Transcriber(tmp_path)


@given(st.integers(0, 5 * WINDOW), st.integers(0, 100))
def test_pieces_tile_a_recording(num_samples: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(num_samples, np.float32)
    pieces = split_at_pauses(samples, WINDOW)
    assert all(before.stop == after.start for before, after in pairwise(pieces))
    assert (pieces[0].start, pieces[-1].stop) == (0, num_samples)
    assert all(len(piece) <= WINDOW for piece in pieces)
    assert all(len(piece) > 0.75 * WINDOW for piece in pieces[:-1])


def test_a_recording_is_split_where_it_is_quiet() -> None:
    samples = recordings(60_000)[0]
    samples[33_000:35_500] = 0
    assert 33_800 <= split_at_pauses(samples, WINDOW)[0].stop <= 34_700


def length_of(ids: list[int], seconds: float) -> int:
    """The number of ids at which a transcript ends."""
    for length in range(1, len(ids) + 1):
        if must_end(torch.tensor([ids[:length]]), torch.tensor([seconds]))[0]:
            return length
    return len(ids)


@given(
    start=st.lists(st.integers(10, 99), max_size=30),
    phrase=st.lists(st.integers(0, 9), min_size=1, max_size=32, unique=False),
)
def test_a_loop_ends_after_a_few_repetitions(start: list[int], phrase: list[int]) -> None:
    ids = [*start, *phrase * 200]
    first, num = len(start), len(phrase)
    assert first + 16 < length_of(ids, 30.0) <= first + max(16, 3 * num) + num + 7


@given(st.integers(0, 50), st.integers(1, 15))
def test_words_that_are_said_a_few_times_are_no_loop(num_before: int, num_words: int) -> None:
    before, phrase = list(range(100, 100 + num_before)), list(range(num_words))
    said = phrase * 3 if num_words > 5 else phrase * (16 // num_words)
    assert length_of([*before, *said, 77, 78], 30.0) == num_before + len(said) + 2


@pytest.mark.parametrize("seconds", [0.0, 0.4, 2.55, 9.0])
def test_a_transcript_is_limited_by_the_duration_of_its_speech(seconds: float) -> None:
    ids = torch.randint(0, 50_000, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    length = length_of(ids, seconds)
    assert 20 + 30 * seconds <= length < 21 + 30 * seconds


def test_a_looping_whisper_is_stopped_and_the_others_are_not(multilingual: Transcriber) -> None:
    """Whatever the other windows of a batch are."""
    windows = recordings(16_000, 20_000)
    alone = [multilingual([w], ["en"])[0].text for w in windows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.asr.transcribe.must_end", lambda ids, sec: (sec < 1.1) & (ids.shape[1] >= 5))
        stopped = multilingual(windows, ["en", "en"])
    assert stopped[1].text == alone[1]
    assert len(stopped[0].text) < len(alone[0])
    assert alone[0].startswith(stopped[0].text.rstrip("\ufffd"))
