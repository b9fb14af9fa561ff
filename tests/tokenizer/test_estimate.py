from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.tokenizer.conftest import shared_tokenizer, write_speech
from weft import cli
from weft.audio import save
from weft.data.speech import read_manifest
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.config import PartLrRatios, TokenizerConfig, WhisperShape
from weft.tokenizer.dataset import SpeechDataset
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, encoder_parameters
from weft.tokenizer.estimate import _inputs, estimate, estimate_lines, forward
from weft.tokenizer.train import run
from weft.training.config import TrainConfig
from weft.training.estimate import Estimate, Memory

SHAPE = WhisperShape(width=32, encoder_layers=2, decoder_layers=1, heads=2, vocab_size=40)
CONFIG = TokenizerConfig(
    Path("out"), (Path("missing"),), whisper=SHAPE, model=BottleneckConfig(layer=1), train=TrainConfig(steps=10)
)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the measurement of matrix products, which takes a second."""
    monkeypatch.setattr("weft.training.estimate.matmul_flops_per_sec", lambda device, dtype: 1e12)


def estimate_of(config: TokenizerConfig) -> Estimate:
    sources, whisper, window_sec = _inputs(config)
    return estimate(config, whisper, sources.values(), window_sec)


def values_of(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines if line)


def test_a_dry_run_prints_the_estimate_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config.json of the base is enough, and manifests may be missing."""
    whisper = WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=1280, encoder_layers=3, decoder_layers=2,
        encoder_attention_heads=20, decoder_attention_heads=20, encoder_ffn_dim=5120, decoder_ffn_dim=5120,
    )  # fmt: skip
    whisper.save_pretrained(tmp_path / "whisper")
    (tmp_path / "r.toml").write_text(
        f'out = "{tmp_path}/out"\nspeech = ["missing"]\nbase = "{tmp_path}/whisper"\n'
        "batch_sec = 60\n[model]\nlayer = 2\n[train]\nsteps = 1000\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["train-tokenizer", str(tmp_path / "r.toml"), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.err.endswith("weft: missing does not exist: create or change it before training\n")
    lines = printed.out.splitlines()
    values, model = values_of(lines), BottleneckConfig(layer=2)
    with torch.device("meta"):
        parameters = list(BottleneckWhisper(model, WhisperForConditionalGeneration(whisper)).parameters())
    num_trained = sum(p.numel() for p in parameters if p.requires_grad)
    assert values["parameters"] == f"{sum(p.numel() for p in parameters):,}"
    assert values["encoder_parameters"] == f"{encoder_parameters(model, whisper):,}"
    assert values["gradients_gb"] == f"{4 * num_trained / 1e9:.3g}"
    assert values["activations_gb"].endswith("per utterance of 30.0 s")
    assert {"weights_gb", "optimizer_gb", "copies_gb", "checkpoint_gb", "step_flops", "training_hours"} <= values.keys()
    assert "speech_hours" not in values
    assert any(line.split()[:2] == ["1", "2"] for line in lines)  # GPUs, and utterances of 30 s per GPU
    assert sorted(tmp_path.rglob("*")) == before


def test_run_returns_nothing_for_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(replace(CONFIG, dry_run=True)) is None
    assert "encoder_parameters" in capsys.readouterr().out


def test_existing_speech_is_counted(tmp_path: Path) -> None:
    folders = write_speech(tmp_path / "speech", 12), write_speech(tmp_path / "pseudo", 8, seed=1)
    config = replace(CONFIG, speech=folders[:1], pseudo=folders[1:], batch_sec=4.0)
    sources = _inputs(config)[0]
    assert {name: len(source.seconds) for name, source in sources.items()} == {"speech": 12, "pseudo": 8}
    for name, fraction in {"speech": 0.25, "pseudo": 0.75}.items():
        seconds = sum(sources[name].seconds)
        assert seconds / 4 / fraction <= sources[name].epoch_steps <= 3 * seconds / 4 / fraction
    values = values_of(estimate_lines(config))
    assert values["speech_hours"] == f"{sum(sources['speech'].seconds) / 3600:.2f} in 12 utterances"
    assert values["pseudo_epoch_steps"] == f"{sources['pseudo'].epoch_steps:,.0f}"


@pytest.mark.parametrize(("pooling", "window_sec"), [(1, 30.0), (4, 30.0), (8, 29.92)])
def test_a_window_is_a_whole_number_of_codes_and_longer_speech_is_left_out(
    tmp_path: Path, pooling: int, window_sec: float
) -> None:
    config = replace(CONFIG, model=BottleneckConfig(layer=1, pooling=pooling, block_frames=0))
    assert _inputs(config)[2] == window_sec
    for name, seconds in {"a": 29.92, "b": 31.0}.items():
        save(tmp_path / f"{name}.wav", np.zeros(round(16_000 * seconds), np.float32), 16_000)
    assert list(_inputs(replace(config, speech=(tmp_path,)))[0]["speech"].seconds) == [29.92]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fake_tensors_give_the_memory_and_operations_of_real_ones(precision: str) -> None:
    config = TrainConfig(steps=1, precision=precision)  # type: ignore[arg-type]
    real = shared_tokenizer(0).model
    with FakeTensorMode():
        fake = BottleneckWhisper(real.config, WhisperForConditionalGeneration(real.whisper_config)).eval()
        memory = Memory.of(fake, lambda utterances: forward(fake, utterances, 2.0), config)
        with FlopCounterMode(display=False) as counter:
            forward(fake, 3, 2.0)
    with FlopCounterMode(display=False) as real_counter:
        forward(real, 3, 2.0)
    assert memory == Memory.of(real, lambda utterances: forward(real, utterances, 2.0), config)
    assert min(memory.item, memory.checkpointed_item, memory.weights) > 0
    assert (memory.copies > 0) == (precision == "bf16")
    assert counter.get_total_flops() == real_counter.get_total_flops() > 0


@pytest.mark.parametrize(("num", "speeds"), [(1, (1.0,)), (3, (0.8, 1.0)), (9, (1.0,))])
def test_the_largest_micro_batch_is_budgeted(tmp_path: Path, num: int, speeds: tuple[float, ...]) -> None:
    train = TrainConfig(steps=10, grad_accum_steps=num)
    folder, augment = write_speech(tmp_path / "speech", 25), AugmentConfig(speeds=speeds)
    config = replace(CONFIG, speech=(folder,), batch_sec=15.0, train=train, augment=augment)
    tokenizer = shared_tokenizer(0)
    found = estimate_of(config)
    longest_sec = float(found.item.split()[-2])
    with SpeechDataset(config, tokenizer, read_manifest(folder)) as speech:
        sizes = [
            (len(batch.features), len(batch.features) * batch.features.shape[2] / 100)
            for step in range(10)
            for part in speech.parts_of(step)
            if (batch := speech.batch_at(step, part))
        ]
    rounding_sec = 0.08 + 0.05  # to whole codes, and of the printed figure
    assert all(seconds <= found.items_on_device(1) * longest_sec + rounding_sec * n for n, seconds in sizes)
    assert max(seconds for _, seconds in sizes) >= 0.6 * found.items_on_device(1) * longest_sec


def test_micro_batches_reduce_activations_and_muon_reduces_the_optimizer_state() -> None:
    config = replace(CONFIG, batch_sec=240.0)
    whole = estimate_of(config)
    parts = estimate_of(replace(config, train=TrainConfig(steps=10, grad_accum_steps=4)))
    muon = estimate_of(replace(config, train=TrainConfig(steps=10, optimizer="muon")))
    assert (whole.items_on_device(1), parts.items_on_device(1)) == (8, 2)
    assert parts.memory == whole.memory
    assert parts.memory.on_device(2) == pytest.approx(whole.memory.on_device(8) - 6 * whole.memory.item)
    assert muon.memory.optimizer < whole.memory.optimizer == 2 * whole.memory.gradients
    assert whole.flops == parts.flops == 10 * whole.step_flops


def test_parts_that_are_not_trained_have_no_gradients_and_optimizer_state() -> None:
    whole, part = (estimate_of(replace(CONFIG, lr_ratio=PartLrRatios(decoder=d))).memory for d in (1.0, 0.0))
    decoder = WhisperForConditionalGeneration(_inputs(CONFIG)[1]).model.decoder
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    assert part.weights == whole.weights
    assert whole.optimizer - part.optimizer == 8 * trained
