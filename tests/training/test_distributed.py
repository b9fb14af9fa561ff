import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.ranks import in_ranks
from tests.training.test_loop import CONFIG, Half, Harmful, data, half_loss, loss, model
from weft import artifacts, cli
from weft.errors import UserError
from weft.training import checkpoint, distributed
from weft.training.guard import Guard
from weft.training.loop import BatchAt, fit
from weft.training.metrics import read_metrics
from weft.training.optimizers import Optimizers


def items(num: int) -> Any:
    def batch_at(step: int, part: slice) -> Tensor | None:
        found = data(step)[:num][part]
        return found if len(found) else None

    return batch_at


def weights(m: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in m.parameters()]


class Fork(nn.Module):
    """A shared part, then one way or the other, and buffers of each process's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(distributed.rank())
        self.shared, self.ways = nn.Linear(4, 3), nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
        self.register_buffer("seen", torch.full((1,), float(distributed.rank())))


def train_fork(folder: Path) -> dict[str, Any]:
    """One way in the first micro-batch of the second process, and the other way in all else."""

    def batch_at(step: int, part: slice) -> tuple[Tensor, int] | None:
        numbers = range(8)[part]
        early = distributed.rank() == 1 and part.start < distributed.world_size()
        return (data(step, part), int(not early)) if numbers else None

    def loss_of(m: nn.Module, batch: tuple[Tensor, int]) -> dict[str, Tensor]:
        assert isinstance(m, Fork)
        x, way = batch
        begun["seen"] = begun.get("seen", float(m.seen))
        m.seen += 1 + distributed.rank()
        h = m.shared(x)
        # the other way is in a loss that is only told
        return {"loss": m.ways[way](h).square().mean(), "told": m.ways[1 - way](h).square().mean()}

    begun: dict[str, float] = {}
    m = Fork()
    gradients: list[list[Tensor]] = []

    def note(step: int) -> dict[str, float]:
        gradients.append([torch.zeros(0) if p.grad is None else p.grad.clone() for p in m.parameters()])
        return {}

    fit(m, batch_at, loss_of, replace(CONFIG, accumulate=2, clip_norm=1e9), folder, "test", note)
    return {"gradients": gradients, "weights": weights(m), "begun": begun["seen"], "seen": float(m.seen)}


def test_a_parameter_used_before_the_last_micro_batch_alone_has_its_gradient_everywhere(tmp_path: Path) -> None:
    """Models begin as the first process's; buffers are their process's own from then on."""
    first, second = in_ranks(train_fork, tmp_path, tmp_path / "run")
    for step, other in zip(first["gradients"], second["gradients"], strict=True):
        assert all(len(g) and g.any() for g in step)
        assert all(map(torch.equal, step, other))
    assert all(map(torch.equal, first["weights"], second["weights"]))
    assert (first["begun"], second["begun"]) == (0, 0)
    assert (first["seen"], second["seen"]) == (18, 36)


Way = tuple[int, int, Literal["adamw", "muon"]]  # micro-batches, items, optimizer


def train_in_many_ways(folder: Path, ways: list[Way]) -> dict[str, tuple[list[Tensor], list[list[Tensor | None]]]]:
    """By way, the weights at the end, and every step's gradients."""
    out = {}
    for accumulate, num, optimizer in ways:
        m, gradients = Half(), []

        def note(step: int, m: Half = m, gradients: list[list[Tensor | None]] = gradients) -> dict[str, float]:
            gradients.append([None if p.grad is None else p.grad.clone() for p in m.parameters()])
            return {}

        name = f"{accumulate} {num} {optimizer}"
        config = replace(CONFIG, accumulate=accumulate, lr=1e-3, optimizer=optimizer)
        fit(m, items(num), half_loss, config, folder / name, "test", note)
        out[name] = weights(m), gradients
    return out


