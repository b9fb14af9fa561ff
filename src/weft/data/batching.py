"""Batches of items of similar length."""

from __future__ import annotations

from collections.abc import Sequence


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Group indices by similar length; the padded size of a group is at most `max_total`, unless it has one item."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= max_total:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
