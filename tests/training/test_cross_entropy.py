from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import in_ranks
from weft.training import cross_entropy, distributed, parallel
from weft.training.cross_entropy import linear_cross_entropy


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias).float()
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def case(num=40, width=24, vocab=100, bias=True, dtype=torch.float32, scale=1.0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    drawn = {
        "hidden": scale * torch.randn(num, width, generator=g),
        "weight": torch.randn(vocab, width, generator=g),
        "bias": torch.randn(vocab, generator=g) if bias else None,
    }
    made = {k: None if v is None else v.to(dtype).requires_grad_() for k, v in drawn.items()}
    return {**made, "targets": torch.randint(0, vocab, (num,), generator=g)}


def losses_and_gradients(function, case: dict[str, Any], weights: Tensor, bf16: bool = False) -> dict[str, Tensor]:
    """Return the losses of `function`, and the gradients of their sum weighted by `weights`."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in case.items() if k != "targets" and v is not None}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = function(*(leaves.get(k) for k in ("hidden", "weight", "bias")), case["targets"])
    (losses * weights).sum().backward()
    return {"losses": losses.detach(), **{k: v.grad for k, v in leaves.items()}}


@pytest.fixture
def set_block_ids(monkeypatch):
    """Return a function that sets the number of ids in a block."""

    def set_ids(num):
        monkeypatch.setattr(cross_entropy, "_BLOCK_LOGITS", {"cpu": 0})
        monkeypatch.setattr(cross_entropy, "_MIN_BLOCK_IDS", num)

    return set_ids


@pytest.mark.parametrize("num_ids", [1, 7, 50, 99])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_gradients_equal_those_of_all_logits(num_ids, bias, set_block_ids):
    """For any borders of blocks, different weights of losses, and logits that are far apart."""
    set_block_ids(num_ids)
    weights = torch.linspace(-1, 2, 40)
    for scale in (1.0, 30.0):
        given = case(bias=bias, scale=scale)
        expected, found = (losses_and_gradients(f, given, weights) for f in (plain, linear_cross_entropy))
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            torch.testing.assert_close(found[name], tensor, atol=2e-6 * float(tensor.abs().max()), rtol=2e-6)


def test_gradients_equal_finite_differences(set_block_ids):
    set_block_ids(4)
    given = case(num=3, width=4, vocab=9, dtype=torch.float64)
    for name in ("hidden", "weight", "bias"):
        torch.manual_seed(1)
        step = torch.randn_like(given[name])
        gradient = losses_and_gradients(linear_cross_entropy, given, torch.ones(3))[name]
        moved = [{**given, name: given[name].detach() + s * step} for s in (1e-3, -1e-3)]
        high, low = (losses_and_gradients(plain, case, torch.ones(3))["losses"].sum() for case in moved)
        slope = (high - low) / 2e-3
        assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_is_as_precise_as_with_all_logits(autocast, set_block_ids):
    set_block_ids(64)
    given = case(num=512, width=64, vocab=1000, dtype=torch.float32 if autocast else torch.bfloat16)
    weights = torch.full((512,), 1 / 512)
    double = {k: v.detach().double() if k != "targets" else v for k, v in given.items()}
    exact = losses_and_gradients(
        lambda h, w, b, t: nn.functional.cross_entropy(h @ w.T + b, t, reduction="none"), double, weights
    )
    expected, found = (losses_and_gradients(f, given, weights, bf16=autocast) for f in (plain, linear_cross_entropy))
    for name in exact:
        ours, theirs = (float((x[name].double() - exact[name]).norm()) for x in (found, expected))
        assert 0 < ours <= 1.05 * theirs, name


def test_logits_in_memory_are_at_most_a_block(monkeypatch):
    """In both passes."""
    shapes: list[int] = []
    linear = nn.functional.linear

    def recording(*args):
        out = linear(*args)
        shapes.append(out.numel())
        return out

    monkeypatch.setattr(nn.functional, "linear", recording)
    given = case(num=2000, width=8, vocab=10_000)
    losses_and_gradients(linear_cross_entropy, given, torch.ones(2000))
    limit = cross_entropy._BLOCK_LOGITS["cpu"]
    assert len(shapes) == 2 * -(-10_000 // (limit // 2000))
    assert max(shapes) <= limit < 2000 * 10_000


def test_results_are_reproducible_to_the_bit(set_block_ids):
    set_block_ids(30)
    first, second = (losses_and_gradients(linear_cross_entropy, case(), torch.ones(40)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_targets_there_are_no_losses_and_gradients_are_zero(set_block_ids):
    set_block_ids(30)
    found = losses_and_gradients(linear_cross_entropy, case(num=0), torch.ones(0))
    assert found["losses"].shape == (0,)
    assert not found["weight"].any()
    assert found["hidden"].shape == (0, 24)


def gradients_of_rank(num_targets: int) -> Tensor:
    """Return the gradient of the mean loss over the targets of all ranks, of which each computes its part."""
    cross_entropy._BLOCK_LOGITS, cross_entropy._MIN_BLOCK_IDS = {"cpu": 0}, 30
    given, part = case(num=num_targets), distributed.rank_slice()
    embedding = nn.Embedding(100, 24)
    embedding.weight.data.copy_(given["weight"])

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = embedding

        def forward(self, targets: Tensor) -> Tensor:
            return linear_cross_entropy(self.embedding(targets.flip(0)), self.embedding.weight, None, targets)

    model = parallel.wrap_ddp(Tied())
    parallel.backward(model(given["targets"][part]).sum() / num_targets)
    assert embedding.weight.grad is not None
    return embedding.weight.grad


def gradients_of_cases(cases: Sequence[int]) -> list[Tensor]:
    return [gradients_of_rank(num_targets) for num_targets in cases]


def test_two_ranks_compute_the_gradients_of_one(tmp_path: Path):
    """With tied weights. Of a single target, the second rank has nothing."""
    cases = (41, 1)
    for num, first, second in zip(cases, *in_ranks(gradients_of_cases, tmp_path, cases), strict=True):
        assert torch.equal(first, second)
        targets = [case(num=num)["targets"][i::2] for i in range(2)]
        weight = case(num=num)["weight"].detach().requires_grad_()
        losses = [plain(nn.functional.embedding(t.flip(0), weight), weight, None, t).sum() for t in targets]
        (sum(losses) / num).backward()
        torch.testing.assert_close(first, weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_targets", [1, 7, 8191, 8192, 50_001, 1 << 20])
def test_rows_of_logits_are_aligned_on_a_gpu(num_targets):
    num_ids = cross_entropy._block_ids("cuda", num_targets)
    assert num_ids % 256 == 0
    assert num_ids == 512 or (1 << 25) < num_ids * num_targets <= cross_entropy.GPU_BLOCK_LOGITS
