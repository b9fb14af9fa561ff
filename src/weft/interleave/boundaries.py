"""Places where spans must end, and places where they may not be cut: paragraphs, and numbers of several words.

    paragraph_starts(text, ends)    # [0, 57, 102]: each of these words begins a paragraph, a heading or a list item
    joined_words(text, ends)        # [3, 9]: words that belong to the number before them: "6 | km", "May | 5, | 2020"

`ends` are the ends of the words of a text (`weft.text.segment.word_ends`). The time is linear in its length.
"""

# ruff: noqa: RUF001 - signs and units
from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import regex

_WRAPPED_CHARS = range(40, 121)  # in the longest line of a wrapped block; otherwise, each line is a paragraph
_BLOCK = re.compile(r"\S[^\n\f\u2029]*+(?:\n(?![^\S\n]*+(?:[\n\f\u2029]|\Z))[^\n\f\u2029]++)*+")  # without blank lines
_HEADING = re.compile(r"#{1,6}[ \t]")
_ITEM = re.compile(r"[-*+•‣◦–—][ \t]|>|\(?\d{1,3}[.)][ \t]|\(?[A-Za-z]\)[ \t]")  # also quotations and lines of dialogue


def paragraph_starts(text: str, ends: np.ndarray) -> np.ndarray:
    """Return the indices of the words that begin a paragraph, a heading or a list item, ascending.

    They follow a blank line, a heading of Markdown, or a line break in front of the mark of a list item. Another line
    break ends a paragraph if the text is not wrapped: if the next word would have fit into the line, or a line is long.
    """
    return np.unique(np.searchsorted(ends, np.fromiter(_paragraphs(text), np.int64), "right"))


def _paragraphs(text: str) -> Iterator[int]:
    """Yield the offsets at which paragraphs begin."""
    for block in _BLOCK.finditer(text):
        yield block.start()
        lines = block[0].split("\n")
        width = max(map(len, lines))
        offset, before = block.start() + len(lines[0]) + 1, lines[0].strip()
        for line in lines[1:]:
            content = line.strip()
            next_word = content.split(None, 1)[0]
            is_wrapped = width in _WRAPPED_CHARS and len(before) + 1 + len(next_word) > width
            if not is_wrapped or _HEADING.match(before) or _HEADING.match(content) or _ITEM.match(content):
                yield offset + line.index(content[0])
            offset, before = offset + len(line) + 1, content


_MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    "|Nov(?:ember)?|Dec(?:ember)?|Januar|Jänner|Februar|März|Mai|Juni|Juli|Oktober|Dezember|janvier|février|mars|avril"
    "|mai|juin|juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto"
    "|septiembre|octubre|noviembre|diciembre|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
)
_UNITS = (
    "(?:[µμnmcdkMGT]?(?:m|g|s|l|L|A|V|W|J|N|Pa|Hz|B|b|Wh|eV|mol|bar|cal)[²³]?|[kMGTP]i?B(?:/s|ps)?|[kMG]bit(?:/s)?|bits?"
    "|km/h|m/s²?|mph|kph|rpm|dB|Ω|k?Ω|°[CFK]?|K|t|h|min|sec|ft|in|yd|mi|oz|lbs?|px|pt|ha|Uhr|[ap]\\.?m|AM|PM|AD|BC|BCE|CE"
    "|o['’]clock|percent|per|hundred|thousand|million|billion|trillion|dozen|dollars?|euros?|pounds?|cents?|USD|EUR|GBP|CHF|Mio|Mrd)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th|er|\.|º|ª)?"
# The white space in a number, a quantity with its unit, a time or a date.
_SPACE = r"\s{1,4}+"
_JOINT = regex.compile(
    rf"""(?:
      (?<=\d){_SPACE}(?=\d)                                              # 101 000
    | (?<=[\d½¼¾⅓⅔]){_SPACE}(?={_UNITS}(?![\w/])|[%‰°×·^]|[-–−+*/x=:]\s?\d)  # 5 km, 30 %, 6 × 10
    | (?<=\d\s?[-–−+*/x×·=:]){_SPACE}(?=\d)                              # 6 × 10
    | (?<=[$€£¥₹§#±~≈]|\b(?:USD|EUR|GBP|CHF|Rs\.|[Nn]o\.|[Nn]r\.|pp?\.|[Ff]ig\.|[Vv]ol\.|[Cc]hap\.)){_SPACE}(?=\d)
    | (?<=\b{_DAY}){_SPACE}(?=(?:of\s|de\s|d['’])?(?:{_MONTHS})\b)         # 5 May, 5th of May, 5. Mai
    | (?<=\b{_DAY}\s(?:of|de)){_SPACE}(?=(?:{_MONTHS})\b)
    | (?<=\b(?:{_MONTHS})\.?){_SPACE}(?=\d|de\s\d)                       # May 5, mayo de 2020
    | (?<=\b(?:{_MONTHS})\sde){_SPACE}(?=\d)
    | (?<=\b(?:{_MONTHS})\.?\s{_DAY},){_SPACE}(?=\d{{4}}\b)                # May 5, 2020
    | (?<=\d)(?=[年月日号時时分秒点元円岁歳度])|(?<=\d[年月時时点])(?=\d)     # 2020年5月3日
    )""",
    regex.VERBOSE,
)
_DIGIT = re.compile(r"\d")


def joined_words(text: str, ends: np.ndarray) -> np.ndarray:
    """Return the indices of the words that belong to the number, quantity, time or date before them, ascending."""
    if not _DIGIT.search(text):
        return np.zeros(0, np.int64)
    spaces = np.fromiter((found.start() for found in _JOINT.finditer(text)), np.int64)
    return np.searchsorted(ends, spaces[np.isin(spaces, ends)], "right")  # without spaces inside a word