@pytest.mark.parametrize("num", [2, 3])
def test_processes_together_train_what_one_trains(num: int, tmp_path: Path) -> None:
    """With odd numbers of items, fewer items than processes, none at all, and parameters that only some processes, some
    micro-batches, or none use: those have no gradient."""
    optimizers: list[Literal["adamw", "muon"]] = ["adamw", "muon"]
    ways: list[Way] = [(a, n, "adamw") for a in (1, 2, 3) for n in (8, 5, 1, 0)] + [(2, 8, "muon")]
    together = in_ranks(train_in_many_ways, tmp_path, tmp_path / "many", ways, num=num)
    alone = train_in_many_ways(tmp_path / "one", [(1, n, optimizer) for n in (8, 5, 1, 0) for optimizer in optimizers])
    rare = 0
    for name, (found, gradients) in together[0].items():
        for others, _ in (other[name] for other in together[1:]):
            assert all(map(torch.equal, found, others)), name
        expected, expected_gradients = alone["1" + name[1:]]
        assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found, expected, strict=True)), name
        for step, expected_step in zip(gradients, expected_gradients, strict=True):
            assert [g is None for g in step] == [g is None for g in expected_step], name
            rare += step[0] is not None and step[2] is None
            for a, b in zip(step, expected_step, strict=True):
                assert a is None or b is None or torch.allclose(a, b, atol=1e-5), name
        losses = [list(read_metrics(tmp_path / f / "log")) for f in (f"many/{name}", f"one/1{name[1:]}")]
        for a, b in zip(*losses, strict=True):
            assert a.pop("rare", None) is None or b.pop("rare") > 0  # no mean over all items: the parts' mean is logged
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert rare, "in no step had a parameter no gradient"


def help_each_other(out: Path) -> dict[str, Any]:
    with distributed.build(out, "thing", {"a": 1}) as draft:
        (draft.folder / "mine").write_text(str(distributed.rank()))
        draft.counts["rank"] = distributed.rank()
    return {
        "counts": artifacts.read(out).counts,
        "share": list(range(7))[distributed.share()],
        "micro": [list(range(7))[distributed.share(i, 2)] for i in range(2)],
        "total": distributed.total(distributed.rank() + 1),
        "gathered": distributed.gather(f"rank {distributed.rank()}"),
        "first": distributed.from_first(Path(f"of-{distributed.rank()}")),
    }


def test_what_processes_do_together(tmp_path: Path) -> None:
    first, second = in_ranks(help_each_other, tmp_path, tmp_path / "thing")
    assert (tmp_path / "thing/mine").read_text() == "0"
    assert sorted(first.pop("share") + second.pop("share")) == list(range(7))
    micro = first.pop("micro") + second.pop("micro")
    assert sorted(item for items in micro for item in items) == list(range(7))
    assert first == second
    assert first == {"counts": {"rank": 0}, "total": 3, "gathered": ["rank 0", "rank 1"], "first": Path("of-0")}


def test_alone_a_process_has_everything() -> None:
    assert distributed.share() == slice(0, None, 1)
    assert distributed.total(3) == 3
    assert distributed.gather("x") == ["x"]
    assert distributed.is_first()
    assert distributed.first_to_tell()


