import torch

from weft.tokenizer.quantizer import QuantizerConfig, VectorQuantizer, health


def quantizer(num_codes: int = 8, width: int = 4, **settings: float) -> VectorQuantizer:
    made = VectorQuantizer(QuantizerConfig(num_codes=num_codes, **settings), width)  # type: ignore[arg-type]
    vectors = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    made.initialise(vectors, torch.Generator().manual_seed(1))
    return made


def everywhere(hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


def test_nearest_is_the_code_at_the_least_squared_distance() -> None:
    q = quantizer()
    x = torch.randn(3, 5, 4)
    by_hand = (x[..., None, :] - q.codebook).square().sum(-1).argmin(-1)
    assert torch.equal(q.nearest(x), by_hand)


def test_values_are_codebook_rows_and_gradients_pass_straight_through() -> None:
    q = quantizer(commitment=0.0).eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = q(x, everywhere(x))
    assert torch.allclose(out.values, q.lookup(out.codes), atol=1e-6)
    (out.values * torch.arange(4.0)).sum().backward()
    assert torch.allclose(x.grad, torch.arange(4.0).expand_as(x))


def test_commitment_pulls_hidden_states_towards_their_codes() -> None:
    q = quantizer(commitment=2.0).eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = q(x, everywhere(x))
    out.loss.backward()
    assert torch.allclose(x.grad, 2.0 * 2 * (x - q.lookup(out.codes)).detach() / x.numel(), atol=1e-6)


def test_padding_moves_nothing() -> None:
    x = torch.randn(2, 6, 4)
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    noisy = x.clone()
    noisy[~valid] = 100.0
    moved = []
    for batch in (x, noisy):
        q = quantizer().train()
        loss = q(batch, valid).loss
        moved.append((q.codebook.clone(), loss))
    assert torch.equal(moved[0][0], moved[1][0])
    assert torch.equal(moved[0][1], moved[1][1])


def test_codebook_follows_the_mean_of_what_each_code_takes() -> None:
    q = quantizer(num_codes=2, width=2, decay=0.5, restart_every_steps=0).train()
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    q.ema_sum.copy_(q.codebook)
    x = torch.tensor([[[1.0, 1.0], [3.0, 1.0], [11.0, 9.0], [9.0, 9.0]]])
    for _ in range(40):
        q(x, everywhere(x))
    assert torch.allclose(q.codebook, torch.tensor([[2.0, 1.0], [10.0, 9.0]]), atol=1e-3)


def test_a_restarted_code_is_alive_one_step_later() -> None:
    q = quantizer(num_codes=4, width=2, decay=0.5, restart_every_steps=3).train()
    q.codebook[3] = 1000.0  # nothing is ever near it
    q.ema_sum[3] = 1000.0
    x = torch.randn(1, 32, 2, generator=torch.Generator().manual_seed(3))
    for _ in range(12):
        q(x, everywhere(x))
    assert int(q.num_restarts) >= 1
    assert q.codebook[3].abs().max() < 10
    q(x, everywhere(x))
    assert health(torch.bincount(q.nearest(x).flatten(), minlength=4)).codes_used == 4


def test_restarts_are_the_same_after_a_resume() -> None:
    x = torch.randn(20, 1, 32, 2, generator=torch.Generator().manual_seed(3))
    whole = quantizer(num_codes=16, width=2, decay=0.5, restart_every_steps=3).train()
    for batch in x:
        whole(batch, everywhere(batch))
    first = quantizer(num_codes=16, width=2, decay=0.5, restart_every_steps=3).train()
    for batch in x[:7]:
        first(batch, everywhere(batch))
    second = quantizer(num_codes=16, width=2, decay=0.5, restart_every_steps=3).train()
    second.load_state_dict(first.state_dict())
    for batch in x[7:]:
        second(batch, everywhere(batch))
    assert torch.equal(whole.codebook, second.codebook)


def test_health_of_even_use_is_the_whole_codebook() -> None:
    even, one = health(torch.full((16,), 5)), health(torch.tensor([7] + [0] * 15))
    assert (even.codes_used, round(even.perplexity, 6), round(even.bits, 6)) == (16, 16.0, 4.0)
    assert (one.codes_used, one.perplexity, one.bits) == (1, 1.0, 0.0)
