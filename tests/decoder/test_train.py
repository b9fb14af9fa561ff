import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoder.conftest import FLOW, LENGTHS, write_tokenizer
from tests.training.skipped import changed_steps
from weft import artifacts
from weft.decoder import blocks, train
from weft.decoder.config import DecoderConfig
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowDecoder
from weft.decoder.mel import MelConfig
from weft.decoder.train import run
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

    def record(self: SpeechDecoder, folder: Path, dtype: torch.dtype) -> None:
        trained.append(self)
        write_files(self, folder, dtype)

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
    batch_at = blocks.DecoderDataset.batch_at
    monkeypatch.setattr(
        blocks.DecoderDataset, "batch_at", lambda self, step, part: steps.append(step) or batch_at(self, step, part)
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
    num_parameters = sum(p.numel() for p in blocks.new_flow_decoder(config).parameters())
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


CODES = torch.randint(0, 32, (20, FLOW.before_codes + FLOW.block_codes), generator=torch.Generator().manual_seed(0))


def sampled(decoder: SpeechDecoder) -> torch.Tensor:
    """The mel (20, N, P) of random codes and noise."""
    flow = decoder.flow
    before = flow.mean.repeat(len(CODES), FLOW.before_codes, 1)
    seed = torch.Generator().manual_seed(0)
    return flow.sample(CODES, before, torch.randn(len(CODES), FLOW.block_codes, len(flow.mean), generator=seed))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return SpeechDecoder.from_pretrained(folder).flow.state_dict()


def test_bf16_halves_the_files_and_hardly_changes_the_sound(config: DecoderConfig, tmp_path: Path) -> None:
    run(config)
    run(replace(config, out=tmp_path / "half", save_dtype="bf16"))
    whole, half = (SpeechDecoder.from_pretrained(folder) for folder in (config.out, tmp_path / "half"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (config.out, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.flow.embed.weight.dtype == torch.float32
    assert torch.equal(half.flow.embed.weight, whole.flow.embed.weight.bfloat16().float())
    assert torch.equal(half.flow.mean, whole.flow.mean)


def test_training_continues_from_a_decoder(config: DecoderConfig, tmp_path: Path) -> None:
    """Without a step that changes anything, the result is the same model."""
    first = run(config)
    assert first is not None
    still = replace(config.train, steps=1, lr=1e-12, warmup_steps=0, weight_decay=0.0)
    second = run(replace(config, init=config.out, out=tmp_path / "second", train=still))
    assert second is not None
    assert second.parents["init"] == first.fingerprint
    before, after = weights_of(config.out), weights_of(tmp_path / "second")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(UserError, match=r"has width = 16, but flow\.width is 32: give the same value"):
        run(replace(config, init=config.out, out=tmp_path / "other", flow=replace(FLOW, width=32)))


def test_one_voice_starts_as_the_unknown_speaker_of_many(config: DecoderConfig, tmp_path: Path) -> None:
    manifest = config.audio[0] / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({**row, "speaker": f"s{i % 2}"}) + "\n" for i, row in enumerate(rows)))
    run(replace(config, speakers=True, train=replace(config.train, lr=1e-2)))
    many = SpeechDecoder.from_pretrained(config.out)
    assert many.speakers == ("s0", "s1")
    still = replace(config.train, steps=1, lr=1e-12, warmup_steps=0, weight_decay=0.0)
    run(replace(config, init=config.out, out=tmp_path / "one", train=still))
    one = SpeechDecoder.from_pretrained(tmp_path / "one")
    assert one.speakers == ()
    unknown, named = (many.flow.prior(CODES, torch.tensor([row])) for row in (0, 2))
    assert torch.allclose(one.flow.prior(CODES, torch.tensor([0])), unknown, atol=1e-5)
    assert torch.allclose(sampled(one), sampled(many), atol=1e-4)
    assert not torch.allclose(unknown, named, atol=1e-3)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no manifest names a speaker"):
        run(replace(config, speakers=True, out=tmp_path / "none"))


def test_a_student_imitates_its_teacher_in_one_step(config: DecoderConfig, tmp_path: Path) -> None:
    run(replace(config, train=replace(config.train, steps=60, lr=5e-3)))
    teacher = SpeechDecoder.from_pretrained(config.out)
    few = replace(FLOW, euler_steps=1, guidance=0.0)
    distances = []
    for steps in (1, 60):
        train = replace(config.train, steps=steps, lr=3e-3, warmup_steps=0)
        recipe = replace(config, teacher=config.out, flow=few, out=tmp_path / str(steps), train=train)
        run(recipe)
        student = SpeechDecoder.from_pretrained(recipe.out)
        distances.append(float((sampled(student) - sampled(teacher)).square().mean()))
    assert distances[1] < 0.8 * distances[0]
    with pytest.raises(UserError, match=r"set flow\.guidance to 0"):
        run(replace(config, teacher=config.out, out=tmp_path / "guided"))


def test_the_average_of_the_weights_is_the_result_and_resumes(
    config: DecoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = replace(config, average_decay=0.5)
    whole, last = run(replace(averaged, out=tmp_path / "whole")), run(replace(config, out=tmp_path / "last"))
    assert whole is not None
    assert last is not None
    assert whole.fingerprint != last.fingerprint
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            run(averaged)
    resumed = run(averaged)
    assert resumed is not None
    assert resumed.fingerprint == whole.fingerprint
