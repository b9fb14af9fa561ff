"""Pairs of endings, as in StoryCloze, sWUGGY and sBLIMP: their files, and their speech.

    pairs = read_pairs(Path("pairs.jsonl"))            # {"id", "beginning", "right", "wrong"} per line
    codes = synthesize_texts(synthesizer, pairs, seed=0)       # or of any speech of their `texts`
    results = measure(lm, spoken_pairs(pairs, codes), codes)    # {"TT": PairScores, "ST": ..., "TS": ..., "SS": ...}

A pair has texts, recordings, or both: "beginning_audio", "right_audio" and "wrong_audio" are paths, relative to the
file. The four directions are beginning and ending in text (T) or speech (S). Without recordings, a story is spoken
sentence by sentence. Chance is 50 %.

Source: the paper, section 4 (StoryCloze and Topic-StoryCloze, after Hassid et al. 2023).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from weft.data.datasets import Rows
from weft.errors import UserError
from weft.eval.likelihood import DIRECTIONS, Pair, PairScores, score_pairs
from weft.eval.model import EvaluatedLm
from weft.records import Segment
from weft.text.error_rate import pooled
from weft.text.inputs import id_of, numbered_lines, parse_json
from weft.text.segment import sentences_of
from weft.text_to_token.synthesize import Synthesizer

_TEXTS = ("beginning", "right", "wrong")


@dataclass(frozen=True)
class ClozePair:
    """A beginning, which may be missing, with its right and a wrong ending, as texts, recordings or both."""

    id: str
    beginning: str | None = None
    right: str | None = None
    wrong: str | None = None
    beginning_audio: str | None = None
    right_audio: str | None = None
    wrong_audio: str | None = None
    voice: str | None = None
    """Name of the speaker or TTS voice of the recordings."""
    part: str | None = None
    """Part of the set that the pair belongs to."""

    @property
    def texts(self) -> dict[str, str]:
        """The texts without recordings that are spoken one by one, by utterance id."""
        found = {}
        if self.beginning and not self.beginning_audio:
            found = {f"{self.id}.{i}": s for i, s in enumerate(sentences_of(self.beginning))}
        for name, audio in (("right", self.right_audio), ("wrong", self.wrong_audio)):
            if (text := getattr(self, name)) and not audio:
                found[f"{self.id}.{name}"] = text
        return found

    @property
    def recordings(self) -> dict[str, str]:
        """The paths of recordings, by utterance id."""
        found = {name: getattr(self, f"{name}_audio") for name in _TEXTS}
        return {f"{self.id}.{name}": path for name, path in found.items() if path}

    def segments(self, codes: Mapping[str, Sequence[int]]) -> Pair:
        """Return the pair as speech with its texts. Raises UserError if a part has no codes."""
        names = [*self.texts, *self.recordings]
        if missing := next((name for name in names if name not in codes), None):
            raise UserError(f"{missing} has no codes: measure only spoken_pairs(pairs, codes)")
        if self.beginning_audio:
            beginning = [Segment.of_speech(codes[f"{self.id}.beginning"], self.beginning)]
        else:
            spoken = [(name, text) for name, text in self.texts.items() if not name.endswith((".right", ".wrong"))]
            beginning = [Segment.of_speech(codes[name], f" {t}" if i else t) for i, (name, t) in enumerate(spoken)]
        space = " " if beginning else ""
        right, wrong = (
            Segment.of_speech(codes[f"{self.id}.{name}"], text and f"{space}{text}")
            for name, text in (("right", self.right), ("wrong", self.wrong))
        )
        return Pair(tuple(beginning), right, wrong)

    def written(self) -> Pair:
        """Return the pair as text."""
        space = " " if self.beginning else ""
        beginning = (Segment.of_text(self.beginning),) if self.beginning else ()
        return Pair(beginning, Segment.of_text(f"{space}{self.right}"), Segment.of_text(f"{space}{self.wrong}"))


def read_pairs(path: Path) -> list[ClozePair]:
    """Read pairs from JSONL. Raises UserError for a file without any, and for a line that is not a pair."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give pairs as JSON lines")
    lines = numbered_lines(path.read_bytes().splitlines())
    pairs = [_pair(line, f"{path} line {number}", path.parent) for number, line in lines]
    if not pairs:
        raise UserError(f"{path} is empty: write one JSON object per line, with id, beginning, right and wrong")
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise UserError(f"{path} has the id {pair.id!r} twice: make ids unique")
        seen.add(pair.id)
    return pairs


