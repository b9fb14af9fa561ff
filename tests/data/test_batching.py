"""Batches of items of similar length."""

from hypothesis import given
from hypothesis import strategies as st

from weft.data.batching import batches_by_length


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_contain_every_item_once_within_the_limit(lengths, max_total):
    batches = batches_by_length(lengths, max_total)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_total for batch in batches)
    ordered = [(lengths[i], i) for batch in batches for i in batch]
    assert ordered == sorted(ordered)


def test_a_batch_is_filled_before_the_next():
    assert batches_by_length([5, 1, 4, 1], max_total=10) == [[1, 3], [2, 0]]
    assert batches_by_length([5, 1, 4, 1], max_total=12) == [[1, 3, 2], [0]]
    assert batches_by_length([30, 2], max_total=10) == [[1], [0]]
