"""Recognition and synthesis by a speech-text language model, as in the ASR and TTS documents of its training.

    texts = transcribe(engine, vocab, codes, code_rate_hz=12.5)
    codes = synthesize(engine, vocab, texts, code_rate_hz=12.5)

Answers are the likeliest ids, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.engine.generate import Engine, Request
from weft.eval.answers import continuations
from weft.eval.likelihood import ids_of
from weft.vocab import TASK_PROMPTS, SpeechVocab

_TOKENS_PER_SEC, _MORE_TOKENS = 10, 20  # of a transcript: no language is spoken as fast
_CODES_PER_BYTE, _MORE_CODES = 3, 40  # of speech at 12.5 codes per second, slower than any voice


def task_prompt(vocab: SpeechVocab, kind: str, ids: np.ndarray) -> np.ndarray:
    """Return the ids of a document of a kind ("asr" or "tts") up to its answer, for the ids of what is given."""
    return np.concatenate(
        [
            vocab.document_start_ids,
            vocab.turn_start_ids("system"),
            vocab.text_ids(TASK_PROMPTS[kind]),
            vocab.turn_start_ids("user"),
            ids,
            vocab.turn_start_ids("assistant"),
        ]
    )


def transcribe(engine: Engine, vocab: SpeechVocab, codes: Sequence[Sequence[int]], code_rate_hz: float) -> list[str]:
    """Return the transcripts of codes. Raises UserError for speech that does not fit the model's positions."""
    stop = {vocab.eos_id, vocab.role_start_ids["user"]}
    requests = [
        Request(
            task_prompt(vocab, "asr", vocab.speech_ids(c)).tolist(),
            _MORE_TOKENS + int(_TOKENS_PER_SEC * len(c) / code_rate_hz),
        )
        for c in codes
    ]
    found = continuations(engine, requests, stop, [*ids_of(vocab, "text"), *stop])
    return [str(vocab.tokenizer.decode(g.ids)).strip() for g in found]


def synthesize(engine: Engine, vocab: SpeechVocab, texts: Sequence[str], code_rate_hz: float) -> list[list[int]]:
    """Return the codes of texts. Raises UserError for a text that does not fit the model's positions."""
    begin = [vocab.begin_of_audio_id]
    requests = [
        Request(
            [*task_prompt(vocab, "tts", vocab.text_ids(text)).tolist(), *begin],
            int((_MORE_CODES + _CODES_PER_BYTE * len(text.encode())) * code_rate_hz / 12.5),
        )
        for text in texts
    ]
    stop = {vocab.end_of_audio_id}
    found = continuations(engine, requests, stop, [*ids_of(vocab, "speech"), *stop])
    return [vocab.ids_to_codes(g.ids).tolist() for g in found]
