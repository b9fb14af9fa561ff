"""How well a text-to-token model says sentences, beside speech of the same sentences through the tokenizer.

    sentences = [Sentence("The sailor left.", lambda: samples)]
    found = measure(synthesizer, tokenizer, sentences, judge=Judge(Path("whisper"), decoder))
    found["gate"]["wer"]["all"]["text_to_token"]["rate"], found["judge"]["wrong_words"]["names"]["difference"]["rate"]

The gate is the second half of the tokenizer's own ASR model, which knows its codes' losses. The judge is a Whisper that
had no part in making them, and hears the sound that a decoder makes of them. What is read in the codes of speech is the
most that text-to-token could reach with this tokenizer.
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
from weft.audio import load, resample
from weft.data.corpus import read_texts
from weft.data.shards import Rows
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval.comparison import Comparison
from weft.eval.words import Classifier, number_words, words_of
from weft.records import Utterance
from weft.sentences import sentences_of
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.transcriber import Transcriber, windows
from weft.voices import language_of, speak

_AT_ONCE = 128  # sentences whose sound is in memory


@dataclass(frozen=True)
class Sentence:
    """A text to say, speech of the same words, and their language, where multilingual Whispers are to be told it."""

    text: str
    sound: Callable[[], np.ndarray]
    """Gives 16 kHz mono samples (S,)."""
    language: str | None = None


def by_voice(texts: Sequence[Path], voice: str) -> list[Sentence]:
    """The sentences of corpora, as a TTS engine's voice speaks them; they end where lines do, too.

    Raises UserError for files without text, and for a voice that is unknown.
    """
    language_of(voice)
    lines = (line for document in read_texts(*texts) for line in document.text.splitlines())
    return [Sentence(text, partial(_spoken_by, voice, text)) for line in lines for text in sentences_of(line)]


def recorded(utterances: Iterable[Utterance]) -> list[Sentence]:
    """The transcripts of utterances, with their sound."""
    return [Sentence(u.text or "", partial(load, u.audio), u.language) for u in utterances]


def occurrences(codes: Sequence[Path], synthesizer: Synthesizer) -> Counter[str]:
    """How often each word stands in the transcripts of all the codes datasets that a model was trained on.

    Raises UserError where they are not exactly these.
    """
    given = {read(folder, "codes").fingerprint for folder in codes}
    trained_on = {f for name, f in synthesizer.manifest.parents.items() if name.startswith("codes ")}
    if given != trained_on:
        raise UserError(
            f"the text-to-token model was trained on codes {', '.join(sorted(trained_on))}, and these are "
            f"{', '.join(sorted(given))}: give the datasets that it was trained on, all of them, or none"
        )
    texts = (u.text or "" for u in Rows.of(*codes).utterances())
    return Counter(word for text in texts for word in words_of(text, synthesizer.normalize))


def _spoken_by(voice: str, text: str) -> np.ndarray:
    speech = speak(text, voice)
    return resample(speech.samples, speech.sample_rate_hz)


class Judge:
    """A whole Whisper that hears codes as a decoder makes them sound."""

    def __init__(self, whisper: Path, decoder: SpeechDecoder, seed: int = 0) -> None:
        """`seed` is of the decoder's noise. Raises UserError for a folder that is no Hugging Face Whisper."""
        self.name = whisper.resolve().name
        self._transcriber, self._decoder, self._seed = Transcriber(whisper), decoder, seed

    def hear(self, sounds: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]:
        """What is said in 16 kHz mono sounds (S,) of any length."""
        most = self._transcriber.window_samples
        pieces = [(i, x[p.start : p.stop]) for i, x in enumerate(sounds) for p in windows(x, most) if len(p)]
        heard = self._transcriber([x for _, x in pieces], [languages[i] for i, _ in pieces])
        texts: list[list[str]] = [[] for _ in sounds]
        for (i, _), found in zip(pieces, heard, strict=True):
            texts[i].append(found.text)
        return [" ".join(parts) for parts in texts]

    def transcribe(self, codes: Sequence[Sequence[int]], languages: Sequence[str | None]) -> list[str]:
        """What is said in the sound of codes, in silence where there are none."""
        read: list[str] = []
        with progress.bar("judge", len(codes)) as advance:
            for rows in _batches(len(codes)):
                read += self.hear([self._sound(codes[i], self._seed + i) for i in rows], [languages[i] for i in rows])
                advance(len(rows))
        return read

    def _sound(self, codes: Sequence[int], seed: int) -> np.ndarray:
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
    """Errors of text-to-token and of speech, by the gate and, where there is one, by a judge, as results.json has them.

    `occurrences` tells how often words stood in the transcripts that the model was trained on: without it none is
    called rare. Sentences with nothing to say are left out. Raises UserError where none is left, for sound that cannot
    be read, for a speaker that the model does not know, and for a tokenizer that cannot read codes.
    """
    if tokenizer.model.config.encoder_only:
        raise UserError("this tokenizer is encoder_only, and cannot read codes back: take one with both halves")
    language = synthesizer.manifest.settings.get("language", "en")
    classify = Classifier(synthesizer.normalize, number_words(language), occurrences)
    told = [s for s in sentences if words_of(s.text, synthesizer.normalize)]
    if not told:
        raise UserError(f"there are no words in the texts to say ({len(sentences)} sentences): give others")
    comparison, languages = Comparison(classify, [s.text for s in told]), [s.language for s in told]
    by_speech, original = _speech(tokenizer, told, judge)
    spoken = {"text_to_token": _text_to_token(synthesizer, told, speaker, seed), "speech": by_speech}
    by_gate = {name: tokenizer.transcribe(s.codes, languages) for name, s in spoken.items()}
    found: dict[str, Any] = {
        "sentences": len(told),
        "left_out": len(sentences) - len(told),
        "spoken": {name: comparison.manner(s.codes, by_gate[name], s.took_sec) for name, s in spoken.items()},
        "gate": comparison.tables(by_gate),
    }
    if judge is not None:
        by_judge = {name: judge.transcribe(s.codes, languages) for name, s in spoken.items()}
        found["judge"] = comparison.tables({**by_judge, "original": original})
    notes = {"gate": "the second half of the tokenizer's own ASR model", "judge": _named(judge)}
    return {**found, "notes": notes | classify.notes()}


