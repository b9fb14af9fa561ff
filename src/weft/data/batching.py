"""Batches of items of similar length, and micro-batches of limited size."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapreplace
from itertools import pairwise

import numpy as np


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by similar length; the padded size of a group is at most `max_total`, unless it has one item."""
    ordered = np.asarray(lengths, np.int64)
    order = np.argsort(ordered, kind="stable")
    ends = ends_of_batches(ordered[order], max_total).tolist()
    return [order[start:end].tolist() for start, end in pairwise([0, *ends])]


def ends_of_batches(lengths: np.ndarray, max_total: int) -> np.ndarray:
    """Return the ends of the groups of `batches_by_length` in sorted `lengths` (N,), N up to many millions."""
    ends, start = array("q"), 0
    while start < len(lengths):
        shortest, remaining = int(lengths[start]), len(lengths) - start
        most = max(1, min(remaining, max_total // shortest)) if shortest else remaining
        totals = lengths[start : start + most].astype(np.int64) * np.arange(1, most + 1)
        start += max(1, int(np.searchsorted(totals, max_total, side="right")))
        ends.append(start)
    return np.array(ends, np.int64)


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
    ordered = np.asarray(lengths, np.int64)
    most = -(-len(ends_of_batches(ordered, max_total)) // num) * num
    fits = bisect_left(range(max_total), True, key=lambda total: len(ends_of_batches(ordered, total)) <= most)
    return [slice(*both) for both in pairwise([0, *ends_of_batches(ordered, fits).tolist()])]


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
