from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer.conftest import save_whisper, tiny_whisper
from weft.errors import UserError
from weft.tokenizer.text import text_tokenizer
from weft.tokenizer.transcriber import Transcriber, windows

WINDOW = 38_400


def sounds(*num_samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(n, np.float32) for n in num_samples]


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    return Transcriber(save_whisper(tmp_path_factory.mktemp("whisper") / "multilingual"))


def test_a_window_is_heard_alike_in_any_company(multilingual: Transcriber) -> None:
    given = sounds(WINDOW, 8_000, 20_000, 12_345)
    alone = [multilingual([sound], ["en"])[0] for sound in given]
    together = multilingual(given, ["en"] * 4, batch_size=3)
    assert [h.text for h in together] == [h.text for h in alone]
    assert [h.log_prob for h in together] == pytest.approx([h.log_prob for h in alone], abs=1e-4)


def test_confidence_is_the_mean_log_probability_of_the_tokens(multilingual: Transcriber) -> None:
    """Recomputed from one pass over the whole transcript."""
    sound = sounds(20_000)[0]
    heard = multilingual([sound], ["zh"])[0]
    whisper, words = multilingual._whisper, multilingual._words
    features = multilingual._extract(sound, sampling_rate=16_000, max_length=WINDOW, return_tensors="pt").input_features
    prompt = multilingual.prompt.ids("zh")
    best, log_probs = list(prompt), []
    with torch.no_grad():
        while len(best) < 24 and (len(best) == len(prompt) or best[-1] != whisper.config.eos_token_id):
            step = whisper(features, decoder_input_ids=torch.tensor([best])).logits[0, -1].log_softmax(-1)
            best.append(int(step.argmax()))
            log_probs.append(float(step.max()))
    assert heard.text == words.decode(best, skip_special_tokens=True).strip()
    assert heard.log_prob == pytest.approx(np.mean(log_probs), abs=1e-4)


def test_a_language_is_given_or_found_out(multilingual: Transcriber, tmp_path: Path) -> None:
    found = multilingual(sounds(9_000, 9_000, 9_000), ["English", None, "zh"])
    assert (found[0].language, found[2].language) == ("en", "zh")
    assert found[1].language in ("en", "zh")
    with pytest.raises(UserError, match="'fr'"):
        multilingual(sounds(9_000), ["fr"])
    english = Transcriber(save_whisper(tmp_path / "english", multilingual=False))
    assert english(sounds(9_000), [None])[0].language is None


def test_a_whisper_without_its_own_text_tokenizer_is_refused(tmp_path: Path) -> None:
    words = text_tokenizer(["a cat"], 40)
    tiny_whisper(len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a text tokenizer without"):
        Transcriber(tmp_path)


@given(st.integers(0, 5 * WINDOW), st.integers(0, 100))
def test_windows_tile_a_recording(num_samples: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(num_samples, np.float32)
    pieces = windows(samples, WINDOW)
    assert [i for piece in pieces for i in (piece.start, piece.stop)][1:-1] == [
        i for a in pieces[1:] for i in (a.start, a.start)
    ]
    assert (pieces[0].start, pieces[-1].stop) == (0, num_samples)
    assert all(len(piece) <= WINDOW for piece in pieces)
    assert all(len(piece) > 0.75 * WINDOW for piece in pieces[:-1])


def test_a_recording_is_cut_where_it_is_quiet() -> None:
    samples = sounds(60_000)[0]
    samples[33_000:35_500] = 0
    assert 33_800 <= windows(samples, WINDOW)[0].stop <= 34_700
