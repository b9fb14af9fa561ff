from dataclasses import replace

import pytest

from tests.training.test_loop import CONFIG
from weft.errors import UserError
from weft.training import distributed
from weft.training.prefetch import Prefetch

ASKED = [(step, distributed.share(i, 3)) for step in range(5) for i in range(3)]


@pytest.mark.parametrize("first", [0, 1, 4, 14])
def test_what_is_made_ahead_is_what_is_asked_for(first: int) -> None:
    """From any step on, as after a resume, each batch once, and nothing past the last step."""
    made = []

    def batch_at(step: int, part: slice) -> tuple[int, slice] | None:
        made.append((step, part))
        return None if step == 2 else (step, part)

    with Prefetch(batch_at, replace(CONFIG, steps=5, accumulate=3)) as ahead:
        for asked in ASKED[first:]:
            assert ahead.batch_at(*asked) == batch_at(*asked)
            made.remove(asked)
    assert made == ASKED[first:]


def test_steps_out_of_order_are_answered_too() -> None:
    with Prefetch(lambda step, part: step, replace(CONFIG, steps=9)) as ahead:
        for step in (0, 1, 5, 6, 2, 2, 8, 3):
            assert ahead.batch_at(step, slice(0, None, 1)) == step
        assert ahead.batch_at(4, slice(1, 3)) == 4


def test_what_goes_wrong_is_raised_at_its_step() -> None:
    def batch_at(step: int, part: slice) -> int:
        if step == 2:
            raise UserError("item 17 is bad")
        return step

    with Prefetch(batch_at, CONFIG) as ahead:
        assert [ahead.batch_at(step, distributed.share()) for step in range(2)] == [0, 1]
        with pytest.raises(UserError, match="item 17"):
            ahead.batch_at(2, distributed.share())
