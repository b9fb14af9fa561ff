import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.ranks import in_ranks
from tests.training.models import (
    CONFIG,
    Half,
    Parallel,
    Tower,
    Trained,
    all_equal,
    data,
    first_items,
    full,
    half_loss,
    loss,
    model,
    train_tower,
    weights_of,
)
from weft.errors import UserError
from weft.training import distributed, parallel
from weft.training.loop import fit
from weft.training.metrics import read_metrics
from weft.training.optimizers import Optimizers

PARALLEL: tuple[Parallel, ...] = ("ddp", "fsdp")


class Fork(nn.Module):
    """A shared part, then one of two branches, and a buffer that differs between ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(distributed.rank())
        self.shared, self.branches = nn.Linear(4, 3), nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
        self.register_buffer("seen", torch.full((1,), float(distributed.rank())))


class Mixed(Tower):
    """A tower with buffers, of which one is not saved, and with weights in bf16 and frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.rand(3))
        self.layers[0].register_buffer("frequencies", torch.rand(2), persistent=False)
        if distributed.rank() == 0:  # other ranks do not know
            self.layers[2][0].bfloat16()
            self.layers[0].requires_grad_(False)


def place_from_rank_0(kind: Parallel) -> dict[str, Any]:
    """Return what a rank holds of a model of which only rank 0 has the weights."""
    with torch.device("cpu" if distributed.rank() == 0 else "meta"):
        m = Mixed()
    expected = {n: t.clone() for n, t in [*m.named_parameters(), *m.named_buffers()]} if not distributed.rank() else {}
    placed = parallel.replicate_model(m, "cpu") if kind == "ddp" else parallel.shard_model(m, "cpu", bf16=False)
    assert placed is m
    assert m.tied is m.last.weight
    return {
        "expected": expected,
        "found": {n: full(t) for n, t in [*m.named_parameters(), *m.named_buffers()]},
        "trained": [n for n, p in m.named_parameters() if p.requires_grad],
    }


@pytest.mark.parametrize("kind", PARALLEL)
def test_only_rank_0_needs_the_weights(kind: Parallel, tmp_path: Path) -> None:
    first, second = in_ranks(place_from_rank_0, tmp_path, kind)
    for name, value in first["expected"].items():
        for found in (first["found"], second["found"]):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name
    assert first["found"].keys() == second["found"].keys() == first["expected"].keys()
    assert first["trained"] == second["trained"]
    assert "layers.1.2.bias" not in first["trained"]


def train_fork(folder: Path) -> dict[str, Any]:
    """Train one branch in the first micro-batch of rank 1, and the other branch in all other micro-batches."""

    def batch_at(step: int, part: slice) -> tuple[Tensor, int] | None:
        items = range(8)[part]
        early = distributed.rank() == 1 and part.start < distributed.world_size()
        return (data(step, part), int(not early)) if items else None

    def loss_of(m: nn.Module, batch: tuple[Tensor, int]) -> dict[str, Tensor]:
        assert isinstance(m, Fork)
        x, branch = batch
        first.setdefault("seen", float(m.seen))
        m.seen += 1 + distributed.rank()
        h = m.shared(x)
        # the other branch is in a loss that is only logged
        return {"loss": m.branches[branch](h).square().mean(), "logged": m.branches[1 - branch](h).square().mean()}

    def after_step(step: int, updated: bool) -> dict[str, float]:
        gradients.append([torch.zeros(0) if p.grad is None else p.grad.clone() for p in m.parameters()])
        return {}

    first: dict[str, float] = {}
    m, gradients = Fork(), list[list[Tensor]]()
    fit(m, batch_at, loss_of, replace(CONFIG, grad_accum_steps=2, max_grad_norm=1e9), folder, "test", after_step)
    return {"gradients": gradients, "weights": weights_of(m), "first": first["seen"], "seen": float(m.seen)}


