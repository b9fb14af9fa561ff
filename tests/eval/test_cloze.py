"""Topic-cloze: pairs are read as they were written, and each piece of them is spoken once and in order."""

import json
from types import SimpleNamespace

import pytest

from weft.errors import UserError
from weft.eval import cloze
from weft.eval.cloze import ClozePair, lines_of, read_pairs, spoken_pairs, write_pairs

PAIRS = [
    ClozePair("a", "Ann fishes. She waits! Does it bite?", "A trout bites.", "The oven is hot."),
    ClozePair("b", "Bob bakes", "The oven is hot.", "A trout bites."),
]
LINE = {"id": "c", "beginning": "Cy sails.", "right": "Wind blows.", "wrong": "Snow falls."}


def test_pairs_survive_their_file(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(write_pairs(PAIRS) + "\n")
    assert read_pairs(tmp_path / "pairs.jsonl") == PAIRS


def test_a_story_is_spoken_sentence_by_sentence():
    assert {line.id: line.text for line in lines_of(PAIRS, "espeak:en-us")} == {
        "a.0": "Ann fishes.",
        "a.1": "She waits!",
        "a.2": "Does it bite?",
        "a.right": "A trout bites.",
        "a.wrong": "The oven is hot.",
        "b.0": "Bob bakes",
        "b.right": "The oven is hot.",
        "b.wrong": "A trout bites.",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "line 2 is not a pair"),
        (b"[1]", "line 2 is not a pair"),
        (b'{"id": "c", "beginning": "x", "right": "y"}', "line 2 is not a pair .*wrong"),
        (json.dumps({**LINE, "extra": 1}).encode(), "line 2 is not a pair .*extra"),
        (json.dumps({**LINE, "id": 3}).encode(), "line 2: `id` is 3: give a string"),
        (json.dumps({**LINE, "right": " "}).encode(), "line 2: `right` is ' ': give a string that is not empty"),
        (b'{"id": "\xff"}', "line 2 is not a pair"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=f"pairs.jsonl {message}"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_a_file_without_pairs_is_named(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"pairs.jsonl is empty"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=r"is no file"):
        read_pairs(tmp_path)


def test_a_pair_counts_when_all_of_it_was_spoken(monkeypatch):
    codes = {name: [i] for i, name in enumerate(n for pair in PAIRS for n in pair.pieces)}
    assert spoken_pairs(PAIRS, codes) == PAIRS
    del codes["b.wrong"]
    assert spoken_pairs(PAIRS, codes) == PAIRS[:1]
    with pytest.raises(UserError, match="no pair could be spoken whole"):
        spoken_pairs(PAIRS[1:], codes)
    lm = SimpleNamespace(model=None, vocab=None)
    with pytest.raises(UserError, match=r"b.wrong of the pairs was not spoken"):
        cloze.measure(lm, PAIRS, codes)


def test_the_likelihood_sees_the_codes_of_each_piece_in_its_place(monkeypatch):
    asked = []

    def choose(model, vocab, pairs):
        asked.append(pairs)
        return None

    monkeypatch.setattr(cloze, "choose_likelier", choose)
    codes = {name: [i] for i, name in enumerate(PAIRS[0].pieces)}
    assert list(cloze.measure(SimpleNamespace(model=None, vocab=None), PAIRS[:1], codes)) == ["T", "ST", "TS", "S"]
    (text,), (speech,) = asked[0], asked[3]
    assert [s.codes for s in (*speech.prompt, speech.right, speech.wrong)] == [[0], [1], [2], [3], [4]]
    assert "".join(s.text for s in (*text.prompt, text.right)) == f"{PAIRS[0].beginning} {PAIRS[0].right}"
