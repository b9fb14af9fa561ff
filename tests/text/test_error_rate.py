"""Word and character error rates: counts, bootstrap intervals and alignments."""

import pytest

from weft.errors import UserError
from weft.text.error_rate import (
    Errors,
    align,
    character_error_rate,
    character_errors,
    count_errors,
    pooled,
    split_by_words,
    word_error_rate,
    word_errors,
)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "words"),
    [
        ("the cat sat down", "the cat sat down", 0, 4),
        ("The cat, sat DOWN!", "the cat sat down", 0, 4),
        ("the cat sat down", "the dog sat", 2, 4),
        ("the cat", "a the big cat there", 3, 2),
        ("the cat", "", 2, 2),
        ("", "some noise words", 3, 0),
        ("...", "", 0, 0),
        ("Où est-il ?", "où est il", 0, 3),
    ],
)
def test_errors_are_counted_after_normalization(reference, hypothesis, errors, words):
    assert word_errors(reference, hypothesis) == (errors, words)


def test_the_rate_is_pooled_over_words_and_lies_in_its_interval():
    references = ["one two three four", "five", "six seven"] * 10
    hypotheses = ["one two three four", "six", "six"] * 10
    found = word_error_rate(references, hypotheses)
    assert found.rate == pytest.approx(2 / 7)
    assert found.num_units == 70
    assert 0 < found.low < found.rate < found.high < 1
    assert word_error_rate(references, hypotheses) == found
    perfect = word_error_rate(references, references)
    assert (perfect.rate, perfect.low, perfect.high) == (0, 0, 0)


@pytest.mark.parametrize("rate", [word_error_rate, character_error_rate])
def test_references_without_words_do_not_count(rate):
    references, hypotheses = ["one two", "three"], ["one", "three"]
    silent = ["", "...", "%"]
    assert rate([*references, *silent], [*hypotheses, "noise", "", "a"]) == rate(references, hypotheses)
    assert split_by_words([*references, None, *silent], lambda text: text) == (references, [None, *silent])


def test_words_in_brackets_count():
    assert word_errors("(he said) [laughs] <um> 5 < 7", "he said laughs um 5 7") == (0, 6)


def test_the_unit_is_that_of_the_script():
    assert count_errors("The cat", "cat") == Errors(1, 2, in_characters=False)
    assert count_errors("今天天气", "今天") == Errors(2, 4, in_characters=True)


@pytest.mark.parametrize("references", [[], [""], ["", "?!"]])
def test_references_without_words_are_rejected(references):
    with pytest.raises(UserError, match="the reference transcripts contain no words: give speech with transcripts"):
        word_error_rate(references, ["words"] * len(references))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "characters"),
    [
        ("今天天气很好。", "今天天氣好", 2, 6),
        ("今天 天气", "今 天天 气", 0, 4),
        ("The cat!", "the hat", 1, 6),
        ("", "ab c", 3, 0),
    ],
)
def test_characters_are_counted_without_spaces(reference, hypothesis, errors, characters):
    assert character_errors(reference, hypothesis) == (errors, characters)


def test_the_character_rate_is_pooled_over_characters():
    found = character_error_rate(["今天天气", "好"], ["今天天", "好"])
    assert (found.rate, found.num_units) == (pytest.approx(1 / 5), 5)
    assert 0 <= found.low <= found.rate <= found.high <= 1


def test_words_are_aligned_with_the_fewest_errors():
    words, others = ["one", "two", "two", "three"], ["two", "one", "two", "tree", "three"]
    assert [others[i] if i is not None else None for i in align(words, others)] == ["one", "two", None, "three"]
    assert align(words, words) == [0, 1, 2, 3]
    assert align(words, []) == [None] * 4
    assert align([], words) == []


def test_differences_of_errors_pool_to_the_difference_of_the_rates():
    first, second = [(3, 4), (1, 1), (0, 5)] * 9, [(1, 4), (1, 1), (2, 5)] * 9
    difference = pooled([(a - b, n) for (a, n), (b, _) in zip(first, second, strict=True)])
    assert difference.rate == pooled(first).rate - pooled(second).rate == 0
    assert difference.low < 0 < difference.high
