"""Numbers and abbreviations as words, where a text-to-token model is to be told how they are said.

    normalize = normalizer("numbers", "en", [("Dr.", "Doctor"), ("No.", "number")])
    normalize("Dr. Who, No.5")                      # "Doctor Who, number  five "

num2words has the words of some fifty languages (`pip install weft-speech[numbers]`); this finds the numbers. Years are
read as any number, and symbols beside numbers are left as they are. Abbreviations are of whoever trains the model, in
any language, and turn into words first: what they say may have numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import regex

from weft.errors import UserError
from weft.text_to_token.model import unified
from weft.wer import SPACELESS, is_spaceless

Normalization = Literal["none", "numbers"]
_LONGEST = 15  # digits; longer ones are no amounts, and are read one by one, as are those that begin with 0
_WITH_POINT = ("en", "he", "ja", "ko", "kn", "te", "th", "zh")  # other languages have a decimal comma
_ORDINAL = r"(?P<ordinal>(?:st|nd|rd|th)\b)?"  # of English
_LETTER = rf"[[\p{{L}}\p{{M}}]--{SPACELESS}]"  # that belongs to the word beside it
_LETTER_OR_DIGIT = rf"[\p{{N}}{_LETTER}]"


def normalizer(
    kind: Normalization, language: str, abbreviations: Sequence[tuple[str, str]] = ()
) -> Callable[[str], str]:
    """What a text becomes before it is spoken; of kind "none" and without abbreviations, the text itself.

    `abbreviations` are pairs of what is written and what is said. They are found as they are written, capitals and all,
    the longest first, and only whole: no letter stands beside them, nor behind a point of theirs, as in "U.S.A." for
    "U.S."; a digit may stand before letters and behind a point, as in "5km" and "No.5". Scripts without spaces have no
    such edges. Raises UserError for one that is empty or given twice, and where num2words is not installed or does not
    know the language.
    """
    steps: list[Callable[[str], str]] = [_Abbreviations(abbreviations)] if abbreviations else []
    if kind == "numbers":
        steps.append(_Numbers(language))

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


class _Abbreviations:
    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._said: dict[str, str] = {}
        for given, said in pairs:
            written = _single_spaced(unified(given))
            if not written:
                raise UserError(
                    f"abbreviations say {said!r} for nothing: give what is written, then what is said, "
                    'as in ["Dr.", "Doctor"]'
                )
            if written in self._said:
                raise UserError(f"abbreviations have {given!r} twice: give it once")
            self._said[written] = said
        longest_first = sorted(self._said, key=len, reverse=True)
        self._written = regex.compile("|".join(map(_whole, longest_first)), regex.V1)

    def __call__(self, text: str) -> str:
        return self._written.sub(self._in_full, unified(text))

    def _in_full(self, found: regex.Match[str]) -> str:
        before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
        said = self._said[_single_spaced(found[0])]
        return " " * before.isdigit() + said + " " * after.isdigit()


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _whole(written: str) -> str:
    """A pattern of an abbreviation that is no part of a longer word."""
    before = "" if is_spaceless(written[0]) else rf"(?<!{_LETTER_OR_DIGIT if written[0].isdigit() else _LETTER}\.?)"
    after = "" if is_spaceless(written[-1]) else rf"(?!\.?{_LETTER_OR_DIGIT if written[-1].isalnum() else _LETTER})"
    return before + r"\s+".join(map(regex.escape, written.split())) + after


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
        return self._number.sub(self._in_words, unified(text))

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
