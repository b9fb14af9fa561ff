from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tokenizer.conftest import make_tokenizer, shared_tokenizer
from weft.tokenizer import encoder
from weft.tokenizer.dataset import Batch
from weft.tokenizer.encoder import valid_frames
from weft.tokenizer.objective import AsrObjective
from weft.training import cross_entropy

TEXT_IDS, CHARS = [[1, 7, 9], [1, 5]], [[1, 2, 2], [3]]
NUM_FRAMES = [80, 48]  # 20 and 12 codes


def batch_of(*rows: int, padding: int = 0, quantize: bool = True) -> Batch:
    frames = max(NUM_FRAMES[row] for row in rows) + padding
    features = torch.zeros(len(rows), 80, 2 * frames)
    for i, row in enumerate(rows):
        generator = torch.Generator().manual_seed(row)
        features[i, :, : 2 * NUM_FRAMES[row]] = torch.randn(80, 2 * NUM_FRAMES[row], generator=generator)
    valid = valid_frames([320 * NUM_FRAMES[row] for row in rows], frames)
    return Batch(features, valid, valid[:, ::4], [TEXT_IDS[r] for r in rows], [CHARS[r] for r in rows], quantize)


def losses(batch: Batch, ctc_weight: float = 0.5, ctc_outputs: int = 2) -> dict[str, float]:
    torch.manual_seed(0)
    objective = AsrObjective(shared_tokenizer(0).model, 3, ctc_outputs)
    with torch.no_grad():
        return {name: float(value) for name, value in objective.losses(batch, ctc_weight).items()}


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    found = losses(batch_of(0, 1))
    assert list(found) == ["loss", "commitment", "cross_entropy", "ctc"]
    parts = found["cross_entropy"] + found["commitment"] + 0.5 * found["ctc"]
    assert found["loss"] == pytest.approx(parts, rel=1e-6)


def test_without_quantization_and_ctc_head_the_loss_is_the_cross_entropy() -> None:
    found = losses(batch_of(0, 1, quantize=False), ctc_outputs=0)
    assert list(found) == ["loss", "cross_entropy"]
    assert found["loss"] == found["cross_entropy"]


def test_padding_does_not_change_the_losses() -> None:
    assert losses(batch_of(0, 1, padding=40)) == pytest.approx(losses(batch_of(0, 1)), rel=1e-5)


def test_losses_are_means_over_text_ids_codes_and_characters() -> None:
    together, one, other = losses(batch_of(0, 1)), losses(batch_of(0)), losses(batch_of(1))
    assert (len(batch_of(0)), len(batch_of(1))) == (3, 2)
    for name, (a, b) in {"cross_entropy": (3, 2), "commitment": (20, 12), "ctc": (3, 1)}.items():
        assert together[name] == pytest.approx((a * one[name] + b * other[name]) / (a + b), rel=1e-4), name


