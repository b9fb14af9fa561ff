from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decoder.conftest import FLOW, LENGTHS, write_tokenizer
from tests.training.skipped import changed_steps
from weft import artifacts
from weft.decoder import train
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowDecoder
from weft.decoder.mel import MelConfig
from weft.decoder.train import DecoderConfig, run
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.errors import UserError
from weft.plan import Plan, open_draft


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the next training stop in `step`."""
    loss, calls = FlowDecoder.loss, iter(range(1000))

    def interrupted(self: FlowDecoder, batch: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(FlowDecoder, "loss", interrupted)


def test_the_artifact_is_the_trained_decoder(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[SpeechDecoder] = []
    write_files = SpeechDecoder.write_files

    def record(self: SpeechDecoder, folder: Path) -> None:
        trained.append(self)
        write_files(self, folder)

    monkeypatch.setattr(SpeechDecoder, "write_files", record)
    manifest = run(config)
    assert manifest is not None
    assert manifest.counts["utterances"] == 5
    assert manifest.counts["seconds"] == pytest.approx(sum(LENGTHS) * 0.08)
    assert manifest.parents["tokenizer"] == artifacts.read(config.tokenizer).fingerprint
    loaded = SpeechDecoder.from_pretrained(config.out)
    assert np.array_equal(loaded.synthesize([1, 2, 3, 4]), trained[0].synthesize([1, 2, 3, 4]))
    assert run(config) == manifest
    assert len(trained) == 1


def test_an_interrupted_training_resumes_with_other_job_settings_to_the_same_weights(
    config: DecoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    job = {"checkpoint_every_steps": 1, "keep_checkpoints": 1, "log_every_steps": 3, "max_skipped_steps": 9}
    steps: list[int] = []
    batch_at = train.DecoderDataset.batch_at
    monkeypatch.setattr(
        train.DecoderDataset, "batch_at", lambda self, step, part: steps.append(step) or batch_at(self, step, part)
    )
    resumed = run(replace(config, train=replace(config.train, **job), max_bad_fraction=0.5))
    assert whole is not None
    assert resumed is not None
    assert steps == [2, 3, 4, 5]
    assert resumed.fingerprint == whole.fingerprint
    assert run(config) == resumed  # a finished decoder is returned whatever the job settings were


def test_other_settings_do_not_resume(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    with pytest.raises(UserError, match=r"was started with train.lr = 0.001 \(now 0.002\)"):
        run(replace(config, train=replace(config.train, lr=0.002)))
    (config.audio[0] / "u1.wav").write_bytes((config.audio[0] / "u2.wav").read_bytes())
    with pytest.raises(UserError, match="was started with other contents of audio"):
        run(config)


def test_missing_audio_is_skipped_counted_and_listed_up_to_a_limit(config: DecoderConfig) -> None:
    (config.audio[0] / "u1.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 5 items are bad.*u1"):
        run(config)
    manifest = run(replace(config, max_bad_fraction=0.2))
    assert manifest is not None
    assert (manifest.counts["utterances"], manifest.counts["skipped_utterances"]) == (4, 1)
    assert "u1" in (config.out / "log/skipped.jsonl").read_text()


def test_codes_of_another_tokenizer_are_rejected(config: DecoderConfig, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "other", "b")
    with pytest.raises(UserError, match="made with tokenizer"):
        run(replace(config, tokenizer=tmp_path / "other"))


def test_a_code_must_be_a_whole_number_of_frames(config: DecoderConfig) -> None:
    with pytest.raises(UserError, match=r"mel.hop_samples is 250 .* divisor of 1280"):
        run(replace(config, mel=MelConfig(hop_samples=250)))


def test_utterances_shorter_than_a_block_are_rejected(config: DecoderConfig) -> None:
    with pytest.raises(UserError, match="no utterance with audio has the 13 codes of a block"):
        run(replace(config, flow=replace(FLOW, block_codes=13)))


def test_a_dry_run_prints_the_size_and_writes_nothing(
    config: DecoderConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.training.estimate.matmul_flops_per_sec", lambda device, dtype: 1e12)
    files = set(config.out.parent.rglob("*"))
    assert run(replace(config, dry_run=True, codes=(Path("none"),), audio=(Path("none"),))) is None
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip())
    num_parameters = sum(p.numel() for p in train.new_flow_decoder(config).parameters())
    assert lines["parameters"] == f"{num_parameters:,}"
    assert lines["training_flops"].endswith("in 6 steps")
    assert lines["activations_gb"].endswith("per window")
    assert set(config.out.parent.rglob("*")) == files


def test_the_estimate_is_proportional_to_steps_and_windows(config: DecoderConfig) -> None:
    one = train.estimate(config)
    more = train.estimate(replace(config, batch_windows=8, train=replace(config.train, steps=12)))
    assert more.flops == 4 * one.flops > 0
    assert (more.parameters, more.memory.item) == (one.parameters, one.memory.item)


def test_training_runs_on_the_default_device(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr(train, "default_device", lambda: "the default device")
    monkeypatch.setattr(SpeechDecoder, "to", lambda self, device: devices.append(device) or self)
    run(config)
    assert devices == ["the default device"]


def test_a_skipped_step_changes_neither_model_nor_optimizer(config: DecoderConfig) -> None:
    config = replace(config, train=replace(config.train, grad_accum_steps=2))
    changed = changed_steps(train, lambda: run(config), {(1, 0, 0), (3, 1, 0)})
    assert changed == [step not in (1, 3) for step in range(config.train.steps)]


def test_a_decoder_is_trained_for_its_vocoder(config: DecoderConfig, tmp_path: Path) -> None:
    mel = MelConfig(24_000, 1024, 240, 100)
    with open_draft(tmp_path / "vocoder", Plan("vocoder", {})) as draft:
        Vocoder(VocoderShape(width=16, layers=1), mel).write_files(draft.folder)
    manifest = run(replace(config, vocoder=tmp_path / "vocoder"))
    assert manifest is not None
    assert manifest.parents["vocoder"] == artifacts.read(tmp_path / "vocoder").fingerprint
    decoder = SpeechDecoder.from_pretrained(config.out)
    assert decoder.sample_rate_hz == 24_000
    assert len(decoder.synthesize([1, 2, 3])) == 3 * 1920
    with pytest.raises(UserError, match="vocoder"):
        run(replace(config, out=tmp_path / "other", vocoder=config.tokenizer))
