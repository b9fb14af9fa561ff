from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import in_ranks
from weft.errors import UserError
from weft.tokenizer import quantizer as module
from weft.tokenizer.codebook import CodebookUsage, usage_of
from weft.tokenizer.quantizer import Quantizer, QuantizerConfig, VectorQuantizer
from weft.training import distributed


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(num_codes: int = 8, width: int = 4, **settings: float) -> VectorQuantizer:
    made = VectorQuantizer(QuantizerConfig(num_codes=num_codes, **settings), width)  # type: ignore[arg-type]
    made.initialize(random(64, width), torch.Generator().manual_seed(1))
    return made


def all_valid(hidden: Tensor) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


def step(q: Quantizer, hidden: Tensor) -> CodebookUsage:
    q(hidden, all_valid(hidden))
    return q.update()


@settings(max_examples=30)
@given(
    num_frames=st.integers(0, 40),
    num_codes=st.integers(2, 20),
    block_sizes=st.tuples(st.integers(1, 50), st.integers(1, 25)),
    seed=st.integers(0, 99),
)
def test_nearest_returns_the_code_with_the_smallest_squared_distance(
    num_frames: int, num_codes: int, block_sizes: tuple[int, int], seed: int
) -> None:
    """However many frames and codes are compared at a time."""
    q = VectorQuantizer(QuantizerConfig(num_codes=num_codes), 4)
    q.codebook.copy_(random(num_codes, 4, seed=seed))
    x = random(num_frames, 4, seed=seed + 1)
    expected = (x[:, None] - q.codebook).square().sum(-1).argmin(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ROWS", block_sizes[0])
        patch.setattr(module, "_BLOCK_CODES", block_sizes[1])
        assert torch.equal(q.encode(x), expected)
    assert torch.equal(q.encode(x[None, :, None])[0, :, 0], expected)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that is created inside."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.num_bytes = max(self.num_bytes, out.untyped_storage().nbytes())
        return out


def test_distances_of_many_frames_and_codes_are_never_in_memory_at_once() -> None:
    q = VectorQuantizer(QuantizerConfig(num_codes=16_384), 2)
    q.codebook.copy_(random(16_384, 2))
    x = random(1, 5000, 2, seed=1)
    with LargestTensor() as largest:
        q(x, all_valid(x))
        q.update()
    assert largest.num_bytes <= 256 * 2**20 < 4 * 5000 * 16_384


def test_the_precision_of_a_run_does_not_change_the_codes() -> None:
    q = quantizer(num_codes=64)
    x = random(500, 4, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.encode(x), (x[:, None] - q.codebook).square().sum(-1).argmin(-1))


def test_values_are_codebook_rows_and_gradients_pass_straight_through() -> None:
    q = quantizer(commitment=0.0).eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = q(x, all_valid(x))
    assert torch.allclose(out.values, q.decode(out.codes), atol=1e-6)
    (out.values * torch.arange(4.0)).sum().backward()
    assert torch.allclose(x.grad, torch.arange(4.0).expand_as(x))


def test_commitment_pulls_hidden_states_towards_their_codes() -> None:
    q = quantizer(commitment=2.0).eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = q(x, all_valid(x))
    out.loss.backward()
    assert torch.allclose(x.grad, 2.0 * 2 * (x - q.decode(out.codes)).detach() / x.numel(), atol=1e-6)


def test_padding_changes_neither_loss_nor_codebook() -> None:
    x = torch.randn(2, 6, 4)
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    noisy = x.clone()
    noisy[~valid] = 100.0
    moved = []
    for batch in (x, noisy):
        q = quantizer().train()
        loss = q(batch, valid).loss
        moved.append((q.update(), q.codebook.clone(), loss))
    assert torch.equal(moved[0][1], moved[1][1])
    assert torch.equal(moved[0][2], moved[1][2])
    assert moved[0][0] == moved[1][0]


def test_the_codebook_follows_the_means_of_the_hidden_states_of_each_code() -> None:
    q = quantizer(num_codes=2, width=2, decay=0.5, restart_every_steps=0).train()
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    q.ema_sum.copy_(q.codebook)
    x = torch.tensor([[[1.0, 1.0], [3.0, 1.0], [11.0, 9.0], [9.0, 9.0]]])
    for _ in range(40):
        step(q, x)
    assert torch.allclose(q.codebook, torch.tensor([[2.0, 1.0], [10.0, 9.0]]), atol=1e-3)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_in_parts_equals_a_whole_step(every: int) -> None:
    x = random(6, 8, 4, seed=4)
    whole, parts = (quantizer(num_codes=16, restart_every_steps=every, decay=0.5).train() for _ in range(2))
    for _ in range(4):
        used = step(whole, x)
        for part in x.split(2):
            parts(part, all_valid(part))
        assert parts.update() == used
        assert torch.allclose(parts.codebook, whole.codebook, atol=1e-5)


def test_evaluation_does_not_change_the_codebook() -> None:
    q, unchanged = quantizer(restart_every_steps=0).train(), quantizer(restart_every_steps=0).train()
    q.eval()(random(1, 9, 4) + 5, torch.ones(1, 9, dtype=torch.bool))
    assert q.update() == unchanged.update()
    assert torch.equal(q.codebook, unchanged.codebook)


def with_codes_at(values: list[float], **settings: float) -> VectorQuantizer:
    q = quantizer(len(values), 1, **settings).train()
    q.codebook.copy_(torch.tensor(values)[:, None])
    q.ema_sum.copy_(q.codebook)
    return q


@pytest.mark.parametrize("every", [1, 3, 10, 100])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999])
def test_the_rule_of_the_paper_restarts_a_code_never_used_but_not_one_used_once(every: int, decay: float) -> None:
    q = with_codes_at([0.0, 100.0, 1000.0], decay=decay, restart_every_steps=every)
    for i in range(every):
        assert not q.num_restarts
        used = step(q, torch.tensor([[[0.0], [100.0 if i == 0 else 0.0]]]))
    assert used.restarts == 1
    assert 0 <= q.codebook[2] <= 100 < 1000
    assert q.ema_sum[1] / q.ema_count[1] == pytest.approx(100.0, rel=1e-3)


