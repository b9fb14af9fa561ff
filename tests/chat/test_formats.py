"""Dialogue formats: one dialogue gives the same document in every format, and what cannot be spoken is named."""

import json

import pytest

from weft.chat.formats import parse_dialogue

PAIRS = [("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello, 猫!"), ("user", "Bye"), ("assistant", "Bye.")]
SGD = {"user": "USER", "assistant": "SYSTEM"}
SHARE_GPT = {"user": "human", "assistant": "gpt", "system": "system"}
PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo, 猫!"}]


def turns(role, text, names=None, pairs=PAIRS):
    return [{role: names[r] if names else r, text: t} for r, t in pairs]


def parse(row):
    return parse_dialogue(json.dumps(row).encode(), "file:1")


def pairs_of(row):
    return [(segment.role, segment.text) for segment in parse(row).segments]


def test_every_format_gives_the_same_dialogue():
    messages = turns("role", "content")
    assert pairs_of({"turns": turns("role", "text")}) == PAIRS
    assert pairs_of({"conversations": turns("from", "value", SHARE_GPT)}) == PAIRS
    assert pairs_of({"messages": messages}) == PAIRS
    assert pairs_of({"messages": [*messages[:2], {"role": "assistant", "content": PARTS}, *messages[3:]]}) == PAIRS
    assert pairs_of({"messages": [{"role": "developer", "content": "Be kind."}, *messages[1:]]}) == PAIRS
    frames = [turn | {"frames": []} for turn in turns("speaker", "utterance", SGD, PAIRS[1:])]
    assert pairs_of({"dialogue_id": "1_00000", "services": [], "turns": frames}) == PAIRS[1:]


def test_only_answers_are_trained_on_and_ids_are_kept():
    assert [segment.loss for segment in parse({"messages": turns("role", "content")}).segments] == [0, 0, 1, 0, 1]
    assert parse({"id": 7, "messages": turns("role", "content")}).id == "7"
    assert parse({"dialogue_id": "1_2", "turns": turns("speaker", "utterance", SGD, PAIRS[1:])}).id == "1_2"
    assert parse({"messages": turns("role", "content")}).id == "file:1"


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "it has no list of `turns`, `conversations`, `messages`"),
        ({"turns": "Hi"}, "it has no list of"),
        ({"messages": [USER]}, "it has no turn of the assistant"),
        ({"messages": [USER, USER, {"role": "assistant", "content": "x"}]}, "two consecutive turns of user: merge"),
        (
            {"messages": [USER, {"role": "tool", "content": "x"}]},
            "turn 2 has role 'tool': give one of developer",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "turn 2 calls a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "turn 1 has a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "turn 1 has a part of type None"),
        (
            {"conversations": [{"from": "observation", "value": "x"}]},
            "turn 1 has from 'observation': give one of hu",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "turn 1 has from"),
        ({"turns": [{"speaker": "USER", "utterance": " "}]}, "turn 1 has no utterance"),
        ({"turns": [5]}, "turn 1 has role None"),
    ],
)
def test_what_cannot_be_a_spoken_dialogue_is_named(row, reason):
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        parse(row)
