"""Tables of errors: known transcripts give known rates, rows add up, and a difference is of the same sentences."""

import pytest

from weft.eval.comparison import Comparison
from weft.eval.words import Classifier, words_of

TEXTS = [
    "She saw Ann.",
    "The cat sat on the mat.",
    "In 1999 the old cat saw Bob and the dog by the old mill near the sea, and all was well.",
    "Then Ann sat.",
]
HEARD = [
    "she saw pan",
    "the cat sat on mat",
    "in 1999 the old cat saw bob and a the dog by the old mill near the sea and all was well",
    "",
]


def same(text):
    return text


@pytest.fixture(scope="module")
def comparison():
    words = {word for text in TEXTS for word in words_of(text, same)}
    return Comparison(Classifier(same, occurrences=dict.fromkeys(words - {"mat", "mill", "sea"}, 5)), TEXTS)


def test_known_transcripts_give_known_rates(comparison):
    tables = comparison.tables({"model": HEARD, "speech": TEXTS})
    rates = {name: (row["sentences"], row["words"], row["model"]["rate"]) for name, row in tables["wer"].items()}
    assert rates == {
        "all": (4, 33, pytest.approx(6 / 33)),
        "1 to 5 words": (2, 6, pytest.approx(4 / 6)),
        "6 to 10 words": (1, 6, pytest.approx(1 / 6)),
        "over 20 words": (1, 21, pytest.approx(1 / 21)),
    }
    wrong = {name: (row["words"], row["model"]["rate"]) for name, row in tables["wrong_words"].items()}
    assert wrong == {
        "numbers": (1, 0),
        "names": (3, pytest.approx(2 / 3)),
        "rare": (3, 0),
        "others": (26, pytest.approx(3 / 26)),  # a, then, sat
    }
    for table in tables.values():
        for row in table.values():
            assert row["speech"]["rate"] == 0
            assert row["difference"] == row["model"]
            assert row["model"]["low"] <= row["model"]["rate"] <= row["model"]["high"]


def test_classes_leave_out_insertions_alone(comparison):
    """No word here is of two classes, so that all wrong words are all errors but the one insertion."""
    wrong = comparison.tables({"model": HEARD, "speech": TEXTS})["wrong_words"].values()
    assert sum(row["words"] for row in wrong) == 33
    assert sum(row["model"]["rate"] * row["words"] for row in wrong) == pytest.approx(6 - 1)


def test_a_difference_is_of_the_same_sentences(comparison):
    many = Comparison(Classifier(same), TEXTS * 20)
    both = {"model": HEARD * 20, "speech": HEARD * 20}
    alike = many.tables(both)["wer"]["all"]
    assert alike["model"]["high"] > alike["model"]["low"]
    assert alike["difference"] == {"rate": 0, "low": 0, "high": 0, "num_units": 660}
    ahead, behind = (
        many.tables(dict(zip(("a", "b"), pair, strict=True)))["wer"]["all"]["difference"]
        for pair in ((HEARD * 20, TEXTS * 20), (TEXTS * 20, HEARD * 20))
    )
    assert (ahead["rate"], ahead["low"]) == (-behind["rate"], pytest.approx(-behind["high"]))
    third = comparison.tables({"model": TEXTS, "speech": TEXTS, "original": HEARD})["wer"]["all"]
    assert (third["difference"]["rate"], third["original"]["rate"]) == (0, pytest.approx(6 / 33))


def test_characters_count_where_there_are_no_spaces():
    mixed = Comparison(Classifier(same), ["\u5317\u4eac\u5f88\u5927\u3002", "The cat."])
    tables = mixed.tables({"model": ["\u5317\u4eac \u5f88\u5c0f", "the cat"], "speech": ["", ""]})
    assert {name: table["all"]["model"]["rate"] for name, table in tables.items() if "all" in table} == {
        "cer": 0.25,
        "wer": 0,
    }
    assert tables["cer"]["1 to 5 characters"]["characters"] == 4
    assert tables["wrong_words"]["others"]["words"] == 2
    manner = mixed.manner([[1, 2], [1] * 6], ["x", "."], 4.0)
    assert manner == {
        "unsaid_share": 0, "empty_share": 0.5, "codes_per_word": 3, "codes_per_character": 0.5, "tokens_per_sec": 2,
    }  # fmt: skip


def test_what_was_not_said_has_no_pace(comparison):
    manner = comparison.manner([[], [1] * 12, [], []], HEARD, 2.0)
    assert manner == {"unsaid_share": 0.75, "empty_share": 0.25, "codes_per_word": 2, "tokens_per_sec": 6}
    assert "codes_per_word" not in comparison.manner([[]] * 4, [""] * 4, 1.0)


def test_numbers_count_as_they_are_said():
    def in_words(text):
        return text.replace("13", "thirteen")

    tables = Comparison(Classifier(in_words), ["13 mats"]).tables({"model": ["thirteen mats"], "speech": ["13 mats"]})
    assert tables["wer"]["all"]["model"]["rate"] == tables["wer"]["all"]["speech"]["rate"] == 0
    assert tables["wrong_words"]["numbers"]["words"] == 1
