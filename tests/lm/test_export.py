"""`weft export-checkpoint`: the model of a checkpoint is that of a run that ended there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weft.artifacts import read
from weft.errors import UserError
from weft.lm import pretrain
from weft.lm.export import ExportConfig, run
from weft.lm.model import LanguageModel
from weft.lm.pretrain import PretrainConfig
from weft.training import checkpoint


@pytest.fixture
def interrupted(config: PretrainConfig, short_run: None, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """A run that stops in step 16, after checkpoints at steps 7 and 14."""
    calls, token_losses = iter(range(1000)), pretrain.token_losses

    def stop(*arguments):
        if next(calls) == 16:
            raise KeyboardInterrupt
        return token_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "token_losses", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(config)
    return config


def partial(config: PretrainConfig) -> Path:
    return config.out.with_name(config.out.name + ".partial")


def test_the_model_of_a_checkpoint_is_that_of_the_run_at_its_step(interrupted: PretrainConfig, tmp_path: Path) -> None:
    before = sorted(path.name for path in (partial(interrupted) / "checkpoints").iterdir())
    manifest = run(ExportConfig(partial(interrupted), interrupted.base, tmp_path / "at_14"))
    assert manifest.counts["steps"] == 14
    assert manifest.counts["frame_rate_hz"] == 12.5
    assert manifest.parents["tokenizer"] == read(interrupted.base).parents["tokenizer"]
    at_14 = LanguageModel.from_pretrained(tmp_path / "at_14").model.state_dict()
    run(ExportConfig(partial(interrupted) / "checkpoints" / before[0], interrupted.base, tmp_path / "at_7"))
    at_7 = LanguageModel.from_pretrained(tmp_path / "at_7").model.state_dict()
    base = LanguageModel.from_pretrained(interrupted.base).model.state_dict()
    assert any(not torch.equal(at_14[name], at_7[name]) for name in base)
    assert any(not torch.equal(at_7[name], base[name]) for name in base)
    assert sorted(path.name for path in (partial(interrupted) / "checkpoints").iterdir()) == before
    assert pretrain.run(interrupted) is not None  # the run goes on


def test_the_last_checkpoint_of_a_run_is_its_result(
    config: PretrainConfig, short_run: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "discard_checkpoints", lambda folder: None)
    short = replace(config, train=replace(config.train, steps=7))
    pretrain.run(short)
    run(ExportConfig(short.out, config.base, tmp_path / "exported"))
    found, expected = (LanguageModel.from_pretrained(p).model.state_dict() for p in (tmp_path / "exported", short.out))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_be_exported_is_refused(interrupted: PretrainConfig, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint: give OUT"):
        run(ExportConfig(base, base, tmp_path / "out"))
    newest = checkpoint.newest(partial(interrupted) / "checkpoints")
    assert newest is not None
    weights = next(newest.glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-9] + bytes(9))
    with pytest.raises(UserError, match="has changed since it was written"):
        run(ExportConfig(partial(interrupted), base, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_does_not_fit(interrupted: PretrainConfig) -> None:
    newest = checkpoint.newest(partial(interrupted) / "checkpoints")
    assert newest is not None
    with pytest.raises(UserError, match="cannot be loaded"):
        checkpoint.load_model(newest, torch.nn.Linear(2, 2))
    weights = next(newest.glob("*.safetensors"))
    weights.unlink()
    with pytest.raises(UserError, match="is missing"):
        checkpoint.load_model(newest, LanguageModel.from_pretrained(interrupted.base).model)
