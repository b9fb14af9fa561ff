"""Batches of items of similar length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by similar length; the padded size of a group is at most `max_total`, unless it has one item."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= max_total:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def slices_by_length(lengths: Sequence[int], max_total: int, num: int) -> list[slice]:
    """Divide items, the shortest first, into slices of similar padded size, at most `max_total` unless of one item.

    There are at most `num` slices, or if these would be too large, at most a multiple of `num`.
    """
    most = -(-len(batches_by_length(lengths, max_total)) // num) * num
    fits = bisect_left(range(max_total), True, key=lambda total: len(batches_by_length(lengths, total)) <= most)
    ends = accumulate(map(len, batches_by_length(lengths, fits)))
    return [slice(*both) for both in pairwise([0, *ends])]
