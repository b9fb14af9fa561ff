"""Text normalization: before comparison, before recognition training, and before synthesis.

    comparison_form("The cat's 3 hats!")            # "the cat s 3 hats", for error rates
    label_form(["The cat's 3 hats!"])               # ["the cat's 3 hats"], labels of speech recognition
    spoken_form("The cat's 3.5 hats!")              # "the cat's 3.5 hats", the input of text-to-token models

    normalize = text_normalizer("numbers", "en", [("Dr.", "Doctor"), ("No.", "number")])
    normalize("Dr. Who, No.5")                      # "Doctor Who, number  five "

num2words supplies number words in some fifty languages (`pip install weft-speech[numbers]`). Years are read as any
number, and symbols beside numbers are kept. Abbreviations are expanded first, because they may contain numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

import regex

from weft.errors import UserError
from weft.text.segment import UNSPACED_SCRIPTS, is_unspaced

if TYPE_CHECKING:
    from tokenizers import normalizers

Normalization = Literal["none", "numbers"]
_SPOKEN_MARKS = frozenset("'%&@#\u200c\u200d")  # with the joiners of words in Persian and Hindi
_BRACKETS = str.maketrans("<>[]()", 6 * " ")
_MAX_DIGITS = 15  # of an amount. Longer numbers are read digit by digit, as are those that begin with 0
_DECIMAL_POINT = ("en", "he", "ja", "ko", "kn", "te", "th", "zh")  # other languages have a decimal comma
_ORDINAL = r"(?P<ordinal>(?:st|nd|rd|th)\b)?"  # in English
_LETTER = rf"[[\p{{L}}\p{{M}}]--{UNSPACED_SCRIPTS}]"  # of a word with spaces around it
_LETTER_OR_DIGIT = rf"[\p{{N}}{_LETTER}]"


def comparison_form(text: str) -> str:
    """Return lower-case words without punctuation, separated by single spaces: Whisper's basic normalizer.

    Words in brackets are kept, because they are spoken; Whisper's normalizer alone removes them.
    """
    return " ".join(_whisper_normalizer()(spoken_form(text).translate(_BRACKETS)).split())


@cache
def _whisper_normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()


def label_form(texts: Sequence[str]) -> list[str]:
    """Return texts in lower case without punctuation other than apostrophes."""
    normalizer = label_normalizer()
    return [normalizer.normalize_str(text) for text in texts]


def label_normalizer() -> normalizers.Normalizer:
    """Return `label_form` as a normalizer of a `tokenizers` tokenizer."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s']|_"), ""),
         normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )  # fmt: skip


def spoken_form(text: str) -> str:
    """Return lower-case words separated by single spaces, with the punctuation that is spoken or part of a number.

    Letters with their marks (in any script), digits and symbols such as $ are kept, and so are the point in "3.5", the
    colon in "10:30" and the apostrophe in "don't". A text without anything to pronounce gives "".
    """
    text = _unify(text).lower()
    spoken = "".join(c if _is_spoken(text, i) else " " for i, c in enumerate(text))
    words = (word.strip("'") for word in spoken.split())
    return " ".join(word for word in words if word)


def text_normalizer(
    kind: Normalization, language: str, abbreviations: Sequence[tuple[str, str]] = ()
) -> Callable[[str], str]:
    """Return a function that writes numbers and abbreviations as words; the identity for "none" and no abbreviations.

    `abbreviations` are pairs of written and spoken form. They match case-sensitively, the longest first, and only as
    whole words: no letter may follow or precede them, nor follow one of their points, as in "U.S.A." for "U.S.". A
    digit may precede letters and follow a point, as in "5km" and "No.5". Scripts without spaces have no such
    boundaries. Raises UserError for an empty or repeated abbreviation, and without num2words for the language.
    """
    steps: list[Callable[[str], str]] = [_Abbreviations(abbreviations)] if abbreviations else []
    if kind == "numbers":
        steps.append(_Numbers(language))

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


def _unify(text: str) -> str:
    """Return the text in NFKC with one kind of apostrophe."""
    return unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _is_spoken(text: str, i: int) -> bool:
    """Whether character i of a text is pronounced, or part of a number."""
    c = text[i]
    if c in _SPOKEN_MARKS or unicodedata.category(c)[0] in "LMNS":
        return True
    return not c.isspace() and text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()


class _Abbreviations:
    """Expansion of abbreviations, given as pairs of written and spoken form."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._spoken: dict[str, str] = {}
        for given, spoken in pairs:
            written = _single_spaced(_unify(given))
            if not written:
                raise UserError(
                    f"abbreviations contain an empty written form for {spoken!r}: give pairs of written and spoken "
                    'form, as in ["Dr.", "Doctor"]'
                )
            if written in self._spoken:
                raise UserError(f"abbreviations contain {given!r} twice: give it once")
            self._spoken[written] = spoken
        longest_first = sorted(self._spoken, key=len, reverse=True)
        self._pattern = regex.compile("|".join(map(_whole_word, longest_first)), regex.V1)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(self._expand, _unify(text))

    def _expand(self, found: regex.Match[str]) -> str:
        before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
        return " " * before.isdigit() + self._spoken[_single_spaced(found[0])] + " " * after.isdigit()


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _whole_word(written: str) -> str:
    """Return a pattern of an abbreviation that is not part of a longer word."""
    before = "" if is_unspaced(written[0]) else rf"(?<!{_LETTER_OR_DIGIT if written[0].isdigit() else _LETTER}\.?)"
    after = "" if is_unspaced(written[-1]) else rf"(?!\.?{_LETTER_OR_DIGIT if written[-1].isalnum() else _LETTER})"
    return before + r"\s+".join(map(regex.escape, written.split())) + after


class _Numbers:
    """Conversion of numbers to words."""

    def __init__(self, language: str) -> None:
        try:
            from num2words import num2words
        except ImportError as e:
            raise UserError(
                'normalize = "numbers" needs num2words: pip install weft-speech[numbers], or set "none"'
            ) from e
        try:
            num2words(1, lang=language)
        except NotImplementedError as e:
            raise UserError(f"num2words does not support {language!r}: give a code such as en, de or pt_BR") from e
        self._to_words, self._language = num2words, language
        self._decimal, group = (".", ",") if language[:2] in _DECIMAL_POINT else (",", ".")
        grouped = "|".join(rf"\d{{1,3}}(?:{re.escape(mark)}\d{{3}})+(?!\d)" for mark in (group, " "))
        fraction = rf"(?:{re.escape(self._decimal)}(?P<fraction>\d+))?"
        ordinal = _ORDINAL if language[:2] == "en" else ""
        self._number = re.compile(rf"(?<!\d)(?P<whole>{grouped}|\d+){fraction}{ordinal}")

    def __call__(self, text: str) -> str:
        return self._number.sub(self._in_words, _unify(text))

    def _in_words(self, number: re.Match[str]) -> str:
        found = number.groupdict()
        whole, fraction = ("".join(str(int(c)) for c in found[n] or "" if c.isdecimal()) for n in ("whole", "fraction"))
        if len(whole + fraction) > _MAX_DIGITS or (whole[0] == "0" and len(whole) > 1):
            words = " ".join(self._to_words(int(digit), lang=self._language) for digit in whole + fraction)
        elif fraction:
            words = self._to_words(f"{whole}.{fraction}", lang=self._language)
        else:
            form = "ordinal" if found.get("ordinal") else "cardinal"
            words = self._to_words(int(whole), lang=self._language, to=form)
        return f" {words} "
