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
NAMES = ("beginning", "right", "wrong")
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
        (b'{"id": "d", "beginning": "x", "right": "y"}', "line 2 is not a pair .*wrong"),
        (json.dumps({**LINE, "extra": 1}).encode(), "line 2 is not a pair .*extra"),
        (json.dumps({**LINE, "id": None}).encode(), "line 2: `id` is '': give a string"),
        (json.dumps({"id": "c", "right_audio": "a.wav"}).encode(), "line 2 is not a pair .no wrong.: give wrong or"),
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
    with pytest.raises(UserError, match=r"b.wrong has no codes"):
        cloze.measure(LM, PAIRS, codes)


LM = SimpleNamespace(model=None, vocab=None)


def test_each_piece_has_its_codes_and_its_place_in_the_story(monkeypatch):
    calls = []
    monkeypatch.setattr(cloze, "score_pairs", lambda model, vocab, pairs, one_modality: calls.append(pairs))
    codes = {name: [i] for i, name in enumerate(PAIRS[0].texts)}
    assert list(cloze.measure(LM, PAIRS[:1], codes)) == ["TT", "ST", "TS", "SS"]
    (text,), (speech,) = calls[0], calls[3]
    assert [s.codes for s in (*speech.prompt, speech.right, speech.wrong)] == [[0], [1], [2], [3], [4]]
    assert "".join(s.text for s in (*text.prompt, text.right)) == f"{PAIRS[0].beginning} {PAIRS[0].right}"


def test_recordings_are_used_instead_of_synthesis(tmp_path, monkeypatch):
    row = {**LINE, "beginning_audio": "a.wav", "right_audio": "b.wav", "wrong_audio": "c.wav", "voice": "joe"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    [pair] = read_pairs(tmp_path / "pairs.jsonl")
    assert pair.texts == {}
    assert pair.recordings == {f"c.{n}": str(tmp_path / f"{f}.wav") for n, f in zip(NAMES, "abc", strict=True)}
    calls = []
    monkeypatch.setattr(cloze, "score_pairs", lambda model, vocab, pairs, one_modality: calls.append(pairs[0]))
    cloze.measure(LM, [pair], {f"c.{name}": [i] for i, name in enumerate(NAMES)}, ["SS", "TS"])
    assert [s.codes for s in (*calls[0].prompt, calls[0].right, calls[0].wrong)] == [[0], [1], [2]]
    assert [s.text or s.codes for s in (*calls[1].prompt, calls[1].right)] == ["Cy sails.", " Wind blows."]


def test_pairs_without_texts_are_measured_in_speech_only(tmp_path, monkeypatch):
    """As those of sWUGGY, which have no beginning."""
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": "w", "right_audio": "a.wav", "wrong_audio": "b.wav"}))
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    codes = {"w.right": [1], "w.wrong": [2]}
    monkeypatch.setattr(cloze, "score_pairs", lambda model, vocab, pairs, one_modality: pairs)
    assert cloze.measure(LM, pairs, codes, ["SS"])["SS"][0].prompt == ()
    with pytest.raises(UserError, match="pair w has no text of `right`: measure only directions in which it is speech"):
        cloze.measure(LM, pairs, codes, ["ST"])


def test_ids_are_unique(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(2 * (json.dumps(LINE) + "\n"))
    with pytest.raises(UserError, match="has the id 'c' twice"):
        read_pairs(tmp_path / "pairs.jsonl")
