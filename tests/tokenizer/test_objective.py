from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tokenizer.conftest import shared_tokenizer
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
