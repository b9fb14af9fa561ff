"""`weft eval SUITE ... --model BUNDLE --out results.json`: measure a bundle's parts and write what was found.

tokenizer      errors with the bottleneck closed and open, codebook use   --speech MANIFEST
resynth        word error rate after codes and back                       --speech MANIFEST
text-to-token  word error rate of its codes, read back                    --speech MANIFEST (its transcripts are said)
topic-cloze    right ending likelier than wrong, T, ST, TS, S             --pairs PAIRS.jsonl

The judge of all word error rates is the tokenizer's own ASR model. Spoken cloze pairs come from `--voice`, or from the
text-to-token model where no voice is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from weft.artifacts import check_writable, read_bundle, write_json
from weft.audio import resample
from weft.config import Natural
from weft.data.corpus import read_manifest
from weft.errors import UserError
from weft.eval import cloze, tokenizer
from weft.eval.cloze import ClozePair
from weft.eval.report import percent
from weft.lm.model import LanguageModel
from weft.records import Utterance
from weft.text_to_token.gate import read_back
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices import speak


@dataclass(frozen=True)
class EvalConfig:
    """What to measure, on what."""

    suite: tuple[Literal["tokenizer", "resynth", "text-to-token", "topic-cloze"], ...]
    """What to measure."""
    model: Path
    """Bundle: a folder with tokenizer/, decoder/, text_to_token/ and lm/."""
    out: Path
    """File to write the results to."""
    speech: tuple[Path, ...] = ()
    """Manifests of speech with transcripts."""
    pairs: Path | None = None
    """JSONL of story pairs: id, beginning, right, wrong."""
    voice: str | None = None
    """Voice that speaks the pairs, such as espeak:en-us; by default the bundle's text-to-token model."""
    seed: Natural = 0
    """Seed of everything that is drawn."""


def run(config: EvalConfig) -> None:
    """Measure, print, and write `config.out`. Raises UserError for parts and data that are missing or do not fit."""
    check_writable(config.out)
    read_bundle(config.model, needed=("tokenizer",))
    results = {name: SUITES[name](config) for name in config.suite}
    write_json(config.out, results)
    for name, found in results.items():
        print(name, *_lines(found), sep="\n  ")


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Results for a terminal: a line a figure, and a table where every value has figures of its own."""
    if found and all(isinstance(value, Mapping) and "rate" not in value for value in found.values()):
        head = ["", *next(iter(found.values()))]
        rows = [head, *([name, *map(_shown, value.values())] for name, value in found.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield from ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
        return
    for key, value in found.items():
        if isinstance(value, Mapping) and "rate" not in value:
            yield from (key, *(f"  {line}" for line in _lines(value))) if value else ()
        elif isinstance(value, list):
            yield from (f"{key}: {item}" for item in value)
        else:
            yield f"{key:<22}{_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{percent(value['rate'])} ({percent(value['low'])} to {percent(value['high'])})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _speech(config: EvalConfig) -> tuple[list[Utterance], list[str]]:
    utterances = [u for u in read_manifest(*config.speech) if u.text]
    if not utterances:
        raise UserError("there is no speech with transcripts to measure on: give --speech MANIFEST")
    return utterances, [u.text or "" for u in utterances]


def _tokenizer(config: EvalConfig) -> dict[str, Any]:
    return tokenizer.measure(SpeechTokenizer.load(config.model / "tokenizer"), _speech(config)[0])


def _resynth(config: EvalConfig) -> dict[str, Any]:
    from weft.decoder.decoder import SpeechDecoder
    from weft.eval.resynth import resynthesize

    utterances, texts = _speech(config)
    ear = SpeechTokenizer.load(config.model / "tokenizer")
    done = resynthesize(utterances, ear, SpeechDecoder.load(config.model / "decoder"), config.seed)
    return {"wer": asdict(done.wer(texts)), "wer_original": asdict(done.wer_before(texts))}


def _text_to_token(config: EvalConfig) -> dict[str, Any]:
    texts = _speech(config)[1]
    codes = Synthesizer.load(config.model / "text_to_token").speak(texts, range(config.seed, config.seed + len(texts)))
    return asdict(read_back(SpeechTokenizer.load(config.model / "tokenizer"), codes, texts))


def _topic_cloze(config: EvalConfig) -> dict[str, Any]:
    if config.pairs is None:
        raise UserError("topic-cloze needs pairs of endings: give --pairs PAIRS.jsonl")
    pairs = cloze.read_pairs(config.pairs)
    codes = _codes(config, pairs)
    found = cloze.measure(LanguageModel.load(config.model / "lm"), cloze.spoken_pairs(pairs, codes), codes)
    return {d: cloze.figures(a) for d, a in found.items()}


def _codes(config: EvalConfig, pairs: Sequence[ClozePair]) -> dict[str, Sequence[int]]:
    pieces = {name: text for pair in pairs for name, text in pair.pieces.items()}
    if config.voice is None:
        return speak_by_model(Synthesizer.load(config.model / "text_to_token"), pieces, config.seed)
    voice = config.voice
    ear = SpeechTokenizer.load(config.model / "tokenizer")
    heard = (speak(text, voice) for text in pieces.values())
    codes = ear.encode([resample(s.samples, s.sample_rate_hz) for s in heard])
    return {name: c.tolist() for name, c in zip(pieces, codes, strict=True)}


def speak_by_model(synthesizer: Synthesizer, pieces: dict[str, str], seed: int) -> dict[str, Sequence[int]]:
    """Codes of named texts by a text-to-token model, without those that it cannot say."""
    codes = synthesizer.speak(list(pieces.values()), range(seed, seed + len(pieces)))
    return {name: c for name, c in zip(pieces, codes, strict=True) if c}


SUITES: dict[str, Callable[[EvalConfig], dict[str, Any]]] = {
    "tokenizer": _tokenizer,
    "resynth": _resynth,
    "text-to-token": _text_to_token,
    "topic-cloze": _topic_cloze,
}