def test_ddp_sums_gradients_of_parameters_used_only_in_an_early_micro_batch(tmp_path: Path) -> None:
    """All ranks start with the buffers of rank 0, which differ between ranks from then on."""
    first, second = in_ranks(train_fork, tmp_path, tmp_path / "run")
    for step, other in zip(first["gradients"], second["gradients"], strict=True):
        assert all(len(g) and g.any() for g in step)
        assert all_equal(step, other)
    assert all_equal(first["weights"], second["weights"])
    assert (first["first"], second["first"]) == (0, 0)
    assert (first["seen"], second["seen"]) == (18, 36)


Case = tuple[int, int, Literal["adamw", "muon"]]  # micro-batches, items, optimizer
Result = tuple[list[Tensor], list[list[Tensor | None]]]  # final weights, gradients of every step


def train_cases(folder: Path, cases: list[Case]) -> dict[str, Result]:
    results = {}
    for grad_accum_steps, num, optimizer in cases:
        m, gradients = Half(), []

        def after_step(
            step: int, updated: bool, m: Half = m, gradients: list[list[Tensor | None]] = gradients
        ) -> dict[str, float]:
            gradients.append([None if p.grad is None else p.grad.clone() for p in m.parameters()])
            return {}

        name = f"{grad_accum_steps} {num} {optimizer}"
        config = replace(CONFIG, steps=5, grad_accum_steps=grad_accum_steps, lr=1e-3, optimizer=optimizer)
        fit(m, first_items(num), half_loss, config, folder / name, "test", after_step)
        results[name] = weights_of(m), gradients
    return results


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ddp_trains_what_one_process_trains(num_ranks: int, tmp_path: Path) -> None:
    """With odd numbers of items, fewer items than ranks, no items, and parameters that only some ranks, some
    micro-batches, or none use: those have no gradient."""
    cases: list[Case] = [(1, 8, "adamw"), (2, 5, "adamw"), (3, 8, "adamw"), (1, 1, "adamw"), (3, 1, "adamw")]
    cases += [(2, 0, "adamw"), (2, 8, "muon")]
    alone = train_cases(tmp_path / "one", list({(1, num, optimizer) for _, num, optimizer in cases}))
    together = in_ranks(train_cases, tmp_path, tmp_path / "many", cases, num=num_ranks)
    rare = 0
    for name, (found, gradients) in together[0].items():
        for others, _ in (other[name] for other in together[1:]):
            assert all_equal(found, others), name
        expected, expected_gradients = alone["1" + name[1:]]
        assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found, expected, strict=True)), name
        for step, expected_step in zip(gradients, expected_gradients, strict=True):
            assert [g is None for g in step] == [g is None for g in expected_step], name
            rare += step[0] is not None and step[2] is None
            for a, b in zip(step, expected_step, strict=True):
                assert a is None or b is None or torch.allclose(a, b, atol=1e-5), name
        losses = [list(read_metrics(tmp_path / f / "log")) for f in (f"many/{name}", f"one/1{name[1:]}")]
        for a, b in zip(*losses, strict=True):
            assert a.pop("rare", None) is None or b.pop("rare") > 0  # a mean over parts, not over all items
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    assert rare, "no step had a parameter without a gradient"


