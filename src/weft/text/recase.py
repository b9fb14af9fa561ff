"""Upper-case transcripts in sentence case.

    recased("I THINK THAT I'M LATE", "en")          # "I think that I'm late"
    recased("The BBC", "en")                        # "The BBC": the text has lower-case letters

Whisper writes sentences with capitals. Training it on upper-case transcripts, such as those of LibriSpeech, would teach
it other tokens for every word.
"""

from __future__ import annotations

import re

import regex

_UNCASED = regex.compile(r"\p{Lo}")  # letters of scripts without case
_ENGLISH_I = re.compile(r"(?<!\w)(?<!\w['’.])i(?!\w|\.\w)")  # noqa: RUF001 - not in "don't i", "i.e."
_TURKISH_I = str.maketrans("Iİ", "ıi")  # noqa: RUF001


def recased(text: str, language: str | None) -> str:
    """Return a text in which all letters are upper case in lower case, but for its first letter and the English "I".

    A text with a lower-case letter, or with letters of a script without case, is returned as it is. The language is a
    code or a name; without one, it is English. Names and German nouns do not get their capitals back.
    """
    if not text.isupper() or _UNCASED.search(text):
        return text
    name = re.split("[-_]", (language or "en").lower())[0]
    dotted = text.translate(_TURKISH_I) if name in ("tr", "az", "turkish", "azerbaijani") else text
    lower = _ENGLISH_I.sub("I", dotted.lower()) if name in ("en", "english") else dotted.lower()
    first = next((i for i, c in enumerate(text) if c.isalpha()), 0)
    return text[: first + 1] + lower[first + len(dotted[first].lower()) :]
