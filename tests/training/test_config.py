from typing import Any

import pytest

from weft.training.config import TrainConfig


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_rises_during_the_warm_up_and_then_falls(schedule: Any) -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=10, min_lr_ratio=0.1, schedule=schedule)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[9] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.13


def test_logs_are_regular_and_include_the_last_step() -> None:
    config = TrainConfig(steps=9, log_every_steps=3)
    assert [step for step in range(9) if config.is_logged(step)] == [0, 3, 6, 8]


def test_checkpoints_are_regular_and_none_follows_the_last_step() -> None:
    config = TrainConfig(steps=9, checkpoint_every_steps=3)
    assert [step for step in range(9) if config.is_checkpointed(step)] == [2, 5, 8]
