import sys
from types import SimpleNamespace

import pytest

from weft.eval.words import Classifier, number_words, words_of
from weft.text.error_rate import word_errors
from weft.text.normalize import spoken_form, text_normalizer

NUMBERS = {1: "one", 20: "twenty", 21: "twenty-one", 101: "one hundred and one", 100: "one hundred", 9: "nine"}
TEXTS = (
    "She saw Ann and O'Brien.", "Dr. Ann has 9 (nine) cats!", "10 000 of 3.5", "<b> don't", "ANN SAW BOB",
    "\u201cYes,\u201d said Ann. \u201cYou?\u201d", "Zwei H\u00e4user", "1,250-odd",
)  # fmt: skip


def identity(text: str) -> str:
    return text


@pytest.fixture
def num2words(monkeypatch):
    def spell(number, lang, to="cardinal"):
        if lang != "en":
            raise NotImplementedError
        return NUMBERS.get(float(number), "umpteen and more")

    monkeypatch.setitem(sys.modules, "num2words", SimpleNamespace(num2words=spell))


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_error_rates(text):
    words, classes = Classifier(identity)(text)
    assert len(words) == len(classes) == word_errors(spoken_form(text), "")[1]
    assert word_errors(" ".join(words), spoken_form(text))[0] == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("She saw Ann and O'Brien.", ["ann", "o", "brien"]),
        ("Ann ran. Bob and Cy, too.", ["cy"]),
        ("Then Dr. Ann came.", ["dr", "ann"]),
        ("- Ann ran, and I'm here, and I.", []),
        ("He said, \u201cYou know Ann.\u201d", ["ann"]),
        ("ANN SAW BOB", []),
        ("we saw NASA and McCoy in X", ["nasa", "mccoy"]),
        ("sie sah \u00c4pfel", ["\u00e4pfel"]),
        ("\u5317\u4eac", []),
    ],
)
def test_a_name_is_capitalized_inside_a_sentence(text, names):
    words, classes = Classifier(identity)(text)
    assert [w for w, c in zip(words, classes, strict=True) if "names" in c] == names


def test_a_number_has_a_digit_or_was_normalized_from_one(num2words):
    in_english = text_normalizer("numbers", "en")
    for text, by_digit, in_words in (
        ("the 9 of nine", "the [9] of nine", "the [nine] of nine"),
        ("1.50 in mp3", "[1] [50] in [mp3]", "[umpteen] [and] [more] in [mp] [umpteen] [and] [more]"),
        ("21 and 1", "[21] and [1]", "[twenty] [one] and [one]"),
    ):
        for classify, expected in ((Classifier(identity), by_digit), (Classifier(in_english), in_words)):
            words, classes = classify(text)
            shown = " ".join(f"[{w}]" if "numbers" in c else w for w, c in zip(words, classes, strict=True))
            assert shown == expected


def test_words_of_whole_numbers_are_numbers_if_num2words_is_installed(num2words, monkeypatch):
    assert number_words("en") == {"one", "nine", "twenty", "hundred", "umpteen", "and", "more"}
    assert number_words("xx") == frozenset()
    classify = Classifier(identity, frozenset({"nine"}))
    assert [bool(c) for c in classify("the nine cats")[1]] == [False, True, False]
    assert "num2words" in classify.notes()["numbers"]
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert number_words("en") == frozenset()
    assert "num2words" not in Classifier(identity).notes()["numbers"]


def test_a_rare_word_occurs_seldom_in_training():
    seen = {"the": 900, "cat": 5, "dog": 4}
    words, classes = Classifier(identity, occurrences=seen)("The cat, the dog, the Emu.")
    assert [w for w, c in zip(words, classes, strict=True) if "rare" in c] == ["dog", "emu"]
    assert classes[-1] == {"rare", "names"}
    assert not any(Classifier(identity)("The emu.")[1])


def test_a_text_may_have_no_words():
    for text in ("", "...", "(!) \u2014", "\u00b0"):
        assert words_of(text, identity) == []
        assert Classifier(identity)(text) == ([], [])
