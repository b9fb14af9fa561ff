"""Counting of bad items, and the limit above which they are an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.skipped import Skipped, map_batch
from weft.errors import UserError


def test_the_fraction_of_few_items_does_not_stop_a_running_job():
    few, many = Skipped(10, [("a", "b")]), Skipped(1500, [("a", "b")] * 300)
    few.check(0.01, early=True)
    with pytest.raises(UserError, match="11 items"):
        few.check(0.01)
    with pytest.raises(UserError, match="1800 items"):
        many.check(0.01, early=True)


def test_a_run_of_bad_items_counts_each_and_is_listed_once():
    total = Skipped()
    total.add("rows 3 to 7", "damaged", num_items=5)
    total += Skipped(95, [("row 9", "empty")])
    assert (total.num_bad, total.num_items, len(total.bad)) == (6, 101, 2)
    total.check(6 / 101)
    with pytest.raises(
        UserError, match=r"6 of 101 items are bad, .* the first is rows 3 to 7 \(damaged\)\. .*fix them$"
    ):
        total.check(5 / 101)


@pytest.mark.parametrize("error", [UserError("bad"), MemoryError(), RuntimeError("CUDA out of memory"), KeyError("id")])
def test_any_exception_skips_the_item_with_its_reason(error):
    skipped = Skipped()
    for item in ("good", "bad", "also good"):
        with skipped.on_error(item):
            if item == "bad":
                raise error
            skipped.num_good += 1
    [(where, reason)] = skipped.bad
    assert (where, skipped.num_good) == ("bad", 2)
    assert reason


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_skipped(error):
    def interrupted(_):
        raise error

    with pytest.raises(error), Skipped().on_error("a"):
        interrupted(None)
    with pytest.raises(error):
        map_batch(interrupted, "abc", Skipped(), str)


@given(st.integers(0, 40), st.sets(st.integers(0, 40)), st.integers(1, 50))
def test_a_bad_item_or_too_large_a_batch_loses_no_other_item(num_items, bad, capacity):
    def double(items):
        if len(items) > capacity:
            raise MemoryError
        if bad & set(items):
            raise ValueError("cannot be doubled")
        return [2 * i for i in items]

    skipped = Skipped()
    found = map_batch(double, range(num_items), skipped, lambda i: f"item {i}")
    assert found == [(i, 2 * i) for i in range(num_items) if i not in bad]
    assert skipped.bad == [(f"item {i}", "cannot be doubled") for i in range(num_items) if i in bad]
