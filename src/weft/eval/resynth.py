"""Resynthesis: speech to codes and back, with the word error rate of the result.

    run(ResynthConfig(audio=(Path("speech"),), tokenizer=Path("tokenizer"), decoder=Path("decoder"), out=Path("out")))

The tokenizer's own ASR model transcribes the resynthesized and the original speech, which separates the errors of the
decoder from those of the bottleneck.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from weft import progress
from weft.artifacts import Manifest, read_parent, require_parent
from weft.audio import SAMPLE_RATE_HZ, resample, save
from weft.config import NOT_IN_PLAN, Fraction, NonNegativeInt
from weft.data.skipped import Skipped, map_batch
from weft.data.speech import load_speech, read_manifest, speech_id
from weft.decoder.decoder import SpeechDecoder
from weft.files import write_json
from weft.plan import Draft, Plan, create
from weft.records import Utterance
from weft.text.error_rate import ErrorRate, split_by_words, word_error_rate
from weft.tokenizer.tokenizer import SpeechTokenizer

_UTTERANCES_PER_CALL = 32  # whose recordings are in memory
_MAX_NAME_BYTES, _MAX_PATH_CHARS = 180, 800  # of 255 and 4096, with room for the names of temporary files


@dataclass(frozen=True)
class ResynthConfig:
    """Speech to resynthesize, and the models to use."""

    audio: tuple[Path, ...]
    """Manifests, audio files, or directories of either."""
    tokenizer: Path
    """Directory of the speech tokenizer."""
    decoder: Path
    """Directory of the speech decoder."""
    out: Path
    """Output directory for the audio and results.json."""
    language: str | None = None
    """Language of utterances whose manifest names none, such as en; not set: that of the tokenizer's training."""
    seed: NonNegativeInt = 0
    """Seed of the decoder's noise."""
    max_bad_fraction: Annotated[Fraction, NOT_IN_PLAN] = 0.01
    """Fraction of utterances that cannot be resynthesized above which the command fails."""


@dataclass(frozen=True)
class Resynthesis:
    """Utterances that were processed, and the transcripts of the original and of the resynthesized speech."""

    utterances: list[Utterance] = field(default_factory=list)
    original_transcripts: list[str] = field(default_factory=list)
    transcripts: list[str] = field(default_factory=list)

    def error_rates(self, texts: Sequence[str]) -> dict[str, ErrorRate]:
        """Return the word error rates of the resynthesized ("wer") and of the original speech ("wer_original").

        Texts without words are left out. Raises UserError if none is left.
        """
        transcripts = {"wer": self.transcripts, "wer_original": self.original_transcripts}
        return {name: word_error_rate(texts, found) for name, found in transcripts.items()}


def resynthesize(
    utterances: Sequence[Utterance],
    tokenizer: SpeechTokenizer,
    decoder: SpeechDecoder,
    seed: int,
    skipped: Skipped | None = None,
    receive: Callable[[Utterance, np.ndarray], None] = lambda utterance, samples: None,
) -> Resynthesis:
    """Encode, decode and transcribe utterances, in the languages of the manifest.

    The seed of the n-th one is `seed` + n. `receive` is called with each utterance and its resynthesized samples (S,)
    at the rate of the decoder. Utterances for which this fails are added to `skipped`. Raises UserError if the decoder
    belongs to another tokenizer, and without `skipped`, if an utterance fails.
    """
    require_parent(decoder.manifest, "tokenizer", tokenizer.manifest)
    report, found = Skipped(), Resynthesis()

    def results(group: list[tuple[int, np.ndarray]]) -> list[tuple[np.ndarray, str, str]]:
        codes = tokenizer.encode([samples for _, samples in group])
        samples = [decoder.synthesize(c, seed + i) for (i, _), c in zip(group, codes, strict=True)]
        again = tokenizer.encode([resample(x, decoder.sample_rate_hz, SAMPLE_RATE_HZ) for x in samples])
        languages = [utterances[i].language for i, _ in group]
        original, transcripts = tokenizer.transcribe(codes, languages), tokenizer.transcribe(again, languages)
        return list(zip(samples, original, transcripts, strict=True))

    with progress.bar("resynth", len(utterances)) as advance:
        for first in range(0, len(utterances), _UTTERANCES_PER_CALL):
            recordings: list[tuple[int, np.ndarray]] = []
            for i, u in enumerate(utterances[first : first + _UTTERANCES_PER_CALL], first):
                with report.on_error(u.id):
                    recordings.append((i, load_speech(u)))
            done = map_batch(results, recordings, report, lambda recording: utterances[recording[0]].id)
            for (i, _), (samples, original, transcript) in done:
                receive(utterances[i], samples)
                found.utterances.append(utterances[i])
                found.original_transcripts.append(original)
                found.transcripts.append(transcript)
            advance(min(_UTTERANCES_PER_CALL, len(utterances) - first))
    report.num_good += len(found.utterances)
    if skipped is None:
        report.check(0.0)
    else:
        skipped += report
    return found


def _with_file_names(utterances: Sequence[Utterance]) -> Iterator[Utterance]:
    """Yield utterances; one whose id cannot name a file, or names the file of another one, has a problem."""
    seen: set[str] = set()
    for u in utterances:
        name = os.path.normpath(u.id)
        parts, problem = name.split("/"), None
        is_long = len(name) > _MAX_PATH_CHARS or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts)
        if is_long or parts[0] in ("", ".."):
            problem = f"id {u.id[:100]!r} cannot name a file: give a short relative path without .."
        elif name in seen:
            problem = f"id {u.id[:100]!r} names the file of another utterance: make ids unique"
        seen.add(name)
        yield u if u.problem or not problem else replace(u, problem=problem)


def run(config: ResynthConfig) -> Manifest:
    """Create the artifact `config.out`: an audio file per utterance and, for those with transcripts, results.json."""
    parents = {
        "tokenizer": read_parent(config.tokenizer, "tokenizer"),
        "decoder": read_parent(config.decoder, "decoder"),
    }
    tokenizer = SpeechTokenizer.from_pretrained(config.tokenizer)
    decoder = SpeechDecoder.from_pretrained(config.decoder)
    utterances = [replace(u, language=u.language or config.language) for u in read_manifest(*config.audio)]
    utterances = list(_with_file_names(utterances))

    def write(draft: Draft) -> None:
        skipped, report = Skipped(), draft.folder / "log/skipped.jsonl"

        def save_audio(u: Utterance, samples: np.ndarray) -> None:
            save(draft.folder / f"{u.id}.wav", samples, decoder.sample_rate_hz)

        result = resynthesize(utterances, tokenizer, decoder, config.seed, skipped, save_audio)
        skipped.check(config.max_bad_fraction, report)
        skipped.write(report)
        draft.counts["utterances"] = len(result.utterances)
        draft.counts["skipped_utterances"] = skipped.num_bad
        measured, left_out = split_by_words(result.utterances, lambda u: u.text)
        if measured:
            rates = result.error_rates([u.text or "" for u in result.utterances])
            write_json(draft.folder / "results.json", {name: asdict(rate) for name, rate in rates.items()})
            draft.counts["left_out"] = [u.id for u in left_out]
            draft.counts |= {name: rate.rate for name, rate in rates.items()}
        draft.notes["judge"] = "the tokenizer's own ASR model"

    return create(config.out, Plan.of("resynthesis", config, parents, audio=speech_id(utterances)), write)
