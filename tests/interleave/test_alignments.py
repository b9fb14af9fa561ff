"""Aligned words match their transcript as it is written, and no other one."""

from __future__ import annotations

import pytest

from weft.errors import UserError
from weft.interleave.alignments import _word_ends


@pytest.mark.parametrize(
    ("text", "words", "cut"),
    [
        ("Then, he left.", ["then", "he", "left"], ["Then,", " he", " left."]),
        ('"A café," said I', ["A", "cafe", "SAID", "i"], ['"A', ' café,"', " said", " I"]),
        ("A self-made man", ["a", "self", "made", "man"], ["A", " self-", "made", " man"]),
        ("in-between us", ["inbetween", "us"], ["in-between", " us"]),
        ("我们今天很好，谢谢。", ["我们", "今天", "很好", "谢谢"], ["我们", "今天", "很好，", "谢谢。"]),  # noqa: RUF001
        ("UNEX PECTED quarters, too", ["<unk>", "<unk>", "quarters", "too"], ["UNEX", " PECTED", " quarters,", " too"]),
        (
            "NAMED Fauchelevent as Cosette's, no?",
            ["named", "<unk>", "as", "cosette", "s", "no"],
            ["NAMED", " Fauchelevent", " as", " Cosette'", "s,", " no?"],
        ),
        ("one - two", ["<unk>", "two"], ["one", " - two"]),
    ],
)
def test_aligned_words_are_found_in_the_transcript(text: str, words: list[str], cut: list[str]) -> None:
    ends = _word_ends(text, words).tolist()
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == cut


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("he left", ["she", "left"]),
        ("he left", ["he"]),
        ("he left", ["<unk>"]),
        ("heleft", ["<unk>", "left"]),
        ("he left", ["[noise]"] * 3),
        ("?!", ["a"]),
    ],
)
def test_words_of_another_transcript_are_an_error(text: str, words: list[str]) -> None:
    with pytest.raises(UserError, match="its aligned words differ from its transcript"):
        _word_ends(text, words)
