"""The gate: what would be heard in codes, without making them sound.

    error = read_back(tokenizer, codes, texts)          # an ErrorRate over all texts

Codes go through the second half of the tokenizer's ASR model, and the transcript is compared with the text that was to
be said. The paper has no such check; it costs no vocoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.wer import ErrorRate, word_error_rate


def read_back(tokenizer: SpeechTokenizer, codes: Sequence[Sequence[int] | None], texts: Sequence[str]) -> ErrorRate:
    """Word error rate of what the tokenizer reads in codes; a text without codes counts as not said at all."""
    heard = tokenizer.transcribe([[] if c is None else c for c in codes])
    return word_error_rate(texts, heard)
