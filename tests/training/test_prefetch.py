import subprocess
import sys
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


def test_threads_beside_training_have_no_helpers_and_leave_the_training_thread_its_own() -> None:
    script = (
        "import torch\n"
        "from weft.training.prefetch import beside_training\n"
        "with beside_training(2) as threads:\n"
        "    print(*threads.map(lambda _: torch.get_num_threads(), range(4)), torch.get_num_threads())\n"
    )
    before = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    own = subprocess.run(before, capture_output=True, text=True).stdout.strip()
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.stdout.split() == ["1", "1", "1", "1", own], told.stderr
