"""Numbers as words, where a text-to-token model is to be told how they are said.

    normalize = normalizer("numbers", "en")
    normalize("1,250 came")                         # " one thousand, two hundred and fifty  came"

num2words has the words of some fifty languages (`pip install weft-speech[numbers]`); this finds the numbers. Years are
read as any number, and symbols beside numbers are left as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from weft.errors import UserError

Normalization = Literal["none", "numbers"]
_LONGEST = 15  # digits; longer ones are no amounts, and are read one by one, as are those that begin with 0
_WITH_POINT = ("en", "he", "ja", "ko", "kn", "te", "th", "zh")  # other languages have a decimal comma
_ORDINAL = r"(?P<ordinal>(?:st|nd|rd|th)\b)?"  # of English


def normalizer(kind: Normalization, language: str) -> Callable[[str], str]:
    """What a text becomes before it is spoken; of kind "none", the text itself.

    Raises UserError where num2words is not installed, or does not know the language.
    """
    return (lambda text: text) if kind == "none" else _Numbers(language)


class _Numbers:
    def __init__(self, language: str) -> None:
        try:
            from num2words import num2words
        except ImportError as e:
            raise UserError(
                'normalize = "numbers" needs num2words: pip install weft-speech[numbers], or give "none"'
            ) from e
        try:
            num2words(1, lang=language)
        except NotImplementedError as e:
            raise UserError(f"num2words knows no language {language!r}: give a code such as en, de or pt_BR") from e
        self._say, self._language = num2words, language
        self._decimal, group = (".", ",") if language[:2] in _WITH_POINT else (",", ".")
        grouped = "|".join(rf"\d{{1,3}}(?:{re.escape(mark)}\d{{3}})+(?!\d)" for mark in (group, " "))
        fraction = rf"(?:{re.escape(self._decimal)}(?P<fraction>\d+))?"
        ordinal = _ORDINAL if language[:2] == "en" else ""
        self._number = re.compile(rf"(?<!\d)(?P<whole>{grouped}|\d+){fraction}{ordinal}")

    def __call__(self, text: str) -> str:
        return self._number.sub(self._in_words, unicodedata.normalize("NFKC", text))

    def _in_words(self, number: re.Match[str]) -> str:
        found = number.groupdict()
        whole, fraction = ("".join(str(int(c)) for c in found[n] or "" if c.isdecimal()) for n in ("whole", "fraction"))
        if len(whole + fraction) > _LONGEST or (whole[0] == "0" and len(whole) > 1):
            said = " ".join(self._say(int(digit), lang=self._language) for digit in whole + fraction)
        elif fraction:
            said = self._say(f"{whole}.{fraction}", lang=self._language)
        else:
            said = self._say(int(whole), lang=self._language, to="ordinal" if found.get("ordinal") else "cardinal")
        return f" {said} "
