import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.ranks import in_ranks
from tests.training.models import CONFIG, Harmful, all_equal, data, loss, model, weights_of
from weft import artifacts, cli
from weft.errors import UserError
from weft.plan import Draft, Plan
from weft.training import distributed
from weft.training.loop import fit
from weft.training.metrics import read_metrics


def use_collectives(out: Path) -> dict[str, Any]:
    def write(draft: Draft) -> None:
        (draft.folder / "rank").write_text(str(distributed.rank()))
        draft.counts["rank"] = distributed.rank()

    manifest = distributed.create(out, Plan("thing", {"a": 1}), write)
    assert manifest == artifacts.read(out)
    assert distributed.create(out, Plan("thing", {"a": 1}), lambda draft: 1 / 0) == manifest  # type: ignore[arg-type]
    tensors = torch.full((2,), distributed.rank() + 1.0), torch.tensor(distributed.rank())
    distributed.all_reduce(tensors[0])
    distributed.broadcast(tensors[1])
    return {
        "counts": manifest.counts,
        "part": list(range(7))[distributed.rank_slice()],
        "micro_batches": [list(range(7))[distributed.rank_slice(i, 2)] for i in range(2)],
        "sum": distributed.all_reduce_sum(distributed.rank() + 1),
        "tensor_sum": tensors[0].tolist(),
        "broadcast": int(tensors[1]),
        "gathered": distributed.all_gather_object(f"rank {distributed.rank()}"),
        "first": distributed.broadcast_object(Path(f"of-{distributed.rank()}")),
        "once": distributed.compute_once(lambda: distributed.rank()),
    }


def test_collectives_give_all_ranks_the_same_result(tmp_path: Path) -> None:
    first, second = in_ranks(use_collectives, tmp_path, tmp_path / "thing")
    assert (tmp_path / "thing/rank").read_text() == "0"
    assert sorted(first.pop("part") + second.pop("part")) == list(range(7))
    micro_batches = first.pop("micro_batches") + second.pop("micro_batches")
    assert sorted(item for items in micro_batches for item in items) == list(range(7))
    assert first == second
    assert first == {
        "counts": {"rank": 0},
        "sum": 3,
        "tensor_sum": [3.0, 3.0],
        "broadcast": 0,
        "gathered": ["rank 0", "rank 1"],
        "first": Path("of-0"),
        "once": 0,
    }


def test_a_single_process_has_all_items() -> None:
    assert distributed.rank_slice() == slice(0, None, 1)
    assert distributed.all_reduce_sum(3) == 3
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.is_main_process()
    assert distributed.claim_error_report()


def train_with_bad_steps_in_one_rank(folder: Path) -> tuple[list[Tensor], list[int]]:
    """The loss is not finite in rank 1 only, and its gradient does not show it."""
    harmful, after, m = Harmful(), [], model()

    def loss_of(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        bad = harmful.step in (2, 5) and distributed.rank() == 1
        return {"loss": harmful.loss(m, x)["loss"] + (float("nan") if bad else 0)}

    def after_step(step: int, updated: bool) -> dict[str, float]:
        after.append(weights_of(m))
        return {}

    fit(m, harmful.data, loss_of, CONFIG, folder, "test", after_step)
    return weights_of(m), [step for step in range(1, 9) if all_equal(after[step], after[step - 1])]


def test_all_ranks_skip_the_same_steps(tmp_path: Path) -> None:
    first, second = in_ranks(train_with_bad_steps_in_one_rank, tmp_path, tmp_path / "run")
    assert first[1] == second[1] == [2, 5]
    assert all_equal(first[0], second[0])
    assert list(read_metrics(tmp_path / "run/log"))[-1]["skipped_steps"] == 2


def fail_in_rank_1(folder: Path) -> tuple[str, bool]:
    distributed._REPORT_DELAY = timedelta(seconds=0.5)

    def batch_at(step: int, part: slice) -> Tensor:
        if distributed.rank() == 1 and step == 2:
            raise UserError("item 17 is bad")
        return data(step, part)

    try:
        fit(model(), batch_at, loss, CONFIG, folder, "test")
    except UserError as e:
        return str(e), distributed.claim_error_report()
    raise AssertionError


def test_an_error_in_one_rank_ends_all_and_is_reported_once(tmp_path: Path) -> None:
    (other, other_reports), (own, own_reports) = in_ranks(fail_in_rank_1, tmp_path, tmp_path / "run")
    assert own == "item 17 is bad"
    assert "another process of this run has ended" in other
    assert (other_reports, own_reports) == (False, True)


def wait_for_a_rank_that_does_not_answer(folder: Path) -> str:
    """The last rank stops in step 2, after a first step that may take long, and ends when the other has reported."""
    step_timeout = distributed.step_timeout
    timeouts = []

    def batch_at(step: int, part: slice) -> Tensor:
        timeouts.append(dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout)  # type: ignore[union-attr]
        if step == 2 and distributed.rank() == 1:
            distributed._store.wait(["reported"])  # type: ignore[union-attr]
            raise UserError("stopped")
        return data(step, part)

    try:
        fit(model(), batch_at, loss, replace(CONFIG, step_timeout_minutes=0.02), folder, "test")
    except UserError as e:
        distributed._store.set("reported", "")  # type: ignore[union-attr]
        assert distributed.step_timeout is step_timeout
        return f"{e} {timeouts[0]} {timeouts[1]}"
    return ""


def test_a_rank_that_does_not_answer_ends_the_run_after_a_short_time(tmp_path: Path) -> None:
    message, _ = in_ranks(wait_for_a_rank_that_does_not_answer, tmp_path, tmp_path / "run")
    assert "another process of this run has not answered in time" in message
    assert "raise train.step_timeout_minutes" in message
    assert message.endswith("12:00:00 0:00:01.200000")


def train_until(folder: Path, killed_before: int) -> list[Tensor]:
    """Return the weights of a run whose last rank is killed before a step."""

    def batch_at(step: int, part: slice) -> Tensor:
        if step == killed_before and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return data(step, part)

    m = model()
    fit(m, batch_at, loss, CONFIG, folder, "test")
    return weights_of(m)


def test_a_run_with_a_killed_rank_ends_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    assert in_ranks(train_until, tmp_path, tmp_path / "run", 5, num=3) == [None] * 3
    assert (tmp_path / "run/checkpoints/step-00000003").exists()
    found = in_ranks(train_until, tmp_path, tmp_path / "run", -1, num=3)
    whole = in_ranks(train_until, tmp_path, tmp_path / "whole", -1, num=3)[0]
    for weights in found:
        assert all_equal(weights, whole)
    assert [line["step"] for line in read_metrics(tmp_path / "run/log")] == list(range(9))


def test_commands_that_do_not_train_reject_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["tokenize", "--help"]) == 2
    assert "cannot run in several processes: start it without torchrun" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["tokenize", "--help"]) == 2
    assert capsys.readouterr().err == ""
