import json
from types import SimpleNamespace

import pytest

from weft.errors import UserError
from weft.eval import cloze
from weft.eval.cloze import ClozePair, read_pairs, spoken_pairs, synthesize_texts, texts_of, write_pairs

PAIRS = [
    ClozePair("a", "Ann fishes. She waits! Does it bite?", "A trout bites.", "The oven is hot."),
    ClozePair("b", "Bob bakes", "The oven is hot.", "A trout bites."),
]
PIECES = {
    "a.0": "Ann fishes.",
    "a.1": "She waits!",
    "a.2": "Does it bite?",
    "a.right": "A trout bites.",
    "a.wrong": "The oven is hot.",
    "b.0": "Bob bakes",
    "b.right": "The oven is hot.",
    "b.wrong": "A trout bites.",
}
LINE = {"id": "c", "beginning": "Cy sails.", "right": "Wind blows.", "wrong": "Snow falls."}


def test_written_pairs_are_read_back(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(write_pairs(PAIRS) + "\n")
    assert read_pairs(tmp_path / "pairs.jsonl") == PAIRS


def test_a_story_is_spoken_sentence_by_sentence():
    assert texts_of(PAIRS) == PIECES


def test_a_failed_synthesis_gives_no_codes():
    calls = []

    def synthesize(texts, seeds, speakers):
        calls.append((texts, list(seeds), speakers))
        return [None if "bakes" in text else [] if "waits" in text else [len(text)] for text in texts]

    synthesizer = SimpleNamespace(synthesize=synthesize)
    expected = {name: [len(text)] for name, text in PIECES.items() if name not in ("b.0", "a.1")}
    assert synthesize_texts(synthesizer, PAIRS, seed=7) == expected
    synthesize_texts(synthesizer, PAIRS, seed=7, speaker="ann")
    texts = list(PIECES.values())
    assert calls == [(texts, list(range(7, 15)), None), (texts, list(range(7, 15)), ["ann"] * 8)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "line 2 is not a pair"),
        (b"[1]", "line 2 is not a pair"),
        (b'{"id": "c", "beginning": "x", "right": "y"}', "line 2 is not a pair .*wrong"),
        (json.dumps({**LINE, "extra": 1}).encode(), "line 2 is not a pair .*extra"),
        (json.dumps({**LINE, "id": None}).encode(), "line 2: `id` is '': give a string"),
        (json.dumps({**LINE, "right": " "}).encode(), "line 2: `right` is ' ': give a string that is not empty"),
        (b'{"id": "\xff"}', "line 2 is not a pair"),
    ],
)
def test_the_message_names_a_line_that_is_not_a_pair(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=f"pairs.jsonl {message}"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_the_message_names_a_file_without_pairs(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"pairs.jsonl is empty"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=r"is not a file"):
        read_pairs(tmp_path)


def test_a_pair_is_spoken_if_all_its_texts_have_codes():
    codes = {name: [i] for i, name in enumerate(PIECES)}
    assert spoken_pairs(PAIRS, codes) == PAIRS
    del codes["b.wrong"]
    assert spoken_pairs(PAIRS, codes) == PAIRS[:1]
    with pytest.raises(UserError, match="none of 1 pairs could be synthesized: give other pairs"):
        spoken_pairs(PAIRS[1:], codes)
    lm = SimpleNamespace(model=None, vocab=None)
    with pytest.raises(UserError, match=r"b.wrong has no codes"):
        cloze.measure(lm, PAIRS, codes)


def test_each_piece_has_its_codes_and_its_place_in_the_story(monkeypatch):
    calls = []
    monkeypatch.setattr(cloze, "choose_likelier", lambda model, vocab, pairs: calls.append(pairs))
    codes = {name: [i] for i, name in enumerate(PAIRS[0].texts)}
    assert list(cloze.measure(SimpleNamespace(model=None, vocab=None), PAIRS[:1], codes)) == ["T", "ST", "TS", "S"]
    (text,), (speech,) = calls[0], calls[3]
    assert [s.codes for s in (*speech.prompt, speech.right, speech.wrong)] == [[0], [1], [2], [3], [4]]
    assert "".join(s.text for s in (*text.prompt, text.right)) == f"{PAIRS[0].beginning} {PAIRS[0].right}"
