"""Prompts and training documents of a text-to-token model, a causal LM whose vocabulary is text and speech codes.

A prompt is the spoken form of a text and `<|begin_of_audio|>`; codes and `<|end_of_audio|>` follow. With several
speakers, the prompt begins with a name, `name: text`. A spoken form has colons only inside numbers, so the last colon
before a space ends the name, whatever the name is.

Prompts contain the spoken form because spans of interleaved data begin and end anywhere in a document, while training
utterances are often whole sentences: capitals and full stops would distinguish the two. The model must therefore
predict the pause at a comma from the words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from weft.text.normalize import spoken_form
from weft.vocab import SpeechVocab

KIND = "text_to_token"
_EDGE_CODES = 12  # of silence and breath, also around the shortest text
_SLOW_QUANTILE = 0.999  # of the utterances by codes per character


def prompt_text(text: str, speaker: str | None = None) -> str:
    """Return the speaker's name and the spoken form, each after a space, so that every word has its usual ids."""
    return f"{f' {speaker}:' if speaker else ''} {spoken_form(text)}"


def prompt_ids(vocab: SpeechVocab, text: str, speaker: str | None = None) -> np.ndarray:
    """Return the ids (int64) that precede the codes of `text`."""
    return np.append(vocab.text_ids(prompt_text(text, speaker)), vocab.begin_of_audio_id)


def document_ids(
    vocab: SpeechVocab, text: str, codes: np.ndarray, speaker: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of a training document and its loss mask, which covers the codes and the end marker."""
    prompt, speech = prompt_ids(vocab, text, speaker), vocab.speech_ids(codes)[1:]
    return np.concatenate([prompt, speech]), np.arange(len(prompt) + len(speech)) >= len(prompt)


def slow_codes_per_character(utterances: Iterable[tuple[str, int]]) -> float:
    """Return the codes per character of slow speech, from (text, number of codes) of the training data."""
    rates = [(num_codes - _EDGE_CODES) / len(spoken_form(text)) for text, num_codes in utterances]
    return max(0.0, float(np.quantile(rates, _SLOW_QUANTILE)))


def max_codes(text: str, codes_per_character: float) -> int:
    """Return the number of codes above which speech of `text` is implausibly long."""
    return _EDGE_CODES + math.ceil(codes_per_character * len(spoken_form(text)))