@dataclass(frozen=True)
class _Spoken:
    """The codes of each sentence, none where it was not said, and how long it took to make them all."""

    codes: list[list[int]]
    took_sec: float


def _text_to_token(synthesizer: Synthesizer, sentences: Sequence[Sentence], speaker: str | None, seed: int) -> _Spoken:
    num, begun_sec = len(sentences), time.perf_counter()
    speakers = None if speaker is None else [speaker] * num
    codes = synthesizer.speak([s.text for s in sentences], range(seed, seed + num), speakers)
    return _Spoken([c or [] for c in codes], time.perf_counter() - begun_sec)


def _speech(
    tokenizer: SpeechTokenizer, sentences: Sequence[Sentence], judge: Judge | None
) -> tuple[_Spoken, list[str]]:
    """The sentences' speech through the tokenizer, and what a judge hears in the speech itself."""
    codes: list[list[int]] = []
    heard: list[str] = []
    took_sec = 0.0
    with progress.bar("speech", len(sentences)) as advance:
        for rows in _batches(len(sentences)):
            begun_sec = time.perf_counter()
            sounds = [sentences[i].sound() for i in rows]
            codes += [c.tolist() for c in tokenizer.encode(sounds)]
            took_sec += time.perf_counter() - begun_sec
            if judge is not None:
                heard += judge.hear(sounds, [sentences[i].language for i in rows])
            advance(len(rows))
    return _Spoken(codes, took_sec), heard


def _batches(num: int) -> Iterator[range]:
    return (range(first, min(first + _AT_ONCE, num)) for first in range(0, num, _AT_ONCE))


def _named(judge: Judge | None) -> str:
    return "none was given, so that all figures are by the gate" if judge is None else f"{judge.name}, a Whisper"
