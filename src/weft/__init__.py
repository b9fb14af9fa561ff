"""weft: speech-text pre-training with synthetic interleaved data.

The classes below load artifacts that the `weft` command has created. Their modules are imported at first use.

Example:
    >>> import weft
    >>> documents = weft.read_documents("runs/demo/documents/interleaved")
    >>> next(documents).kind
    'interleaved'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Bundle": "weft.chat.bundle",
    "ChatSession": "weft.chat.session",
    "Document": "weft.records",
    "Segment": "weft.records",
    "SpeechDecoder": "weft.decoder.decoder",
    "SpeechTokenizer": "weft.tokenizer.tokenizer",
    "Synthesizer": "weft.text_to_token.synthesize",
    "UserError": "weft.errors",
    "read_documents": "weft.data.documents",
    "write_documents": "weft.data.documents",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
