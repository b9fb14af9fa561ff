"""Where sentences end, in the text of any language.

    sentences_of("Mr. J. K. Smith left at 5 p.m. He was late.")    # ["Mr. J. K. Smith left at 5 p.m.", "He was late."]
    sentence_ends(text)                                            # the places, just behind the last mark of each

Rules and short lists of abbreviations, for European languages; other scripts end their sentences with marks of their
own, which mean nothing else. Words are not looked up: an abbreviation that is not listed ends a sentence when a capital
follows. Libraries that do this need the language named (sentencex), or take a second for 200 kB (pysbd).
"""

# ruff: noqa: RUF001, SIM905 - letters and marks of many scripts, and lists of words to be read as such
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_CLOSING = "\"'”’»)\\]}》」』）】*_"
# A mark before white space, with the quotes and note numbers behind it; a mark of a script without spaces; blank lines.
_CANDIDATE = re.compile(
    rf"(?P<mark>[.!?…؟۔।॥።։]++)[{_CLOSING}]*+(?:\[\d{{1,3}}\])*+(?!\S)"
    rf"|[。！？｡။។៕]++[{_CLOSING}]*+"
    r"|(?P<blank>\n[^\S\n]*+\n)\s*+"
)
_NEXT = re.compile(r"[^\w.!?…]*+([\w’']*+)([.!?…]?)")
_DOTTED = re.compile(r"(?:[^\W\d]{1,3}\.)+[^\W\d]{1,3}")
_NUMERAL = re.compile(r"\d|(?:[IVXLC]{2,}|[VX])\b")
_BEFORE = 24  # characters: longer than any abbreviation

# Abbreviations, lower-case and without their last stop, of several languages each; none that is a common word too.
# What follows these is always their own: a name, an example.
_ALWAYS_LEAD = frozenset(
    """mr mrs ms messrs mme mlle dr drs prof rev fr capt cpt col gen lt sgt maj cmdr adm gov sen pres supt mt vs cf viz
    approx ca eg ie e.g i.e z.b d.h u.a m.e i.d.r s.o p.ej p.ex hr hrn frl vgl ggf inkl exkl zzgl dipl bspw
    sra srta dña ud uds vd vds sig sigg dott avv egr ilmo exmo dhr mevr bijv tzw т.е напр""".split()
)
# These, as long as a number follows.
_LEAD_NUMBERS = frozenset(
    """no nos nr nrs núm num n fig figs abb tab vol vols bd p pp pg s ch chap cap kap sec sect art arts eq eqs op ex §
    pág págs ver lib bk стр рис гл""".split()
)
# These may end a sentence, and do when the next one begins as sentences do.
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
    """Places where a sentence has ended, ascending: behind its last mark and quotes, or before a blank line.

    The end of the text is not among them unless a mark stands there.
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
    """The sentences of a text, without the white space around them."""
    ends = [0, *sentence_ends(text), len(text)]
    found = (text[a:b].strip() for a, b in pairwise(ends))
    return [sentence for sentence in found if sentence]


def _is_end(text: str, found: re.Match[str]) -> bool:
    following = _NEXT.match(text, found.end())
    next_word, next_mark = following.groups() if following else ("", "")
    if not next_word:
        return not next_mark  # else the marks are apart: ". . ."
    if next_word[0].title() != next_word[0]:
        return False  # a lower-case letter (Georgian, which has no capitals in text, is its own title case)
    begins = next_word.lower() in _FIRST_WORDS
    return found["mark"] != "." or _stop_ends(text, found.start(), next_word, begins)


def _stop_ends(text: str, stop: int, next_word: str, begins: bool) -> bool:
    """Whether the full stop at `stop` ends a sentence, where the next word may begin one."""
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
