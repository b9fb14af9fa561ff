"""Text that cannot be spoken and stays text: code, tables, markup, formulas, addresses, symbols, hashes.

    unspeakable(text, word_ends(text))          # [Unspeakable(start, stop, kind), ...], in order, without overlap

The rules are heuristics for prose that contains such passages: what they miss is spoken, and a line of prose that looks
like code may stay text. The time is linear in the length of any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from weft.text.segment import UNSPACED

Kind = Literal["code", "table", "markup", "formula", "address", "symbols", "hash"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Unspeakable:
    """Characters [start, stop) of a text, without white space at either end, and their kind."""

    start: int
    stop: int
    kind: Kind


_Ranges = Iterator[tuple[int, int, Kind]]  # (start, stop, kind); may overlap and include white space at the ends
_MAX_MATCHED_CHARS = 400  # of a line or a token


def unspeakable(text: str, ends: np.ndarray) -> list[Unspeakable]:
    """Return the ranges of `text`, whose words end at `ends`, that cannot be spoken.

    Of two ranges that overlap, the later one is shortened or left out.
    """
    found = [item for find in _FINDERS for item in find(text)]
    found += _long_words(text, ends)
    found.sort(key=lambda item: (item[0], -item[1]))
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


# Fenced code, between ``` or ~~~ (CommonMark). A ``` fence that is not closed extends to the end of the text.
_FENCE = re.compile(r"(?:\A|\n)[ \t]*+(`{3,}+|~{3,}+)([^\n`]*+)")


def _fenced_code(text: str) -> _Ranges:
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text) if "```" in text or "~~~" in text else ():
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2].strip():
            yield opening.start(), fence.end(), "code"
            opening = None
    if opening and opening[1][0] == "`":
        yield opening.start(), len(text), "code"


# Inline code. Where ` is an opening quotation mark, it is closed by ', and the next ` follows a space.
_INLINE_CODE = re.compile(r"(``(?<![\w`]``)|`(?<![\w`]`))(?![\s`])[^`\n]{1,200}+(?<!\s)\1(?![\w`])")


def _inline_code(text: str) -> _Ranges:
    if "`" in text:
        yield from ((code.start(), code.end(), "code") for code in _INLINE_CODE.finditer(text))


# HTML: elements without prose inside, comments, tags and character references.
_ELEMENT = re.compile(r"<(table|pre|code|script|style|svg|math)\b[^<>]*+>|<!--", re.IGNORECASE)
_ELEMENT_KINDS: dict[str, Kind] = {"table": "table", "math": "formula", "comment": "markup"}
_TAG = re.compile(r"<[/!]?[A-Za-z][^<>\n]{0,300}+>|&(?:[A-Za-z]{2,8}|#x?[0-9A-Fa-f]{1,6});")


# Marks of headings, list items and quotations at the start of a line.
_MARK = re.compile(r"^[ \t]*+(#{1,6}|[-*+•‣◦]|>++)(?=[ \t])", re.MULTILINE)


def _markup(text: str) -> _Ranges:
    yield from ((mark.start(1), mark.end(1), "markup") for mark in _MARK.finditer(text))
    if "<" in text:
        yield from _elements(text)
    if "<" in text or "&" in text:
        yield from ((tag.start(), tag.end(), "markup") for tag in _TAG.finditer(text))


def _elements(text: str) -> _Ranges:
    lower, position, unclosed = text.lower(), 0, set()
    if len(lower) != len(text):
        lower = text  # a character whose lower case has two would shift the positions
    while element := _ELEMENT.search(text, position):
        position = element.end()
        name = (element[1] or "comment").lower()
        closing = f"</{name}" if element[1] else "--"
        if name not in unclosed and (begin := lower.find(closing, position)) < 0:
            unclosed.add(name)
        if name not in unclosed:
            position = text.find(">", begin) + 1 or len(text)
            yield element.start(), position, _ELEMENT_KINDS.get(name, "code")


# Tables: consecutive lines with bars or with two gaps (tabs or three spaces), or one line with three bars.
_GAP = re.compile(r"(?<=[^.!?:;,])(?:\t(?<!\s\t)| {3}(?<!\s {3}))[ \t]*+(?=\S)")
_LINE = re.compile(r"[^\n]+")
_MAX_CELL_CHARS = 300


def _tables(text: str) -> _Ranges:
    if "|" in text:
        yield from _rows(text, lambda start, stop: text.count("|", start, stop), min_separators=1)
    if "\t" in text or "   " in text:
        yield from _rows(text, lambda start, stop: sum(1 for _ in _GAP.finditer(text, start, stop)), min_separators=2)


def _rows(text: str, count: Callable[[int, int], int], min_separators: int) -> _Ranges:
    """Yield runs of at least two lines, with at most a blank line between them, and single lines with three bars."""
    run: list[tuple[int, int, int]] = []  # start, stop, number of separators
    lines = ((*line.span(), count(*line.span())) for line in _LINE.finditer(text))
    rows = (line for line in lines if line[2] >= min_separators and line[1] - line[0] <= _MAX_CELL_CHARS * line[2])
    for line in (*rows, (len(text) + 1, 0, 0)):
        if run and (line[0] > len(text) or line[0] - run[-1][1] > 3 or text[run[-1][1] : line[0]].strip()):
            if len(run) > 1 or (min_separators == 1 and run[0][2] >= 3):
                yield run[0][0], run[-1][1], "table"
            run = []
        run.append(line)


# Code without a fence: lines of program text, with the indented lines after them and the comments between them.
_CODE_LINE = re.compile(
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
_CODE_HINT = re.compile(r"[({}\[=;<$@#\\]|import |else:|try:|SELECT ")  # in every line that _CODE_LINE matches
_QUOTE_OR_COMMENT = re.compile(r"\"[^\"]*\"|'[^']*'|(?:#|//|/\*|--).*")
_PROSE = re.compile(r"(?:\b[A-Za-z’']+,? ){4}[A-Za-z]|\w; \w|[a-z]\) [a-z]+ [a-z]+ ")  # noqa: RUF001


def _unfenced_code(text: str) -> _Ranges:
    position = 0
    while hint := _CODE_HINT.search(text, position):
        start = max(position, text.rfind("\n", position, hint.start()) + 1)
        stop = _line_end(text, hint.start())
        position = stop + 1
        if not _is_code(text[start : min(stop, start + _MAX_MATCHED_CHARS)]):
            continue
        for match in _LINE.finditer(text, stop):
            position, line = match.start(), match[0][:_MAX_MATCHED_CHARS]
            if _is_code(line) or (line.startswith((" ", "\t")) and not _is_prose(line)):
                stop = match.end()
            elif line.strip() and not line.startswith(("  ", "\t", "#", "//", "--", "%", "*/")):
                break
            position = match.end()
        yield start, stop, "code"


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _is_code(line: str) -> bool:
    return bool(_CODE_LINE.match(line)) and (not _is_prose(line) or line.lstrip().startswith(("SELECT ", "UPDATE ")))


def _is_prose(line: str) -> bool:
    return bool(_PROSE.search(_QUOTE_OR_COMMENT.sub("", line)))


# Formulas: delimited TeX, and a relation sign between tokens that are only numbers, letters and operators.
_TEX = re.compile(
    r"\$\$[^$]{1,2000}+\$\$|\$(?<![\w$\\]\$)(?![\s$])[^$\n]{1,200}+(?<!\s)\$(?![\w$])"
    r"|\\\[(?:[^\\]|\\(?![()\[\]])){1,1000}+\\\]|\\\((?:[^\\\n]|\\(?![()\[\]])){1,400}+\\\)"
)
_TEX_MATH = re.compile(r"[\\^_{}=+<>*]|^\$\w{1,3}\$$")  # in delimited TeX; other text between $ signs is prices
_TEX_ENVIRONMENT = re.compile(
    r"\\begin\{(equation|align|gather|eqnarray|multline|math|displaymath|tabular|array)(\*?)\}"
)
_ASCII_RELATION = re.compile(r"[=<>]")
_RELATION = re.compile(r"[=<>≤≥≈≠≡∝∈]")
_TERM = re.compile(
    r"[-+*/^=<>|()\[\]{}.,;:!−±×÷·√∑∫≤≥≈≠≡∝∞π∈%!]+|[-($€£]*\d[\d.,]*[A-Za-z]{0,3}[).,;]*|[-(|]*[A-Za-z][)|.,;']*"  # noqa: RUF001
    r"|(?=\S*[+*/^=<>|(){}\[\]√²³_])(?![A-Za-z]{4,}[^A-Za-z(])\S{1,60}"
)
_WORD = re.compile(r"\S+")
# Scientific notation, which the normalization of text does not write as words: 6.02e23, 6.02 × 10^23, 10⁻³.
_DIGIT = re.compile(r"\d")
_SCIENTIFIC = re.compile(
    r"(?<![\w.,])\d[\d.,]{0,30}+[eE][-+−]?\d{1,3}(?!\w)"  # noqa: RUF001
    r"|(?<![\w.,])(?:\d[\d.,]{0,30}+\s?[×x·⋅*]\s?)?10(?:\^[({]?[-+−]?\d{1,4}[)}]?|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4})(?!\w)"  # noqa: RUF001
)
_MAX_SIDE_CHARS = 120  # of an equation, on either side of a relation sign


def _formulas(text: str) -> _Ranges:
    if "$" in text or "\\" in text:
        yield from ((tex.start(), tex.end(), "formula") for tex in _TEX.finditer(text) if _TEX_MATH.search(tex[0]))
        for opening in _TEX_ENVIRONMENT.finditer(text):
            closing = f"\\end{{{opening[1]}{opening[2]}}}"
            end = text.find(closing, opening.end(), opening.end() + 5000)
            if end >= 0:
                kind: Kind = "table" if opening[1] in ("tabular", "array") else "formula"
                yield opening.start(), end + len(closing), kind
    yield from _equations(text)
    if _DIGIT.search(text):
        yield from ((number.start(), number.end(), "formula") for number in _SCIENTIFIC.finditer(text))


def _equations(text: str) -> _Ranges:
    position = 0
    signs = _ASCII_RELATION if text.isascii() or not any(sign in text for sign in "≤≥≈≠≡∝∈") else _RELATION
    while relation := signs.search(text, position):
        low, high = max(relation.start() - _MAX_SIDE_CHARS, position), relation.end() + _MAX_SIDE_CHARS
        begin = max(low, text.rfind("\n", low, relation.start()) + 1)
        end = text.find("\n", relation.end(), high)
        end = min(high, len(text)) if end < 0 else end
        words, after = text[begin : relation.start()].split(), _WORD.match(text, relation.end(), end)
        left = words.pop() if words and not text[relation.start() - 1].isspace() else ""
        right = after[0] if after else ""
        start, position = relation.start() - len(left), relation.end() + len(right)
        token, after = text[start:position], _WORD.search(text, position, end)
        # Only the words beside the token are checked at first: most signs are in no equation.
        is_equation = (
            (relation[0] not in "<>" or (bool(left) == bool(right) and not _TAG.search(token)))
            and bool(_TERM.fullmatch(token))
            and bool(left or (words and _TERM.fullmatch(words[-1])))
            and bool(right.strip("=") or (after and _TERM.fullmatch(after[0])))
        )
        if is_equation:
            while words and _TERM.fullmatch(words[-1]):
                start = text.rindex(words.pop(), begin, start)
            while after and _TERM.fullmatch(after[0]):
                position = after.end()
                after = _WORD.search(text, position, end)
            yield start, position, "formula"


# URLs, and tokens that contain an unusual character. Tokens are separated by white space and by characters of scripts
# that are written without spaces.
_SEPARATORS = rf"\s{UNSPACED}\u2e80-\U0010ffff"
_SEPARATOR = re.compile(rf"[{_SEPARATORS}]")
_TO_SEPARATOR = re.compile(rf"[^{_SEPARATORS}]*+")
_URL = re.compile(rf"(?:(?:https?|ftp|file)://|\bwww\.)[^{_SEPARATORS}<>\"]+", re.IGNORECASE)
_TOP_LEVEL = "com|org|net|edu|gov|mil|io|ai|co|info|biz|dev|app"
_TOKEN_HINT = re.compile(rf"[@/\\_<>{{}}=^~|\[\]#*&$+]|\d[A-Za-z]|\(\)|\.(?:{_TOP_LEVEL})\b")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_DOMAIN = re.compile(rf"(?:[A-Za-z0-9-]+\.)+(?:{_TOP_LEVEL})(?:\.[a-z]{{2}})?(?:[/:?].*)?")
_PATH = re.compile(
    r"[A-Za-z]:\\.*|\\\\\w.*|(?:~|\.{1,2})/.+|/[\w.-]+(?:/[\w.*-]*)+"
    r"|[\w.~-]+(?:/[\w.*~-]+)*/[\w-]+\.[A-Za-z]\w{0,4}|(?=.*[A-Za-z])[\w.~-]+(?:/[\w.~-]+){3,}/?"
)
_TEX_COMMAND = re.compile(r".*\\[A-Za-z]+.*|.*[\w)]\^[\w({-].*")
_HASH = re.compile(
    r"(?=.*\d)(?=.*[A-Fa-f])[0-9A-Fa-f]{16,}|0x[0-9A-Fa-f]{4,}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{24,}")
_CASE_CHANGE = re.compile(r"[a-z][A-Z]|[A-Za-z][0-9]|[0-9][A-Za-z]")
_SNAKE_CASE = re.compile(r"(?!_[^_]).*[A-Za-z0-9]_+[A-Za-z0-9].*(?<!_)|__\w+__")  # but not a word in _emphasis_
_CALL = re.compile(r".*\w\(\).*|.*[\w)\]](?:->|::|=>)\w.*|[<>{}\[\]=!&|]{2,}[\w.]*")
_SYMBOLS = r"#$%&*+/<=>@\\^_`{|}~\[\]\u2190-\u2bff"
_SYMBOL = re.compile(f"[{_SYMBOLS}]")
_QUOTES = "\"'“”‘’`"  # noqa: RUF001
_PUNCTUATION = _QUOTES + "()[]{}<>,;:.!?*—–"  # noqa: RUF001


def _urls(text: str) -> _Ranges:
    if "://" in text or "www." in text.lower():
        yield from ((url.start(), url.end(), "address") for url in _URL.finditer(text))


def _tokens(text: str) -> _Ranges:
    position = 0
    while hint := _TOKEN_HINT.search(text, position):
        start = hint.start()
        while start > position and not _SEPARATOR.match(text[start - 1]):
            start -= 1
        rest = _TO_SEPARATOR.match(text, hint.end())
        position = rest.end() if rest else hint.end()
        if kind := _token_kind(text[start : min(position, start + _MAX_MATCHED_CHARS)]):
            yield start, position, kind


def _token_kind(token: str) -> Kind | None:
    """Return the kind of a token with an unusual character, or None if it can be spoken."""
    core = token.strip(_PUNCTUATION + "_")
    if _MAIL.search(core) or _DOMAIN.fullmatch(core) or _PATH.fullmatch(core):
        return "address"
    if _HASH.fullmatch(core) or (_BASE64.fullmatch(core) and len(_CASE_CHANGE.findall(core)) >= 5):
        return "hash"
    if _TEX_COMMAND.fullmatch(core):
        return "formula"
    if not any(map(str.isalnum, token)):
        return "symbols" if _SYMBOL.search(token) and token.strip("\"'(),.;:!?") not in "&+%$=*#" else None
    if _SNAKE_CASE.fullmatch(token.strip(_PUNCTUATION)) or _CALL.fullmatch(token.strip(_QUOTES + ",;:.!?")):
        return "code"
    num_symbols = len(_SYMBOL.findall(core))
    return "symbols" if num_symbols >= 3 and 2 * num_symbols > sum(map(str.isalnum, core)) else None


# Rows of symbols, with or without spaces between them, and words that are longer than any word of a language.
_PICTOGRAPHS = r"\U0001f000-\U0001faff"
_SYMBOL_ROWS = (
    re.compile(rf"[{_SYMBOLS}{_PICTOGRAPHS}](?:\ufe0f?[ \t]*+[{_SYMBOLS}{_PICTOGRAPHS}]){{3,}}+"),
    re.compile(r"-----+|- - - -(?: -)*"),
    re.compile(r"\.\.\.\.\.\.\.\.+|\. \. \. \. \.(?: \.)*"),
)
_MIN_HASH_CHARS = 64
_LONG_WORD = re.compile(rf"\w{{{_MIN_HASH_CHARS},}}")


def _symbols(text: str) -> _Ranges:
    for rows in _SYMBOL_ROWS:
        yield from ((row.start(), row.end(), "symbols") for row in rows.finditer(text))


def _long_words(text: str, ends: np.ndarray) -> _Ranges:
    for i in np.flatnonzero(np.diff(ends, prepend=0) >= _MIN_HASH_CHARS):
        start, stop = int(ends[i - 1]) if i else 0, int(ends[i])
        if _LONG_WORD.search(text, start, stop):
            yield start, stop, "hash"


# Of equal ranges, the kind of the earlier one counts.
_FINDERS: tuple[Callable[[str], _Ranges], ...] = (
    _fenced_code, _inline_code, _markup, _tables, _formulas, _unfenced_code, _urls, _tokens, _symbols,
)  # fmt: skip