def skip_in_one(folder: Path) -> tuple[list[Tensor], list[int]]:
    """A loss that is not finite in the second process alone, without a trace in its gradient."""
    harmful, after, m = Harmful(), [], model()

    def loss_of(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        bad = harmful.step in (2, 5) and distributed.rank() == 1
        return {"loss": harmful.loss(m, x)["loss"] + (float("nan") if bad else 0)}

    def note(step: int) -> dict[str, float]:
        after.append(weights(m))
        return {}

    fit(m, harmful.data, loss_of, CONFIG, folder, "test", note)
    return weights(m), [step for step in range(1, 9) if all(map(torch.equal, after[step], after[step - 1]))]


def test_processes_skip_the_same_steps(tmp_path: Path) -> None:
    first, second = in_ranks(skip_in_one, tmp_path, tmp_path / "run")
    assert first[1] == second[1] == [2, 5]
    assert all(map(torch.equal, first[0], second[0]))
    assert list(read_metrics(tmp_path / "run/log"))[-1]["skipped_steps"] == 2


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


class Dying(nn.Linear):
    """Ends the process in the backward pass, where the others wait for its gradients."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return y


def die_in_the_backward_pass(folder: Path, way: str) -> str:
    m = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    if distributed.rank() == 1:
        m[0] = Dying(4, 8)
    if way == "shard":
        distributed.shard(m, "cpu", half=False)
    try:
        fit(m, data, loss, CONFIG, folder, "test")
    except UserError as e:
        return str(e)
    raise AssertionError


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_a_process_that_dies_in_the_backward_pass_ends_all(way: str, tmp_path: Path) -> None:
    left, dead = in_ranks(die_in_the_backward_pass, tmp_path, tmp_path / "run", way)
    assert dead is None
    assert "another process of this run has ended" in left
    assert "\n" not in left


def err_in_the_backward_pass(folder: Path) -> str:
    def constant(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.mean()}

    try:
        fit(model(), data, constant, CONFIG, folder, "test")
    except RuntimeError as e:
        return str(e)
    raise AssertionError


def test_a_mistake_in_the_backward_pass_is_told_as_such(tmp_path: Path) -> None:
    assert all("does not require grad" in told for told in in_ranks(err_in_the_backward_pass, tmp_path, tmp_path / "x"))


def train_until(folder: Path, killed_before: int) -> list[Tensor]:
    """Weights of a run whose last process is killed before a step."""

    def batch_at(step: int, part: slice) -> Tensor:
        if step == killed_before and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return data(step, part)

    m = model()
    fit(m, batch_at, loss, CONFIG, folder, "test")
    return weights(m)


@pytest.mark.parametrize("num", [2, 3])
def test_killed_and_run_again_gives_the_same_weights(num: int, tmp_path: Path) -> None:
    """The processes that are left end too."""
    assert in_ranks(train_until, tmp_path, tmp_path / "run", 5, num=num) == [None] * num
    assert (tmp_path / "run/checkpoints/step-00000003").exists()
    found = in_ranks(train_until, tmp_path, tmp_path / "run", -1, num=num)
    whole = in_ranks(train_until, tmp_path, tmp_path / "whole", -1, num=num)[0]
    for each in found:
        assert all(map(torch.equal, each, whole))
    assert [line["step"] for line in read_metrics(tmp_path / "run/log")] == list(range(9))


class Tower(nn.Module):
    """A model with a list of layers, whose sizes no number of processes divides, tied ends and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(distributed.rank())
        self.first, self.last = nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)) for _ in range(3))
        self.tied = self.last.weight
        self.layers[1][2].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + x @ self.tied
        for layer in self.layers:
            h = h + layer(h)
        return self.last(h)


def tower_loss(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"loss": (m(x) - x.flip(1)).square().mean()}


@dataclass
class Trained:
    weights: list[Tensor]
    gradients: list[list[Tensor | None]]
    """Of every step."""
    num_here: int
    """Numbers that this process holds of the parameters."""


def train_tower(
    folder: Path,
    way: str,
    num_items: int = 8,
    changes: Mapping[str, Any] = MappingProxyType({}),
    batch_at: BatchAt | None = None,
) -> Trained:
    m, gradients = Tower(), []
    if way == "shard":
        distributed.begin()
        assert distributed.shard(m, "cpu", half=False) is m
        assert distributed.is_sharded(m) == (distributed.world_size() > 1)

    def note(step: int) -> dict[str, float]:
        gradients.append([None if p.grad is None else full(p.grad) for p in m.parameters()])
        return {}

    config = replace(CONFIG, lr=1e-3, **changes)
    fit(m, batch_at or items(num_items), tower_loss, config, folder, "test", note)
    num_here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in m.parameters())
    return Trained([full(p) for p in m.parameters()], gradients, num_here)


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


TowerWays = list[tuple[int, Mapping[str, Any]]]  # items, changes of the configuration


def train_towers(folder: Path, way: str, ways: TowerWays) -> list[Trained]:
    return [train_tower(folder / str(i), way, num, changes) for i, (num, changes) in enumerate(ways)]


