"""`weft eval SUITE ... --model BUNDLE --out results.json`: measure a bundle's parts and write what was found.

tokenizer      errors with the bottleneck closed and open, codebook use   --speech MANIFEST
resynth        word error rate after codes and back                       --speech MANIFEST
text-to-token  errors of what it says, beside speech of the same words    --texts CORPUS, or --speech MANIFEST
topic-cloze    right ending likelier than wrong, T, ST, TS, S             --pairs PAIRS.jsonl

The judge of all word error rates is the tokenizer's own ASR model; of text-to-token, also the Whisper of `--judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from weft.artifacts import check_writable, read_bundle, write_json
from weft.audio import resample
from weft.config import Count, Natural
from weft.data.corpus import read_manifest
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval import cloze, text_to_token, tokenizer
from weft.eval.cloze import ClozePair
from weft.eval.report import percent
from weft.eval.resynth import resynthesize
from weft.lm.model import LanguageModel
from weft.records import Utterance
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices import speak

_VOICE = "espeak:en-us"  # as `weft speak` has it


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
    texts: tuple[Path, ...] = ()
    """Corpora whose sentences text-to-token is to say, and `voice` beside it; by default it says the transcripts of
    `speech`, and that speech stands beside it."""
    num_sentences: Count | None = None
    """How many sentences text-to-token is to say, drawn by the seed; by default all."""
    judge: Path | None = None
    """Folder of a Hugging Face Whisper that hears text-to-token through the bundle's decoder."""
    codes: tuple[Path, ...] = ()
    """The codes datasets that text-to-token was trained on, which tell rare words."""
    speaker: str | None = None
    """Name of the text-to-token model's voice, where it knows several; by default the one it heard most of."""
    pairs: Path | None = None
    """JSONL of story pairs: id, beginning, right, wrong."""
    voice: str | None = None
    """Voice such as espeak:en-us, which speaks the pairs (by default the bundle's text-to-token model does) and the
    texts (by default espeak:en-us)."""
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
    if found and all(_is_row(value) for value in found.values()):
        head = ["", *next(iter(found.values()))]
        rows = [head, *([name, *map(_shown, value.values())] for name, value in found.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield from ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
        return
    for key, value in found.items():
        if _is_table(value):
            yield from (key, *(f"  {line}" for line in _lines(value))) if value else ()
        elif isinstance(value, list):
            yield from (f"{key}: {item}" for item in value)
        else:
            yield f"{key:<22}{_shown(value)}"


def _is_row(value: Any) -> bool:
    """Whether a value has figures of its own, and no tables."""
    return _is_table(value) and not any(map(_is_table, value.values()))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and "rate" not in value


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
    utterances, texts = _speech(config)
    ear = SpeechTokenizer.load(config.model / "tokenizer")
    done = resynthesize(utterances, ear, SpeechDecoder.load(config.model / "decoder"), config.seed)
    return {"wer": asdict(done.wer(texts)), "wer_original": asdict(done.wer_before(texts))}


def _text_to_token(config: EvalConfig) -> dict[str, Any]:
    voice = config.voice or _VOICE
    if config.texts and config.speech and config.suite == ("text-to-token",):
        raise UserError("text-to-token has texts and speech to say: give --texts, or --speech, one of them")
    if config.texts:
        sentences = text_to_token.by_voice(config.texts, voice)
    elif not config.speech:
        raise UserError("text-to-token needs sentences to say: give --texts CORPUS, or --speech MANIFEST")
    else:
        sentences = text_to_token.recorded(_speech(config)[0])
    if config.num_sentences is not None and config.num_sentences < len(sentences):
        drawn = np.random.default_rng(config.seed).choice(len(sentences), config.num_sentences, replace=False)
        sentences = [sentences[i] for i in sorted(drawn)]
    judge = None
    if config.judge is not None:
        judge = text_to_token.Judge(config.judge, SpeechDecoder.load(config.model / "decoder"), config.seed)
    synthesizer = Synthesizer.load(config.model / "text_to_token")
    seen = text_to_token.occurrences(config.codes, synthesizer) if config.codes else None
    ear = SpeechTokenizer.load(config.model / "tokenizer")
    found = text_to_token.measure(synthesizer, ear, sentences, judge, seen, config.speaker, config.seed)
    base = ear.manifest.settings.get("base")
    if judge is not None and base and Path(base).name == judge.name:
        found["notes"]["judge"] += ", and not independent: the tokenizer began from one of this name"
    return {"speech_by": voice if config.texts else "the manifest", **found}


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
        return speak_by_model(Synthesizer.load(config.model / "text_to_token"), pieces, config.seed, config.speaker)
    voice = config.voice
    ear = SpeechTokenizer.load(config.model / "tokenizer")
    heard = (speak(text, voice) for text in pieces.values())
    codes = ear.encode([resample(s.samples, s.sample_rate_hz) for s in heard])
    return {name: c.tolist() for name, c in zip(pieces, codes, strict=True)}


def speak_by_model(
    synthesizer: Synthesizer, pieces: dict[str, str], seed: int, speaker: str | None = None
) -> dict[str, Sequence[int]]:
    """Codes of named texts by a text-to-token model, without those that it cannot say."""
    speakers = None if speaker is None else [speaker] * len(pieces)
    codes = synthesizer.speak(list(pieces.values()), range(seed, seed + len(pieces)), speakers)
    return {name: c for name, c in zip(pieces, codes, strict=True) if c}


SUITES: dict[str, Callable[[EvalConfig], dict[str, Any]]] = {
    "tokenizer": _tokenizer,
    "resynth": _resynth,
    "text-to-token": _text_to_token,
    "topic-cloze": _topic_cloze,
}
