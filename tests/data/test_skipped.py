"""Counting of bad items, and the limit above which they are an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.skipped import MAX_LISTED, Skipped, map_batch
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


def test_bad_bytes_above_the_limit_are_an_error_when_the_items_are_few():
    """A lost file is one item, whatever its size."""
    total = Skipped(num_good=999, total_bytes=1000)
    total.add("large.jsonl.gz", "cannot be read to its end", num_bytes=500)
    total.check(0.5)
    total.check(0.01, early=True)
    with pytest.raises(UserError, match=r"^500 of 1000 bytes \(1 of 1000 items\) are bad, .* is large\.jsonl\.gz"):
        total.check(0.01)
    total += Skipped(num_good=1, total_bytes=99_000)
    total.check(0.01)


def test_a_task_lists_a_bounded_number_of_bad_items_and_counts_all():
    total = Skipped()
    for i in range(MAX_LISTED + 5):
        total.add(f"row {i}", "empty", num_items=2)
    assert (len(total.bad), total.num_bad) == (MAX_LISTED, 2 * MAX_LISTED + 10)


def test_entries_are_printable_and_without_credentials(tmp_path):
    skipped = Skipped()
    skipped.add("s3://key:secret@bucket/a.jsonl?X-Signature=abc row 3", "caf\udce9 \x1b[2J")
    skipped.write(tmp_path / "skipped.jsonl")
    content = (tmp_path / "skipped.jsonl").read_text()
    assert "s3://bucket/a.jsonl" in content
    assert not any(secret in content for secret in ("secret", "abc", "\x1b"))
