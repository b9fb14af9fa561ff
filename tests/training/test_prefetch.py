import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.training.models import CONFIG
from weft.errors import UserError
from weft.training import distributed
from weft.training.prefetch import Prefetch

KEYS = [(step, distributed.rank_slice(i, 3)) for step in range(5) for i in range(3)]


@pytest.mark.parametrize("first", [0, 1, 4, 14])
def test_each_batch_is_prepared_once_and_in_order(first: int) -> None:
    """From any step on, as after a resume, and no batch after the last step."""
    prepared = []

    def batch_at(step: int, part: slice) -> tuple[int, slice] | None:
        prepared.append((step, part))
        return None if step == 2 else (step, part)

    with Prefetch(batch_at, replace(CONFIG, steps=5, grad_accum_steps=3)) as prefetch:
        for key in KEYS[first:]:
            assert prefetch.batch_at(*key) == batch_at(*key)
            prepared.remove(key)
    assert prepared == KEYS[first:]


def test_steps_may_have_parts_of_their_own() -> None:
    def parts_of(step: int) -> list[slice]:
        return [slice(2 * i, 2 * i + 2) for i in range(step % 3)]

    keys = [(step, part) for step in range(9) for part in parts_of(step)]
    prepared = []
    with Prefetch(lambda *key: prepared.append(key) or key, replace(CONFIG, steps=9), parts_of) as prefetch:
        assert [prefetch.batch_at(*key) for key in keys] == keys
    assert prepared == keys


def test_steps_may_be_requested_out_of_order() -> None:
    with Prefetch(lambda step, part: step, replace(CONFIG, steps=9)) as prefetch:
        for step in (0, 1, 5, 6, 2, 2, 8, 3):
            assert prefetch.batch_at(step, slice(0, None, 1)) == step
        assert prefetch.batch_at(4, slice(1, 3)) == 4


def test_an_error_is_raised_at_its_step() -> None:
    def batch_at(step: int, part: slice) -> int:
        if step == 2:
            raise UserError("item 17 is bad")
        return step

    with Prefetch(batch_at, CONFIG) as prefetch:
        assert [prefetch.batch_at(step, distributed.rank_slice()) for step in range(2)] == [0, 1]
        with pytest.raises(UserError, match="item 17"):
            prefetch.batch_at(2, distributed.rank_slice())


def test_data_threads_use_one_core_each_and_the_training_thread_keeps_its_own() -> None:
    script = (
        "import torch\n"
        "from weft.training.prefetch import data_threads\n"
        "with data_threads(2) as threads:\n"
        "    print(*threads.map(lambda _: torch.get_num_threads(), range(4)), torch.get_num_threads())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert found.stdout.split() == ["1", "1", "1", "1", "2"], found.stderr
