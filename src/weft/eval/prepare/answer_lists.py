"""Lists of answers, which tables also have as one string.

answers_of("Ann;Bob", ";") == answers_of("['Ann', 'Bob']") == answers_of(["Ann", "Bob", ""]) == ["Ann", "Bob"]
"""

from __future__ import annotations

import json
import re
from typing import Any

from weft.text.inputs import valid_text

_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")


def answers_of(value: Any, separator: str | None = None) -> list[str]:
    """Return answers without empty ones: of a list, a list as JSON or as Python prints it, or a string."""
    if isinstance(value, list):
        return [answer for one in value for answer in answers_of(one)]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []
    text = valid_text(str(value)).strip()
    if text.startswith("[") and text.endswith("]"):
        return answers_of(_listed(text))
    parts = text.split(separator) if separator else [text]
    return [part.strip() for part in parts if part.strip()]


def _listed(text: str) -> list[Any]:
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError):
        quoted = [one or other for one, other in _QUOTED.findall(text)]
        return [re.sub(r"\\(.)", r"\1", part) for part in quoted] or [text.strip("[]")]
