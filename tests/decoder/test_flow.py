import math
from dataclasses import replace

import pytest
import torch

from tests.decoder.conftest import FLOW, NUM_CODES
from weft.decoder.flow import FlowBatch, FlowConfig, FlowDecoder, schedule
from weft.errors import UserError

VALUES = 6


def new_flow(**settings: float) -> FlowDecoder:
    torch.manual_seed(0)
    return FlowDecoder(replace(FLOW, **settings), NUM_CODES, VALUES)  # type: ignore[arg-type]


def random_batch(model: FlowDecoder, mel_of: torch.Tensor, seed: int, size: int = 16) -> FlowBatch:
    """Return windows of random codes, with the mel `mel_of` (K + 1, P) of each code."""
    g = torch.Generator().manual_seed(seed)
    config = model.config
    codes = torch.randint(0, NUM_CODES, (size, config.before_codes + config.block_codes), generator=g)
    return FlowBatch(
        codes=codes,
        mel=mel_of[codes],
        noise=torch.randn(size, config.block_codes, VALUES, generator=g),
        time=torch.rand(size, generator=g),
        dropped=torch.rand(size, generator=g) < config.condition_dropout,
        speakers=torch.zeros(size, dtype=torch.int64),
    )


def test_the_initial_prior_is_the_mean_mel_of_each_code() -> None:
    model = new_flow(width=64)
    means = torch.randn(NUM_CODES + 1, VALUES)
    mean, std = torch.randn(VALUES), 1 + torch.rand(VALUES)
    model.initialize(means, mean, std)
    codes = torch.arange(8)[None]
    prior = model.prior(codes, codes[:, 0]) * std + mean
    assert (prior[0] - means[:8]).square().mean() < 0.02 * means.var()


def test_sampling_with_a_perfect_estimator_ends_on_the_clean_mel() -> None:
    """This holds for any noise, any number of Euler steps and any guidance."""
    target = torch.randn(2, 5, VALUES)
    for steps, guidance in ((1, 0.0), (4, 0.7), (10, 0.7)):
        model = new_flow(euler_steps=steps, guidance=guidance)
        model.estimate = lambda x, *_: target.repeat(len(x) // 2, 1, 1)  # type: ignore[method-assign]
        codes, before = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 3, VALUES)
        assert torch.allclose(model.sample(codes, before, torch.randn(2, 5, VALUES)), target, atol=1e-4)


def test_the_loss_is_the_squared_error_of_the_velocity() -> None:
    model = new_flow(prior_weight=0.0)
    batch = random_batch(model, torch.randn(NUM_CODES + 1, VALUES), 0)
    batch = replace(batch, time=batch.time.clamp(max=0.9))  # where the weight is not bounded
    target, sigma = batch.mel[:, 3:], model.config.sigma_min
    model.estimate = lambda *_: target  # type: ignore[method-assign]
    assert model.loss(batch)["loss"] == 0
    wrong = target + torch.randn(target.shape)
    model.estimate = lambda *_: wrong  # type: ignore[method-assign]
    t = schedule(batch.time)[:, None, None]
    x = (1 - (1 - sigma) * t) * batch.noise + t * target
    velocity = (wrong - (1 - sigma) * x) / (1 - (1 - sigma) * t)
    straight = target - (1 - sigma) * batch.noise
    assert torch.allclose(model.loss(batch)["loss"], (velocity - straight).square().mean(), rtol=1e-3)


def test_a_dropped_condition_has_no_influence() -> None:
    model = new_flow()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    batch = random_batch(model, torch.randn(NUM_CODES + 1, VALUES), 0)
    other = replace(batch, codes=(batch.codes + 1) % NUM_CODES)
    dropped, kept = torch.ones(16, dtype=torch.bool), torch.zeros(16, dtype=torch.bool)
    a, b = (model.loss(replace(x, dropped=dropped))["flow"] for x in (batch, other))
    assert torch.equal(a, b)
    a, b = (model.loss(replace(x, dropped=kept))["flow"] for x in (batch, other))
    assert not torch.equal(a, b)


def test_the_schedule_goes_from_noise_to_mel_in_steps_that_grow() -> None:
    times = schedule(torch.linspace(0, 1, 11))
    assert times[0] == 0
    assert math.isclose(float(times[-1]), 1.0, abs_tol=1e-6)
    assert (times.diff().diff() > 0).all()


def test_training_learns_a_mel_that_depends_on_the_previous_code() -> None:
    model = new_flow(width=32, euler_steps=4)
    means = torch.randn(NUM_CODES + 1, VALUES, generator=torch.Generator().manual_seed(1))

    def batch_at(step: int) -> FlowBatch:
        batch = random_batch(model, means, step, size=32)
        return replace(batch, mel=batch.mel + 0.5 * means[batch.codes.roll(1, dims=1)])

    model.initialize(means, torch.zeros(VALUES), torch.ones(VALUES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(120):
        optimizer.zero_grad()
        model.loss(batch_at(step))["loss"].backward()
        optimizer.step()
    held_out = batch_at(10_000)
    mel = model.eval().sample(held_out.codes, held_out.mel[:, :3], held_out.noise)
    error = (mel - held_out.mel[:, 3:]).square().mean()
    assert error < 0.3 * (means[held_out.codes][:, 3:] - held_out.mel[:, 3:]).square().mean()


@pytest.mark.parametrize(
    "settings", [{"first_block_codes": 6}, {"first_block_codes": 0}, {"width": 18, "heads": 4}, {"context_codes": 0}]
)
def test_impossible_settings_are_rejected(settings: dict[str, int]) -> None:
    with pytest.raises(UserError):
        FlowConfig(**{"block_codes": 5, **settings})


def test_a_model_learns_the_mel_of_each_speaker() -> None:
    """The mel of one speaker is above that of the other, for all codes."""
    torch.manual_seed(0)
    model = FlowDecoder(FLOW, NUM_CODES, VALUES, num_speakers=2)
    optimizer, mel_of = torch.optim.Adam(model.parameters(), 1e-2), 0.3 * torch.randn(NUM_CODES + 1, VALUES)
    for step in range(250):
        batch = random_batch(model, mel_of, step)
        speakers = 1 + torch.arange(len(batch)) % 2
        mel = batch.mel + (2.0 * speakers - 3.0)[:, None, None]
        optimizer.zero_grad()
        model.loss(replace(batch, mel=mel, speakers=speakers))["loss"].backward()
        optimizer.step()
    batch = random_batch(model, mel_of, 1000)
    blocks = [model.prior(batch.codes, torch.full((16,), row))[:, FLOW.before_codes :] for row in (1, 2)]
    assert [b.mean().item() for b in blocks] == pytest.approx([-1.0, 1.0], abs=0.3)