def _pair(line: bytes, where: str, folder: Path) -> ClozePair:
    try:
        pair = ClozePair(**parse_json(line))
        pair = replace(pair, id=id_of(pair.id) or "")
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} is not a pair ({e}): give id, beginning, right and wrong") from e
    for name, value in asdict(pair).items():
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise UserError(f"{where}: `{name}` is {value!r}: give a string that is not empty")
    for name in ("right", "wrong"):
        if getattr(pair, name) is None and getattr(pair, f"{name}_audio") is None:
            raise UserError(f"{where} is not a pair (no {name}): give {name} or {name}_audio")
    audio = {name: str(folder / path) for name in _TEXTS if (path := getattr(pair, f"{name}_audio")) is not None}
    return replace(pair, **{f"{name}_audio": path for name, path in audio.items()})


def write_pairs(pairs: Sequence[ClozePair]) -> str:
    """Return pairs as JSONL."""
    rows = ({name: value for name, value in asdict(pair).items() if value is not None} for pair in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts_of(pairs: Sequence[ClozePair]) -> dict[str, str]:
    """Return the texts of all pairs that are spoken one by one, by utterance id."""
    return {name: text for pair in pairs for name, text in pair.texts.items()}


def synthesize_texts(
    synthesizer: Synthesizer, pairs: Sequence[ClozePair], seed: int, speaker: str | None = None
) -> dict[str, Sequence[int]]:
    """Return the codes of the texts by a text-to-token model, without those whose synthesis failed."""
    texts = texts_of(pairs)
    speakers = None if speaker is None else [speaker] * len(texts)
    codes = synthesizer.synthesize(list(texts.values()), range(seed, seed + len(texts)), speakers)
    return {name: c for name, c in zip(texts, codes, strict=True) if c}


def codes_of(codes: Path) -> dict[str, Sequence[int]]:
    """Return the codes of a codes dataset by utterance id."""
    return {u.id: u.codes for u in Rows.of(codes).utterances()}


def spoken_pairs(pairs: Sequence[ClozePair], codes: Mapping[str, Sequence[int]]) -> list[ClozePair]:
    """Return the pairs whose parts all have codes. Raises UserError if there is none."""
    spoken = [pair for pair in pairs if pair.texts.keys() | pair.recordings.keys() <= codes.keys()]
    if not spoken:
        raise UserError(f"none of {len(pairs)} pairs could be synthesized: give other pairs, or another voice")
    return spoken


def measure(
    lm: EvaluatedLm,
    pairs: Sequence[ClozePair],
    codes: Mapping[str, Sequence[int]],
    directions: Collection[str] = tuple(DIRECTIONS),
    one_modality: bool = False,
) -> dict[str, PairScores]:
    """Return the likelihoods in each direction. Raises UserError if a part of a pair has no codes or no text."""
    for part in _TEXTS:
        index = 0 if part == "beginning" else 1
        needs_text = any(DIRECTIONS[direction][index] == "text" for direction in directions)
        lacking = (p.id for p in pairs if getattr(p, part) is None and getattr(p, f"{part}_audio") is not None)
        if needs_text and (name := next(lacking, None)) is not None:
            raise UserError(f"pair {name} has no text of `{part}`: measure only directions in which it is speech")
    spoken = [pair.segments(codes) for pair in pairs] if set(directions) - {"TT"} else []
    return {
        direction: score_pairs(
            lm.model,
            lm.vocab,
            [p.written() for p in pairs] if direction == "TT" else [p.in_direction(direction) for p in spoken],
            one_modality,
        )
        for direction in directions
    }


def metrics(found: PairScores) -> dict[str, float]:
    """Return the accuracy by mean log-likelihood, its 95 % bootstrap interval, and that by mutual information."""
    scores = found.scores("mean")
    rate = pooled([(score, 1) for score in scores])  # type: ignore[misc]
    by_gain = found.scores("mutual_information")
    return {
        "accuracy": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "n": len(scores),
        "mutual_information": sum(by_gain) / len(by_gain),
    }
