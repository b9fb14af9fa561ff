"""Topic-cloze: whether a model prefers the right ending of a story to the ending of another story.

    pairs = read_pairs(Path("pairs.jsonl"))            # {"id", "beginning", "right", "wrong"} per line
    codes = synthesize_texts(synthesizer, pairs, seed=0)       # or of any speech of their `texts`
    results = measure(lm, spoken_pairs(pairs, codes), codes)    # {"T": Accuracy, "ST": ..., "TS": ..., "S": ...}

The four directions are prompt and ending in text (T) or speech (S). A story is spoken sentence by sentence. Chance is
50 %. Source: the paper, section 4 (Topic-StoryCloze, after Hassid et al. 2023).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from weft.data.datasets import Rows
from weft.errors import UserError
from weft.eval.likelihood import DIRECTIONS, Accuracy, Pair, choose_likelier
from weft.lm.model import LanguageModel
from weft.records import Segment
from weft.text.inputs import id_of, numbered_lines, parse_json
from weft.text.segment import sentences_of
from weft.text_to_token.synthesize import Synthesizer


@dataclass(frozen=True)
class ClozePair:
    """A beginning with its right and a wrong ending, as text."""

    id: str
    beginning: str
    right: str
    wrong: str

    @property
    def texts(self) -> dict[str, str]:
        """The texts that are spoken one by one, by utterance id."""
        sentences = {f"{self.id}.{i}": s for i, s in enumerate(sentences_of(self.beginning))}
        return {**sentences, f"{self.id}.right": self.right, f"{self.id}.wrong": self.wrong}


def read_pairs(path: Path) -> list[ClozePair]:
    """Read pairs from JSONL. Raises UserError for a file without any, and for a line that is not a pair."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: give pairs as JSON lines")
    lines = numbered_lines(path.read_bytes().splitlines())
    pairs = [_pair(line, f"{path} line {number}") for number, line in lines]
    if not pairs:
        raise UserError(f"{path} is empty: write one JSON object per line, with id, beginning, right and wrong")
    return pairs


def _pair(line: bytes, where: str) -> ClozePair:
    try:
        pair = ClozePair(**parse_json(line))
        pair = replace(pair, id=id_of(pair.id) or "")
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} is not a pair ({e}): give id, beginning, right and wrong") from e
    for name, text in asdict(pair).items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: `{name}` is {text!r}: give a string that is not empty")
    return pair


def write_pairs(pairs: Sequence[ClozePair]) -> str:
    """Return pairs as JSONL."""
    return "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)


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
    """Return the pairs whose texts all have codes. Raises UserError if there is none."""
    spoken = [pair for pair in pairs if pair.texts.keys() <= codes.keys()]
    if not spoken:
        raise UserError(f"none of {len(pairs)} pairs could be synthesized: give other pairs, or another voice")
    return spoken


def measure(lm: LanguageModel, pairs: Sequence[ClozePair], codes: Mapping[str, Sequence[int]]) -> dict[str, Accuracy]:
    """Return the accuracy in the directions T, ST, TS and S. Raises UserError if a text of a pair has no codes."""
    spoken = [_spoken(pair, codes) for pair in pairs]
    return {
        direction.replace("->", ""): choose_likelier(lm.model, lm.vocab, [p.in_direction(direction) for p in spoken])
        for direction in DIRECTIONS
    }


def metrics(found: Accuracy) -> dict[str, float | None]:
    """Return an accuracy as results.json has it."""
    return {
        "accuracy": found.accuracy,
        "low": found.low,
        "high": found.high,
        "n": found.num,
        "mutual_information": found.mutual_information,
    }


def _spoken(pair: ClozePair, codes: Mapping[str, Sequence[int]]) -> Pair:
    try:
        segments = [
            Segment.of_speech(codes[name], f" {text}" if i else text)
            for i, (name, text) in enumerate(pair.texts.items())
        ]
    except KeyError as e:
        raise UserError(f"{e.args[0]} has no codes: measure only spoken_pairs(pairs, codes)") from e
    return Pair(tuple(segments[:-2]), segments[-2], segments[-1])
