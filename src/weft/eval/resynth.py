"""Speech through codes and back: hear the ceiling of everything that speaks with these parts, and measure it.

    run(ResynthConfig(audio=(Path("speech"),), tokenizer=Path("tokenizer"), decoder=Path("decoder"), out=Path("out")))

The judge is the tokenizer's own ASR model, which knows its codes' losses; the original sound judged by the same model
stands beside it, so that what the decoder adds can be told from what the bottleneck took.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from weft import artifacts, progress
from weft.artifacts import Manifest, require_parent
from weft.audio import SAMPLE_RATE_HZ, load, resample, save
from weft.config import Natural
from weft.data.corpus import read_manifest
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.wer import ErrorRate, word_error_rate


@dataclass(frozen=True)
class ResynthConfig:
    """What to send through codes and back."""

    audio: tuple[Path, ...]
    """Manifests, sound files, or folders of either."""
    tokenizer: Path
    """Folder of the speech tokenizer."""
    decoder: Path
    """Folder of the speech decoder."""
    out: Path
    """Folder to write the sound and results.json to."""
    seed: Natural = 0
    """Seed of the decoder's noise."""


@dataclass(frozen=True)
class Resynthesis:
    """Utterances after the round trip: their codes, their new samples, and what the judge read in both."""

    codes: list[np.ndarray]
    samples: list[np.ndarray]
    sample_rate_hz: int
    read_before: list[str]
    read_after: list[str]

    def wer(self, texts: Sequence[str]) -> ErrorRate:
        """Word error rate of the resynthesised speech."""
        return word_error_rate(texts, self.read_after)

    def wer_before(self, texts: Sequence[str]) -> ErrorRate:
        """Word error rate of the original speech, by the same judge."""
        return word_error_rate(texts, self.read_before)


def resynthesize(
    utterances: Sequence[Utterance], tokenizer: SpeechTokenizer, decoder: SpeechDecoder, seed: int
) -> Resynthesis:
    """Send utterances through codes and back. Raises UserError when the decoder is not the tokenizer's."""
    require_parent(decoder.manifest, "tokenizer", tokenizer.manifest)
    codes = tokenizer.encode([load(u.audio) for u in utterances])
    samples = []
    with progress.bar("resynth", len(codes)) as advance:
        for i, c in enumerate(codes):
            samples.append(decoder.synthesize(c, seed + i))
            advance()
    again = tokenizer.encode([resample(x, decoder.sample_rate_hz, SAMPLE_RATE_HZ) for x in samples])
    before, after = tokenizer.transcribe(codes), tokenizer.transcribe(again)
    return Resynthesis(codes, samples, decoder.sample_rate_hz, before, after)


def run(config: ResynthConfig) -> Manifest:
    """Make the artifact `config.out`: a sound file an utterance and, where transcripts are known, results.json."""
    tokenizer, decoder = SpeechTokenizer.load(config.tokenizer), SpeechDecoder.load(config.decoder)
    utterances = read_manifest(*config.audio)
    for u in utterances:
        if "\0" in u.id or not Path(os.path.normpath(config.out / u.id)).is_relative_to(os.path.normpath(config.out)):
            raise UserError(
                f"id {u.id!r} cannot name a file in {config.out}: make it a relative path, without .. or null"
            )
    parents = {"tokenizer": tokenizer.manifest, "decoder": decoder.manifest}
    settings = {"audio": [str(path) for path in config.audio], "seed": config.seed}
    if artifacts.is_made(config.out, "resynthesis", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "resynthesis", settings, parents) as draft:
        done = resynthesize(utterances, tokenizer, decoder, config.seed)
        for u, samples in zip(utterances, done.samples, strict=True):
            save(draft.folder / f"{u.id}.wav", samples, done.sample_rate_hz)
        texts = [u.text for u in utterances]
        draft.counts["utterances"] = len(utterances)
        if all(texts):
            known = [t or "" for t in texts]
            found = {"wer": asdict(done.wer(known)), "wer_original": asdict(done.wer_before(known))}
            artifacts.write_bytes(draft.folder / "results.json", json.dumps(found, indent=1).encode())
            draft.counts |= {name: rate["rate"] for name, rate in found.items()}
        draft.notes["judge"] = "the tokenizer's own ASR model"
    return artifacts.read(config.out)
