"""Whole runs with skipped steps are tested in test_loop."""

import math

import pytest

from tests.training.models import CONFIG
from weft.errors import UserError
from weft.training.config import TrainConfig
from weft.training.guard import StepGuard

SPIKES = TrainConfig(steps=1000, spike_factor=10.0)


def test_a_norm_that_is_not_finite_is_skipped_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    guard = StepGuard(CONFIG)
    assert guard.should_step(0, 1.0, "lm")
    assert guard.last_step_ok
    for step, norm in ((1, math.nan), (2, math.inf)):
        assert not guard.should_step(step, norm, "lm")
        assert not guard.last_step_ok
    assert guard.should_step(3, 1.0, "lm")
    assert guard.last_step_ok
    assert guard.skipped_steps == 2
    assert capsys.readouterr().err.splitlines() == [
        f"weft: step {step} is skipped: the loss or its gradient is not finite" for step in (1, 2)
    ]


def test_a_spike_is_a_multiple_of_the_median_of_steps_that_were_not_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    guard = StepGuard(SPIKES)
    assert all(guard.should_step(step, 2.0, "") for step in range(63))
    assert guard.should_step(63, 1e6, "")  # too few steps for a median
    assert guard.should_step(64, 20.0, "")
    assert not guard.should_step(65, 20.1, "")
    assert "step 65 is skipped: the gradient norm 20.1 is more than 10 times its median 2" in capsys.readouterr().err
    assert all(guard.should_step(step, 1.0, "") for step in range(66, 66 + 128))
    assert not guard.should_step(200, 10.1, "")  # the window has moved


def test_spikes_are_not_skipped_by_default() -> None:
    guard = StepGuard(TrainConfig(steps=1000))
    assert all(guard.should_step(step, 1.0, "") for step in range(100))
    assert guard.should_step(100, 1e9, "")


@pytest.mark.parametrize(
    ("max_skipped_steps", "num_ok", "where"),
    [(0, 4, "at step 4"), (2, 4, "at all steps from 4 to 6"), (5, 0, "at all steps from 0 to 5")],
)
def test_too_many_skipped_steps_in_a_row_stop_the_run(max_skipped_steps: int, num_ok: int, where: str) -> None:
    guard = StepGuard(TrainConfig(steps=100, max_skipped_steps=max_skipped_steps))
    assert all(guard.should_step(step, 1.0, "lm") for step in range(num_ok))
    for step in range(num_ok, num_ok + max_skipped_steps):
        assert not guard.should_step(step, math.nan, "lm")
    with pytest.raises(UserError, match=f"lm: the loss or its gradient is not finite {where}: start again"):
        guard.should_step(num_ok + max_skipped_steps, math.nan, "lm")


def test_a_run_without_any_step_that_is_not_skipped_fails() -> None:
    guard = StepGuard(TrainConfig(steps=2))
    assert not guard.should_step(0, math.nan, "lm")
    with pytest.raises(UserError, match="at all steps from 0 to 1"):
        guard.should_step(1, math.nan, "lm")


def test_a_restored_guard_decides_as_the_saved_one() -> None:
    guard, restored = StepGuard(SPIKES), StepGuard(SPIKES)
    for step in range(100):
        guard.should_step(step, 1.0 + step % 5, "")
    guard.should_step(100, math.nan, "")
    guard.should_step(101, 0.0, "")  # a step without data is not counted in the median
    restored.load_state_dict(guard.state_dict())
    assert restored.skipped_steps == guard.skipped_steps == 1
    assert restored.state_dict()["norms"].tolist() == guard.state_dict()["norms"].tolist()
    for norm in (29.9, 30.1):
        assert restored.should_step(102, norm, "") == guard.should_step(102, norm, "") == (norm < 30)
