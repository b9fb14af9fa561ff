"""Choice between two endings by likelihood, as in StoryCloze, within and across modalities.

    pairs = [Pair(prompt=(spoken_sentence, ...), right=spoken_ending, wrong=other_ending), ...]
    pairs = [pair.in_direction("ST") for pair in pairs]                      # spoken prompt, written endings
    score_pairs(lm.model, lm.vocab, pairs).scores("mean")                    # 1 for a right choice, 0.5 for a tie

Prompt and ending are serialized as in an interleaved document, and audio markers are not counted. Rules of choice:

- "mean": the mean log-likelihood of the text ids or speech codes, the paper's and slamkit's rule;
- "total": their sum;
- "per_byte": the sum per byte of the ending's text, which does not depend on the text tokenizer;
- "mutual_information": the mean less that of the ending without the prompt (Holtzman et al. 2021): an ending of
  frequent words is likely after any prompt, and this measures what the prompt adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from weft.errors import UserError
from weft.eval.model import TextVocab, Vocab
from weft.eval.scoring import Ending, Prompt, score
from weft.records import Segment

DIRECTIONS = {"TT": ("text", "text"), "ST": ("speech", "text"), "TS": ("text", "speech"), "SS": ("speech", "speech")}
RULES = ("mean", "total", "per_byte", "mutual_information")


@dataclass(frozen=True)
class Pair:
    """A prompt, which may be empty, with its right and a wrong ending. Texts begin with the space before them."""

    prompt: tuple[Segment, ...]
    right: Segment
    wrong: Segment

    def in_direction(self, direction: str) -> Pair:
        """Return the pair with prompt and endings in the modalities of a key of DIRECTIONS.

        Speech segments need their text. A text segment cannot become speech.
        """
        prompt, ending = DIRECTIONS[direction]
        return Pair(tuple(_as(s, prompt) for s in self.prompt), _as(self.right, ending), _as(self.wrong, ending))


@dataclass(frozen=True)
class PairScores:
    """Log-likelihoods of the right and the wrong ending of each pair (n, 2), with and without the prompt, the numbers
    of counted ids, and the bytes of their texts."""

    totals: np.ndarray
    alone: np.ndarray
    num_ids: np.ndarray
    num_bytes: np.ndarray

    def values(self, rule: str) -> np.ndarray:
        """Return what is compared (n, 2)."""
        if rule == "total":
            return self.totals
        if rule == "per_byte":
            return self.totals / np.maximum(self.num_bytes, 1)
        return (self.totals - (self.alone if rule == "mutual_information" else 0.0)) / self.num_ids

    def scores(self, rule: str) -> list[float]:
        """Return 1 for each pair whose right ending has the higher value, and 0.5 for a tie."""
        right, wrong = self.values(rule).T
        return (np.where(right == wrong, 0.5, right > wrong)).tolist()


def score_pairs(model: PreTrainedModel, vocab: Vocab, pairs: Sequence[Pair], one_modality: bool = False) -> PairScores:
    """Return the log-likelihoods of the endings of pairs in one direction.

    With `one_modality`, probabilities are those among the ids of the endings' modality. Raises UserError for no pairs,
    an empty ending, and a pair longer than the model's positions.
    """
    if not pairs:
        raise UserError("there are no pairs: give at least one")
    prompts = [_prompt(vocab, pair, number) for number, pair in enumerate(pairs)]
    allowed = ids_of(vocab, pairs[0].right.type) if one_modality else None
    endings = [ending for p in prompts for ending in p.endings]
    start = np.array([vocab.eos_id])  # which in training precedes every document
    alone = score(model, [Prompt(start, [ending]) for ending in endings], allowed).reshape(-1, 2)
    texts = [s.text or "" for pair in pairs for s in (pair.right, pair.wrong)]
    return PairScores(
        totals=score(model, prompts, allowed),
        alone=alone,
        num_ids=np.array([ending.counted.sum() for ending in endings]).reshape(-1, 2),
        num_bytes=np.array([len(text.strip().encode()) for text in texts]).reshape(-1, 2),
    )


def _as(segment: Segment, modality: str) -> Segment:
    if segment.type == modality:
        return segment
    assert segment.text is not None, "a segment cannot change its modality without its text"
    assert modality == "text", "a text segment has no codes"
    return Segment.of_text(segment.text)


def _prompt(vocab: Vocab, pair: Pair, number: int) -> Prompt:
    """Return the ids of a pair, in whose endings text ids or codes count."""
    ids = np.concatenate([vocab.document_start_ids, *(vocab.segment_ids(s) for s in pair.prompt)]).astype(np.int64)
    ids = ids if len(ids) else np.array([vocab.eos_id])
    endings = [vocab.segment_ids(segment) for segment in (pair.right, pair.wrong)]
    found = [Ending(part, ~vocab.is_control(part)) for part in endings]
    if not all(ending.counted.any() for ending in found):
        raise UserError(f"pair {number} has an empty ending: remove it")
    return Prompt(ids, found)


def ids_of(vocab: Vocab, modality: str) -> list[int]:
    """Return all ids of speech, or of the text tokenizer before speech tokens and roles were added."""
    ids = np.arange(vocab.size)
    if modality == "speech":
        return ids[vocab.is_audio(ids)].tolist()
    added = [] if isinstance(vocab, TextVocab) else [vocab.begin_of_audio_id, vocab.end_of_audio_id]
    added += [] if isinstance(vocab, TextVocab) else [*vocab.role_start_ids.values()]
    return ids[~vocab.is_audio(ids) & ~np.isin(ids, added)].tolist()
