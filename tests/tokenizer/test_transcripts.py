from pathlib import Path

import pytest
import torch

from tests.tokenizer.conftest import noise, shared_tokenizer, write_speech
from weft.audio import load, save
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.records import Utterance
from weft.text.error_rate import character_error_rate, word_error_rate
from weft.tokenizer import transcripts
from weft.tokenizer.codebook import usage_of
from weft.tokenizer.transcripts import measure, transcribe_utterances


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return read_manifest(write_speech(tmp_path_factory.mktemp("speech") / "speech", 5))


@pytest.mark.parametrize("per_call", [256, 2])
def test_transcripts_are_those_of_the_tokenizer(
    utterances: list[Utterance], per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "_UTTERANCES_PER_CALL", per_call)
    tokenizer = shared_tokenizer(0)
    audio = [load(u.audio) for u in utterances]
    codes = tokenizer.encode(audio)
    found = transcribe_utterances(tokenizer, utterances, unquantized=True)
    assert found.texts == tokenizer.transcribe(codes)
    assert found.texts_unquantized == tokenizer.transcribe_unquantized(audio)
    assert found.seconds == [len(samples) / 16_000 for samples in audio]
    assert (
        found.counts.tolist() == torch.bincount(torch.tensor([int(c) for x in codes for c in x]), minlength=32).tolist()
    )
    assert transcribe_utterances(tokenizer, utterances).texts_unquantized == []


def test_error_rates_and_codebook_use_are_those_of_the_transcripts(utterances: list[Utterance]) -> None:
    tokenizer = shared_tokenizer(0)
    found = transcribe_utterances(tokenizer, utterances)
    measured, texts = measure(tokenizer, utterances), [u.text or "" for u in utterances]
    wer, usage = word_error_rate(texts, found.texts), usage_of(found.counts)
    assert (measured["wer"], measured["wer_words"]) == (wer.rate, wer.num_units)
    assert measured["wer_low"] <= measured["wer"] <= measured["wer_high"]
    assert measured["cer"] == character_error_rate(texts, found.texts).rate
    assert measured["perplexity"] == usage.perplexity
    assert measured["bits_per_sec"] == 12.5 * usage.bits


def test_unreadable_audio_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "good.wav", noise(5_000), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    with pytest.raises(UserError, match=r"bad\.wav cannot be read as audio"):
        transcribe_utterances(shared_tokenizer(0), read_manifest(tmp_path))
