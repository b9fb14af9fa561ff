"""Batches of items of similar length, and micro-batches of limited size."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heapreplace
from itertools import pairwise

import numpy as np


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by similar length; the padded size of a group is at most `max_total`, unless it has one item."""
    ordered = np.asarray(lengths, np.int64)
    order = np.argsort(ordered, kind="stable")
    ends = ends_of_batches(ordered[order], max_total)
    return [order[start:end].tolist() for start, end in pairwise([0, *ends])]


def ends_of_batches(lengths: Sequence[int] | np.ndarray, max_total: int) -> array[int]:
    """Return the ends of the groups of `batches_by_length` in sorted `lengths` (N,), N up to many millions."""
    ends, start = array("q"), 0
    while start < len(lengths):
        start += _size_of_batch(lengths, start, max_total)
        ends.append(start)
    return ends


def _size_of_batch(lengths: Sequence[int] | np.ndarray, start: int, max_total: int) -> int:
    shortest, most = int(lengths[start]), len(lengths) - start
    if shortest:
        most = min(most, max_total // shortest)
    return 1 + bisect_right(range(2, most + 1), max_total, key=lambda size: size * int(lengths[start + size - 1]))


def first_fit(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by first-fit decreasing; the length of a group is at most `max_total`, unless it has one item."""
    groups: list[list[int]] = []
    free = np.empty(len(lengths), np.int64)  # of each group
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = free[: len(groups)] >= lengths[item]
        group = int(fitting.argmax()) if groups else 0
        if not groups or not fitting[group]:
            group = len(groups)
            groups.append([])
            free[group] = max_total
        groups[group].append(item)
        free[group] -= lengths[item]
    return groups


def slices_by_length(lengths: Sequence[int], max_total: int, num: int) -> list[slice]:
    """Divide items, the shortest first, into slices of similar padded size, at most `max_total` unless of one item.

    There are at most `num` slices, or if these would be too large, at most a multiple of `num`.
    """
    most = -(-len(ends_of_batches(lengths, max_total)) // num) * num
    fits = bisect_left(range(max_total), True, key=lambda total: len(ends_of_batches(lengths, total)) <= most)
    return [slice(*both) for both in pairwise([0, *ends_of_batches(lengths, fits)])]


def groups_without_padding(lengths: Sequence[int], max_total: int, num: int, multiple: int) -> list[list[int]]:
    """Divide items into groups of similar length in total, at most `max_total` unless of one item.

    There are at most `num` groups, or if these would be too long, at most the next sufficient multiple of `multiple`.
    Each group is sorted.
    """
    fitting = first_fit(lengths, max_total)
    most = max(num, -(-len(fitting) // multiple) * multiple)
    totals, equal = [(0, group) for group in range(most)], [list[int]() for _ in range(most)]
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        total, group = totals[0]  # the shortest
        equal[group].append(item)
        heapreplace(totals, (total + lengths[item], group))
    fits = all(total <= max_total or len(equal[group]) == 1 for total, group in totals)
    return [sorted(group) for group in (equal if fits else fitting) if group]
