"""Placement: spans keep their number of words, their order, and lie within one range each."""

from itertools import accumulate, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.placement import cut, place, with_whole_numbers


def intervals(lengths, gaps):
    """Return intervals of `lengths` with `gaps` before them."""
    stops = accumulate(gap + length for gap, length in zip(gaps, lengths, strict=False))
    return [(stop - length, stop) for stop, length in zip(stops, lengths, strict=False)]


def words_of(spans):
    return [word for span in spans for word in range(*span)]


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(LENGTHS, st.lists(st.integers(0, 4), min_size=12, max_size=12), st.sets(st.integers(0, 120)))
def test_ranges_are_cut_at_places_and_keep_their_words(lengths, gaps, places):
    ranges = intervals(lengths, gaps)
    result = cut(ranges, sorted(places))
    assert words_of(result) == words_of(ranges)
    assert not any(start < place < stop for start, stop in result for place in places)


@given(
    LENGTHS,
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
    LENGTHS,
    st.lists(st.integers(1, 30), min_size=12, max_size=12),
)
def test_placed_spans_lie_within_a_range_and_keep_their_number_of_words(lengths, gaps, span_lengths, span_gaps):
    ranges = intervals(lengths, gaps)
    spans = [span for span in intervals(span_lengths, span_gaps) if span[1] <= sum(lengths)]
    placed = place(spans, ranges)
    assert len(words_of(placed)) == len(words_of(spans))
    assert all(a[1] <= b[0] for a, b in pairwise(placed))
    assert all(any(start <= a and b <= stop for start, stop in ranges) for a, b in placed)


def test_a_span_is_moved_to_the_nearer_range_that_has_space_and_split_otherwise():
    ranges = [(0, 10), (10, 20)]
    assert place([(7, 11)], ranges) == [(6, 10)]
    assert place([(9, 13)], ranges) == [(10, 14)]
    assert place([(1, 6), (7, 11)], ranges) == [(1, 6), (10, 14)]
    assert place([(1, 6), (7, 11), (12, 15)], ranges) == [(1, 6), (7, 10), (10, 11), (12, 15)]
    assert place([(0, 12)], ranges) == [(0, 10), (10, 12)]


@given(LENGTHS, st.lists(st.integers(1, 9), min_size=12, max_size=12), st.sets(st.integers(1, 220)))
def test_spans_begin_and_end_outside_numbers(lengths, gaps, words):
    spans = intervals(lengths, gaps)
    joined = np.zeros(spans[-1][1] + 30, bool)
    joined[[word for word in words if word < len(joined) - 1]] = True
    result = with_whole_numbers(spans, joined)
    assert not any(joined[end] for span in result for end in span)
    assert all(start < stop for start, stop in result)
    assert all(a[1] <= b[0] for a, b in pairwise(result))
    longest = max(len(run) for run in "".join("x" if is_joined else " " for is_joined in joined).split() or [""]) + 1
    assert abs(len(words_of(result)) - len(words_of(spans))) <= 2 * longest
