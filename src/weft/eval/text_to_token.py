"""Evaluation of a text-to-token model: its errors compared with those of speech of the same sentences.

    sentences = [Sentence("The sailor left.", lambda: samples)]
    found = measure(synthesizer, tokenizer, sentences, judge=Judge(Path("whisper"), decoder))
    found["gate"]["wer"]["all"]["text_to_token"]["rate"], found["judge"]["wrong_words"]["names"]["difference"]["rate"]

"gate" has errors of transcripts by the tokenizer's own ASR model, which was trained on these codes, and "judge" by an
independent Whisper, which transcribes the decoded audio. The error rate of speech through the codes is the best that
text-to-token can reach with this tokenizer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weft import progress
from weft.artifacts import read
from weft.asr.transcribe import Transcriber
from weft.audio import load, resample
from weft.data.corpus import read_texts
from weft.data.datasets import Rows
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval.comparison import Comparison
from weft.eval.words import Classifier, number_words, words_of
from weft.records import Utterance
from weft.text.error_rate import split_by_words
from weft.text.segment import sentences_of
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices.engines import language_of, speak

_SENTENCES_PER_BATCH = 128  # whose audio is in memory


@dataclass(frozen=True)
class Sentence:
    """A text, speech of the same words, their language (None if unknown), and an id for lists (not set: the text)."""

    text: str
    audio: Callable[[], np.ndarray]
    """Returns 16 kHz mono samples (S,)."""
    language: str | None = None
    id: str | None = None


def spoken_by_voice(texts: Sequence[Path], voice: str, language: str | None = None) -> list[Sentence]:
    """Return the sentences of corpora with the speech of a TTS voice. Sentences also end at the ends of lines.

    `language` is that of the voice if it is not given. Raises UserError for files without text, and for an unknown
    voice.
    """
    language = language or language_of(voice)
    lines = (line for document in read_texts(*texts) for line in document.text.splitlines())
    return [Sentence(text, partial(_speak, voice, text), language) for line in lines for text in sentences_of(line)]


def recorded(utterances: Iterable[Utterance]) -> list[Sentence]:
    """Return the transcripts of utterances with their audio."""
    return [Sentence(u.text or "", partial(load, u.audio), u.language, u.id) for u in utterances]


def occurrences(codes: Sequence[Path], synthesizer: Synthesizer) -> Counter[str]:
    """Count the words of the transcripts that a model was trained on.

    Raises UserError if `codes` are not exactly the codes datasets of its training.
    """
    given = {read(folder, "codes").fingerprint for folder in codes}
    trained_on = {f for name, f in synthesizer.manifest.parents.items() if name.startswith("codes ")}
    if given != trained_on:
        raise UserError(
            f"the text-to-token model was trained on codes {', '.join(sorted(trained_on))}, not on "
            f"{', '.join(sorted(given))}: give all datasets that it was trained on, or none"
        )
    texts = (u.text or "" for u in Rows.of(*codes).utterances())
    return Counter(word for text in texts for word in words_of(text, synthesizer.normalize))


def _speak(voice: str, text: str) -> np.ndarray:
    speech = speak(text, voice)
    return resample(speech.samples, speech.sample_rate_hz)


class Judge:
    """A Whisper that transcribes the decoded audio of codes."""

    def __init__(self, whisper: Path, decoder: SpeechDecoder, seed: int = 0) -> None:
        """Load a Whisper. `seed` is that of the decoder's noise. Raises UserError for another directory."""
        self.name = whisper.resolve().name
        self.transcriber, self._decoder, self._seed = Transcriber(whisper), decoder, seed

    def transcribe(self, codes: Sequence[Sequence[int]], languages: Sequence[str | None]) -> list[str]:
        """Return the transcripts of codes; empty for no codes."""
        texts: list[str] = []
        with progress.bar("judge", len(codes)) as advance:
            for rows in _batches(len(codes)):
                audio = [self._decode(codes[i], self._seed + i) for i in rows]
                texts += self.transcriber.long(audio, [languages[i] for i in rows])
                advance(len(rows))
        return texts

    def _decode(self, codes: Sequence[int], seed: int) -> np.ndarray:
        if not codes:
            return np.zeros(0, np.float32)
        return resample(self._decoder.synthesize(codes, seed), self._decoder.sample_rate_hz)


