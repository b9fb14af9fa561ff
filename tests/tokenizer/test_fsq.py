import math
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ranks import in_ranks
from weft.tokenizer.fsq import FiniteScalarQuantizer
from weft.tokenizer.quantizer import QuantizerConfig
from weft.training import distributed

LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=4)


def quantizer(levels: list[int], width: int = 6, seed: int = 0) -> FiniteScalarQuantizer:
    torch.manual_seed(seed)
    return FiniteScalarQuantizer(QuantizerConfig(kind="fsq", levels=tuple(levels)), width)


def all_valid(hidden: Tensor) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


@settings(max_examples=40)
@given(levels=LEVELS, spread=st.sampled_from([0.01, 1.0, 1e4]), seed=st.integers(0, 99))
def test_codes_are_within_the_codebook_and_values_are_their_vectors(
    levels: list[int], spread: float, seed: int
) -> None:
    q = quantizer(levels, seed=seed)
    x = spread * torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(seed))
    out = q(x, all_valid(x))
    assert 0 <= int(out.codes.min()) <= int(out.codes.max()) < math.prod(levels) == q.num_codes
    assert torch.equal(out.codes, q.encode(x))
    assert torch.allclose(out.values, q.decode(out.codes), atol=1e-5)
    assert out.loss == 0
    flat, codes = x.flatten(0, 1), out.codes.flatten()
    assert 0 <= q.distance(flat, codes) <= 0.25  # half a step, squared
    assert q.distance(flat, codes) <= q.distance(flat, codes.flip(0))


@settings(max_examples=20)
@given(levels=LEVELS)
def test_every_code_is_a_distinct_grid_point_that_inputs_can_reach(levels: list[int]) -> None:
    q = quantizer(levels, width=len(levels))
    for projection in (q.down, q.up):
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    line_of = torch.linspace(-6, 6, 200)
    points = q.decode(torch.arange(q.num_codes))
    assert len(points.unique(dim=0)) == q.num_codes
    assert points.abs().max() <= 1
    for dimension, num in enumerate(levels):
        assert len(points[:, dimension].unique()) == num
        line = torch.zeros(200, len(levels))
        line[:, dimension] = line_of
        assert q.encode(line).unique().numel() == num


def test_gradients_pass_straight_through_the_rounding() -> None:
    q = quantizer([8, 5, 3])
    x = torch.randn(1, 7, 6, requires_grad=True)
    weight = torch.randn(1, 7, 6)
    (through,) = torch.autograd.grad((q(x, all_valid(x)).values * weight).sum(), x)
    (smooth,) = torch.autograd.grad((q._project_up(q._bound(x)) * weight).sum(), x)
    assert torch.allclose(through, smooth, atol=1e-6)
    assert through.abs().max() > 0
    assert all(p.grad is None for p in q.parameters())


def test_initialization_finds_the_principal_directions() -> None:
    """Hidden states on a plane in a wider space are reconstructed with a small error, by most of the codes."""
    torch.manual_seed(3)
    plane = torch.randn(2, 12) * torch.tensor([[3.0], [1.0]])
    vectors = torch.randn(2000, 2) @ plane + 5
    q = quantizer([9, 9], width=12)

    @torch.no_grad()
    def error() -> float:
        return float((q.decode(q.encode(vectors)) - vectors).square().mean() / vectors.var(0).mean())

    before = error()
    q.initialize(vectors, torch.Generator())
    assert error() < 0.1 < before
    used = torch.bincount(q.encode(vectors), minlength=81)
    assert (used > 0).sum() > 60


def test_hidden_states_may_vary_in_fewer_directions_than_there_are_levels() -> None:
    q = quantizer([5, 5, 5], width=4)
    q.initialize(torch.ones(3, 4), torch.Generator())
    assert torch.isfinite(q.decode(q.encode(torch.randn(50, 4)))).all()
    narrow = quantizer([5, 5, 5], width=2)
    narrow.initialize(torch.randn(50, 2), torch.Generator())
    assert torch.isfinite(narrow.decode(narrow.encode(torch.randn(50, 2)))).all()


def test_usage_counts_the_valid_positions_of_a_step() -> None:
    q = quantizer([4, 4]).train()
    x = torch.randn(2, 10, 6)
    valid = torch.arange(10) < torch.tensor([[10], [3]])
    q(x[:1], valid[:1])
    q(x[1:], valid[1:])
    assert q.update().codes_used == len(q.encode(x[valid]).unique())
    assert q.update().codes_used == 0


def test_the_precision_of_a_run_does_not_change_the_codes() -> None:
    q = quantizer([8, 8, 8])
    x = torch.randn(500, 6)
    expected = q.encode(x)
    vectors = q.decode(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.encode(x), expected)
        assert torch.equal(q.decode(expected), vectors)


def initialize_and_update(x: Tensor) -> dict[str, Tensor]:
    mine = x[distributed.rank_slice()]
    q = quantizer([5, 5, 3], seed=distributed.rank()).train()
    q.initialize(mine.flatten(0, 1), torch.Generator())
    q(mine, all_valid(mine))
    return {**q.state_dict(), "used": torch.tensor(q.update().codes_used)}


def test_two_processes_have_equal_parameters_and_count_together(tmp_path: Path) -> None:
    x = torch.randn(5, 40, 6, generator=torch.Generator().manual_seed(1))
    first, second = in_ranks(initialize_and_update, tmp_path, x)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    q = quantizer([5, 5, 3])
    q.load_state_dict({name: value for name, value in first.items() if name != "used"})
    assert int(first["used"]) == len(q.encode(x).unique())
