from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperConfig

from tests.tokenizer.conftest import make_tokenizer
from tests.tokenizer.test_speech import write_speech
from weft import cli
from weft.audio import save
from weft.tokenizer import dry_run
from weft.tokenizer.dry_run import estimate
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.recipe import TokenizerConfig, WhisperShape
from weft.training.loop import TrainConfig

SHAPE = WhisperShape(width=32, encoder_layers=2, decoder_layers=1, heads=2, vocab_size=40)
CONFIG = TokenizerConfig(
    Path("out"), (Path("gone"),), whisper=SHAPE, model=BottleneckConfig(layer=1), train=TrainConfig(steps=10)
)


def test_a_dry_run_tells_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the paper's shape, from a config.json alone, with manifests that are elsewhere."""
    WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=1280, encoder_layers=32, decoder_layers=32,
        encoder_attention_heads=20, decoder_attention_heads=20, encoder_ffn_dim=5120, decoder_ffn_dim=5120,
    ).save_pretrained(tmp_path / "whisper-large-v3")  # fmt: skip
    (tmp_path / "r.toml").write_text(
        f'out = "{tmp_path}/out"\nspeech = ["elsewhere"]\nbase = "{tmp_path}/whisper-large-v3"\n'
        "batch_sec = 60\n[model]\nlayer = 16\n[train]\nsteps = 1000\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["train-tokenizer", str(tmp_path / "r.toml"), "--dry-run"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["kept_parameters"] == "343,599,360"
    assert 1.54e9 < int(told["parameters"].replace(",", "")) < 1.55e9
    assert {"memory_gb", "step_flops", "training_hours"} <= told.keys()
    assert "speech_hours" not in told
    assert sorted(tmp_path.rglob("*")) == before


def test_speech_that_is_here_is_counted(tmp_path: Path) -> None:
    folders = write_speech(tmp_path / "speech", 12), write_speech(tmp_path / "pseudo", 8, seed=1)
    config = replace(CONFIG, speech=folders[:1], pseudo=folders[1:], batch_sec=4.0)
    told = estimate(config)
    assert {name: len(source.seconds) for name, source in told.sources.items()} == {"speech": 12, "pseudo": 8}
    for name, share in {"speech": 0.25, "pseudo": 0.75}.items():
        seconds = sum(told.sources[name].seconds)
        assert seconds / 4 / share <= told.sources[name].epoch_steps <= 3 * seconds / 4 / share


@pytest.mark.parametrize("pooling", [1, 4, 8])
def test_a_window_is_as_long_as_a_whole_number_of_codes_and_longer_speech_is_left_out(
    tmp_path: Path, pooling: int
) -> None:
    config = replace(CONFIG, model=BottleneckConfig(layer=1, pooling=pooling, block_frames=0))
    assert estimate(config).micro_batch[1] == {1: 30.0, 4: 30.0, 8: 29.92}[pooling]
    for name, seconds in {"a": 29.92, "b": 31.0}.items():
        save(tmp_path / f"{name}.wav", np.zeros(round(16_000 * seconds), np.float32), 16_000)
    told = estimate(replace(config, speech=(tmp_path,)))
    assert list(told.sources["speech"].seconds) == [29.92]


@pytest.mark.parametrize("half", [False, True])
def test_tensors_without_contents_tell_what_real_ones_would(half: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import WhisperForConditionalGeneration

    from weft.tokenizer.encoder import BottleneckWhisper

    real = make_tokenizer().model
    with FakeTensorMode():
        fake = BottleneckWhisper(real.config, WhisperForConditionalGeneration(real.whisper_config))
        found = dry_run._forward(fake.eval(), 3, 2.0, half)
    assert found == dry_run._forward(real, 3, 2.0, half)
    assert min(found) > 0


def test_more_micro_batches_need_less_memory_and_muon_less_than_adamw() -> None:
    whole = estimate(replace(CONFIG, batch_sec=240.0)).memory
    parts = estimate(replace(CONFIG, batch_sec=240.0, train=TrainConfig(steps=10, accumulate=4))).memory
    muon = estimate(replace(CONFIG, batch_sec=240.0, train=TrainConfig(steps=10, optimizer="muon"))).memory
    assert 3 < whole.activations / parts.activations < 5
    assert muon.optimizer < whole.optimizer == 2 * whole.gradients
    assert whole.total == whole.weights + whole.gradients + whole.optimizer + whole.activations
