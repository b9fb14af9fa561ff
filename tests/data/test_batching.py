"""Batches of items of similar length."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weft.data.batching import batches_by_length, ends_of_batches, first_fit, groups_without_padding, slices_by_length


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_contain_every_item_once_within_the_limit(lengths, max_total):
    batches = batches_by_length(lengths, max_total)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_total for batch in batches)
    ordered = [(lengths[i], i) for batch in batches for i in batch]
    assert ordered == sorted(ordered)


@given(st.lists(st.integers(0, 50), max_size=60).map(sorted), st.integers(1, 300))
def test_the_ends_of_batches_are_those_of_adding_one_item_after_the_other(lengths, max_total):
    groups = []
    for length in lengths:
        if groups and (len(groups[-1]) + 1) * length <= max_total:
            groups[-1].append(length)
        else:
            groups.append([length])
    ends = ends_of_batches(np.array(lengths, np.int32), max_total).tolist()
    assert [lengths[start:end] for start, end in zip([0, *ends], ends, strict=False)] == groups


def test_a_batch_is_filled_before_the_next():
    assert batches_by_length([5, 1, 4, 1], max_total=10) == [[1, 3], [2, 0]]
    assert batches_by_length([5, 1, 4, 1], max_total=12) == [[1, 3, 2], [0]]
    assert batches_by_length([30, 2], max_total=10) == [[1], [0]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40).map(sorted), st.integers(1, 200), st.integers(1, 6))
def test_slices_contain_every_item_once_within_the_limit_and_are_balanced(lengths, max_total, num):
    slices = slices_by_length(lengths, max_total, num)
    assert [i for part in slices for i in range(*part.indices(len(lengths)))] == list(range(len(lengths)))
    sizes = [len(lengths[part]) * lengths[part][-1] for part in slices]
    assert all(len(lengths[part]) == 1 or size <= max_total for part, size in zip(slices, sizes, strict=True))
    fewest = len(batches_by_length(lengths, max_total))
    assert len(slices) <= -(-fewest // num) * num
    # No division into as many slices has a smaller largest one.
    assert len(batches_by_length(lengths, max(sizes) - 1)) > -(-fewest // num) * num or max(sizes) <= max(lengths)


def test_items_that_fit_one_slice_per_process_are_divided_evenly():
    assert slices_by_length([10] * 6, max_total=60, num=2) == [slice(0, 3), slice(3, 6)]
    assert slices_by_length([9] * 11, max_total=50, num=2) == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 11)]
    assert slices_by_length([1, 1, 1, 1, 4], max_total=10, num=2) == [slice(0, 4), slice(4, 5)]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 6), st.integers(1, 4))
def test_groups_without_padding_contain_every_item_once_within_the_limit(lengths, max_total, ranks, per_rank):
    for groups in (
        first_fit(lengths, max_total),
        groups_without_padding(lengths, max_total, ranks * per_rank, ranks),
    ):
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        assert all(groups)
        assert all(len(group) == 1 or sum(lengths[i] for i in group) <= max_total for group in groups)
    fewest = len(first_fit(lengths, max_total))
    assert len(groups) <= max(ranks * per_rank, -(-fewest // ranks) * ranks)


def test_groups_without_padding_are_balanced_and_sorted():
    assert groups_without_padding([5, 1, 4, 2], 100, num=2, multiple=1) == [[0, 1], [2, 3]]
    assert groups_without_padding([2] * 6, 5, num=2, multiple=2) == [[0, 4], [1, 5], [2], [3]]
    assert groups_without_padding([9, 1, 1], 4, num=1, multiple=1) == [[0], [1, 2]]
    # Only first-fit finds groups this full.
    assert groups_without_padding([3, 3, 2, 2, 2], 6, num=2, multiple=2) == [[0, 1], [2, 3, 4]]
