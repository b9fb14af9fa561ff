"""Segmentation of text into sentences and words, in any language.

    sentences_of("Mr. J. K. Smith left at 5 p.m. He was late.")    # ["Mr. J. K. Smith left at 5 p.m.", "He was late."]
    ends = word_ends(text)         # int64, ascending: text[ends[i - 1] : ends[i]] is word i with the space before it

**Sentences** end by rules and short lists of abbreviations for European languages, and by the sentence marks of other
scripts. An abbreviation that is not listed ends a sentence if a capital follows. Libraries for this need the language
(sentencex) or a second for 200 kB (pysbd).

**Words** are separated by white space. In Chinese and Japanese every character is a word, with the punctuation after
it. Thai, Lao, Khmer and Burmese are segmented by ICU's dictionaries if icu4py is installed (`pip install
weft-speech[words]`), and otherwise into grapheme clusters. Grouped digits ("10 000"), telephone numbers, numerals of
several characters and anything else without a space, such as a URL, are one word.
"""

# ruff: noqa: RUF001, SIM905 - letters and marks of many scripts, and lists of words in strings
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import regex

UNSPACED_SCRIPTS = (
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}"
    r"\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]"
)
"""Letters of scripts that are written without spaces between words, as a character set of `regex`."""


def is_unspaced(text: str) -> bool:
    """Whether a text contains letters of scripts without spaces, so that characters should be counted, not words."""
    return regex.search(UNSPACED_SCRIPTS, text) is not None


# Sentences

_MARKS = ".!?…؟۔।॥።։"
_CLOSING = "\"'”’»)\\]}》」』）】*_"
# A mark before white space, with the quotes and note numbers after it; a mark of a script without spaces; blank lines.
_CANDIDATE = re.compile(
    rf"(?<![{_MARKS}])(?P<mark>[{_MARKS}]++)[{_CLOSING}]*+(?:\[\d{{1,3}}\])*+(?!\S)"
    rf"|[。！？｡။។៕]++[{_CLOSING}]*+"
    r"|(?P<blank>\n[^\S\n]*+\n)\s*+"
)
_NEXT = re.compile(rf"[^\w{_MARKS}]*+([\w’']*+)([{_MARKS}]?)")
_DOTTED = re.compile(r"(?:[^\W\d]{1,3}\.)+[^\W\d]{1,3}")
_NUMERAL = re.compile(r"\d|(?:[IVXLC]{2,}|[VX])\b")
_BEFORE = 24  # characters, more than any abbreviation has

# Abbreviations of several languages, in lower case and without the last stop; none that is also a common word.
# These never end a sentence: a name or an example follows.
_ALWAYS_LEAD = frozenset(
    """mr mrs ms messrs mme mlle dr drs prof rev fr capt cpt col gen lt sgt maj cmdr adm gov sen pres supt mt vs cf viz
    approx ca eg ie e.g i.e z.b d.h u.a m.e i.d.r s.o p.ej p.ex hr hrn frl vgl ggf inkl exkl zzgl dipl bspw
    sra srta dña ud uds vd vds sig sigg dott avv egr ilmo exmo dhr mevr bijv tzw т.е напр""".split()
)
# These do not end a sentence if a number follows.
_LEAD_NUMBERS = frozenset(
    """no nos nr nrs núm num n fig figs abb tab vol vols bd p pp pg s ch chap cap kap sec sect art arts eq eqs op ex §
    pág págs ver lib bk стр рис гл""".split()
)
# These end a sentence if the next word is a common first word.
_MAY_END = frozenset(
    """etc inc ltd co corp bros jr sr st ave blvd rd dept univ assn al esq hon rep ft usw bzw ff str
    jan feb apr jun jul aug sep sept oct nov dec mon tue tues thu thur thurs fri т.д т.п др г гг вв н.э ул им""".split()
)
_MONTHS = frozenset("januar februar märz april mai juni juli august september oktober november dezember".split())
_FIRST_WORDS = frozenset(
    """the this that these those there then they he she it we you his her its their our my your in on at as if when
    while after before since for from with by to but and or so yet not no what who why how where which one some many
    most all both each now here once also however although because though until under over
    der die das den dem ein eine er sie es wir ich ihr und aber doch im am an auf nach als wenn da dann dort
    le la les un une il elle ils elles nous vous je ce cette ces mais et dans en au pour par si
    el los las una unos pero como cuando según gli lo uno ma nel nella di con se os um uma mas na
    het een hij zij ze wij ik maar op bij он она оно они мы вы это но на по для""".split()
)