def test_the_cross_entropy_is_that_of_the_next_ids_and_the_end() -> None:
    model, batch = shared_tokenizer(0).model, batch_of(0, quantize=False)
    with torch.no_grad():
        encoded = model.from_bottleneck(model.to_bottleneck(batch.features, batch.valid_frames), batch.valid)
        log_probs = model.text_logits(encoded, batch.valid, torch.tensor([[1, 7, 9]])).log_softmax(-1)[0]
    expected = -(log_probs[0, 7] + log_probs[1, 9] + log_probs[2, model.whisper_config.eos_token_id]) / 3
    assert losses(batch, ctc_outputs=0)["cross_entropy"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_gradients_are_those_of_the_plain_cross_entropy(is_tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of ids that are repeated, and with the vocabulary in several blocks."""
    model, batch = deepcopy(shared_tokenizer(0).model), batch_of(0, 1, quantize=False)
    if not is_tied:
        model.whisper.proj_out.weight = nn.Parameter(model.whisper.proj_out.weight.detach().clone())

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    monkeypatch.setattr(cross_entropy, "_BLOCK_LOGITS", {"cpu": 60})
    monkeypatch.setattr(cross_entropy, "_MIN_BLOCK_IDS", 7)
    found = gradients(AsrObjective(model, 3, 0).losses(batch, 0.0)["loss"])
    encoded = model.from_bottleneck(model.to_bottleneck(batch.features, batch.valid_frames), batch.valid)
    ids = torch.tensor([[1, 7, 9, model.whisper_config.eos_token_id], [1, 5, model.whisper_config.eos_token_id, -100]])
    logits = model.text_logits(encoded, batch.valid, ids[:, :-1].clamp(min=0))
    expected = gradients(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    torch.testing.assert_close(found, expected)


def with_noise(batch: Batch, scale: float, seed: int = 9) -> Batch:
    """Noise in the upper half of the bands."""
    noise = scale * torch.randn(batch.features.shape, generator=torch.Generator().manual_seed(seed))
    noise[:, :40] = 0
    return replace(batch, features=batch.features + noise, clean=batch.features)


def test_the_consistency_is_the_distance_to_the_codes_of_clean_speech() -> None:
    model, batch = make_tokenizer().model, with_noise(batch_of(0, 1, padding=8), 2.0)
    objective = AsrObjective(model, 3, 0)
    with torch.no_grad():
        hidden, clean = (model.to_bottleneck(f, batch.valid_frames)[batch.valid] for f in (batch.features, batch.clean))
        model.quantizer.initialize(clean, torch.Generator().manual_seed(0))
        found = objective.losses(batch, 0.0, consistency_weight=2.0)
        same = objective.losses(with_noise(batch_of(0, 1), 0.0), 0.0, 2.0)
    codes = model.quantizer.encode(clean)
    expected = (hidden - model.quantizer.decode(codes)).square().mean()
    assert float(found["consistency"]) == pytest.approx(float(expected), rel=1e-5)
    agreement = (codes == model.quantizer.encode(hidden)).float().mean()
    assert float(found["code_agreement"]) == pytest.approx(float(agreement))
    assert 0 < float(agreement) < 1
    total = 2 * found["consistency"] + found["commitment"] + found["cross_entropy"]
    assert float(found["loss"]) == pytest.approx(float(total), rel=1e-6)
    assert float(same["consistency"]) == pytest.approx(float(same["commitment"]) / 10, rel=1e-5)
    assert float(same["code_agreement"]) == 1.0


def test_the_weight_raises_the_agreement_of_codes_and_keeps_their_use() -> None:
    """With other noise than that of the training steps."""
    clean = batch_of(0, 1)

    def trained(weight: float) -> tuple[float, int]:
        model = make_tokenizer().model
        with torch.no_grad():
            hidden = model.to_bottleneck(clean.features, clean.valid_frames)[clean.valid]
        model.quantizer.initialize(hidden, torch.Generator().manual_seed(0))
        objective = AsrObjective(model.train(), 3, 0)
        optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
        for step in range(20):
            optimizer.zero_grad()
            objective.losses(with_noise(clean, 1.0, step), 0.0, weight)["loss"].backward()
            optimizer.step()
            model.quantizer.update()
        with torch.no_grad():
            found = [objective.losses(with_noise(clean, 1.0, seed), 0.0, 1.0) for seed in range(100, 104)]
            codes = model.quantizer.encode(model.to_bottleneck(clean.features, clean.valid_frames)[clean.valid])
        return sum(float(f["code_agreement"]) for f in found) / 4, len(codes.unique())

    (without, codes_without), (with_weight, codes_with) = trained(0.0), trained(50.0)
    assert with_weight > without + 0.1
    assert codes_with >= codes_without


@pytest.mark.parametrize("padding", [0, 24])
def test_rows_and_blocks_change_neither_losses_nor_gradients(padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = deepcopy(shared_tokenizer(0).model).double(), batch_of(0, 1, padding=padding, quantize=False)
    batch = replace(batch, features=batch.features.double())

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        AsrObjective(model, 3, 0).losses(batch, 0.0)["loss"].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    monkeypatch.setattr(encoder, "_trains_on_cpu", lambda x: False)
    monkeypatch.setattr(encoder, "steps_of", lambda *_: [])
    torch.testing.assert_close(found, gradients(), rtol=1e-6, atol=1e-9)
