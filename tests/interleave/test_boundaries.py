"""Boundaries: paragraphs, headings and list items begin words, and numbers of several words are joined."""

# ruff: noqa: RUF001 - signs in numbers
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.boundaries import joined_words, paragraph_starts
from weft.text.segment import word_ends


def paragraphs(text):
    ends = word_ends(text)
    offsets = [0, *ends.tolist()]
    places = [offsets[i] for i in paragraph_starts(text, ends)] + [len(text)]
    return [" ".join(text[a:b].split()) for a, b in pairwise(places)]


def tokens(text):
    """Return the words of a text, with those of one number joined by spaces."""
    ends = word_ends(text)
    joined = set(joined_words(text, ends).tolist())
    found = []
    for i, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        word = text[start:stop].strip()
        if i in joined:
            found[-1] += f" {word}"
        else:
            found.append(" ".join(word.split()))
    return found


WRAPPED = (
    "Once upon a time there was a man who lived by the sea, and he\n"
    "had a boat that was painted red, in which he went out to\nfish."
)


@pytest.mark.parametrize(
    "parts",
    [
        ["One line.", "\n\n", "Another line."],
        ["One line.", "\r\n \r\n\t", "Another line."],
        ["One line.", "\f", "A page."],
        ["# A heading", "\n", "Its text follows here and is longer than it."],
        [
            "A list:",
            "\n",
            "- one thing",
            "\n",
            "- another thing",
            "\n",
            "* a third",
            "\n\n",
            "1. first",
            "\n",
            "2) second",
        ],
        ["CHAPTER I", "\n", WRAPPED],
        [WRAPPED, "\n\n", WRAPPED, "\n", "— No, said he.", "\n", "> quoted"],
        ["A long line that is not wrapped. " * 9, "\n", "The next. " * 30, "\n", "The third. " * 40],
        ["Hello there.", "\n", "How do you do, old friend?", "\n", "Fine."],
    ],
)
def test_paragraphs_begin_after_blank_lines_headings_and_short_lines_and_with_list_items(parts):
    assert paragraphs("".join(parts)) == [" ".join(part.split()) for part in parts[::2]]


@pytest.mark.parametrize(
    "number",
    [
        "101 000", "101\u2009000", "1\u202f234\u202f567", "3.5 km", "20 °C", "30 %", "5 million", "6 × 10", "$ 5",
        "No. 7", "5:30 p.m.", "8 o'clock", "May 5, 2020", "5 May 2020", "5th of May", "12. März 2020",
        "3 de mayo de 2020", "10 – 20", "+1 202 555 0143", "44 BC", "1 000 km/h",
    ],
)  # fmt: skip
def test_numbers_with_their_units_and_dates_are_one_token(number):
    found = tokens(f"It was {number} or so, and 3 men saw it.")
    assert found == ["It", "was", " ".join(number.split()), "or", "so,", "and", "3", "men", "saw", "it."]


def test_dates_of_scripts_without_spaces_are_one_token():
    assert tokens("它在2020年5月3日很好")[2] == "2020 年 5 月 3 日"


def test_text_without_numbers_has_no_joined_words():
    assert not joined_words(WRAPPED, word_ends(WRAPPED)).size
    assert not joined_words("", word_ends("")).size
    assert not paragraph_starts("", word_ends("")).size


@given(st.text(alphabet="ab1 5,.\n\r\f\u2029-#>×年月", max_size=60))
def test_boundaries_of_any_text_are_words_of_it(text):
    ends = word_ends(text)
    for found in (paragraph_starts(text, ends), joined_words(text, ends)):
        assert all(0 <= i < len(ends) for i in found)
        assert sorted(set(found.tolist())) == found.tolist()


@pytest.mark.parametrize("unit", ["1 ", "5 May ", "\n", "a\n", "- \n", "5 - ", "1    ", " ", "20年", "\f", "a \n\t"])
def test_the_time_is_linear_in_the_length(unit):
    text = unit * (20_000 // len(unit))
    ends = word_ends(text)
    start_sec = time.process_time()
    paragraph_starts(text, ends)
    joined_words(text, ends)
    assert time.process_time() - start_sec < 2
