"""Batches of items of similar length, and micro-batches of limited size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapreplace
from itertools import accumulate, pairwise

import numpy as np


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by similar length; the padded size of a group is at most `max_total`, unless it has one item."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= max_total:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


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
    most = -(-len(batches_by_length(lengths, max_total)) // num) * num
    fits = bisect_left(range(max_total), True, key=lambda total: len(batches_by_length(lengths, total)) <= most)
    ends = accumulate(map(len, batches_by_length(lengths, fits)))
    return [slice(*both) for both in pairwise([0, *ends])]


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