@pytest.mark.parametrize("num", [2, 3])
def test_sharded_processes_train_what_one_trains(num: int, tmp_path: Path) -> None:
    """All gradients within 1e-6, and their norm; with fewer items or micro-batches than processes, or none."""
    few = {"steps": 3}
    ways: TowerWays = [(n, {**few, "accumulate": a}) for a in (1, 3) for n in (8, 5, 1, 0)]
    together = in_ranks(train_towers, tmp_path, tmp_path / "many", "shard", ways, num=num)
    alone = train_towers(tmp_path / "one", "shard", [(n, few) for n, _ in ways])
    for i, expected in enumerate(alone):
        assert sum(rank[i].num_here for rank in together) == expected.num_here
        assert max(rank[i].num_here for rank in together) < expected.num_here / num * 1.5
        for found in (rank[i] for rank in together):
            for a, b in zip(found.weights, expected.weights, strict=True):
                assert torch.allclose(a, b, atol=1e-5)
            for step, expected_step in zip(found.gradients, expected.gradients, strict=True):
                for a, b in zip(step, expected_step, strict=True):
                    assert (a is None) == (b is None)
                    assert a is None or b is None or torch.allclose(a, b, atol=1e-6)
        losses = [list(read_metrics(tmp_path / f / str(i) / "log")) for f in ("many", "one")]
        for a, b in zip(*losses, strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def muon_update(way: str) -> list[Tensor]:
    """The first update of every layer's matrix by a random gradient."""
    m = Tower()
    if way == "shard":
        distributed.shard(m, "cpu", half=False)
    optimizer = Optimizers.of(m, replace(CONFIG, optimizer="muon", weight_decay=0.0))
    before, generator = [full(p) for p in m.layers.parameters()], torch.Generator().manual_seed(0)
    for p in filter(lambda p: p.requires_grad, m.layers.parameters()):
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
    optimizer.step()
    return [full(p) - was for p, was in zip(m.layers.parameters(), before, strict=True) if p.ndim == 2]


def test_muon_on_shards_is_muon(tmp_path: Path) -> None:
    """Within a twentieth, as it computes in bf16; made of the parts of a matrix, updates would be off by half."""
    found, _ = in_ranks(muon_update, tmp_path, "shard")
    for a, b in zip(found, muon_update("replicate"), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


def train_tower_until(folder: Path, way: str, stopped_before: int) -> list[Tensor]:
    def batch_at(step: int, part: slice) -> Tensor | None:
        if step == stopped_before:
            raise UserError("stop")
        return items(8)(step, part)

    if stopped_before < 0:
        return train_tower(folder, way, batch_at=batch_at).weights
    with pytest.raises(UserError):
        train_tower(folder, way, batch_at=batch_at)
    return []


def test_a_checkpoint_of_some_processes_is_one_for_any_number_of_them(tmp_path: Path) -> None:
    """Whichever way they train."""
    whole = train_tower(tmp_path / "whole", "replicate").weights
    in_ranks(train_tower_until, tmp_path, tmp_path / "two sharded", "shard", 5)
    in_ranks(train_tower_until, tmp_path, tmp_path / "two", "replicate", 5)
    train_tower_until(tmp_path / "one", "replicate", 5)
    holds = [
        FileSystemReader(tmp_path / n / "checkpoints/step-00000003").read_metadata().state_dict_metadata
        for n in ("one", "two", "two sharded")
    ]
    assert holds[0].keys() == holds[1].keys() == holds[2].keys()
    shutil.copytree(tmp_path / "two sharded", tmp_path / "four")
    for name, way, num in (("two sharded", "replicate", 1), ("four", "shard", 4), ("one", "shard", 2)):
        for found in in_ranks(train_tower_until, tmp_path, tmp_path / name, way, -1, num=num):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, whole, strict=True)), name
    found = train_tower_until(tmp_path / "two", "replicate", -1)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, whole, strict=True))


def restore_elsewhere(folder: Path) -> str:
    """As in a process that has another disk."""
    m = Tower()
    if distributed.rank() == 1:
        checkpoint._load = partial(load_elsewhere, checkpoint._load)  # type: ignore[assignment]
    try:
        checkpoint.restore(folder, m, Optimizers.of(m, CONFIG), Guard(CONFIG))
    except UserError as e:
        return str(e)
    return ""


def load_elsewhere(load: Any, path: Path, *others: Any) -> Any:
    return load(path.with_name("elsewhere"), *others)


def test_a_checkpoint_that_only_some_processes_see_is_no_way_to_go_on(tmp_path: Path) -> None:
    m = Tower()
    checkpoint.save(tmp_path, 3, m, Optimizers.of(m, CONFIG), Guard(CONFIG), keep=1)
    for told in in_ranks(restore_elsewhere, tmp_path, tmp_path):
        assert "every process must see the folder" in told


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
