from pathlib import Path

import pytest
import torch

from tests.tokenizer.conftest import save_whisper
from tests.tokenizer.test_objective import batch_of
from weft.tokenizer.distillation import Teacher
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.init import from_whisper
from weft.tokenizer.objective import AsrObjective

UNCHANGED = BottleneckConfig(layer=1, pooling=1, block_frames=0, causal_convolution=False, positions_after=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("base") / "whisper")


def teacher_of(base: Path, weight: float = 1.0) -> Teacher:
    return Teacher.of(base, BottleneckConfig(layer=2, block_frames=40), weight, "cpu")


def test_an_unchanged_whisper_has_no_loss_and_a_changed_one_has(base: Path) -> None:
    teacher = Teacher.of(base, UNCHANGED, 1.0, "cpu")
    model, batch = from_whisper(base, UNCHANGED).model, batch_of(0, 1, padding=20)
    valid = batch.valid_frames
    frames = type(batch)(batch.features, valid, valid, batch.text_ids, batch.chars, quantize=False)
    with torch.no_grad():
        encoded = model.from_bottleneck(model.to_bottleneck(batch.features, valid), valid)
        assert float(teacher.loss(encoded, frames)) == pytest.approx(0, abs=1e-9)
        assert float(teacher.loss(encoded + 1, frames)) > 0.01


def test_targets_are_means_over_valid_frames_and_padding_does_not_change_them(base: Path) -> None:
    teacher = teacher_of(base)
    alone, padded = batch_of(1), batch_of(0, 1, padding=20)
    with torch.no_grad():
        every = teacher.model.from_bottleneck(teacher.model.to_bottleneck(alone.features), alone.valid_frames)
    targets = teacher.targets(alone)
    assert torch.allclose(targets[0, 2], every[0, 8:12].mean(0), atol=1e-5)
    assert torch.allclose(teacher.targets(padded)[1, : targets.shape[1]], targets[0], atol=1e-4)


def test_the_weighted_distance_is_part_of_the_loss_and_the_teacher_is_not_trained(base: Path) -> None:
    teacher, batch = teacher_of(base, weight=0.5), batch_of(0, quantize=False)
    model = from_whisper(base, BottleneckConfig(layer=2, block_frames=40)).model
    objective = AsrObjective(model, 3, 0, teacher)
    found = objective.losses(batch, 0.0)
    expected = found["cross_entropy"] + 0.5 * found["distillation"]
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found["loss"].backward()
    assert model.whisper.model.encoder.conv1.weight.grad is not None
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in teacher.model.parameters()}
