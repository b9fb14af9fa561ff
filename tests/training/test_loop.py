import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from weft.errors import UserError
from weft.training import checkpoint
from weft.training.guard import Guard
from weft.training.loop import TrainConfig, fit, learning_rate
from weft.training.metrics import MetricLog, read_metrics
from weft.training.optimizers import Optimizers

CONFIG = TrainConfig(steps=9, lr=0.05, warmup_steps=2, checkpoint_every_steps=3, log_every_steps=1, precision="fp32")


def data(step: int, part: slice = slice(None)) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))[part]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def loss(m: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    error = (m(x)[:, 0] - x.sum(1)).square().mean()
    return {"loss": error, "error": error}


class Layered(nn.Module):
    """A model with a list of layers, whose matrices are Muon's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("killed_before", range(9))
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_at_any_step_continues_to_the_same_weights(
    killed_before: int, optimizer: Literal["adamw", "muon"], tmp_path: Path
) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    whole = Layered()
    fit(whole, data, loss, config, tmp_path / "whole", "test")

    def dying(step: int, part: slice) -> torch.Tensor:
        if step == killed_before:
            raise KeyboardInterrupt
        return data(step, part)

    with pytest.raises(KeyboardInterrupt):
        fit(Layered(), dying, loss, config, tmp_path / "killed", "test")
    resumed = Layered()
    fit(resumed, data, loss, config, tmp_path / "killed", "test")
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


class Harmful:
    """Data and loss of a run some of whose steps have a loss that is not finite, or a gradient a million times too big.

    In step 2 only the loss shows it: a constant has no gradient.
    """

    def __init__(self, *bad: int, spikes: tuple[int, ...] = (), killed_before: int = -1) -> None:
        self.bad, self.spikes, self.killed_before = bad, spikes, killed_before

    def data(self, step: int, part: slice = slice(None)) -> torch.Tensor:
        if step == self.killed_before:
            raise KeyboardInterrupt
        self.step = step
        return data(step, part)

    def loss(self, m: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = loss(m, x)["loss"] * (1e6 if self.step in self.spikes else 1)
        if self.step in self.bad:
            found = found + math.nan if self.step == 2 else found * math.inf
        return {"loss": found}


def test_a_loss_that_is_not_finite_ends_the_run_when_all_are(tmp_path: Path) -> None:
    for steps, told in ((1, "at step 0"), (3, "at each step from step 0 on"), (9, "at each step from step 0 on")):
        harmful = Harmful(*range(9))
        with pytest.raises(UserError, match=f"test: the loss or its gradient is not finite {told}: begin again"):
            fit(model(), harmful.data, harmful.loss, replace(CONFIG, steps=steps), tmp_path / str(steps), "test")


def test_a_step_that_is_not_finite_is_skipped_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after: list[list[torch.Tensor]] = []
    m, harmful = model(), Harmful(2, 4, 7)

    def note(step: int) -> dict[str, float]:
        after.append([p.detach().clone() for p in m.parameters()])
        return {}

    fit(m, harmful.data, harmful.loss, replace(CONFIG, log_every_steps=100), tmp_path, "test", note)
    unchanged = [step for step in range(1, 9) if all(map(torch.equal, after[step], after[step - 1]))]
    assert unchanged == [2, 4, 7]
    lines = list(read_metrics(tmp_path / "log"))
    assert [(line["step"], line.get("skipped_steps")) for line in lines] == [(0, None), (2, 1), (4, 2), (7, 3), (8, 3)]
    assert ["loss" in line for line in lines] == [True, False, False, False, True]
    told = capsys.readouterr().err
    assert [step for step in range(9) if f"step {step} is skipped: the loss or its" in told] == unchanged
    # Step 2 would have had a checkpoint, the first, had it been taken.
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == "step-00000006"
    m = model()
    optimizer, guard = Optimizers.of(m, CONFIG), Guard(CONFIG)
    checkpoint.restore(tmp_path / "checkpoints", m, optimizer, guard)
    assert {int(count) for name, count in optimizer.state(m).items() if name.endswith(".step")} == {4}
    assert guard.skipped_steps == 2


def test_too_many_in_a_row_end_the_run_and_it_goes_on_from_before(tmp_path: Path) -> None:
    config = replace(CONFIG, max_skipped_steps=2)
    harmful = Harmful(1, 4, 5, 6)
    with pytest.raises(UserError, match="at each step from step 4 on"):
        fit(model(), harmful.data, harmful.loss, config, tmp_path / "run", "test")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]
    mended, healed, whole = Harmful(1), model(), model()
    fit(healed, mended.data, mended.loss, config, tmp_path / "run", "test")
    fit(whole, mended.data, mended.loss, config, tmp_path / "whole", "test")
    assert all(map(torch.equal, healed.parameters(), whole.parameters()))


@pytest.mark.parametrize("killed_before", [0, 71, 76, 80, 95])
def test_what_is_skipped_does_not_depend_on_a_kill(killed_before: int, tmp_path: Path) -> None:
    """Nor are spikes skipped where that is not asked for, or as long as too little is known of what is usual."""
    config = replace(CONFIG, steps=100, checkpoint_every_steps=15, spike_factor=1000.0)
    bad, spikes = (2, 74), (10, 70, 75, 90)
    whole, again = model(), model()
    harmful, dying = Harmful(*bad, spikes=spikes), Harmful(*bad, spikes=spikes, killed_before=killed_before)
    fit(whole, harmful.data, harmful.loss, config, tmp_path / "whole", "test")
    with pytest.raises(KeyboardInterrupt):
        fit(model(), dying.data, dying.loss, config, tmp_path / "again", "test")
    fit(again, harmful.data, harmful.loss, config, tmp_path / "again", "test")
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    logs = [list(read_metrics(tmp_path / name / "log")) for name in ("whole", "again")]
    assert logs[0] == logs[1]
    counts = [line.get("skipped_steps", 0) for line in logs[0]]
    assert [step for step in range(100) if counts[step] > ([0, *counts])[step]] == [2, 70, 74, 75, 90]
    taking_all = replace(config, spike_factor=None)
    fit(model(), harmful.data, harmful.loss, taking_all, tmp_path / "all", "test")
    assert list(read_metrics(tmp_path / "all/log"))[-1]["skipped_steps"] == len(bad)


def test_a_step_without_data_changes_nothing(tmp_path: Path) -> None:
    m, every = model(), replace(CONFIG, log_every_steps=1)
    fit(m, lambda step, part: None, loss, every, tmp_path, "test")
    assert all(map(torch.equal, m.parameters(), model().parameters()))
    logged = [json.loads(line) for line in (tmp_path / "log/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == list(range(every.steps))
    assert not any("loss" in line for line in logged)


class Half(nn.Module):
    """A model of which some items use a part, and nothing uses another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.sometimes, self.never = nn.Linear(4, 3), nn.Linear(3, 1), nn.Linear(3, 1)


def half_loss(m: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over items, of which one kind takes a road of its own."""
    assert isinstance(m, Half)
    h, rare = m.body(x), x[:, 0] > 0.8
    losses = {"common": h.square().mean()}
    total = h.square().mean(1).sum()
    if rare.any():
        losses["rare"] = m.sometimes(h[rare]).square().mean()
        total = total + m.sometimes(h[rare]).square().sum()
    return {"loss": total / len(x), **losses}


@pytest.mark.parametrize("accumulate", [2, 3, 8, 20])
def test_a_step_in_micro_batches_has_the_gradient_of_the_step(accumulate: int, tmp_path: Path) -> None:
    """Even where items do not divide, or are fewer than the micro-batches."""

    def some(step: int, part: slice) -> torch.Tensor | None:
        items = data(step)[part]
        return items if len(items) else None

    gradients: list[list[list[torch.Tensor | None]]] = []
    for parts in (1, accumulate):
        m, seen = Half(), []
        config = replace(CONFIG, steps=4, accumulate=parts, clip_norm=1e9, lr=1e-3)

        def note(step: int, m: Half = m, seen: list[list[torch.Tensor | None]] = seen) -> dict[str, float]:
            seen.append([None if p.grad is None else p.grad.clone() for p in m.parameters()])
            return {"noted": float(step)}

        fit(m, some, half_loss, config, tmp_path / str(parts), "test", note)
        gradients.append(seen)
        assert [line["noted"] for line in read_metrics(tmp_path / str(parts) / "log")] == [0, 1, 2, 3]
    for whole, cut in zip(*gradients, strict=True):
        for a, b in zip(whole, cut, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, atol=1e-6)
    losses = [[line["loss"] for line in read_metrics(tmp_path / str(p) / "log")] for p in (1, accumulate)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


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
