import math

import pytest
import torch

from weft.decoder.discriminators import Discriminators, DiscriminatorShape
from weft.decoder.mel import MelConfig
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.decoder.vocoder_loss import LossConfig, MelDistance, VocoderTraining

TINY = DiscriminatorShape(width=2, periods=(2, 3), windows=(256,))


def new_training(**weights: float) -> VocoderTraining:
    torch.manual_seed(0)
    return VocoderTraining(Vocoder(VocoderShape(width=16, layers=1), MelConfig()), TINY, LossConfig(**weights))


def speech(num_rows: int = 2, num_frames: int = 12) -> torch.Tensor:
    return 0.1 * torch.randn(num_rows, num_frames * 256, generator=torch.Generator().manual_seed(1))


def gradients(training: VocoderTraining, part: str) -> list[torch.Tensor]:
    return [p.grad for p in training.get_submodule(part).parameters() if p.grad is not None]


def test_each_part_has_the_gradients_of_its_own_losses_only() -> None:
    """Equal to those of two separate backward passes, as an alternating training has them."""
    together = new_training()
    together.losses(speech(), adversarial=True)["loss"].backward()
    for part, names in (("vocoder", ("mel", "generator", "features")), ("discriminators", ("discriminator",))):
        alone = new_training()
        losses = alone.losses(speech(), adversarial=True)
        weights = {"mel": alone.config.mel_weight}
        sum(weights.get(name, 1.0) * losses[name] for name in names).backward()
        other = "discriminators" if part == "vocoder" else "vocoder"
        assert not gradients(alone, other)
        pairs = list(zip(gradients(alone, part), gradients(together, part), strict=True))
        assert pairs
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_without_adversarial_losses_the_discriminators_are_not_used() -> None:
    training = new_training()
    losses = training.losses(speech(), adversarial=False)
    losses["loss"].backward()
    assert losses.keys() == {"loss", "mel"}
    assert not gradients(training, "discriminators")


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000])
def test_the_mel_distance_grows_with_the_difference(rate_hz: int) -> None:
    distance, samples = MelDistance(rate_hz), speech(num_frames=40)
    assert distance(samples, samples) == 0
    louder = [float(distance(factor * samples, samples)) for factor in (1.1, 2.0)]
    assert louder == pytest.approx([math.log(1.1), math.log(2.0)], rel=0.05)


def test_every_discriminator_scores_and_sees_every_sample() -> None:
    discriminators = Discriminators(TINY)
    samples = speech(1).requires_grad_()
    scores, features = discriminators(samples)
    assert len(scores) == len(features) == 3
    for score in scores:
        (gradient,) = torch.autograd.grad(score.square().sum(), samples, retain_graph=True)
        assert (gradient[0, 512:-512] != 0).all()


def test_discriminators_have_their_published_size() -> None:
    """HiFi-GAN's period discriminators have 41.1 million parameters."""
    with torch.device("meta"):
        periods = Discriminators(DiscriminatorShape(windows=()))
    assert sum(p.numel() for p in periods.parameters()) == pytest.approx(41.1e6, rel=0.01)
