"""Text and JSON from outside: files, flags, and typed text.

    for number, line in numbered_lines(file):
        row = parse_json(line)      # as from json.loads, but NaN is None and every string can be stored and tokenized
        name = id_of(row.get("id")) or f"line-{number}"

Every reader of such data uses these functions. A string from them is valid Unicode without NUL characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MAX_NUL_FRACTION = 0.1


def decode(content: bytes) -> str:
    """Return UTF-8 text as a string, without a byte-order mark. Raises ValueError, with the reason, for other data."""
    if content.startswith(_UTF16_BOMS):
        raise ValueError("it is UTF-16: convert it to UTF-8")
    try:
        text = content.removeprefix(BOM).decode()
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8: {e.reason} at byte {e.start}") from e
    if "\0" in text and text.count("\0") > _MAX_NUL_FRACTION * len(text):
        raise ValueError("it contains many NUL characters, as UTF-16 and binary data do")
    return text.replace("\0", "")


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, without outer white space and byte-order mark, with their number from 1."""
    for number, line in enumerate(lines, 1):
        if line := line.removeprefix(BOM).strip():
            yield number, line


def valid_text(text: str) -> str:
    """Return text with U+FFFD in place of surrogates that are not pairs, and without NUL characters."""
    text = text.replace("\0", "")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def parse_json(line: bytes) -> Any:
    """Return a JSON value with valid strings. NaN and Infinity, which several writers emit, are None.

    Raises ValueError, with the reason, for anything else that is not JSON in UTF-8.
    """
    line = line.removeprefix(BOM)
    try:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            return _valid_json(_from_json(decode(line)))
        return _valid_json(value) if b"\\u0000" in line else value
    except RecursionError as e:
        raise ValueError("not JSON: nested too deeply") from e


def _from_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except ValueError as e:
        raise ValueError(f"not JSON: {e}") from e


def finite(number: float) -> float | None:
    """Return a number of JSON as a float; None for an integer that is too large for one."""
    try:
        return float(number)
    except OverflowError:
        return None


def id_of(value: Any) -> str | None:
    """Return the id in a field or in the name of a file, with escapes for what is not UTF-8.

    None for a missing or empty value, and for a list or an object.
    """
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    if text.isascii() and "\0" not in text:
        return text or None
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode() or None


def _valid_json(value: Any) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid_text(key): _valid_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_valid_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
