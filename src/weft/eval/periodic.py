"""Evaluation during pre-training: likelihoods of endings, and answers to a few questions, in text and speech.

    evaluation = Periodic(PeriodicConfig(every_steps=500, pairs=..., questions=...), vocab, attention="sdpa")
    metrics = evaluation(model)                    # {"eval_TT": 0.61, "eval_SS": 0.52, "eval_questions": 0.2}

All ranks compute the same, so that a sharded model can be measured. Questions are continued as `weft eval qa` does (TT,
without examples), by the rule has_answer. Speech of pairs is that of a codes dataset with the utterances `ID.0`,
`ID.1`, ..., `ID.right` and `ID.wrong`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from weft.config import NOT_IN_PLAN, NonNegativeInt, PositiveInt
from weft.eval.answers import Prompts, first_line
from weft.eval.cloze import codes_of, measure, read_pairs, spoken_pairs
from weft.eval.likelihood import DIRECTIONS, ids_of
from weft.eval.match import has_answer
from weft.eval.model import EvaluatedLm
from weft.eval.questions import read_questions
from weft.eval.scoring import padded
from weft.vocab import SpeechVocab


@dataclass(frozen=True)
class PeriodicConfig:
    """Evaluation during pre-training."""

    every_steps: Annotated[NonNegativeInt, NOT_IN_PLAN] = 0
    """Steps between evaluations on the held-out data, and on these; 0: none. A multiple of train.log_every_steps."""
    pairs: Annotated[Path | None, NOT_IN_PLAN] = None
    """Pairs of endings, as of `weft eval likelihood`."""
    pairs_codes: Annotated[Path | None, NOT_IN_PLAN] = None
    """Codes dataset with the speech of the pairs; not set: text only."""
    questions: Annotated[Path | None, NOT_IN_PLAN] = None
    """Questions, as of `weft eval qa`."""
    max_items: Annotated[PositiveInt, NOT_IN_PLAN] = 100
    """Number of pairs and of questions: the first ones."""
    max_answer_tokens: Annotated[PositiveInt, NOT_IN_PLAN] = 16
    """Longest answer."""


class Periodic:
    """The items of the evaluations, read once."""

    def __init__(self, config: PeriodicConfig, vocab: SpeechVocab, attention: str) -> None:
        """`attention` is the model's own implementation. Raises UserError for files that are not pairs or questions."""
        self.config, self._vocab, self._attention = config, vocab, attention
        pairs = read_pairs(config.pairs)[: config.max_items] if config.pairs else []
        self._codes = codes_of(config.pairs_codes) if config.pairs_codes else {}
        self._pairs = spoken_pairs(pairs, self._codes) if pairs and self._codes else pairs
        self._questions = read_questions(config.questions)[: config.max_items] if config.questions else []

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the accuracies of a model in any mode, under the names of metrics."""
        metrics = {}
        with _own_attention(model, self._attention):
            if self._pairs:
                directions = DIRECTIONS if self._codes else ["TT"]
                found = measure(EvaluatedLm(model, self._vocab), self._pairs, self._codes, directions)
                for direction, scores in found.items():
                    of_pairs = scores.scores("mean")
                    metrics[f"eval_{direction}"] = sum(of_pairs) / len(of_pairs)
            if self._questions:
                metrics["eval_questions"] = self._answered(model)
        return metrics

    def _answered(self, model: Any) -> float:
        vocab, prompts = self._vocab, Prompts(self._vocab)
        ids = [prompts.of(q, None, "TT") for q in self._questions]
        found = greedy(model, ids, self.config.max_answer_tokens, vocab.eos_id, ids_of(vocab, "text"))
        texts = [first_line(vocab.tokenizer.decode(answer)) for answer in found]
        return sum(has_answer(t, q.answers) for t, q in zip(texts, self._questions, strict=True)) / len(texts)


@torch.no_grad()
def greedy(
    model: Any, prompts: Sequence[Any], max_new_tokens: int, stop_id: int, allowed: Sequence[int]
) -> list[list[int]]:
    """Return the likeliest continuations, in one batch with the model's own forward pass, which may be sharded."""
    model.eval()
    ids, mask = (x.to(model.device) for x in padded(prompts, left=True))
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    among = torch.tensor(sorted(set(allowed) | {stop_id}), device=model.device)
    rows: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(rows)
    for _ in range(max_new_tokens):
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        ids = among[out.logits[:, -1, among].argmax(-1)][:, None]
        for row, new_id in enumerate(ids[:, 0].tolist()):
            ended[row] = ended[row] or new_id == stop_id
            if not ended[row]:
                rows[row].append(new_id)
        if all(ended):
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return rows


@contextmanager
def _own_attention(model: Any, implementation: str) -> Iterator[None]:
    """Use the model's own attention instead of that of packed sequences, which has neither padding nor a cache."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before
