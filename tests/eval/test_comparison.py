import pytest

from weft.eval.comparison import Comparison
from weft.eval.words import Classifier, words_of

TEXTS = [
    "She saw Ann.",
    "The cat sat on the mat.",
    "In 1999 the old cat saw Bob and the dog by the old mill near the sea, and all was well.",
    "Then Ann sat.",
]
TRANSCRIPTS = [
    "she saw pan",
    "the cat sat on mat",
    "in 1999 the old cat saw bob and a the dog by the old mill near the sea and all was well",
    "",
]


def identity(text):
    return text


@pytest.fixture(scope="module")
def comparison():
    words = {word for text in TEXTS for word in words_of(text, identity)}
    return Comparison(Classifier(identity, occurrences=dict.fromkeys(words - {"mat", "mill", "sea"}, 5)), TEXTS)


def test_known_transcripts_give_known_rates(comparison):
    tables = comparison.tables({"model": TRANSCRIPTS, "speech": TEXTS})
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


def test_wrong_words_are_all_errors_except_insertions(comparison):
    """No word of these texts has two classes, and there is one insertion."""
    wrong = comparison.tables({"model": TRANSCRIPTS, "speech": TEXTS})["wrong_words"].values()
    assert sum(row["words"] for row in wrong) == 33
    assert sum(row["model"]["rate"] * row["words"] for row in wrong) == pytest.approx(6 - 1)


def test_a_difference_is_paired_by_sentence(comparison):
    repeated = Comparison(Classifier(identity), TEXTS * 20)
    both = {"model": TRANSCRIPTS * 20, "speech": TRANSCRIPTS * 20}
    alike = repeated.tables(both)["wer"]["all"]
    assert alike["model"]["high"] > alike["model"]["low"]
    assert alike["difference"] == {"rate": 0, "low": 0, "high": 0, "num_units": 660}
    first, second = (
        repeated.tables(dict(zip(("a", "b"), pair, strict=True)))["wer"]["all"]["difference"]
        for pair in ((TRANSCRIPTS * 20, TEXTS * 20), (TEXTS * 20, TRANSCRIPTS * 20))
    )
    assert (first["rate"], first["low"]) == (-second["rate"], pytest.approx(-second["high"]))
    third = comparison.tables({"model": TEXTS, "speech": TEXTS, "original": TRANSCRIPTS})["wer"]["all"]
    assert (third["difference"]["rate"], third["original"]["rate"]) == (0, pytest.approx(6 / 33))


def test_errors_are_counted_in_characters_for_scripts_without_spaces():
    mixed = Comparison(Classifier(identity), ["\u5317\u4eac\u5f88\u5927\u3002", "The cat."])
    tables = mixed.tables({"model": ["\u5317\u4eac \u5f88\u5c0f", "the cat"], "speech": ["", ""]})
    assert {name: table["all"]["model"]["rate"] for name, table in tables.items() if "all" in table} == {
        "cer": 0.25,
        "wer": 0,
    }
    assert tables["cer"]["1 to 5 characters"]["characters"] == 4
    assert tables["wrong_words"]["others"]["words"] == 2
    metrics = mixed.code_metrics([[1, 2], [1] * 6], ["x", "."], 4.0)
    assert metrics == {
        "unsaid_share": 0, "empty_share": 0.5, "codes_per_word": 3, "codes_per_character": 0.5, "tokens_per_sec": 2,
    }  # fmt: skip


def test_a_sentence_without_codes_is_left_out_of_the_pace(comparison):
    metrics = comparison.code_metrics([[], [1] * 12, [], []], TRANSCRIPTS, 2.0)
    assert metrics == {"unsaid_share": 0.75, "empty_share": 0.25, "codes_per_word": 2, "tokens_per_sec": 6}
    assert "codes_per_word" not in comparison.code_metrics([[]] * 4, [""] * 4, 1.0)


def test_numbers_are_compared_as_they_are_spoken():
    def in_words(text):
        return text.replace("13", "thirteen")

    tables = Comparison(Classifier(in_words), ["13 mats"]).tables({"model": ["thirteen mats"], "speech": ["13 mats"]})
    assert tables["wer"]["all"]["model"]["rate"] == tables["wer"]["all"]["speech"]["rate"] == 0
    assert tables["wrong_words"]["numbers"]["words"] == 1
