import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.training.models import (
    CONFIG,
    Half,
    Harmful,
    Layered,
    all_equal,
    data,
    first_items,
    half_loss,
    loss,
    model,
    weights_of,
)
from weft.errors import UserError
from weft.training import checkpoint
from weft.training.guard import StepGuard
from weft.training.loop import discard_checkpoints, fit
from weft.training.metrics import read_metrics
from weft.training.optimizers import Optimizers

OPTIMIZERS: tuple[Literal["adamw", "muon"], ...] = ("adamw", "muon")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Tensor], str]]:
    """Weights and metrics of uninterrupted runs, by optimizer."""
    runs = {}
    for optimizer in OPTIMIZERS:
        folder, m = tmp_path_factory.mktemp("whole"), Layered()
        fit(m, data, loss, replace(CONFIG, optimizer=optimizer), folder, "test")
        runs[optimizer] = weights_of(m), (folder / "log/metrics.jsonl").read_text()
    return runs


@pytest.mark.parametrize("killed_before", range(9))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_killed_at_any_step_resumes_to_the_same_weights(
    killed_before: int, optimizer: Literal["adamw", "muon"], whole: dict[str, tuple[list[Tensor], str]], tmp_path: Path
) -> None:
    config, killed = replace(CONFIG, optimizer=optimizer), Harmful(killed_before=killed_before)
    with pytest.raises(KeyboardInterrupt):
        fit(Layered(), killed.data, loss, config, tmp_path, "test")
    resumed = Layered()
    fit(resumed, data, loss, config, tmp_path, "test")
    weights, metrics = whole[optimizer]
    assert all_equal(weights_of(resumed), weights)
    assert (tmp_path / "log/metrics.jsonl").read_text() == metrics


