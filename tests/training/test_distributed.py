import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import in_ranks
from tests.training.test_loop import CONFIG, Half, data, half_loss, loss, model
from weft import artifacts, cli
from weft.errors import UserError
from weft.training import distributed
from weft.training.loop import fit
from weft.training.metrics import read_metrics


def items(num: int) -> Any:
    def batch_at(step: int, part: slice) -> Tensor | None:
        found = data(step)[:num][part]
        return found if len(found) else None

    return batch_at


def weights(m: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in m.parameters()]


def train_in_many_ways(folder: Path, accumulates: list[int], nums: list[int]) -> dict[str, list[Tensor]]:
    out = {}
    for accumulate in accumulates:
        for num in nums:
            m = Half()
            config = replace(CONFIG, accumulate=accumulate, lr=1e-3)
            fit(m, items(num), half_loss, config, folder / f"{accumulate} {num}", "test")
            out[f"{accumulate} {num}"] = weights(m)
    return out


def test_processes_together_train_what_one_trains(tmp_path: Path) -> None:
    """With odd numbers of items, fewer items than processes, and parameters that only some of them, or none, use."""
    first, second = in_ranks(train_in_many_ways, tmp_path, tmp_path / "two", [1, 2], [8, 5, 1])
    alone = train_in_many_ways(tmp_path / "one", [1], [8, 5, 1])
    for name, found in first.items():
        assert all(map(torch.equal, found, second[name])), name
        expected = alone["1" + name[1:]]
        assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found, expected, strict=True)), name
        losses = [list(read_metrics(tmp_path / f / "log")) for f in (f"two/{name}", f"one/1{name[1:]}")]
        for a, b in zip(*losses, strict=True):
            assert a.pop("rare", None) is None or b.pop("rare") > 0  # no mean over all items: the parts' mean is logged
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def help_each_other(out: Path) -> dict[str, Any]:
    with distributed.build(out, "thing", {"a": 1}) as draft:
        (draft.folder / "mine").write_text(str(distributed.rank()))
        draft.counts["rank"] = distributed.rank()
    gradient, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    if distributed.rank() == 1:
        gradient.grad = torch.ones(2)
    distributed.sum_gradients([gradient, unused])
    return {
        "counts": artifacts.read(out).counts,
        "share": list(range(7))[distributed.share()],
        "micro": [list(range(7))[distributed.share(i, 2)] for i in range(2)],
        "total": distributed.total(distributed.rank() + 1),
        "gathered": distributed.gather(f"rank {distributed.rank()}"),
        "first": distributed.from_first(Path(f"of-{distributed.rank()}")),
        "gradients": (gradient.grad, unused.grad),
    }


def test_what_processes_do_together(tmp_path: Path) -> None:
    first, second = in_ranks(help_each_other, tmp_path, tmp_path / "thing")
    assert (tmp_path / "thing/mine").read_text() == "0"
    assert sorted(first.pop("share") + second.pop("share")) == list(range(7))
    micro = first.pop("micro") + second.pop("micro")
    assert sorted(item for items in micro for item in items) == list(range(7))
    gradients, others = first.pop("gradients"), second.pop("gradients")
    assert torch.equal(gradients[0], torch.ones(2))
    assert torch.equal(others[0], torch.ones(2))
    assert gradients[1] is others[1] is None
    assert first == second
    assert first == {"counts": {"rank": 0}, "total": 3, "gathered": ["rank 0", "rank 1"], "first": Path("of-0")}


def test_alone_a_process_has_everything() -> None:
    assert distributed.share() == slice(0, None, 1)
    assert distributed.total(3) == 3
    assert distributed.gather("x") == ["x"]
    assert distributed.is_first()
    assert distributed.first_to_tell()


def fail_in_the_second(folder: Path) -> tuple[str, bool]:
    def batch_at(step: int, part: slice) -> Tensor:
        if distributed.rank() == 1 and step == 2:
            raise UserError("item 17 is bad")
        return data(step, part)

    try:
        fit(model(), batch_at, loss, CONFIG, folder, "test")
    except UserError as e:
        return str(e), distributed.first_to_tell()
    raise AssertionError


def test_an_error_in_one_process_ends_all_and_is_told_once(tmp_path: Path) -> None:
    (other, told_there), (own, told_here) = in_ranks(fail_in_the_second, tmp_path, tmp_path / "run")
    assert own == "item 17 is bad"
    assert "another process of this run has ended" in other
    assert (told_there, told_here) == (False, True)


def train_until(folder: Path, killed_before: int) -> list[Tensor]:
    """Weights of a run whose second process is killed before a step."""

    def batch_at(step: int, part: slice) -> Tensor:
        if step == killed_before and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return data(step, part)

    m = model()
    fit(m, batch_at, loss, CONFIG, folder, "test")
    return weights(m)


def test_killed_and_run_again_gives_the_same_weights(tmp_path: Path) -> None:
    """The process that is left ends too."""
    assert in_ranks(train_until, tmp_path, tmp_path / "run", 5) == [None, None]
    assert (tmp_path / "run/checkpoints/step-00000003.pt").exists()
    first, second = in_ranks(train_until, tmp_path, tmp_path / "run", -1)
    whole, _ = in_ranks(train_until, tmp_path, tmp_path / "whole", -1)
    for a, b, c in zip(first, second, whole, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    assert [line["step"] for line in read_metrics(tmp_path / "run/log")] == list(range(9))


def test_verbs_that_do_not_train_refuse_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["tokenize", "--help"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["tokenize", "--help"]) == 2
    assert capsys.readouterr().err == ""
