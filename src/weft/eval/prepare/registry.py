"""The published evaluation sets by name: their items, and the readers of their layout.

    EVAL_SETS["storycloze"].read(Request("storycloze", Path("sStoryCloze.zip")))

A reader of a new set is a function of a `Request` that returns a `Found`, and an entry of EVAL_SETS.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

from weft.errors import UserError
from weft.eval.prepare import cross_modal, numbered, open_audio_bench, questions, salmon, voicebench, zerospeech
from weft.eval.prepare.items import Found, Request
from weft.eval.prepare.questions import Columns
from weft.eval.prepare.rows import CSV, JSON_LINES, PARQUET
from weft.eval.sets import Items


class EvalSet(NamedTuple):
    """A set: whether its items are questions or pairs, and the reader of what is published."""

    items: Items
    read: Callable[[Request], Found]


_TRIVIA = Columns(answers=("answer",), kept=("category", "choices"))
_OPEN = Columns(answers=("answer",), kept=())
EVAL_SETS = {
    "storycloze": EvalSet("pairs", numbered.read),
    "topic-storycloze": EvalSet("pairs", numbered.read),
    "cross-modal": EvalSet("pairs", cross_modal.read),
    "swuggy": EvalSet("pairs", partial(zerospeech.read, task=zerospeech.LEXICAL)),
    "sblimp": EvalSet("pairs", partial(zerospeech.read, task=zerospeech.SYNTACTIC)),
    "salmon": EvalSet("pairs", salmon.read),
    "llama-questions": EvalSet("questions", open_audio_bench.read),
    "web-questions": EvalSet("questions", open_audio_bench.read),
    "trivia-qa": EvalSet("questions", open_audio_bench.read),
    "natural-questions": EvalSet("questions", partial(questions.read, columns=_OPEN, suffixes=JSON_LINES + PARQUET)),
    "voicebench": EvalSet("questions", voicebench.read),
    "webquestions": EvalSet("questions", partial(questions.read, columns=Columns(kept=()), suffixes=JSON_LINES)),
    "open-trivia-qa": EvalSet(
        "questions", partial(questions.read, columns=_TRIVIA, suffixes=JSON_LINES, has_splits=False)
    ),
    "jsonl": EvalSet("questions", partial(questions.read, columns=Columns(), suffixes=JSON_LINES)),
    "csv": EvalSet("questions", partial(questions.read, columns=Columns(), suffixes=CSV)),
}


def eval_set(name: str) -> EvalSet:
    """Return a set by its name. Raises UserError, with the nearest name or all of them, for an unknown one."""
    if name in EVAL_SETS:
        return EVAL_SETS[name]
    near = get_close_matches(name.lower().replace("_", "-"), EVAL_SETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(EVAL_SETS)}"
    raise UserError(f"there is no evaluation set {name!r}: {hint}")
