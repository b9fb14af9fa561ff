"""Written dialogues in several formats, one JSON object each; the format is recognized by its keys.

    document = parse_dialogue(b'{"messages": [{"role": "user", "content": "Hi"}, ...]}', default_id="file.jsonl:1")

weft        {"id": ..., "turns": [{"role": "user", "text": ...}, {"role": "assistant", "text": ...}]}
SGD         {"dialogue_id": ..., "turns": [{"speaker": "USER", "utterance": ...}, {"speaker": "SYSTEM", ...}]}
ShareGPT    {"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
OpenAI      {"messages": [{"role": "user", "content": ...}, ...]}; content is a string or a list of parts of text

Sources: Schema-Guided Dialogue (arXiv 1909.05855), FastChat, and the chat completions of OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from weft.records import ROLES, Document, Segment
from weft.text.inputs import id_of, parse_json


@dataclass(frozen=True)
class _Format:
    """The keys of a format, and the roles that have other names in it."""

    turns: str
    role: str
    text: str
    roles: Mapping[str, str]


_FORMATS = (
    _Format("turns", "speaker", "utterance", {"USER": "user", "SYSTEM": "assistant"}),
    _Format("turns", "role", "text", {}),
    _Format("conversations", "from", "value", {"human": "user", "gpt": "assistant"}),
    _Format("messages", "role", "content", {"developer": "system"}),
)
_LISTS = tuple(dict.fromkeys(form.turns for form in _FORMATS))


def parse_dialogue(line: bytes, default_id: str) -> Document:
    """Return a dialogue whose turns are text segments. Raises ValueError, with the reason, for anything else."""
    row = parse_json(line)
    turns = next((row[name] for name in _LISTS if isinstance(row.get(name), list)), None) if _is_object(row) else None
    if turns is None:
        raise ValueError(f"it has no list of `{'`, `'.join(_LISTS)}`")
    segments = tuple(_turn(_format_of(row, turn), turn, number) for number, turn in enumerate(turns, 1))
    roles = [segment.role for segment in segments]
    if "assistant" not in roles:
        raise ValueError("it has no turn of the assistant")
    if repeated := [role for role, following in pairwise(roles) if role == following]:
        raise ValueError(f"it has two consecutive turns of {repeated[0]}: merge them")
    name = id_of(row.get("id")) or id_of(row.get("dialogue_id")) or default_id
    return Document(name, "dialogue", segments)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _format_of(row: Mapping[str, Any], turn: Any) -> _Format:
    """Return the format of a turn: of those of its list, the one with its key of roles, or the last."""
    candidates = [form for form in _FORMATS if isinstance(row.get(form.turns), list)]
    return next((form for form in candidates if _is_object(turn) and form.role in turn), candidates[-1])


def _turn(form: _Format, turn: Any, number: int) -> Segment:
    turn = turn if _is_object(turn) else {}
    given, text = turn.get(form.role), turn.get(form.text)
    role = form.roles.get(given, given) if isinstance(given, str) else None
    if role not in ROLES:
        known = dict.fromkeys([*form.roles, *ROLES])
        raise ValueError(f"turn {number} has {form.role} {given!r}: give one of {', '.join(known)}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError(f"turn {number} calls a tool, which cannot be spoken: remove the dialogue")
    if form.turns == "messages" and isinstance(text, list):
        text = "".join(_part(part, number) for part in text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"turn {number} has no {form.text}")
    return Segment.of_text(text.strip(), role, loss=role == "assistant")


def _part(part: Any, number: int) -> str:
    """Return the text of a part of a message."""
    kind, text = (part.get("type"), part.get("text")) if _is_object(part) else (None, None)
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise ValueError(f"turn {number} has a part of type {kind!r}: only text can be spoken")
    return text
