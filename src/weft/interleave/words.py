"""What is a word, in any language: where a text can be cut.

    ends = word_ends(text)         # int64, ascending: text[ends[i - 1] : ends[i]] is word i behind its white space

Words stand between white space. In Chinese and Japanese each character is one, with the punctuation behind it. Thai,
Lao, Khmer and Burmese have neither spaces nor words of one character: ICU's dictionaries find theirs where icu4py is
installed (`pip install weft-speech[words]`), and else each grapheme cluster counts as a word, as a Chinese character
does. Grouped digits ("10 000"), telephone numbers and numerals of several characters are one word, so that no number is
cut, and neither is anything else without a space in it, such as a URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
_HAN_NUMERALS = "〇零一二两三四五六七八九十百千万亿"
# What clings to the character before: punctuation, and marks that make one grapheme of both.
_HAN_CLOSING = (
    "，。！？；：、”’》）】」』…\u3099\u309a\u0300-\u036f\u20d0-\u20ff\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"  # noqa: RUF001
)
# Words that white space does not end alone: with Chinese and Japanese characters, and numbers with spaces in them.
_NUMBER = (
    r"\+\d{1,3}(?:[ \u00a0]\(?\d{1,4}\)?){2,}|\(\d{3}\) \d{3}[ -]\d{4}"
    r"|[^\s\dHAN]*\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)"
)
_WITH_HAN = re.compile(
    rf"(?:{_NUMBER.replace('HAN', HAN)})[^\s{HAN}]*"
    rf"|[{_HAN_NUMERALS}]+[{_HAN_CLOSING}]*|[{HAN}][{_HAN_CLOSING}]*|[^\s{HAN}]+"
)
_IS_HAN = re.compile(f"[{HAN}]")
_SPACED_NUMBER = re.compile(rf"(?:{_NUMBER.replace('HAN', '')})\S*")
_SPACE_IN_NUMBER = re.compile(r"\d\)?[ \u00a0\u202f]\(?\d")
_IS_SPACE = np.array([chr(i).isspace() for i in range(0x3002)])  # the last stands for all above, which are none
_CHUNK = 1 << 20
_UNSPACED_RUN = re.compile(rf"[{UNSPACED}]{{2,}}")
_CLINGING = frozenset("ฯๆ๚๛ຯໆ၊။។៕៖ៗ")
_CLUSTER = r"[\u0e40-\u0e44\u0ec0-\u0ec4]?\X"  # a vowel that is written before its consonant goes with it


def word_ends(text: str) -> np.ndarray:
    """The end of each word of `text`, int64."""
    if not text.isascii() and _IS_HAN.search(text):
        ends = np.fromiter((word.end() for word in _WITH_HAN.finditer(text)), np.int64)
    else:
        ends = _spaced_ends(text)
    if inner := list(_inside_unspaced(text)):
        ends = np.union1d(ends, np.asarray(inner, np.int64))
    return ends


def _spaced_ends(text: str) -> np.ndarray:
    """Ends of words of a text without Chinese or Japanese: a scan for white space, and then for spaces in numbers."""
    is_space = np.ones(len(text) + 1, bool)
    for start in range(0, len(text), _CHUNK):
        codes = np.frombuffer(text[start : start + _CHUNK].encode("utf-32-le", "surrogatepass"), np.uint32)
        is_space[start : start + len(codes)] = _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]
    ends = np.flatnonzero(~is_space[:-1] & is_space[1:]) + 1
    joined, place = [], 0
    while found := _SPACE_IN_NUMBER.search(text, place):
        start = found.start()
        while start > place and not text[start - 1].isspace():
            start -= 1
        number = _SPACED_NUMBER.match(text, start)
        place = number.end() if number else found.start() + 1
        if number:
            joined.append((start, place))
    if not joined:
        return ends
    kept = np.ones(len(ends), bool)
    for first, last in np.searchsorted(ends, np.array(joined)).tolist():
        kept[first:last] = False
    return ends[kept]


def num_words(text: str) -> int:
    """Number of words of a text, as spans count them."""
    return len(word_ends(text))


def segmenter() -> str:
    """What finds the words of scripts without spaces here: results differ by it."""
    return _segmenter()[0]


def _inside_unspaced(text: str) -> Iterator[int]:
    """Ends of words within stretches of a script that has no spaces."""
    for run in _UNSPACED_RUN.finditer(text):
        start, stop = run.span()
        ends = (start + end for end in _segmenter()[1](run[0]))
        yield from (end for end in ends if end < stop and text[end] not in _CLINGING)


@cache
def _segmenter() -> tuple[str, Callable[[str], Iterable[int]]]:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        import regex

        cluster = regex.compile(_CLUSTER)
        return "grapheme clusters", lambda text: (found.end() for found in cluster.finditer(text))
    return "icu", lambda text: (end for _, end in WordBreaker(text, "en").segments())
