from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import in_ranks
from weft.lm import cross_entropy
from weft.lm.cross_entropy import linear_cross_entropy
from weft.training import distributed


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias).float()
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def case(num=40, width=24, vocab=100, bias=True, dtype=torch.float32, sharp=1.0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    drawn = {
        "hidden": sharp * torch.randn(num, width, generator=g),
        "weight": torch.randn(vocab, width, generator=g),
        "bias": torch.randn(vocab, generator=g) if bias else None,
    }
    made = {k: None if v is None else v.to(dtype).requires_grad_() for k, v in drawn.items()}
    return {**made, "targets": torch.randint(0, vocab, (num,), generator=g)}


def taken(way, case: dict[str, Any], weights: Tensor, bf16: bool = False) -> dict[str, Tensor]:
    """Losses, and the gradients of their sum weighed by `weights`."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in case.items() if k != "targets" and v is not None}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = way(*(leaves.get(k) for k in ("hidden", "weight", "bias")), case["targets"])
    (losses * weights).sum().backward()
    return {"losses": losses.detach(), **{k: v.grad for k, v in leaves.items()}}


@pytest.fixture
def blocks_of(monkeypatch):
    """Sets how many ids a block has, for cases with many logits."""

    def set_ids(num):
        monkeypatch.setattr(cross_entropy, "_BLOCK_LOGITS", {"cpu": 0})
        monkeypatch.setattr(cross_entropy, "_LEAST_BLOCK_IDS", num)

    return set_ids


@pytest.mark.parametrize("num_ids", [1, 7, 50, 99])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_gradients_are_those_of_all_logits(num_ids, bias, blocks_of):
    """Whichever the blocks' borders, also where weights on losses differ and where logits are far apart."""
    blocks_of(num_ids)
    weights = torch.linspace(-1, 2, 40)
    for sharp in (1.0, 30.0):
        given = case(bias=bias, sharp=sharp)
        expected, found = taken(plain, given, weights), taken(linear_cross_entropy, given, weights)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            torch.testing.assert_close(found[name], tensor, atol=2e-6 * float(tensor.abs().max()), rtol=2e-6)


def test_gradients_are_those_of_differences(blocks_of):
    blocks_of(4)
    given = case(num=3, width=4, vocab=9, dtype=torch.float64)
    for name in ("hidden", "weight", "bias"):
        torch.manual_seed(1)
        step = torch.randn_like(given[name])
        taken_there = taken(linear_cross_entropy, given, torch.ones(3))[name]
        ends = [taken(plain, {**given, name: given[name].detach() + s * step}, torch.ones(3)) for s in (1e-3, -1e-3)]
        slope = (ends[0]["losses"].sum() - ends[1]["losses"].sum()) / 2e-3
        assert float((taken_there * step).sum()) == pytest.approx(float(slope), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_is_no_further_from_exact_than_all_logits_are(autocast, blocks_of):
    blocks_of(64)
    given = case(num=512, width=64, vocab=1000, dtype=torch.float32 if autocast else torch.bfloat16)
    weights = torch.full((512,), 1 / 512)
    double = {k: v.detach().double() if k != "targets" else v for k, v in given.items()}
    exact = taken(lambda h, w, b, t: nn.functional.cross_entropy(h @ w.T + b, t, reduction="none"), double, weights)
    expected, found = (taken(way, given, weights, bf16=autocast) for way in (plain, linear_cross_entropy))
    for name in exact:
        ours, theirs = (float((x[name].double() - exact[name]).norm()) for x in (found, expected))
        assert 0 < ours <= 1.05 * theirs, name


def test_many_logits_are_never_there_at_once(monkeypatch):
    """Every product of the head is at most a block, in both passes; few logits are made as a whole."""
    shapes: list[int] = []
    linear = nn.functional.linear

    def watched(*args):
        out = linear(*args)
        shapes.append(out.numel())
        return out

    monkeypatch.setattr(nn.functional, "linear", watched)
    given = case(num=2000, width=8, vocab=10_000)
    taken(linear_cross_entropy, given, torch.ones(2000))
    limit = cross_entropy._BLOCK_LOGITS["cpu"]
    assert len(shapes) == 2 * -(-10_000 // (limit // 2000))
    assert max(shapes) <= limit < 2000 * 10_000


def test_the_same_bits_every_time(blocks_of):
    blocks_of(30)
    first, second = (taken(linear_cross_entropy, case(), torch.ones(40)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_targets_have_no_losses_and_zero_gradients(blocks_of):
    blocks_of(30)
    found = taken(linear_cross_entropy, case(num=0), torch.ones(0))
    assert found["losses"].shape == (0,)
    assert not found["weight"].any()
    assert found["hidden"].shape == (0, 24)


def gradients_of_a_share(num_targets: int) -> list[Tensor]:
    """Of a linear head's mean loss over all processes' targets, each taking its share."""
    cross_entropy._BLOCK_LOGITS, cross_entropy._LEAST_BLOCK_IDS = {"cpu": 0}, 30
    given, part = case(num=num_targets), distributed.share()
    embedding = nn.Embedding(100, 24)
    embedding.weight.data.copy_(given["weight"])

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = embedding

        def forward(self, targets: Tensor) -> Tensor:
            return linear_cross_entropy(self.embedding(targets.flip(0)), self.embedding.weight, None, targets)

    model = distributed.data_parallel(Tied())
    distributed.backward(model(given["targets"][part]).sum() / num_targets)
    return [p.grad for p in embedding.parameters()]


def test_processes_together_make_the_gradients_of_one(tmp_path: Path):
    """With the weight also that of an embedding; the second process has nothing of a single target."""
    for num in (41, 1):
        first, second = in_ranks(gradients_of_a_share, tmp_path, num)
        assert all(map(torch.equal, first, second))
        targets = [case(num=num)["targets"][i::2] for i in range(2)]
        weight = case(num=num)["weight"].detach().requires_grad_()
        losses = [plain(nn.functional.embedding(t.flip(0), weight), weight, None, t).sum() for t in targets]
        (sum(losses) / num).backward()
        torch.testing.assert_close(first[0], weight.grad, atol=1e-6, rtol=1e-5)