class Dying(nn.Linear):
    """Kills the process in the backward pass, where the other ranks wait for its gradients."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return y


def die_in_the_backward_pass(folder: Path, kind: Parallel) -> str:
    m = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    if distributed.rank() == 1:
        m[0] = Dying(4, 8)
    if kind == "fsdp":
        parallel.shard_model(m, "cpu", bf16=False)
    try:
        fit(m, data, loss, CONFIG, folder, "test")
    except UserError as e:
        return str(e)
    raise AssertionError


@pytest.mark.parametrize("kind", PARALLEL)
def test_all_ranks_end_when_one_dies_in_the_backward_pass(kind: Parallel, tmp_path: Path) -> None:
    message, killed = in_ranks(die_in_the_backward_pass, tmp_path, tmp_path / "run", kind)
    assert killed is None
    assert "another process of this run has ended" in message
    assert "\n" not in message


def fail_in_the_backward_pass(folder: Path) -> str:
    def constant(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.mean()}

    try:
        fit(model(), data, constant, CONFIG, folder, "test")
    except RuntimeError as e:
        return str(e)
    raise AssertionError


def test_an_error_in_the_backward_pass_is_raised_unchanged(tmp_path: Path) -> None:
    messages = in_ranks(fail_in_the_backward_pass, tmp_path, tmp_path / "run")
    assert all("does not require grad" in message for message in messages)


TowerCases = list[tuple[int, Mapping[str, Any]]]  # items, changes of the configuration


def train_towers(folder: Path, kind: Parallel, cases: TowerCases) -> list[Trained]:
    return [train_tower(folder / str(i), kind, num, changes) for i, (num, changes) in enumerate(cases)]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_fsdp_trains_what_one_process_trains(num_ranks: int, tmp_path: Path) -> None:
    """All gradients within 1e-6, and their norm; also with fewer items or micro-batches than ranks, or no items."""
    cases: TowerCases = [
        (num, {"steps": 2, "grad_accum_steps": parts}) for parts, num in ((1, 8), (3, 5), (1, 1), (3, 1), (3, 0))
    ]
    together = in_ranks(train_towers, tmp_path, tmp_path / "many", "fsdp", cases, num=num_ranks)
    alone = train_towers(tmp_path / "one", "fsdp", [(num, {"steps": 2}) for num, _ in cases])
    for i, expected in enumerate(alone):
        assert sum(rank[i].num_here for rank in together) == expected.num_here
        assert max(rank[i].num_here for rank in together) < expected.num_here / num_ranks * 1.5
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


def muon_update(kind: Parallel) -> list[Tensor]:
    """Return the first update of each matrix of the layers by a random gradient."""
    m = Tower()
    if kind == "fsdp":
        parallel.shard_model(m, "cpu", bf16=False)
    optimizer = Optimizers.of(m, replace(CONFIG, optimizer="muon", weight_decay=0.0))
    before, generator = [full(p) for p in m.layers.parameters()], torch.Generator().manual_seed(0)
    for p in filter(lambda p: p.requires_grad, m.layers.parameters()):
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
    optimizer.step()
    return [full(p) - was for p, was in zip(m.layers.parameters(), before, strict=True) if p.ndim == 2]


def test_muon_updates_sharded_matrices_as_whole_ones(tmp_path: Path) -> None:
    """Within a twentieth, because it computes in bf16. Updates from the parts of a matrix would be off by half."""
    found, _ = in_ranks(muon_update, tmp_path, "fsdp")
    for a, b in zip(found, muon_update("ddp"), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


def collect_sharded(x: Tensor) -> dict[str, Any]:
    m = parallel.shard_model(Tower(), "cpu", bf16=False)
    with parallel.no_grad(m):
        y = m(x)
    return {"state": parallel.full_state_dict(m), "output": y, "is_wrapped": parallel.wrap_ddp(m) is not m}


def test_rank_0_collects_the_state_dict_of_a_sharded_model(tmp_path: Path) -> None:
    """Its weights are those of rank 0, from which all ranks start."""
    first, second = in_ranks(collect_sharded, tmp_path, data(0))
    expected = Tower()
    assert first["state"].keys() == expected.state_dict().keys()
    assert all(torch.equal(first["state"][name], tensor) for name, tensor in expected.state_dict().items())
    assert not second["state"]
    for rank in (first, second):
        assert torch.allclose(rank["output"], expected(data(0)), atol=1e-6)
        assert not rank["output"].requires_grad
        assert not rank["is_wrapped"]


def test_a_single_process_neither_wraps_nor_shards() -> None:
    m = Tower()
    assert parallel.shard_model(m, "cpu", bf16=True) is parallel.wrap_ddp(m) is m
    assert not parallel.is_sharded(m)
