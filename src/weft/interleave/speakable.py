"""What of a text cannot be spoken, and stays text: code, tables, markup, formulas, addresses, symbols, hashes.

    unspeakable(text, word_ends(text))          # [Unspeakable(start, stop, kind), ...], in order and apart

All of it is heuristics, made for prose with such things in it: what is not recognized is spoken, and now and then a
line of prose that looks like code stays text. The filters that corpora are cleaned with (datatrove's) judge whole
documents or lines, and know of no places. Time is linear in the text, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from weft.interleave.words import UNSPACED

Kind = Literal["code", "table", "markup", "formula", "address", "symbols", "hash"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Unspeakable:
    """Characters [start, stop) of a text, without white space at either end, and what they are."""

    start: int
    stop: int
    kind: Kind


Found = Iterator[tuple[int, int, Kind]]


def unspeakable(text: str, ends: np.ndarray) -> list[Unspeakable]:
    """The stretches of `text`, whose words have these `ends`, that cannot be spoken.

    Where two overlap, the one that begins first.
    """
    found = [piece for find in _FINDERS for piece in find(text)]
    found += _long_words(text, ends)
    found.sort(key=lambda piece: (piece[0], -piece[1]))
    result: list[Unspeakable] = []
    last = 0
    for start, stop, kind in found:
        start = max(start, last)
        while start < stop and text[start].isspace():
            start += 1
        while start < stop and text[stop - 1].isspace():
            stop -= 1
        if start < stop:
            result.append(Unspeakable(start, stop, kind))
            last = stop
    return result


# Fences ``` and ~~~ (CommonMark); one of backquotes that is not closed runs to the end.
_FENCE = re.compile(r"(?:\A|\n)[ \t]*+(`{3,}+|~{3,}+)([^\n`]*+)")


def _fenced(text: str) -> Found:
    opened: tuple[int, str] | None = None
    for fence in _FENCE.finditer(text) if "```" in text or "~~~" in text else ():
        marks = fence[1]
        if opened is None:
            opened = fence.start(), marks
        elif marks.startswith(opened[1]) and not fence[2].strip():
            yield opened[0], fence.end(), "code"
            opened = None
    if opened and opened[1][0] == "`":
        yield opened[0], len(text), "code"


# Inline code. An opening quote ` of prose is closed by ', and the next one has a space before it and a letter behind.
_INLINE = re.compile(r"(``(?<![\w`]``)|`(?<![\w`]`))(?![\s`])[^`\n]{1,200}+(?<!\s)\1(?![\w`])")


def _inline(text: str) -> Found:
    if "`" in text:
        yield from ((found.start(), found.end(), "code") for found in _INLINE.finditer(text))


_ELEMENT = re.compile(r"<(table|pre|code|script|style|svg|math)\b[^<>]*+>|<!--", re.IGNORECASE)
_TAG = re.compile(r"<[/!]?[A-Za-z][^<>\n]{0,300}+>|&(?:[A-Za-z]{2,8}|#x?[0-9A-Fa-f]{1,6});")


def _markup(text: str) -> Found:
    if "<" in text:
        yield from _elements(text)
    if "<" in text or "&" in text:
        yield from ((tag.start(), tag.end(), "markup") for tag in _TAG.finditer(text))


def _elements(text: str) -> Found:
    """HTML elements of which nothing inside is prose."""
    lower, place, unclosed = text.lower(), 0, set()
    if len(lower) != len(text):
        lower = text  # a letter whose lower case is two
    while element := _ELEMENT.search(text, place):
        place = element.end()
        name = (element[1] or "comment").lower()
        ending = f"</{name}" if element[1] else "--"
        if name not in unclosed and (begin := lower.find(ending, place)) < 0:
            unclosed.add(name)
        if name not in unclosed:
            place = text.find(">", begin) + 1 or len(text)
            kinds: dict[str, Kind] = {"table": "table", "math": "formula", "comment": "markup"}
            yield element.start(), place, kinds.get(name, "code")


# Tables: neighbouring lines with bars, or with two gaps of tabs or three spaces; one line with three bars.
_BAR = re.compile(r"\|")
_LONGEST_CELL = 300
_GAP = re.compile(r"(?:\t(?<!\s\t)| {3}(?<!\s {3}))[ \t]*+(?=\S)")


def _tables(text: str) -> Found:
    if "|" in text:
        yield from _blocks(text, _lines_with(text, _BAR.finditer(text)), least=1)
    if "\t" in text or "   " in text:
        gaps = (gap for gap in _GAP.finditer(text) if gap.start() and text[gap.start() - 1] not in ".!?:;,")
        yield from _blocks(text, _lines_with(text, gaps), least=2)


def _lines_with(text: str, marks: Iterator[re.Match[str]]) -> Iterator[tuple[int, int, int]]:
    """The lines with a mark in them: (start, stop, number of marks)."""
    start = stop = -1
    count = 0
    for mark in marks:
        if mark.start() < stop:
            count += 1
            continue
        if count:
            yield start, stop, count
        start = text.rfind("\n", max(stop, 0), mark.start()) + 1 or max(stop, 0)
        stop, count = _line_end(text, mark.start()), 1
    if count:
        yield start, stop, count


def _blocks(text: str, lines: Iterator[tuple[int, int, int]], least: int) -> Found:
    """Runs of two and more lines of `least` marks, with nothing or a blank line between; one line of three bars."""
    run: list[tuple[int, int, int]] = []
    rows = (line for line in lines if line[2] >= least and line[1] - line[0] <= _LONGEST_CELL * line[2])
    for line in (*rows, (len(text) + 1, 0, 0)):
        if run and (line[0] > len(text) or line[0] - run[-1][1] > 3 or text[run[-1][1] : line[0]].strip()):
            if len(run) > 1 or (least == 1 and run[0][2] >= 3):
                yield run[0][0], run[-1][1], "table"
            run = []
        run.append(line)


# Lines of program text without a fence. What follows them indented, or between two of them, belongs to them.
_CODE = re.compile(
    r"""\s*+(?:
    (?:async\ )?(?:def|class)\s+\w+\s*[(:{]
    | import\s+[\w.]+(?:\s+as\s+\w+)?(?:,\s*[\w.]+)*;?\s*$ | from\s+[\w.]+\s+import\s
    | import\s+[\w.*{} ,]+\sfrom\s+["'] | using\s+(?:namespace\s+)?[\w:.]+;\s*$
    | (?:if|elif|for|while|with)\b.*[()=<>\[\]].*:\s*$ | (?:else|try|finally|except(?:\ [\w.]+(?:\ as\ \w+)?)?):\s*$
    | (?:if|for|while|switch|catch|foreach)\s*\(.*[=<>!;&|:$\[].*\)\s*\{?\s*$
    | for\s+\w+\s+in\s+(?:[\w.]+:\s*$|\w+\(.*)
    | return\s+(?:.*(?:[=\[\]{}]|\w\().*(?<=[;)\]}\w])|[\w.\[\]-]+;?)\s*$
    | (?:public|private|protected|static|final|const|let|var|function|func|fn|void|int|float|double|char|bool
        |string|String|unsigned|struct|enum|package|module)\s+[\w<>\[\]*&:]+.*[;{(=].*$ (?<=[;{}(),>\])\w'"])
    | \#\s*(?:include|define|ifdef|ifndef|endif|pragma)\b | <\?php | \#!/ | @\w+(?:\(.*\))?\s*$
    | (?:SELECT\s.*|DELETE\s+FROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|CREATE\s+(?:TABLE|VIEW|DATABASE|INDEX)
        |ALTER\s+TABLE|DROP\s+TABLE|WHERE\s.*[=<>].*)
    | [{}\[\])]+[;,]?\s*$ | \$\ [a-z][\w.-]*\s | (?://|/\*)\s
    | \w[\w.\[\]"'*]*(?:,\s*\w[\w.]*)*\s*(?:=|\+=|-=|:=|<-|\|=)(?!=)\s*\S
    | [A-Za-z_](?:[\w.]*\w)?\(.*\)\s*;?\s*$ | [A-Za-z_](?:[\w.:<>]*[\w>])?\(.*[,;({]\s*$
    | \\(?:documentclass|usepackage|begin|end|title|author|date|newcommand|section|subsection|chapter)\b
    ) | .*(?:\)|=>|\w|\])\s*\{\s*$ | .*(?:[=\[]|\w\(|->).*;\s*$ | .*&&.*[()].*$
    """,
    re.VERBOSE,
)
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|(?:#|//|/\*|--).*")
_PROSE = re.compile(r"(?:\b[A-Za-z’']+,? ){4}[A-Za-z]|\w; \w|[a-z]\) [a-z]+ [a-z]+ ")  # noqa: RUF001
_HINT = re.compile(r"[({}\[=;<$@#\\]|import |else:|try:|SELECT ")
_HEAD = 400  # characters of a line that tell what it is
_LINE = re.compile(r"[^\n]+")


def _code(text: str) -> Found:
    place = 0
    while hint := _HINT.search(text, place):
        start = max(place, text.rfind("\n", place, hint.start()) + 1)
        stop = _line_end(text, hint.start())
        place = stop + 1
        if not _is_code(text[start : min(stop, start + _HEAD)]):
            continue
        for line in _LINE.finditer(text, stop):
            place, head = line.start(), text[line.start() : min(line.end(), line.start() + _HEAD)]
            if _is_code(head) or (head.startswith((" ", "\t")) and not _PROSE.search(_QUOTED.sub("", head))):
                stop = line.end()
            elif head.strip() and not _belongs(head):
                break
            place = line.end()
        yield start, stop, "code"


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _is_code(head: str) -> bool:
    if not _CODE.match(head):
        return False
    return not _PROSE.search(_QUOTED.sub("", head)) or head.lstrip().startswith(("SELECT ", "UPDATE "))


def _belongs(head: str) -> bool:
    """Whether a line among code is no end of it: indented, or a comment."""
    return head.startswith(("  ", "\t", "#", "//", "--", "%", "*/"))


# Formulas: TeX between its marks, and tokens around = and its like that are nothing but numbers, letters and operators.
_TEX = re.compile(
    r"\$\$[^$]{1,2000}+\$\$|\$(?<![\w$\\]\$)(?![\s$])[^$\n]{1,200}+(?<!\s)\$(?![\w$])"
    r"|\\\[(?:[^\\]|\\(?![()\[\]])){1,1000}+\\\]|\\\((?:[^\\\n]|\\(?![()\[\]])){1,400}+\\\)"
)
_TEX_MATH = re.compile(r"[\\^_{}=+<>*]|^\$\w{1,3}\$$")
_TEX_BLOCK = re.compile(r"\\begin\{(equation|align|gather|eqnarray|multline|math|displaymath|tabular|array)(\*?)\}")
_RELATION = re.compile(r"[=<>]")
_ANY_RELATION = re.compile(r"[=<>≤≥≈≠≡∝∈]")
_TERM = re.compile(
    r"[-+*/^=<>|()\[\]{}.,;:!−±×÷·√∑∫≤≥≈≠≡∝∞π∈%!]+|[-($€£]*\d[\d.,]*[A-Za-z]{0,3}[).,;]*|[-(|]*[A-Za-z][)|.,;']*"  # noqa: RUF001
    r"|(?=\S*[+*/^=<>|(){}\[\]√²³_])(?![A-Za-z]{4,}[^A-Za-z(])\S{1,60}"
)
_REACH = 120  # characters either side of a relation


def _formulas(text: str) -> Found:
    if "$" in text or "\\" in text:
        for tex in _TEX.finditer(text):
            if _TEX_MATH.search(tex[0]):
                yield tex.start(), tex.end(), "formula"
        for block in _TEX_BLOCK.finditer(text):
            end = text.find(f"\\end{{{block[1]}{block[2]}}}", block.end(), block.end() + 5000)
            if end >= 0:
                yield block.start(), end + len(block[0]) - 2, "table" if block[1] in ("tabular", "array") else "formula"
    yield from _equations(text)


def _equations(text: str) -> Found:
    place = 0
    signs = _RELATION if text.isascii() or not any(sign in text for sign in "≤≥≈≠≡∝∈") else _ANY_RELATION
    while relation := signs.search(text, place):
        low, high = max(relation.start() - _REACH, place), relation.end() + _REACH
        begin = max(low, text.rfind("\n", low, relation.start()) + 1)
        end = text.find("\n", relation.end(), high)
        end = min(high, len(text)) if end < 0 else end
        tokens = list(re.finditer(r"\S+", text[begin:end]))
        here = next(i for i, t in enumerate(tokens) if begin + t.end() > relation.start())
        first = last = here
        while first and _TERM.fullmatch(tokens[first - 1][0]):
            first -= 1
        while last + 1 < len(tokens) and _TERM.fullmatch(tokens[last + 1][0]):
            last += 1
        sign = tokens[here][0]
        left, right = sign.split(relation[0], 1)
        is_sign = relation[0] not in "<>" or (bool(left) == bool(right) and not _TAG.search(sign))
        whole = (
            is_sign
            and bool(_TERM.fullmatch(sign))
            and bool(left or first < here)
            and bool(right.strip("=") or last > here)
        )
        place = max(begin + tokens[last].end() if whole else begin + tokens[here].end(), relation.end())
        if whole:
            yield begin + tokens[first].start(), begin + tokens[last].end(), "formula"


# Addresses and odd tokens. A token is a run without white space, and without letters of scripts that use none.
_BREAK = rf"\s{UNSPACED}\u2e80-\U0010ffff"
_URL = re.compile(rf"(?:(?:https?|ftp|file)://|\bwww\.)[^{_BREAK}<>\"]+", re.IGNORECASE)
_REST = re.compile(rf"[^{_BREAK}]*+")
_IS_BREAK = re.compile(rf"[{_BREAK}]")
_ODD = re.compile(r"[@/\\_<>{}=^~|\[\]#*&$+]|\d[A-Za-z]|\(\)|\.(?:com|org|net|edu|gov|mil|io|ai|co|info|biz|dev|app)\b")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9-]+\.)+(?:com|org|net|edu|gov|mil|io|ai|co|info|biz|dev|app)(?:\.[a-z]{2})?(?:[/:?].*)?"
)
_PATH = re.compile(
    r"[A-Za-z]:\\.*|\\\\\w.*|(?:~|\.{1,2})/.+|/[\w.-]+(?:/[\w.*-]*)+"
    r"|[\w.~-]+(?:/[\w.*~-]+)*/[\w-]+\.[A-Za-z]\w{0,4}|(?=.*[A-Za-z])[\w.~-]+(?:/[\w.~-]+){3,}/?"
)
_TEX_COMMAND = re.compile(r".*\\[A-Za-z]+.*|.*[\w)]\^[\w({-].*")
_HASH = re.compile(
    r"(?=.*\d)(?=.*[A-Fa-f])[0-9A-Fa-f]{16,}|0x[0-9A-Fa-f]{4,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{24,}")
_SWITCH = re.compile(r"[a-z][A-Z]|[A-Za-z][0-9]|[0-9][A-Za-z]")
_SNAKE = re.compile(r"(?!_[^_]).*[A-Za-z0-9]_+[A-Za-z0-9].*(?<!_)|__\w+__")  # no word in _emphasis_ of prose
_CALL = re.compile(r".*\w\(\).*|.*[\w)\]](?:->|::|=>)\w.*|[<>{}\[\]=!&|]{2,}[\w.]*")
_SOUP = re.compile(r"[#$%&*+/<=>@\\^_`{|}~\[\]\u2190-\u2bff]")
_EDGES = "\"'“”‘’`()[]{}<>,;:.!?*_—–"  # noqa: RUF001


def _addresses(text: str) -> Found:
    if "://" in text or "www." in text.lower():
        yield from ((url.start(), url.end(), "address") for url in _URL.finditer(text))


def _tokens(text: str) -> Found:
    place = 0
    while odd := _ODD.search(text, place):
        start = odd.start()
        while start > place and not _IS_BREAK.match(text[start - 1]):
            start -= 1
        rest = _REST.match(text, odd.end())
        place = rest.end() if rest else odd.end()
        if kind := _kind(text[start : min(place, start + _HEAD)]):
            yield start, place, kind


def _kind(token: str) -> Kind | None:
    """What a token with an odd character in it is, or None for one that can be spoken."""
    core = token.strip(_EDGES)
    if _MAIL.search(core) or _DOMAIN.fullmatch(core) or _PATH.fullmatch(core):
        return "address"
    if _HASH.fullmatch(core) or (_BASE64.fullmatch(core) and len(_SWITCH.findall(core)) >= 5):
        return "hash"
    if _TEX_COMMAND.fullmatch(core):
        return "formula"
    num_symbols = len(_SOUP.findall(token))
    if not any(map(str.isalnum, token)):
        return "symbols" if num_symbols and token.strip("\"'(),.;:!?") not in "&+%$=*#" else None
    if _SNAKE.fullmatch(token.strip(_EDGES.replace("_", ""))) or _CALL.fullmatch(token.strip("\"'“”‘’,;:.!?`")):  # noqa: RUF001
        return "code"
    num_inner = len(_SOUP.findall(core))
    return "symbols" if num_inner >= 3 and 2 * num_inner > sum(map(str.isalnum, core)) else None


# Rows of signs, apart or together; a word longer than any.
_SIGN = r"[#$%&*+/<=>@\\^_`{|}~\[\]\u2190-\u2bff\U0001f000-\U0001faff]"
_SIGNS = re.compile(rf"{_SIGN}(?:\ufe0f?[ \t]*+{_SIGN}){{3,}}+")
_DASHES = re.compile(r"-----+|- - - -(?: -)*")
_DOTS = re.compile(r"\.\.\.\.\.\.\.\.+|\. \. \. \. \.(?: \.)*")
_LONG = re.compile(r"\w{64,}")


def _symbols(text: str) -> Found:
    for rows in (_SIGNS, _DASHES, _DOTS):
        yield from ((row.start(), row.end(), "symbols") for row in rows.finditer(text))


def _long_words(text: str, ends: np.ndarray) -> Found:
    for i in np.flatnonzero(np.diff(ends, prepend=0) >= 64):
        start = int(ends[i - 1]) if i else 0
        if _LONG.search(text, start, int(ends[i])):
            yield start, int(ends[i]), "hash"


_FINDERS: tuple[Callable[[str], Found], ...] = (
    _fenced, _inline, _markup, _tables, _formulas, _code, _addresses, _tokens, _symbols,
)  # fmt: skip
