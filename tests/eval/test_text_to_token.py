import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decoder.conftest import make_decoder
from tests.eval.conftest import TEXTS, noise
from tests.tokenizer.conftest import make_tokenizer
from weft.asr.transcribe import Transcriber, split_at_pauses
from weft.audio import resample
from weft.errors import UserError
from weft.eval.text_to_token import Judge, Sentence, measure, occurrences, spoken_by_voice
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices.engines import speak


@pytest.fixture(scope="module")
def synthesizer(bundle: Path) -> Synthesizer:
    return Synthesizer.from_pretrained(bundle / "text_to_token")


@pytest.fixture(scope="module")
def judge(whisper: Path) -> Judge:
    return Judge(whisper, make_decoder(), seed=5)


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return [Sentence(text, lambda i=i: noise(9_000 + 3_000 * i, i)) for i, text in enumerate(TEXTS)]  # type: ignore[misc]


class Echo(Synthesizer):
    """A synthesizer that returns given codes, one row per text, for any seed."""

    def __init__(self, synthesizer: Synthesizer, codes: list[Any]) -> None:
        self.__dict__.update(synthesizer.__dict__)
        self.codes = codes

    def synthesize(self, texts: Any, seeds: Any, speakers: Any = None) -> list[Any]:
        assert len(texts) == len(seeds) == len(self.codes)
        return self.codes


def test_equal_codes_give_equal_figures(
    synthesizer: Synthesizer, tokenizer: SpeechTokenizer, judge: Judge, sentences: list[Sentence]
) -> None:
    codes = [c.tolist() for c in tokenizer.encode([s.audio() for s in sentences[:3]])]
    found = measure(Echo(synthesizer, codes), tokenizer, sentences, judge)
    assert (found["sentences"], found["left_out"]) == (3, 1)
    assert found["notes"]["judge"] == "whisper, a Whisper"
    for model in ("gate", "judge"):
        assert set(found[model]) == {"wer", "wrong_words"}
        for table in found[model].values():
            for row in table.values():
                assert row["text_to_token"] == row["speech"]
                assert row["difference"]["rate"] == row["difference"]["high"] == 0
    assert "original" in found["judge"]["wer"]["all"]
    assert "original" not in found["gate"]["wer"]["all"]
    assert found["gate"]["wrong_words"]["numbers"]["words"] == found["gate"]["wrong_words"]["names"]["words"] == 1
    synthesized, spoken = found["spoken"].values()
    assert synthesized["codes_per_word"] == spoken["codes_per_word"] == sum(map(len, codes)) / 11


def test_a_failed_synthesis_counts_as_wrong(
    synthesizer: Synthesizer, tokenizer: SpeechTokenizer, sentences: list[Sentence]
) -> None:
    found = measure(Echo(synthesizer, [None, [], None]), tokenizer, sentences)
    assert found["spoken"]["text_to_token"]["unsaid_share"] == found["spoken"]["text_to_token"]["empty_share"] == 1
    assert all(row["text_to_token"]["rate"] == 1 for table in found["gate"].values() for row in table.values())
    assert "judge" not in found
    assert found["notes"]["judge"] == "none: all metrics are by the tokenizer's ASR model"


def test_a_judge_transcribes_the_audio_of_codes(judge: Judge, whisper: Path) -> None:
    codes = [[1, 2, 3, 4, 5, 6], [], [7] * 12]
    decoder = make_decoder()
    audio = [resample(decoder.synthesize(c, 5 + i), decoder.sample_rate_hz) for i, c in enumerate(codes) if c]
    transcripts = Transcriber(whisper)(audio, [None] * 2)
    assert judge.transcribe(codes, [None] * 3) == [transcripts[0].text, "", transcripts[1].text]
    assert len({t.text for t in transcripts}) == 2


def test_a_judge_transcribes_long_audio_in_pieces(judge: Judge) -> None:
    samples = noise(60_000, 0)
    pieces = [samples[p.start : p.stop] for p in split_at_pauses(samples, 38_400)]
    assert len(pieces) == 2
    whole, empty, *parts = judge.transcriber.long([samples, samples[:0], *pieces], [None] * 4)
    assert (whole, empty) == (" ".join(parts), "")


def test_a_voice_speaks_the_sentences_of_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One ran. Two sat\nMr. Three hid.\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Four came."}) + "\n")
    sentences = spoken_by_voice([tmp_path / "a.txt", tmp_path / "b.jsonl"], "espeak:en-us")
    assert [s.text for s in sentences] == ["One ran.", "Two sat", "Mr. Three hid.", "Four came."]
    speech = speak("Two sat", "espeak:en-us")
    assert np.array_equal(sentences[1].audio(), resample(speech.samples, speech.sample_rate_hz))
    with pytest.raises(UserError, match="no voice 'xx'"):
        spoken_by_voice([tmp_path / "a.txt"], "espeak:xx")


def test_words_are_counted_in_the_transcripts_of_the_training_codes(bundle: Path, synthesizer: Synthesizer) -> None:
    assert occurrences([bundle / "codes"], synthesizer) == {"the": 2, "cat": 2}
    for wrong in (["other_codes"], ["codes", "other_codes"]):
        with pytest.raises(UserError, match="give all datasets that it was trained on"):
            occurrences([bundle / name for name in wrong], synthesizer)


def test_a_tokenizer_that_cannot_transcribe_is_rejected(synthesizer: Synthesizer, sentences: list[Sentence]) -> None:
    encoder_only = make_tokenizer()
    encoder_only.model.config = replace(encoder_only.model.config, encoder_only=True)
    with pytest.raises(UserError, match="is encoder_only and cannot transcribe codes"):
        measure(Echo(synthesizer, []), encoder_only, sentences)
