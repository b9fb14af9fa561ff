"""Evaluation of a speech decoder: what is lost on the way from a recording to codes and back to sound.

    found = measure(decoder, tokenizer, utterances, judge=Path("models/whisper-base"))
    found["systems"]["decoder"]["wer"]["rate"], found["real_time_factor"], found["first_sound_ms"]

Five systems have the words of each recording: the recording itself, the vocoder and Griffin-Lim on its mel spectrogram,
and the flow model on its codes with Griffin-Lim and with the vocoder, which is the decoder. All are judged by the same
Whisper, and the distances of `weft.eval.sound` are to the recording.

Shapes: S samples, N codes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft import progress
from weft.artifacts import require_parent
from weft.asr.transcribe import Transcriber
from weft.audio import SAMPLE_RATE_HZ, resample
from weft.data.speech import load_speech
from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.griffin_lim import GriffinLim
from weft.decoder.vocoder import Vocoder
from weft.errors import UserError
from weft.eval.sound import Comparison, Dnsmos, Utmos, compare
from weft.records import Utterance
from weft.text.error_rate import pooled, split_by_words, word_error_rate, word_errors
from weft.tokenizer.tokenizer import SpeechTokenizer

RECORDING, DECODER = "recording", "decoder"
_NUM_STREAMS = 10  # for the time of the first sound
Sound = dict[str, np.ndarray]


def measure(
    decoder: SpeechDecoder,
    tokenizer: SpeechTokenizer,
    utterances: Sequence[Utterance],
    judge: Path,
    seed: int = 0,
    utmos: Path | None = None,
    receive: Callable[[Utterance, Sound, Sequence[str]], None] = lambda utterance, sound, texts: None,
) -> dict[str, Any]:
    """Return the results as results.json has them; `receive` gets the samples of each utterance by system, and their
    transcripts.

    The seed of the noise of the n-th utterance is `seed` + n. DNSMOS is measured if its package is installed, and UTMOS
    with the file of its weights, `utmos`. Raises UserError for a decoder of another tokenizer, unreadable audio, and if
    no utterance has words.
    """
    require_parent(decoder.manifest, "tokenizer", tokenizer.manifest)
    measured, left_out = split_by_words(utterances, lambda u: u.text)
    if not measured:
        raise UserError("no utterance has a transcript with words: add `text`")
    transcriber, scores, renderer = Transcriber(judge), _Scores(utmos), Renderer(decoder, tokenizer)
    with progress.bar("decoder", len(measured)) as advance:
        for i, utterance in enumerate(measured):
            sound = renderer(load_speech(utterance, decoder.sample_rate_hz), seed + i)
            texts = transcriber.long(
                [resample(x, decoder.sample_rate_hz, SAMPLE_RATE_HZ) for x in sound.values()],
                [utterance.language] * len(sound),
            )
            scores.add(utterance.text or "", sound, texts, decoder.sample_rate_hz)
            receive(utterance, sound, texts)
            advance()
    return {
        "utterances": len(measured),
        "left_out": len(left_out),
        "left_out_ids": [u.id for u in left_out],
        "seconds": scores.seconds,
        "judge": judge.resolve().name,
        "sample_rate_hz": decoder.sample_rate_hz,
        "euler_steps": decoder.euler_steps,
        **scores.results(),
        **speed(decoder, tokenizer, [load_speech(u) for u in measured[:_NUM_STREAMS]]),
    }


class Renderer:
    """The systems that give the words of a recording."""

    def __init__(self, decoder: SpeechDecoder, tokenizer: SpeechTokenizer) -> None:
        self._decoder, self._tokenizer, self._plain = decoder, tokenizer, None
        self._griffin_lim = GriffinLim(decoder.mel).to(decoder.device)
        if not isinstance(decoder, PublishedDecoder) and isinstance(decoder.vocoder, Vocoder):
            plain = SpeechDecoder(decoder.flow, decoder.mel, speakers=decoder.speakers)
            self._plain = plain.to(str(decoder.device))

    @torch.no_grad()
    def __call__(self, recording: np.ndarray, seed: int) -> Sound:
        """Return samples (S,) of a recording (S,) at the rate of the decoder by each system, all of its whole codes."""
        decoder = self._decoder
        codes = self._tokenizer.encode([resample(recording, decoder.sample_rate_hz, SAMPLE_RATE_HZ)])[0]
        samples = np.zeros(len(codes) * decoder.samples_per_code, np.float32)
        samples[: len(recording)] = recording[: len(samples)]
        frames = F.pad(torch.from_numpy(samples)[None], (0, -len(samples) % decoder.mel.hop_samples))
        mel = decoder.vocoder.spectrogram(frames.to(decoder.device))
        sound = {RECORDING: samples}
        if not isinstance(decoder.vocoder, GriffinLim):
            sound["vocoder"] = decoder.vocoder(mel)[0, : len(samples)].cpu().numpy()
        sound["griffin_lim"] = self._invert(mel, seed)[: len(samples)]
        if self._plain is not None:
            sound["flow_griffin_lim"] = self._plain.synthesize(codes, seed)
        return sound | {DECODER: decoder.synthesize(codes, seed)}

    def _invert(self, mel: Tensor, seed: int) -> np.ndarray:
        """Return the samples (S,) of mel (1, T, M) by Griffin-Lim."""
        griffin_lim, noise = self._griffin_lim, torch.Generator().manual_seed(seed)
        start = torch.randn(1, mel.shape[1] * griffin_lim.hop_samples, generator=noise).to(mel.device)
        state = griffin_lim.new_state(1)
        inverted = torch.cat([griffin_lim.push(state, mel, start), griffin_lim.flush(state)], dim=1)
        return inverted[0, griffin_lim.delay_samples :].cpu().numpy()


class _Scores:
    """The measures of every utterance, by system."""

    def __init__(self, utmos: Path | None) -> None:
        self.seconds = 0.0
        self._references: list[str] = []
        self._texts: dict[str, list[str]] = {}
        self._distances: dict[str, list[Comparison]] = {}
        self._missing: dict[str, str] = {}
        raters = {"dnsmos": self._optional("dnsmos", Dnsmos), "utmos": Utmos(utmos) if utmos else None}
        self._raters = {name: rater for name, rater in raters.items() if rater is not None}
        self._ratings: dict[str, dict[str, list[float]]] = {name: {} for name in self._raters}  # by system

    def _optional(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what needs an optional package, or None, and note what to install."""
        try:
            return make()
        except UserError as e:
            self._missing[name] = str(e)
            return None

    def add(self, reference: str, sound: Sound, texts: Sequence[str], sample_rate_hz: int) -> None:
        """Add the systems of an utterance, with their transcripts."""
        self.seconds += len(sound[RECORDING]) / sample_rate_hz
        self._references.append(reference)
        for (name, samples), text in zip(sound.items(), texts, strict=True):
            self._texts.setdefault(name, []).append(text)
            for rater, rate in self._raters.items():
                rating = rate(resample(samples, sample_rate_hz, SAMPLE_RATE_HZ))
                self._ratings[rater].setdefault(name, []).append(rating)
            if name != RECORDING and "distances" not in self._missing:
                found = self._optional("distances", partial(compare, sound[RECORDING], samples, sample_rate_hz))
                if found is not None:
                    self._distances.setdefault(name, []).append(found)

    def results(self) -> dict[str, Any]:
        """Return the measures with their intervals, and the differences of each system to the recording."""
        systems = {name: dict(self._of(name)) for name in self._texts}
        for name, found in systems.items():
            if name != RECORDING:
                found |= self._differences(name)
        return {"systems": systems, "not_measured": self._missing} if self._missing else {"systems": systems}

    def _of(self, name: str) -> Iterator[tuple[str, Any]]:
        yield "wer", asdict(word_error_rate(self._references, self._texts[name]))
        for rater, ratings in self._ratings.items():
            yield rater, asdict(_mean(ratings[name]))
        if found := self._distances.get(name):
            yield "mcd_db", statistics.mean(c.mcd_db for c in found)
            cents = [c.f0_error_cents for c in found if c.f0_error_cents is not None]
            yield "f0_error_cents", statistics.median(cents) if cents else None
            yield "voicing_error", statistics.mean(c.voicing_error for c in found)
            yield "stoi", statistics.mean(c.stoi for c in found)

    def _differences(self, name: str) -> dict[str, Any]:
        pairs = [
            (word_errors(reference, text)[0] - word_errors(reference, original)[0], word_errors(reference, text)[1])
            for reference, text, original in zip(
                self._references, self._texts[name], self._texts[RECORDING], strict=True
            )
        ]
        found = {"wer_difference": asdict(pooled(pairs))}
        for rater, ratings in self._ratings.items():
            pairs_of_ratings = zip(ratings[name], ratings[RECORDING], strict=True)
            found[f"{rater}_difference"] = asdict(_mean([a - b for a, b in pairs_of_ratings]))
        return found


def _mean(values: Sequence[float]) -> Any:
    return pooled([(value, 1) for value in values])  # type: ignore[misc]


def speed(decoder: SpeechDecoder, tokenizer: SpeechTokenizer, recordings: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the median seconds of computation per second of speech, and from the first codes to the first samples."""
    factors, firsts = [], []
    for codes in tokenizer.encode(recordings):
        start = time.perf_counter()
        samples = decoder.synthesize(codes)
        factors.append((time.perf_counter() - start) / max(1e-9, len(samples) / decoder.sample_rate_hz))
        stream, first = decoder.stream(), codes[: decoder.first_block_codes]
        start = time.perf_counter()
        stream.push(first)
        firsts.append(1000 * (time.perf_counter() - start))
    return {
        "real_time_factor": statistics.median(factors),
        "first_sound_ms": statistics.median(firsts),
        "threads": torch.get_num_threads(),
    }
