"""Which of two endings does a language model find likelier? StoryCloze and its kin, in and across modalities.

    pairs = [Pair(prompt=(spoken_sentence, ...), right=spoken_ending, wrong=other_ending), ...]
    for direction in DIRECTIONS:                                       # "S->T": spoken prompt, written ending
        choose_likelier(lm.model, lm.vocab, [pair.in_direction(direction) for pair in pairs]).accuracy

An ending's score is the **mean log-likelihood of its words' ids or of its speech codes** given the prompt, so that
endings of different length compare; audio markers, which a template dictates, are not counted. Chance is 0.5
(section 7: Topic-StoryCloze, StoryCloze). Prompt and ending are written as in an interleaved document.

Beside it stands the choice by pointwise mutual information: the same score less the ending's score without the prompt
(Holtzman et al. 2021). An ending of common words, or spoken in a common way, is likely after anything; this asks what
the prompt adds.
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
    """A prompt with its right and a wrong ending. Texts carry the space before them, as in an interleaved document."""

    prompt: tuple[Segment, ...]
    right: Segment
    wrong: Segment

    def in_direction(self, direction: str) -> Pair:
        """The same pair with prompt and endings in the modalities of a key of DIRECTIONS.

        Needs segments of speech that keep their text; a written segment can only stay written.
        """
        prompt, ending = DIRECTIONS[direction]
        return Pair(tuple(_as(s, prompt) for s in self.prompt), _as(self.right, ending), _as(self.wrong, ending))


@dataclass(frozen=True)
class Accuracy:
    """Share of `num` choices that were right, a tie counting half, with its 95 % interval (Wilson), and each choice."""

    accuracy: float
    low: float
    high: float
    num: int
    chosen_right: tuple[bool, ...] = ()
    mutual_information: float | None = None
    """The same share where an ending's score without the prompt is taken off."""


def choose_likelier(model: PreTrainedModel, vocab: SpeechVocab, pairs: Sequence[Pair]) -> Accuracy:
    """How often the right ending of a pair scores higher than the wrong one.

    Raises UserError where there are no pairs, an ending is empty, or a pair is longer than the model's positions.
    """
    if not pairs:
        raise UserError("there are no pairs to choose from: give at least one")
    endings = [_ids(vocab, pair, ending, i) for i, pair in enumerate(pairs) for ending in (pair.right, pair.wrong)]
    scores = _scores(model, endings)
    gains = scores - _scores(model, [_alone(vocab, ids, counted) for ids, counted in endings])
    right, wrong = scores.reshape(-1, 2).T
    found = interval(_num_right(scores), len(pairs))
    by_gain = _num_right(gains) / len(pairs)
    return replace(found, chosen_right=tuple((right > wrong).tolist()), mutual_information=by_gain)


def _num_right(scores: np.ndarray) -> float:
    """How often the first of two scores is the higher, a tie counting half."""
    right, wrong = scores.reshape(-1, 2).T
    return float((right > wrong).sum() + 0.5 * (right == wrong).sum())


def _alone(vocab: SpeechVocab, ids: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An ending at the start of a document of its own; in a stream of documents that is after the end of another."""
    first = int(np.argmax(counted))
    if ids[first - 1] == vocab.begin_of_audio_id:
        first -= 1
    return np.append(vocab.eos_id, ids[first:]), np.append(False, counted[first:])


def interval(num_right: float, num: int) -> Accuracy:
    """An accuracy with Wilson's 95 % interval, which holds near 0 and 1 and for few choices too."""
    z = 1.959964
    share = num_right / num
    center = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (share * (1 - share) / num + z**2 / (4 * num**2)) ** 0.5
    return Accuracy(share, center - half, center + half, num)


def _as(segment: Segment, modality: str) -> Segment:
    if segment.type == modality:
        return segment
    assert segment.text is not None, "a segment cannot change its modality without its text"
    assert modality == "text", "a written segment has no codes"
    return Segment.of_text(segment.text)


def _ids(vocab: SpeechVocab, pair: Pair, ending: Segment, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of prompt and ending, and which of them are the ending's words or codes."""
    prompt = np.concatenate([vocab.document_start_ids, *(vocab.segment_ids(s) for s in pair.prompt)])
    end = vocab.segment_ids(ending)
    counted = ~vocab.is_control(end)
    if not counted.any() or not len(prompt):
        raise UserError(f"pair {number} has an empty prompt or ending: leave it out")
    return np.concatenate([prompt, end]), np.concatenate([np.zeros(len(prompt), bool), counted])


@torch.no_grad()
def _scores(model: PreTrainedModel, documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean log-likelihood of the counted ids of each document."""
    model.eval()
    longest = getattr(model.config, "max_position_embeddings", None)
    scores = np.zeros(len(documents))
    for batch in _batches([len(ids) for ids, _ in documents]):
        chosen = [documents[i] for i in batch]
        row_tokens = len(chosen[-1][0])
        if longest is not None and row_tokens > longest:
            raise UserError(f"a prompt and ending of {row_tokens} ids exceed the model's {longest}: leave it out")
        packed = pack(chosen)
        losses = token_losses(model, packed).double().cpu().numpy()
        owners = packed.documents.numpy()
        scores[batch] = -np.bincount(owners, losses) / np.bincount(owners)
    return scores


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of documents, shortest first, in groups of at most `_BATCH_TOKENS` ids (or one document)."""
    batch: list[int] = []
    tokens = 0
    for i in np.argsort(lengths, kind="stable").tolist():
        if batch and tokens + lengths[i] > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += lengths[i]
    yield batch
