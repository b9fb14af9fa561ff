"""Topic-cloze: does a model find the right ending of a story likelier than the ending of another one?

    pairs = read_pairs(Path("pairs.jsonl"))                     # {"id", "beginning", "right", "wrong"} a line
    speak_lines(lines_of(pairs, "espeak:en-us"), speech, 2)     # then tokenize, for the spoken directions
    results = measure(lm, pairs, codes)                         # {"T": Accuracy, "ST": ..., "TS": ..., "S": ...}

The four directions are prompt and ending in text (T) or speech (S). A story is spoken sentence by sentence. Source:
the paper, section 4 (Topic-StoryCloze, after Hassid et al. 2023); chance is 50 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from weft.data.shards import Rows
from weft.errors import UserError
from weft.eval.likelihood import DIRECTIONS, Accuracy, Pair, choose_likelier
from weft.lm.model import LanguageModel
from weft.records import Segment
from weft.sentences import sentences_of
from weft.voices import Line


@dataclass(frozen=True)
class ClozePair:
    """A beginning with its right and a wrong ending, as texts."""

    id: str
    beginning: str
    right: str
    wrong: str

    @property
    def pieces(self) -> dict[str, str]:
        """What is spoken, each piece on its own, by the id of its utterance."""
        sentences = {f"{self.id}.{i}": s for i, s in enumerate(sentences_of(self.beginning))}
        return {**sentences, f"{self.id}.right": self.right, f"{self.id}.wrong": self.wrong}


def read_pairs(path: Path) -> list[ClozePair]:
    """Read pairs from JSONL. Raises UserError naming the line that is not a pair, and for a file without any."""
    if not path.is_file():
        raise UserError(f"{path} is no file: give pairs as JSON lines")
    lines = enumerate(path.read_bytes().splitlines(), 1)
    pairs = [_pair(line, f"{path} line {number}") for number, line in lines if line.strip()]
    if not pairs:
        raise UserError(f"{path} is empty: write one JSON object a line, with id, beginning, right and wrong")
    return pairs


def _pair(line: bytes, where: str) -> ClozePair:
    try:
        pair = ClozePair(**json.loads(line))
    except (ValueError, TypeError) as e:
        raise UserError(f"{where} is not a pair ({e}): give id, beginning, right and wrong") from e
    for name, text in asdict(pair).items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: `{name}` is {text!r}: give a string that is not empty")
    return pair


def write_pairs(pairs: Sequence[ClozePair]) -> str:
    """Pairs as JSONL."""
    return "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)


def lines_of(pairs: Sequence[ClozePair], voice: str) -> list[Line]:
    """What a voice must speak for the spoken directions."""
    return [Line(name, text, voice) for pair in pairs for name, text in pair.pieces.items()]


def codes_of(codes: Path) -> dict[str, Sequence[int]]:
    """The codes of a codes dataset by utterance id."""
    return {u.id: u.codes for u in Rows.of(codes).utterances()}


def spoken_pairs(pairs: Sequence[ClozePair], codes: Mapping[str, Sequence[int]]) -> list[ClozePair]:
    """The pairs of which every piece was spoken. Raises UserError when there is none."""
    spoken = [pair for pair in pairs if pair.pieces.keys() <= codes.keys()]
    if not spoken:
        raise UserError("no pair could be spoken whole: give other pairs, or a voice that can say them")
    return spoken


def measure(lm: LanguageModel, pairs: Sequence[ClozePair], codes: Mapping[str, Sequence[int]]) -> dict[str, Accuracy]:
    """Accuracy in the directions T, ST, TS and S. Raises UserError when a piece of a pair was not spoken."""
    spoken = [_spoken(pair, codes) for pair in pairs]
    return {
        direction.replace("->", ""): choose_likelier(lm.model, lm.vocab, [p.in_direction(direction) for p in spoken])
        for direction in DIRECTIONS
    }


def figures(found: Accuracy) -> dict[str, float | None]:
    """An accuracy as results.json has it."""
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
            for i, (name, text) in enumerate(pair.pieces.items())
        ]
    except KeyError as e:
        raise UserError(f"{e.args[0]} of the pairs was not spoken: speak and tokenize all of lines_of(pairs)") from e
    return Pair(tuple(segments[:-2]), segments[-2], segments[-1])
