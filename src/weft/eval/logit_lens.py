"""Whether the words of speech can be read from the middle layers of a language model.

    found = decodable_words(lm, codes, texts, top=5)       # found.words[layer]: (words found, words) of an utterance

The hidden states of every layer at the codes of an utterance pass through the model's last norm and its head (the logit
lens). A word is decodable from a layer if the first id of its text is among the `top` likeliest text ids at a position
of the utterance. Frequent ids occur by chance: `control` has the same for the words of another utterance.

Source: arXiv 2606.22473; the logit lens is that of nostalgebraist (2020).

Shapes: T ids, L layers and the embedding, D width, V text ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft import progress
from weft.errors import UserError
from weft.eval.likelihood import ids_of
from weft.lm.model import LanguageModel
from weft.text.normalize import comparison_form

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
Counts = list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Decodable:
    """(words found, words) by layer, then by utterance: of its own words, and of those of another utterance."""

    words: Counts
    control: Counts


@torch.no_grad()
def decodable_words(lm: LanguageModel, codes: Sequence[Sequence[int]], texts: Sequence[str], top: int = 5) -> Decodable:
    """Return the words of texts that are decodable from the codes of their speech, by layer.

    Raises UserError for a model whose last norm is not known.
    """
    norm, head = last_norm(lm.model), lm.model.get_output_embeddings()
    allowed = torch.tensor(ids_of(lm.vocab, "text"), device=lm.model.device)
    own = [_first_ids(lm, text) for text in texts]
    others = [[i for i in own[(n + 1) % len(own)] if i not in set(own[n])] for n in range(len(own))]
    found: dict[str, Counts] = {"words": [], "control": []}
    with progress.bar("layers", len(codes)) as advance:
        for n, utterance in enumerate(codes):
            seen = _seen(lm, norm, head, allowed, utterance, top)
            for name, wanted in (("words", own[n]), ("control", others[n])):
                for layer, ids in enumerate(seen):
                    if len(found[name]) <= layer:
                        found[name].append([])
                    found[name][layer].append((sum(i in ids for i in wanted), len(wanted)))
            advance()
    return Decodable(**found)


def last_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm before the head. Raises UserError if there is none of a known name."""
    body = model.base_model
    for name in _NORMS:
        if isinstance(norm := getattr(body, name, None), nn.Module):
            return norm
    raise UserError(f"{type(model).__name__} has no last norm of a known name: its middle layers cannot be read")


def _first_ids(lm: LanguageModel, text: str) -> list[int]:
    """Return the first id of each different word, as in the middle of a sentence."""
    words = dict.fromkeys(comparison_form(text).split())
    return list(dict.fromkeys(int(lm.vocab.text_ids(f" {word}")[0]) for word in words))


def _seen(
    lm: LanguageModel, norm: nn.Module, head: nn.Module, allowed: Tensor, codes: Sequence[int], top: int
) -> list[set[int]]:
    """Return the likeliest text ids at any code of an utterance, by layer."""
    ids = np.concatenate([lm.vocab.document_start_ids, lm.vocab.speech_ids(codes)])
    inputs = torch.from_numpy(ids)[None].to(lm.model.device)
    hidden = lm.model(inputs, output_hidden_states=True, use_cache=False).hidden_states
    places = slice(len(ids) - len(codes) - 1, len(ids) - 1)
    rows = []
    for layer, states in enumerate(hidden):
        states = states[0, places]
        logits = head(states if layer == len(hidden) - 1 else norm(states))[:, allowed]  # the last one is normed
        best = logits.topk(min(top, len(allowed)), dim=-1).indices
        rows.append(set(allowed[best.flatten()].tolist()))
    return rows
