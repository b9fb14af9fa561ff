"""Choice between two endings by likelihood, as in StoryCloze, within and across modalities.

    pairs = [Pair(prompt=(spoken_sentence, ...), right=spoken_ending, wrong=other_ending), ...]
    for direction in DIRECTIONS:                                       # "S->T": spoken prompt, written ending
        choose_likelier(lm.model, lm.vocab, [pair.in_direction(direction) for pair in pairs]).accuracy

The score of an ending is the **mean log-likelihood of its text ids or speech codes** given the prompt, so that endings
of different lengths are comparable; audio markers are not counted. Chance is 0.5 (section 7 of the paper:
Topic-StoryCloze, StoryCloze). Prompt and ending are serialized as in an interleaved document.

The choice by pointwise mutual information is reported too: the score minus that of the ending without the prompt
(Holtzman et al. 2021). An ending of frequent words is likely after any prompt; this measures what the prompt adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from weft.errors import UserError
from weft.lm.packing import pack, token_losses
from weft.records import Segment
from weft.vocab import SpeechVocab

DIRECTIONS = {"T": ("text", "text"), "S->T": ("speech", "text"), "T->S": ("text", "speech"), "S": ("speech", "speech")}
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Pair:
    """A prompt with its right and a wrong ending. Texts begin with the space before them."""

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
class Accuracy:
    """Fraction of `num` right choices, with ties as a half, its 95 % interval (Wilson), and each choice."""

    accuracy: float
    low: float
    high: float
    num: int
    chosen_right: tuple[bool, ...] = ()
    mutual_information: float | None = None
    """The fraction by pointwise mutual information."""


def choose_likelier(model: PreTrainedModel, vocab: SpeechVocab, pairs: Sequence[Pair]) -> Accuracy:
    """Return how often the right ending has the higher score.

    Raises UserError for no pairs, an empty ending, and a pair longer than the model's positions.
    """
    if not pairs:
        raise UserError("there are no pairs: give at least one")
    endings = [_ids(vocab, pair, ending, i) for i, pair in enumerate(pairs) for ending in (pair.right, pair.wrong)]
    scores = _scores(model, endings)
    gains = scores - _scores(model, [_without_prompt(vocab, ids, counted) for ids, counted in endings])
    right, wrong = scores.reshape(-1, 2).T
    found = interval(_num_right(scores), len(pairs))
    by_gain = _num_right(gains) / len(pairs)
    return replace(found, chosen_right=tuple((right > wrong).tolist()), mutual_information=by_gain)


def _num_right(scores: np.ndarray) -> float:
    """Return how often the first of two scores is higher, with ties as a half."""
    right, wrong = scores.reshape(-1, 2).T
    return float((right > wrong).sum() + 0.5 * (right == wrong).sum())


def _without_prompt(vocab: SpeechVocab, ids: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an ending at the start of a document, which in training is after the end of another one."""
    first = int(np.argmax(counted))
    if ids[first - 1] == vocab.begin_of_audio_id:
        first -= 1
    return np.append(vocab.eos_id, ids[first:]), np.append(False, counted[first:])


def interval(num_right: float, num: int) -> Accuracy:
    """Return an accuracy with its Wilson interval, which is valid near 0 and 1 and for few choices."""
    z = 1.959964
    fraction = num_right / num
    center = (fraction + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (fraction * (1 - fraction) / num + z**2 / (4 * num**2)) ** 0.5
    return Accuracy(fraction, center - half, center + half, num)


def _as(segment: Segment, modality: str) -> Segment:
    if segment.type == modality:
        return segment
    assert segment.text is not None, "a segment cannot change its modality without its text"
    assert modality == "text", "a text segment has no codes"
    return Segment.of_text(segment.text)


def _ids(vocab: SpeechVocab, pair: Pair, ending: Segment, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of prompt and ending, and a mask of the ending's text ids or codes."""
    prompt = np.concatenate([vocab.document_start_ids, *(vocab.segment_ids(s) for s in pair.prompt)])
    end = vocab.segment_ids(ending)
    counted = ~vocab.is_control(end)
    if not counted.any() or not len(prompt):
        raise UserError(f"pair {number} has an empty prompt or ending: remove it")
    return np.concatenate([prompt, end]), np.concatenate([np.zeros(len(prompt), bool), counted])


@torch.no_grad()
def _scores(model: PreTrainedModel, documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the mean log-likelihood of the counted ids of each document."""
    model.eval()
    max_positions = getattr(model.config, "max_position_embeddings", None)
    scores = np.zeros(len(documents))
    for batch in _batches([len(ids) for ids, _ in documents]):
        chosen = [documents[i] for i in batch]
        longest = len(chosen[-1][0])
        if max_positions is not None and longest > max_positions:
            raise UserError(
                f"a prompt and ending have {longest} ids, more than the model's {max_positions} positions: shorten them"
            )
        packed = pack(chosen)
        losses = token_losses(model, packed).double().cpu().numpy()
        owners = packed.documents.numpy()
        scores[batch] = -np.bincount(owners, losses) / np.bincount(owners)
    return scores


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of documents, shortest first, in groups of at most `_BATCH_TOKENS` ids (or one document)."""
    batch: list[int] = []
    tokens = 0
    for i in np.argsort(lengths, kind="stable").tolist():
        if batch and tokens + lengths[i] > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += lengths[i]
    yield batch
