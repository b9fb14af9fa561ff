"""Placement of spans, sampled over the speakable words of a document, between the places where they must end.

ranges = cut([(0, 9), (12, 40)], [20])      # [(0, 9), (12, 20), (20, 40)]: of speakable words, by paragraph
place([(1, 6), (14, 22)], ranges)           # [(1, 6), (20, 28)]: the second is moved to the next paragraph
with_whole_numbers([(20, 28)], joined)      # [(20, 27)] if word 28 belongs to the number that word 27 begins
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise

import numpy as np

Span = tuple[int, int]
"""A range of words, [start, stop)."""


def cut(ranges: list[Span], places: list[int]) -> list[Span]:
    """Split ranges at places, both in order."""
    result: list[Span] = []
    for start, stop in ranges:
        inner = places[bisect_right(places, start) : bisect_left(places, stop)]
        result += pairwise([start, *inner, stop])
    return result


def place(spans: list[Span], ranges: list[Span]) -> list[Span]:
    """Map spans over the concatenated words of `ranges` to words of the document, each within one range.

    A span that would leave its range is moved, or split if there is no space for it between the others.
    """
    return _map_into(_moved_into(spans, ranges), ranges)


def _moved_into(spans: list[Span], ranges: list[Span]) -> list[Span]:
    """Move spans over the concatenated words of `ranges` by as little as possible so that each lies in one range.

    One that would touch another, or that is longer than the ranges, stays where it is.
    """
    edges = list(accumulate((stop - start for start, stop in ranges), initial=0))
    result: list[Span] = []
    for (start, stop), (following, _) in pairwise([*spans, (edges[-1] + 1, 0)]):
        first, last = bisect_right(edges, start) - 1, bisect_left(edges, stop) - 1  # of its first and its last word
        left, right = edges[first + 1] - stop, edges[last] - start  # the moves to the end and to the start of a range
        fits_left = start + left >= edges[first] and start + left > (result[-1][1] if result else -1)
        fits_right = stop + right <= edges[last + 1] and stop + right < following
        if first < last and (fits_left or fits_right):
            move = left if fits_left and (not fits_right or -left <= right) else right
            start, stop = start + move, stop + move
        result.append((start, stop))
    return result


def _map_into(spans: list[Span], ranges: list[Span]) -> list[Span]:
    """Map spans over the concatenated words of `ranges` to words of the document, split at the ends of ranges."""
    if len(ranges) == 1:
        return [(start + ranges[0][0], stop + ranges[0][0]) for start, stop in spans]
    result: list[Span] = []
    remaining = iter(ranges)
    current, before = (0, 0), 0  # a range, and the number of words in the ranges before it
    for start, stop in spans:
        while start < stop:
            while start >= before + current[1] - current[0]:
                before += current[1] - current[0]
                current = next(remaining)
            end = min(stop, before + current[1] - current[0])
            result.append((current[0] + start - before, current[0] + end - before))
            start = end
    return result


def with_whole_numbers(spans: list[Span], joined: np.ndarray) -> list[Span]:
    """Move the ends of spans that are inside a number before or after it, so that the total hardly changes.

    `joined` (N + 1,) says which of the N words belong to the number before them.
    """
    places: dict[int, int] = {}  # of all ends inside a number, by its first word
    excess = 0  # words
    result: list[Span] = []
    for span in spans:
        moved = list(span)
        for i, end in enumerate(span):
            if not joined[end]:
                continue
            low = high = end
            while joined[low]:
                low -= 1
            while joined[high]:
                high += 1
            gains = {p: (p - end) * (1 if i else -1) for p in (low, high)}
            moved[i] = places.setdefault(low, min(gains, key=lambda p: abs(excess + gains[p])))
            excess += gains[moved[i]]
        if moved[0] < moved[1]:
            result.append((moved[0], moved[1]))
    return result
