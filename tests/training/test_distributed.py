import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weft
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
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def die_and_go_on(folder: Path) -> list[Tensor]:
    """Weights of a run that was interrupted before each of some steps, with dropout."""
    for killed_before in (0, 2, 4, 8):

        def dying(step: int, part: slice, last: int = killed_before) -> Tensor:
            if step == last:
                raise KeyboardInterrupt
            return data(step, part)

        with pytest.raises(KeyboardInterrupt):
            fit(model(), dying, loss, CONFIG, folder, "test")
    resumed = model()
    fit(resumed, data, loss, CONFIG, folder, "test")
    whole = model()
    fit(whole, data, loss, CONFIG, folder.with_name("whole"), "test")
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    return weights(whole)


def test_interrupted_together_they_go_on_to_the_same_weights(tmp_path: Path) -> None:
    first, second = in_ranks(die_and_go_on, tmp_path, tmp_path / "resumed")
    assert all(map(torch.equal, first, second))


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


SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.training.test_loop import CONFIG, data, loss, model
from weft.training import distributed
from weft.training.loop import fit
import torch

out, killed_before = Path(sys.argv[1]), int(sys.argv[2])

def batch_at(step, part):
    if step == killed_before and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return data(step, part)

m = model()
fit(m, batch_at, loss, CONFIG, out, "test")
torch.save(m.state_dict(), out / f"{distributed.rank()}.pt")
distributed.end()
"""


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command under a real torchrun, in two processes; killed whole where it takes longer than it ever should."""
    roots = [str(Path(weft.__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_killed_under_torchrun_and_run_again_gives_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    killed = torchrun(str(script), "run", "5", folder=tmp_path)
    assert killed.returncode != 0
    assert (tmp_path / "run/checkpoints/step-00000003.pt").exists()
    again = torchrun(str(script), "run", "-1", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    (whole,) = [in_ranks(whole_run, tmp_path, tmp_path / "whole")[0]]
    for rank in range(2):
        found = torch.load(tmp_path / f"run/{rank}.pt")
        assert all(map(torch.equal, found.values(), whole))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/log/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(9))


def whole_run(folder: Path) -> list[Tensor]:
    m = model()
    fit(m, data, loss, CONFIG, folder, "test")
    return weights(m)


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