def test_restart_fraction_keeps_codes_that_are_rarely_but_evenly_used() -> None:
    """With one vector per step and eight codes, the rule of the paper restarts codes that are used evenly."""
    restarts = []
    for fraction in (None, 0.3):
        q = with_codes_at([10.0 * i for i in range(8)], decay=0.9, restart_every_steps=20, restart_fraction=fraction)
        for i in range(80):
            used = step(q, torch.tensor([[[10.0 * (i % 8)]]]))
        restarts.append(used.restarts)
    assert restarts[0] > 0
    assert restarts[1] == 0


def test_restart_fraction_restarts_an_unused_code_with_the_mean_count() -> None:
    q = with_codes_at([0.0, 1.0, 1000.0], decay=0.9, restart_every_steps=30, restart_fraction=0.3)
    for _ in range(30):
        used = step(q, torch.tensor([[[0.0], [0.0], [1.0], [1.0]]]))
    assert used.restarts == 1
    assert q.ema_count[2] == pytest.approx(float(q.ema_count[:2].sum() + 0.9**30) / 3, rel=1e-3)
    assert 0 <= q.codebook[2] <= 1


def test_with_few_frames_the_least_used_codes_restart_first_from_different_frames() -> None:
    q = with_codes_at([0.0, 100.0, 200.0, 300.0, 400.0], decay=0.9, restart_every_steps=1)
    q.ema_count.copy_(torch.tensor([5.0, 0.3, 0.1, 0.4, 0.2]))
    q.ema_sum.copy_(q.ema_count[:, None] * q.codebook)
    step(q, torch.tensor([[[1.0], [3.0]]]))
    assert q.codebook[[1, 3], 0].tolist() == pytest.approx([100.0, 300.0], rel=1e-3)
    assert sorted(q.codebook[[2, 4], 0].tolist()) == pytest.approx([1.0, 3.0], rel=1e-3)