def measure(
    synthesizer: Synthesizer,
    tokenizer: SpeechTokenizer,
    sentences: Sequence[Sentence],
    judge: Judge | None = None,
    occurrences: Mapping[str, int] | None = None,
    speaker: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the errors of text-to-token and of speech, as results.json has them.

    `items` has the transcripts of each sentence. `occurrences` of words in training define the rare words. Sentences
    without words are left out and listed. Raises UserError if none is left, for unreadable audio, for an unknown
    speaker, and for a tokenizer that cannot transcribe.
    """
    tokenizer.model.require_whole()
    language = synthesizer.manifest.settings.get("language", "en")
    classify = Classifier(synthesizer.normalize, number_words(language), occurrences)
    with_words, left_out = split_by_words(sentences, lambda s: synthesizer.normalize(s.text))
    if not with_words:
        raise UserError(f"the texts contain no words ({len(sentences)} sentences): give others")
    comparison = Comparison(classify, [s.text for s in with_words])
    languages = [s.language for s in with_words]
    speech, original = _encode_speech(tokenizer, with_words, judge)
    systems = {"text_to_token": _synthesize(synthesizer, with_words, speaker, seed), "speech": speech}
    by_asr = {name: tokenizer.transcribe(s.codes, languages) for name, s in systems.items()}
    items: list[dict[str, Any]] = [{"id": s.id, "text": s.text} for s in with_words]
    _add(items, by_asr)
    found: dict[str, Any] = {
        "sentences": len(with_words),
        "left_out": len(left_out),
        "left_out_ids": [s.id or s.text for s in left_out],
        "spoken": {name: comparison.code_metrics(s.codes, by_asr[name], s.elapsed_sec) for name, s in systems.items()},
        "gate": comparison.tables(by_asr),
    }
    if judge is not None:
        by_judge = {name: judge.transcribe(s.codes, languages) for name, s in systems.items()}
        found["judge"] = comparison.tables({**by_judge, "original": original})
        _add(items, {f"judge.{name}": texts for name, texts in by_judge.items()} | {"judge.original": original})
    judged_by = "none: all metrics are by the tokenizer's ASR model" if judge is None else f"{judge.name}, a Whisper"
    notes = {"gate": "the tokenizer's own ASR model", "judge": judged_by}
    return {**found, "notes": notes | classify.notes(), "items": items}


def _add(items: Sequence[dict[str, Any]], transcripts: Mapping[str, Sequence[str]]) -> None:
    """Add the transcripts of each sentence by system to its item."""
    for i, item in enumerate(items):
        item |= {name: texts[i] for name, texts in transcripts.items()}


@dataclass(frozen=True)
class _Codes:
    """The codes of each sentence, empty for a failure, and the time to compute all of them."""

    codes: list[list[int]]
    elapsed_sec: float


def _synthesize(synthesizer: Synthesizer, sentences: Sequence[Sentence], speaker: str | None, seed: int) -> _Codes:
    num, start_sec = len(sentences), time.perf_counter()
    speakers = None if speaker is None else [speaker] * num
    codes = synthesizer.synthesize([s.text for s in sentences], range(seed, seed + num), speakers)
    return _Codes([c or [] for c in codes], time.perf_counter() - start_sec)


def _encode_speech(
    tokenizer: SpeechTokenizer, sentences: Sequence[Sentence], judge: Judge | None
) -> tuple[_Codes, list[str]]:
    """Return the codes of the sentences' speech, and the judge's transcripts of the speech itself."""
    codes: list[list[int]] = []
    transcripts: list[str] = []
    elapsed_sec = 0.0
    with progress.bar("speech", len(sentences)) as advance:
        for rows in _batches(len(sentences)):
            start_sec = time.perf_counter()
            audio = [sentences[i].audio() for i in rows]
            codes += [c.tolist() for c in tokenizer.encode(audio)]
            elapsed_sec += time.perf_counter() - start_sec
            if judge is not None:
                transcripts += judge.transcriber.long(audio, [sentences[i].language for i in rows])
            advance(len(rows))
    return _Codes(codes, elapsed_sec), transcripts


def _batches(num: int) -> Iterator[range]:
    return (range(i, min(i + _SENTENCES_PER_BATCH, num)) for i in range(0, num, _SENTENCES_PER_BATCH))
