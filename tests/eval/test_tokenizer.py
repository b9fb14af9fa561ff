from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import make_tokenizer
from weft.audio import save
from weft.errors import UserError
from weft.eval.distortions import at_snr_db
from weft.eval.tokenizer import measure
from weft.records import Utterance
from weft.tokenizer.tokenizer import SpeechTokenizer

TEXTS = ["the cat sat", "on the mat", "the mat", "a cat on the cat"]


@pytest.fixture(scope="module")
def audio() -> list[np.ndarray]:
    """Four recordings of seven codes each, which together fit the codebook of 32."""
    rng = np.random.default_rng(3)
    return [(rng.normal(size=8_900) * 0.02 * 4**i).astype(np.float32) for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def utterances(audio: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("audio")
    for i, samples in enumerate(audio):
        save(folder / f"{i}.wav", samples, 16_000)
    return [Utterance(f"u{i}", str(folder / f"{i}.wav"), text, f"speaker-{i % 2}") for i, text in enumerate(TEXTS)]


def set_exact_codebook(tokenizer: SpeechTokenizer, audio: list[np.ndarray]) -> None:
    """Set the codebook to the hidden states of `audio`, so that their quantization loses nothing."""
    with torch.no_grad():
        lengths = [len(x) for x in audio]
        features = [tokenizer.features([x], [len(x)])[0] for x in audio]
        batch, frames = tokenizer.features.collate(features, lengths)
        states = tokenizer.model.to_bottleneck(batch, frames)[tokenizer.valid_codes(frames)]
        tokenizer.model.quantizer.codebook.fill_(1e3)
        tokenizer.model.quantizer.codebook[: len(states)] = states


def test_a_lossless_bottleneck_gives_the_transcripts_without_quantization(audio: list[np.ndarray]) -> None:
    tokenizer = make_tokenizer()
    before = tokenizer.transcribe_unquantized(audio)
    assert len(set(before)) > 1
    assert tokenizer.transcribe(tokenizer.encode(audio)) != before
    set_exact_codebook(tokenizer, audio)
    assert tokenizer.transcribe_unquantized(audio) == before
    assert tokenizer.transcribe(tokenizer.encode(audio)) == before


def test_long_recordings_are_transcribed_window_by_window(tokenizer: SpeechTokenizer, audio: list[np.ndarray]) -> None:
    window = tokenizer.codes_per_window * tokenizer.samples_per_code
    long = np.tile(audio[2], 5)[: window + 3_000]
    parts = tokenizer.transcribe_unquantized([long[:window], long[window:]])
    assert tokenizer.transcribe_unquantized([audio[0], long, audio[0][:0]])[1:] == [" ".join(parts), ""]


def test_figures_are_those_of_known_transcripts(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(
        tokenizer, "transcribe", lambda codes, languages: ["the cat sat", "", "the hat", "a cat on the cat"]
    )
    monkeypatch.setattr(tokenizer, "transcribe_unquantized", lambda audio, languages: TEXTS)
    silent = Utterance("silent", utterances[0].audio, "...", "speaker-9")
    found = measure(tokenizer, [*utterances, silent])
    assert found["utterances"] == 4
    assert found["wer"]["rate"] == pytest.approx(4 / 13)  # "on the mat" and "mat"
    assert found["cer"]["rate"] == pytest.approx(9 / 35)  # 8 letters and "m"
    assert found["empty_share"] == 0.25
    assert found["wer_unquantized"] == {"rate": 0.0, "low": 0.0, "high": 0.0, "num_units": 13}
    assert found["cer_unquantized"] == {"rate": 0.0, "low": 0.0, "high": 0.0, "num_units": 35}
    assert found["empty_share_unquantized"] == 0.0
    assert list(found["speakers"]) == ["speaker-1", "speaker-0"]  # the highest error rate first
    for rate in ("wer", "cer"):
        parts = [s[rate] for s in found["speakers"].values()]
        assert sum(p["num_units"] for p in parts) == found[rate]["num_units"]
        errors = sum(p["rate"] * p["num_units"] for p in parts)
        assert errors / found[rate]["num_units"] == pytest.approx(found[rate]["rate"])
    assert sum(s["seconds"] for s in found["speakers"].values()) == pytest.approx(found["seconds"], abs=0.02)
    assert found["tokens"] == sum(map(len, tokenizer.encode([np.zeros(8_900, np.float32)] * 4)))
    with pytest.raises(UserError, match="there is no transcribed speech to measure on"):
        measure(tokenizer, [silent])


def test_both_transcriptions_use_the_languages_of_the_manifest(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, calls = make_tokenizer(), []

    def transcribe(recordings: Any, languages: list[str | None]) -> list[str]:
        calls.append(languages)
        return [""] * len(recordings)

    for name in ("transcribe", "transcribe_unquantized"):
        monkeypatch.setattr(tokenizer, name, transcribe)
    languages = ["en", None, "zh", "en"]
    measure(tokenizer, [replace(u, language=name) for u, name in zip(utterances, languages, strict=True)])
    assert calls == [languages, languages]


def test_the_number_of_utterances_per_call_does_not_change_the_result(
    tokenizer: SpeechTokenizer, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(tokenizer, utterances)
    monkeypatch.setattr("weft.tokenizer.transcripts._UTTERANCES_PER_CALL", 3)
    assert measure(tokenizer, utterances) == whole


def test_noise_is_measured_by_unit_edit_distance_and_error_rates(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    clean, noisy = [[1, 1, 2, 3], [4], [5, 6], [7, 8, 9]], [[1, 2, 3], [4], [6, 5, 5], [7, 0, 9]]
    encoded = iter([clean, noisy])
    monkeypatch.setattr(tokenizer, "encode", lambda audio: [np.array(c, np.uint16) for c in next(encoded)])
    monkeypatch.setattr(tokenizer, "transcribe", lambda codes, languages: TEXTS if codes[0][1] == 1 else [""] * 4)
    monkeypatch.setattr(tokenizer, "transcribe_unquantized", lambda audio, languages: TEXTS)
    found = measure(tokenizer, utterances, distortions={"noise": at_snr_db(10.0)})
    assert found["wer"]["rate"] == 0.0
    assert list(found["distorted"]) == ["noise"]
    figures = found["distorted"]["noise"]
    assert figures["unit_edit_distance"]["rate"] == 4 / 10
    assert figures["unit_edit_distance"]["num_units"] == 10
    assert figures["unit_edit_distance"]["low"] < 0.4 < figures["unit_edit_distance"]["high"]
    assert (figures["wer"]["rate"], figures["empty_share"]) == (1.0, 1.0)


def test_more_noise_changes_more_codes_and_the_noise_is_always_the_same(utterances: list[Utterance]) -> None:
    tokenizer, ratios = make_tokenizer(), {"quiet": at_snr_db(60.0), "loud": at_snr_db(0.0)}
    found = measure(tokenizer, utterances, distortions=ratios)["distorted"]
    quiet, loud = (found[name]["unit_edit_distance"]["rate"] for name in ratios)
    assert quiet < loud
    again = measure(tokenizer, utterances[::-1], distortions=ratios)["distorted"]["loud"]
    assert again["unit_edit_distance"]["rate"] == pytest.approx(loud)
    assert "distorted" not in measure(tokenizer, utterances)