def test_a_full_gpu_is_reported_with_what_to_change(tmp_path: Path) -> None:
    def full(m: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    message = r"test: the GPU is out of memory \(CUDA .* 2.00 GiB\): raise train.grad_accum_steps, .* max_seq_len, .*"
    with pytest.raises(UserError, match=message + "activation_checkpointing = true"):
        fit(model(), data, full, CONFIG, tmp_path, "test")
    with pytest.raises(ZeroDivisionError):  # other errors stay as they are
        fit(model(), data, lambda m, x: {"loss": x / (1 // 0)}, CONFIG, tmp_path, "test")


def test_checkpoints_remain_until_they_are_discarded(tmp_path: Path) -> None:
    fit(model(), data, loss, CONFIG, tmp_path, "test")
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000006", "step-00000009"]
    discard_checkpoints(tmp_path)
    discard_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_random_state_of_the_caller_is_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    m = model()
    torch.manual_seed(3)
    fit(m, data, loss, CONFIG, tmp_path, "test")
    assert torch.equal(torch.rand(2), expected)


def test_a_run_stops_when_no_loss_is_finite(tmp_path: Path) -> None:
    for steps, where in ((1, "at step 0"), (3, "at all steps from 0 to 2"), (9, "at all steps from 0 to 5")):
        harmful = Harmful(*range(9))
        message = f"test: the loss or its gradient is not finite {where}: start again with a lower train.lr"
        with pytest.raises(UserError, match=message):
            fit(model(), harmful.data, harmful.loss, replace(CONFIG, steps=steps), tmp_path / str(steps), "test")


def test_a_step_that_is_not_finite_is_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after: list[list[Tensor]] = []
    m, harmful = model(), Harmful(2, 4, 7)

    def after_step(step: int, updated: bool) -> dict[str, float]:
        after.append(weights_of(m))
        return {}

    fit(m, harmful.data, harmful.loss, replace(CONFIG, log_every_steps=100), tmp_path, "test", after_step)
    unchanged = [step for step in range(1, 9) if all_equal(after[step], after[step - 1])]
    assert unchanged == [2, 4, 7]
    lines = list(read_metrics(tmp_path / "log"))
    assert [(line["step"], line.get("skipped_steps")) for line in lines] == [(0, None), (2, 1), (4, 2), (7, 3), (8, 3)]
    assert ["loss" in line for line in lines] == [True, False, False, False, True]
    reported = capsys.readouterr().err
    assert [step for step in range(9) if f"step {step} is skipped: the loss or its" in reported] == unchanged
    restored = model()
    optimizer, guard = Optimizers.of(restored, CONFIG), StepGuard(CONFIG)
    assert checkpoint.restore(tmp_path / "checkpoints", restored, optimizer, guard) == 9
    assert {int(count) for name, count in optimizer.state_dict(restored).items() if name.endswith(".step")} == {6}
    assert guard.skipped_steps == 3


@pytest.mark.parametrize(("bad", "saved"), [((2,), [4, 6, 9]), ((2, 3), [5, 6, 9]), ((5, 8), [3, 7, 9])])
def test_a_checkpoint_due_after_a_skipped_step_follows_the_next_good_step(
    bad: tuple[int, ...], saved: list[int], tmp_path: Path
) -> None:
    """And one follows the last step in any case."""
    harmful, m = Harmful(*bad), model()
    fit(m, harmful.data, harmful.loss, replace(CONFIG, keep_checkpoints=9), tmp_path, "test")
    assert sorted(checkpoint.step_of(path) for path in (tmp_path / "checkpoints").iterdir()) == saved
    restored = model()
    assert fit(restored, lambda step, part: pytest.fail("trained again"), loss, CONFIG, tmp_path, "test") >= 0
    assert all_equal(weights_of(restored), weights_of(m))


def test_a_run_stopped_by_skipped_steps_resumes_from_before_them(tmp_path: Path) -> None:
    config = replace(CONFIG, max_skipped_steps=2)
    harmful = Harmful(1, 4, 5, 6)
    with pytest.raises(UserError, match="at all steps from 4 to 6"):
        fit(model(), harmful.data, harmful.loss, config, tmp_path / "run", "test")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]
    fixed, resumed, whole = Harmful(1), model(), model()
    fit(resumed, fixed.data, fixed.loss, config, tmp_path / "run", "test")
    fit(whole, fixed.data, fixed.loss, config, tmp_path / "whole", "test")
    assert all_equal(weights_of(resumed), weights_of(whole))


BAD, SPIKES = (2, 13), (4, 10, 14, 19)
SPIKE_CONFIG = replace(CONFIG, steps=24, checkpoint_every_steps=5, spike_factor=1000.0)


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of gradient norms is that of 16 steps, and 8 are enough."""
    monkeypatch.setattr("weft.training.guard._WINDOW_STEPS", 16)
    monkeypatch.setattr("weft.training.guard._MIN_STEPS", 8)


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("killed_before", [0, 11, 15, 16, 23])
def test_the_skipped_steps_do_not_depend_on_an_interruption(killed_before: int, tmp_path: Path) -> None:
    whole, resumed = model(), model()
    harmful, killed = Harmful(*BAD, spikes=SPIKES), Harmful(*BAD, spikes=SPIKES, killed_before=killed_before)
    fit(whole, harmful.data, harmful.loss, SPIKE_CONFIG, tmp_path / "whole", "test")
    with pytest.raises(KeyboardInterrupt):
        fit(model(), killed.data, killed.loss, SPIKE_CONFIG, tmp_path / "resumed", "test")
    fit(resumed, harmful.data, harmful.loss, SPIKE_CONFIG, tmp_path / "resumed", "test")
    assert all_equal(weights_of(whole), weights_of(resumed))
    logs = [list(read_metrics(tmp_path / name / "log")) for name in ("whole", "resumed")]
    assert logs[0] == logs[1]
    counts = [line.get("skipped_steps", 0) for line in logs[0]]
    # Step 4 is a spike, too, but before there is a median.
    assert [step for step in range(24) if counts[step] > ([0, *counts])[step]] == [2, 10, 13, 14, 19]


@pytest.mark.usefixtures("short_window")
def test_spikes_are_not_skipped_by_default(tmp_path: Path) -> None:
    harmful = Harmful(*BAD, spikes=SPIKES)
    fit(model(), harmful.data, harmful.loss, replace(SPIKE_CONFIG, spike_factor=None), tmp_path, "test")
    assert list(read_metrics(tmp_path / "log"))[-1]["skipped_steps"] == len(BAD)


def test_a_step_without_data_changes_nothing(tmp_path: Path) -> None:
    m = model()
    fit(m, lambda step, part: None, loss, CONFIG, tmp_path, "test")
    assert all_equal(weights_of(m), weights_of(model()))
    logged = [json.loads(line) for line in (tmp_path / "log/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == list(range(CONFIG.steps))
    assert not any("loss" in line for line in logged)


@pytest.mark.parametrize("grad_accum_steps", [2, 3, 8, 20])
def test_a_step_in_micro_batches_has_the_gradient_of_the_whole_step(grad_accum_steps: int, tmp_path: Path) -> None:
    """The number of micro-batches need not divide that of the items, and may be larger."""
    gradients: list[list[list[Tensor | None]]] = []
    for parts in (1, grad_accum_steps):
        m, seen = Half(), []
        config = replace(CONFIG, steps=4, grad_accum_steps=parts, max_grad_norm=1e9, lr=1e-3)

        def after_step(
            step: int, updated: bool, m: Half = m, seen: list[list[Tensor | None]] = seen
        ) -> dict[str, float]:
            seen.append([None if p.grad is None else p.grad.clone() for p in m.parameters()])
            return {"noted": float(step)}

        fit(m, first_items(8), half_loss, config, tmp_path / str(parts), "test", after_step)
        gradients.append(seen)
        assert [line["noted"] for line in read_metrics(tmp_path / str(parts) / "log")] == [0, 1, 2, 3]
    for whole, divided in zip(*gradients, strict=True):
        for a, b in zip(whole, divided, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, atol=1e-6)
    losses = [[line["loss"] for line in read_metrics(tmp_path / str(p) / "log")] for p in (1, grad_accum_steps)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
