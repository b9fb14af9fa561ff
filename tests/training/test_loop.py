import json
from pathlib import Path

import pytest
import torch
from torch import nn

from weft.errors import UserError
from weft.training import checkpoint
from weft.training.loop import TrainConfig, discard_checkpoints, fit, learning_rate
from weft.training.metrics import MetricLog

CONFIG = TrainConfig(steps=9, lr=0.05, warmup_steps=2, checkpoint_every_steps=3, log_every_steps=1, precision="fp32")


def data(step: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def loss(m: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    error = (m(x)[:, 0] - x.sum(1)).square().mean()
    return {"loss": error, "error": error}


@pytest.mark.parametrize("killed_before", range(9))
def test_a_run_killed_at_any_step_continues_to_the_same_weights(killed_before: int, tmp_path: Path) -> None:
    whole = model()
    fit(whole, data, loss, CONFIG, tmp_path / "whole", "test")

    def dying(step: int) -> torch.Tensor:
        if step == killed_before:
            raise KeyboardInterrupt
        return data(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model(), dying, loss, CONFIG, tmp_path / "killed", "test")
    resumed = model()
    fit(resumed, data, loss, CONFIG, tmp_path / "killed", "test")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    logged = [(tmp_path / name / "log/metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert logged[0] == logged[1]


def test_the_callers_randomness_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    m = model()
    torch.manual_seed(3)
    fit(m, data, loss, CONFIG, tmp_path, "test")
    assert torch.equal(torch.rand(2), expected)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def bad(m: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": m(x).sum() * float("nan")}

    with pytest.raises(UserError, match="step 0"):
        fit(model(), data, bad, CONFIG, tmp_path, "test")


def test_only_the_newest_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (3, 6):
        checkpoint.save(tmp_path, step, {"weight": torch.full((2,), float(step))})
    (tmp_path / "step-00000009.tmp").write_bytes(b"half of a checkpoint")
    step, state = checkpoint.latest(tmp_path) or (0, {})
    assert (step, state["weight"].tolist()) == (6, [6.0, 6.0])
    assert len(list(tmp_path.glob("*.pt"))) == 1
    discard_checkpoints(tmp_path.parent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_told_as_such_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"weight": torch.zeros(2)})
    (tmp_path / "step-00000006.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 6, {"weight": torch.zeros(1 << 18)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003.pt"]


def test_learning_rate_rises_then_falls() -> None:
    for schedule in ("linear", "cosine"):
        config = TrainConfig(steps=100, lr=1.0, warmup_steps=10, min_lr_ratio=0.1, schedule=schedule)
        rates = [learning_rate(config, step) for step in range(100)]
        assert rates[9] == pytest.approx(1.0)
        assert rates[:10] == sorted(rates[:10])
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0.1 <= rates[-1] < 0.13


def test_lines_written_after_the_last_checkpoint_are_dropped(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        for step in range(5):
            log.write(step, {"loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 5, "lo')
    with MetricLog(tmp_path, from_step=3) as log:
        log.write(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert list(tmp_path.glob("events*"))