def sentence_ends(text: str) -> Iterator[int]:
    """Yield the ends of sentences, ascending: after the last mark and quotes, or before a blank line.

    The end of the text is only included after a mark.
    """
    last = 0
    for found in _CANDIDATE.finditer(text):
        stop = found.start() if found["blank"] else found.end()
        while stop > last and text[stop - 1].isspace():
            stop -= 1
        if stop > last and (found["mark"] is None or _is_end(text, found)):
            yield stop
            last = stop


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, without the white space around them."""
    sentences = (text[a:b].strip() for a, b in pairwise([0, *sentence_ends(text), len(text)]))
    return [sentence for sentence in sentences if sentence]


def _is_end(text: str, found: re.Match[str]) -> bool:
    """Whether a mark ends a sentence."""
    following = _NEXT.match(text, found.end())
    next_word, next_mark = following.groups() if following else ("", "")
    if not next_word:
        return not next_mark  # otherwise marks with spaces: ". . ."
    if next_word[0].title() != next_word[0]:
        return False  # a lower-case letter (letters of Georgian, which has no capitals in text, are title case)
    return found["mark"] != "." or _is_end_stop(text, found.start(), next_word)


def _is_end_stop(text: str, stop: int, next_word: str) -> bool:
    """Whether the full stop at `stop` ends a sentence, if the next word is not in lower case."""
    begins = next_word.lower() in _FIRST_WORDS
    before = text[max(0, stop - _BEFORE) : stop]
    word = before.split()[-1].lstrip("\"'“‘«([{*_—–-") if before and not before[-1].isspace() else ""
    lower = word.lower()
    if word.isdigit() and len(word) <= 3:
        opens_line = text[max(0, stop - len(word) - 3) : stop - len(word)].rstrip(" \t")[-1:] in ("", "\n")
        return not opens_line and not (len(word) <= 2 and next_word.lower() in _MONTHS)
    if lower in _LEAD_NUMBERS:
        return not _NUMERAL.match(next_word) and (len(word) > 1 or begins)
    if lower in _ALWAYS_LEAD:
        return False
    if (len(word) == 1 and word.isalpha()) or lower in _MAY_END or _DOTTED.fullmatch(word):
        return begins
    return True


# Words

_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
_HAN_NUMERALS = "〇零一二两三四五六七八九十百千万亿"
# Characters that belong to the one before: punctuation, and marks that form a grapheme with it.
_HAN_CLOSING = (
    "，。！？；：、”’》）】」』…\u3099\u309a\u0300-\u036f\u20d0-\u20ff\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
)
# Numbers with spaces in them, and words of texts with Chinese or Japanese characters.
_NUMBER = (
    r"\+\d{1,3}(?:[ \u00a0]\(?\d{1,4}\)?){2,}|\(\d{3}\) \d{3}[ -]\d{4}"
    r"|[^\s\dHAN]*\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)"
)
_WITH_HAN = re.compile(
    rf"(?:{_NUMBER.replace('HAN', _HAN)})[^\s{_HAN}]*"
    rf"|[{_HAN_NUMERALS}]+[{_HAN_CLOSING}]*|[{_HAN}][{_HAN_CLOSING}]*|[^\s{_HAN}]+"
)
_IS_HAN = re.compile(f"[{_HAN}]")
_SPACED_NUMBER = re.compile(rf"(?:{_NUMBER.replace('HAN', '')})\S*")
_SPACE_IN_NUMBER = re.compile(r"\d\)?[ \u00a0\u202f]\(?\d")
_IS_SPACE = np.array([chr(i).isspace() for i in range(0x3002)])  # no character from 0x3001 on is a space
_CHUNK_CHARS = 1 << 20
_UNSPACED_RUN = re.compile(rf"[{UNSPACED}]{{2,}}")
_ATTACHED = frozenset("ฯๆ๚๛ຯໆ၊။។៕៖ៗ")
_CLUSTER = r"[\u0e40-\u0e44\u0ec0-\u0ec4]?\X"  # with a vowel that is written before its consonant


def word_ends(text: str) -> np.ndarray:
    """Return the end of each word, int64."""
    if text.isascii():
        return _spaced_ends(text)
    if _IS_HAN.search(text):
        ends = np.fromiter((word.end() for word in _WITH_HAN.finditer(text)), np.int64)
    else:
        ends = _spaced_ends(text)
    if inner := list(_inside_unspaced(text)):
        ends = np.union1d(ends, np.asarray(inner, np.int64))
    return ends


def _spaced_ends(text: str) -> np.ndarray:
    """Return the ends of words of a text without Chinese or Japanese: white space, except inside numbers."""
    is_space = np.ones(len(text) + 1, bool)
    for start in range(0, len(text), _CHUNK_CHARS):
        codes = np.frombuffer(text[start : start + _CHUNK_CHARS].encode("utf-32-le", "surrogatepass"), np.uint32)
        is_space[start : start + len(codes)] = _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]
    ends = np.flatnonzero(~is_space[:-1] & is_space[1:]) + 1
    kept, position = np.ones(len(ends), bool), 0
    while found := _SPACE_IN_NUMBER.search(text, position):
        start = found.start()
        while start > position and not text[start - 1].isspace():
            start -= 1
        number = _SPACED_NUMBER.match(text, start)
        position = number.end() if number else found.start() + 1
        if number:
            first, last = np.searchsorted(ends, (start, position))
            kept[first:last] = False
    return ends[kept]


def num_words(text: str) -> int:
    """Return the number of words of a text."""
    return len(word_ends(text))


def segmenter() -> str:
    """Return the name of the method for scripts without spaces, which depends on the installation."""
    return _segmenter()[0]


def _inside_unspaced(text: str) -> Iterator[int]:
    """Yield ends of words inside runs of scripts without spaces."""
    for run in _UNSPACED_RUN.finditer(text):
        start, stop = run.span()
        ends = (start + end for end in _segmenter()[1](run[0]))
        yield from (end for end in ends if end < stop and text[end] not in _ATTACHED)


@cache
def _segmenter() -> tuple[str, Callable[[str], Iterable[int]]]:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        cluster = regex.compile(_CLUSTER)
        return "grapheme clusters", lambda text: (found.end() for found in cluster.finditer(text))
    return "icu", lambda text: (end for _, end in WordBreaker(text, "en").segments())
