"""The word lists of the demo's world: stories in topics.toml, names, facts and small talk in lexicon.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plot:
    """A problem in several wordings, and its endings: any of these can follow any of those."""

    problems: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A topic of stories: the `things` that they can be about, and sentence templates."""

    name: str
    things: tuple[str, ...]
    openings: tuple[str, ...]
    scenes: tuple[str, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Relation:
    """Facts of one kind: rows of (subject, object), the template of a statement, and those of questions.

    A question has the part of the row that answers it: "o" or "s".
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    statement: str
    questions: tuple[tuple[str, str], ...]


def _load(name: str) -> dict[str, Any]:
    return _frozen(tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8")))


def _frozen(value: Any) -> Any:
    """Return a value with tuples instead of lists."""
    if isinstance(value, dict):
        return {name: _frozen(v) for name, v in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_words = _load("lexicon.toml")
WOMEN: tuple[str, ...] = _words["women"]
MEN: tuple[str, ...] = _words["men"]
TOWNS: tuple[str, ...] = _words["towns"]
GREETINGS: tuple[tuple[str, str], ...] = _words["greetings"]
THANKS: tuple[tuple[str, str], ...] = _words["thanks"]
RELATIONS = tuple(Relation(**row) for row in _words["relations"])
TOPICS = tuple(
    Topic(**{**row, "plots": tuple(Plot(**plot) for plot in row["plots"])}) for row in _load("topics.toml")["topics"]
)