def test_a_restarted_code_is_used_one_step_later() -> None:
    q = quantizer(num_codes=4, width=2, decay=0.5, restart_every_steps=3).train()
    q.codebook[3] = 1000.0  # no hidden state is near it
    q.ema_sum[3] = 1000.0
    x = random(1, 32, 2, seed=3)
    for _ in range(12):
        step(q, x)
    assert int(q.num_restarts) >= 1
    assert q.codebook[3].abs().max() < 10
    step(q, x)
    assert usage_of(torch.bincount(q.encode(x).flatten(), minlength=4)).codes_used == 4


@pytest.mark.parametrize("fraction", [None, 0.2])
def test_restarts_are_the_same_after_a_resume(fraction: float | None) -> None:
    x = random(20, 1, 32, 2, seed=3)

    def new() -> VectorQuantizer:
        q = quantizer(num_codes=16, width=2, decay=0.5, restart_every_steps=3, restart_fraction=fraction).train()  # type: ignore[arg-type]
        q.codebook[5:9] += 1000.0  # no hidden state is near them
        return q

    whole, first, second = new(), new(), new()
    for batch in x:
        step(whole, batch)
    for batch in x[:7]:
        step(first, batch)
    second.load_state_dict(first.state_dict())
    for batch in x[7:]:
        step(second, batch)
    assert int(whole.num_restarts)
    assert torch.equal(whole.codebook, second.codebook)


def test_k_means_has_a_smaller_error_than_a_sample() -> None:
    vectors = random(400, 4)
    errors = {}
    for init in ("kmeans", "samples"):
        q = VectorQuantizer(QuantizerConfig(num_codes=20, init=init), 4)  # type: ignore[arg-type]
        q.initialize(vectors, torch.Generator().manual_seed(1))
        errors[init] = float((vectors - q.decode(q.encode(vectors))).square().mean())
        assert len(q.codebook.unique(dim=0)) == 20
    sampled = (vectors[:, None] == q.codebook).all(-1)
    assert sampled.sum(0).tolist() == [1] * 20
    assert errors["kmeans"] < 0.9 * errors["samples"]


STEPS = 7


def train_on_this_rank(x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Codebooks after steps on a part of the data: without restarts, with restarts, and by k-means."""
    mine = x[:, distributed.rank_slice()]
    out = {}
    for name, every in (("moved", 0), ("restarted", 3)):
        q = quantizer(num_codes=16, decay=0.6, restart_every_steps=every).train()
        q.load_state_dict(state)
        used = [step(q, batch) for batch in mine][-1]
        out[name], out[f"{name} count"], out[f"{name} used"] = q.codebook, q.ema_count, used
    q.initialize(mine.flatten(0, 2), torch.Generator().manual_seed(3))
    return {**out, "k-means": q.codebook}


def test_two_processes_with_halves_of_a_batch_equal_one_with_the_whole(tmp_path: Path) -> None:
    x = random(STEPS, 5, 6, 4, seed=7)
    state = quantizer(num_codes=16).state_dict()
    first, second = in_ranks(train_on_this_rank, tmp_path, x, state)
    alone = train_on_this_rank(x, state)
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name], name
    for name in ("moved", "moved count"):
        assert torch.allclose(first[name], alone[name], atol=1e-5), name
    assert first["moved used"] == alone["moved used"]
    assert first["restarted used"].restarts > 0
    error = [(x.flatten(0, 2)[:, None] - q["k-means"]).square().sum(-1).min(1).values.mean() for q in (first, alone)]
    assert error[0] == pytest.approx(float(error[1]), rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fsq"}, "levels are"),
        ({"kind": "fsq", "levels": (8, 2)}, "3 or more"),
        ({"kind": "fsq", "levels": (8, 5), "num_codes": 512}, "levels give 40 codes: remove num_codes"),
        ({"levels": (8, 5)}, 'kind is "vq"'),
        ({"num_codes": 70_000}, "2 to 65536"),
    ],
)
def test_contradicting_settings_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizerConfig(**change)  # type: ignore[arg-type]
