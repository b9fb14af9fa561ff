"""The text-to-token model as a folder: a causal language model whose vocabulary is text and speech codes.

A prompt is the text's spoken form and `<|begin_of_audio|>`; what follows are codes and `<|end_of_audio|>`. Of a model
with several speakers, the prompt begins with the name of one, `name: text`. A spoken form has colons inside numbers
only, so that the last one before a space ends the name, whatever the name is.

Texts are read in a spoken form, because spans for interleaved data are cut anywhere from a document, while speech to
train on is often whole sentences: a capital or a full stop would tell one from the other. Its price: a pause at a comma
has to be guessed from the words.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

import numpy as np

from weft.vocab import SpeechVocab

KIND = "text_to_token"
_EDGE_CODES = 12  # of silence and breath, that even the shortest text may take
_NEARLY_ALL = 0.999
_SPOKEN_MARKS = frozenset("'%&@#\u200c\u200d")  # and the joiners that spell words in Persian and Hindi


def unified(text: str) -> str:
    """The text with one character for what looks alike: by NFKC, and with one apostrophe."""
    return unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def spoken_form(text: str) -> str:
    """Lower case, words apart by single spaces, no punctuation but what is spoken or inside a number or a word.

    Letters with their marks (in any script), digits and symbols such as $ stay, and so do the points in "3.5",
    "10:30" and the apostrophe in "don't". Text with nothing to say gives "".
    """
    text = unified(text).lower()
    spoken = "".join(c if _is_spoken(text, i) else " " for i, c in enumerate(text))
    words = (word.strip("'") for word in spoken.split())
    return " ".join(word for word in words if word)


def _is_spoken(text: str, i: int) -> bool:
    c = text[i]
    if c in _SPOKEN_MARKS or unicodedata.category(c)[0] in "LMNS":
        return True
    return not c.isspace() and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()


def tokenizer_text(text: str, speaker: str | None = None) -> str:
    """The speaker's name and the spoken form, each behind a space: every word has the ids that it has anywhere else."""
    return f"{f' {speaker}:' if speaker else ''} {spoken_form(text)}"


def prompt_ids(vocab: SpeechVocab, text: str, speaker: str | None = None) -> np.ndarray:
    """Ids (int64) that the codes of `text` follow."""
    return np.append(vocab.text_ids(tokenizer_text(text, speaker)), vocab.begin_of_audio_id)


def document_ids(
    vocab: SpeechVocab, text: str, codes: np.ndarray, speaker: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a whole training row, and which of them are trained: the codes and their end marker."""
    prompt, speech = prompt_ids(vocab, text, speaker), vocab.speech_ids(codes)[1:]
    return np.concatenate([prompt, speech]), np.arange(len(prompt) + len(speech)) >= len(prompt)


def max_codes_per_character(spoken: Iterable[tuple[str, int]]) -> float:
    """The pace of slow speech, from (text, number of codes) of training: nearly all of it stays under `most_codes`."""
    pace = [(num_codes - _EDGE_CODES) / len(spoken_form(text)) for text, num_codes in spoken]
    return max(0.0, float(np.quantile(pace, _NEARLY_ALL)))


def most_codes(text: str, per_character: float) -> int:
    """How many codes speech of `text` can take; a model that goes on beyond has run away."""
    return _EDGE_CODES + math.ceil(per_character * len(spoken_form(text)))
