"""Counting of bad items, and the limit above which they are an error."""

import pytest

from weft.data.skipped import Skipped
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
