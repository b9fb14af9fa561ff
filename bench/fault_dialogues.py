"""Bad dialogues and pairs of endings for bench/faults.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_cases import Case
from fault_runs import any_of, makes, refused
from fault_world import MARKS, World


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad dialogues and pairs."""
    yield from _dialogues(world)
    yield from _pairs(world)


def _dialogues(world: World) -> Iterator[Case]:
    """Yield dialogues, of which one is bad."""
    lines = (world.folder / "dialogues.jsonl").read_text().splitlines()
    user, assistant = {"role": "user", "text": "Hello."}, {"role": "assistant", "text": "Good morning."}
    count = makes(skipped=1)
    bad: dict[str, Any] = {
        "invalid JSON": "{",
        "a list": [],
        "no turns": {"id": "x"},
        "turns null": {"id": "x", "turns": None},
        "empty turns": {"id": "x", "turns": []},
        "turns of strings": {"id": "x", "turns": ["Hello.", "Hi."]},
        "unknown role": {"id": "x", "turns": [user, {**assistant, "role": "robot"}]},
        "role null": {"id": "x", "turns": [user, {**assistant, "role": None}]},
        "no text": {"id": "x", "turns": [user, {"role": "assistant"}]},
        "text null": {"id": "x", "turns": [user, {**assistant, "text": None}]},
        "empty text": {"id": "x", "turns": [{**user, "text": ""}, assistant]},
        "text a list": {"id": "x", "turns": [user, {**assistant, "text": ["a"]}]},
        "only the user": {"id": "x", "turns": [user]},
        "deep nesting": "[" * 100_000,
    }
    unusual: dict[str, Any] = {
        "assistant first": {"id": "x", "turns": [assistant, user, assistant]},
        "two user turns": {"id": "x", "turns": [user, user, assistant]},
        "system last": {"id": "x", "turns": [user, assistant, {"role": "system", "text": "Stop."}]},
        "integer id": {"id": 5, "turns": [user, assistant]},
        "no id": {"turns": [user, assistant]},
        "repeated id": {**json.loads(lines[0])},
        "lone surrogate": json.dumps({"id": "x", "turns": [{**user, "text": "\ud800"}, assistant]}),
        "control tokens": {"id": "x", "turns": [{**user, "text": " ".join(MARKS)}, assistant]},
        "only punctuation": {"id": "x", "turns": [{**user, "text": "...!?"}, assistant]},
        "5,000 turns": {"id": "x", "turns": [user, assistant] * 2500},
    }
    for name, row in (bad | unusual).items():

        def arguments(folder: Path, row: Any = row) -> list[str | bytes]:
            text = row if isinstance(row, str) else json.dumps(row)
            (folder / "dialogues.jsonl").write_text("\n".join([*lines[:4], text, *lines[4:]]))
            model = ["--text-to-token", world["train-text-to-token"], "--max-bad-fraction", "0.5"]
            return ["dialogues", "dialogues.jsonl", *model, "--out", "out"]

        yield Case("dialogues", name, arguments, count if name in bad else any_of(makes(), refused("dialogues.jsonl")))


def _pairs(world: World) -> Iterator[Case]:
    """Yield pairs of endings for topic-cloze."""
    good = json.loads((world.folder / "pairs.jsonl").read_text().splitlines()[0])
    bad: dict[str, str] = {
        "invalid JSON": "{",
        "a list": "[]",
        "no right": json.dumps({**good, "right": None}),
        "unknown field": json.dumps({**good, "other": 1}),
        "a field missing": json.dumps({k: v for k, v in good.items() if k != "wrong"}),
        "empty text": json.dumps({**good, "beginning": " "}),
        "text a number": json.dumps({**good, "beginning": 5}),
        "empty file": "",
    }
    for name, text in bad.items():

        def arguments(folder: Path, text: str = text) -> list[str | bytes]:
            (folder / "pairs.jsonl").write_text(text + "\n")
            out = ["--model", world["bundle"], "--data", "pairs.jsonl", "--out", "out.json"]
            return ["eval", "likelihood", *out]

        yield Case("pairs", name, arguments, refused("pairs.jsonl"))
