import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoder.conftest import FLOW, NUM_CODES
from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import save
from weft.data.shards import Rows, write_codes
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowDecoder
from weft.decoder.train import DecoderConfig, Voice, run, untrained
from weft.decoder.vocoder import SILENCE, MelConfig
from weft.errors import UserError
from weft.records import CodedUtterance
from weft.training.loop import TrainConfig

LENGTHS = [12, 7, 5, 3, 9]


def make_tokenizer(out: Path, name: str = "a") -> Manifest:
    """The manifest of a tokenizer of 12.5 codes a second: all that a decoder wants of one."""
    settings = {"model": {"pooling": 4, "quantizer": {"num_codes": NUM_CODES}}}
    with artifacts.build(out, "tokenizer", settings) as draft:
        (draft.folder / "weights").write_text(name)
    return artifacts.read(out)


def make_codes(out: Path, tokenizer: Manifest, utterances: list[CodedUtterance]) -> None:
    with artifacts.build(out, "codes", {"of": [u.id for u in utterances]}, {"tokenizer": tokenizer}) as draft:
        write_codes(draft.folder, 0, utterances)


@pytest.fixture
def config(tmp_path: Path) -> DecoderConfig:
    """Buzzing utterances whose codes follow their pitch; the last samples of each are cut off."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    lines, coded = [], []
    for i, n in enumerate(LENGTHS):
        codes = rng.integers(0, NUM_CODES, n)
        phase = np.cumsum(np.repeat(100 + 10 * codes, 1280)) / 16_000 * 2 * np.pi
        save(tmp_path / f"audio/u{i}.wav", 0.3 * np.sign(np.sin(phase))[: n * 1280 - 300].astype(np.float32), 16_000)
        lines.append(json.dumps({"id": f"u{i}", "audio": f"u{i}.wav"}))
        coded.append(CodedUtterance(f"u{i}", codes.tolist()))
    (tmp_path / "audio/manifest.jsonl").write_text("\n".join(lines))
    make_codes(tmp_path / "codes", make_tokenizer(tmp_path / "tokenizer"), coded)
    return DecoderConfig(
        out=tmp_path / "decoder",
        codes=(tmp_path / "codes",),
        audio=(tmp_path / "audio",),
        tokenizer=tmp_path / "tokenizer",
        flow=FLOW,
        train=TrainConfig(steps=6, warmup_steps=2, checkpoint_every_steps=2, log_every_steps=1, precision="fp32"),
        batch_windows=4,
    )


def test_what_is_saved_is_what_was_trained(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[SpeechDecoder] = []
    real = SpeechDecoder.save
    monkeypatch.setattr(SpeechDecoder, "save", lambda self, folder: (trained.append(self), real(self, folder))[1])
    made = run(config)
    assert made.counts["utterances"] == 5
    assert made.counts["seconds"] == pytest.approx(sum(LENGTHS) * 0.08)
    assert made.parents["tokenizer"] == artifacts.read(config.tokenizer).fingerprint
    loaded = SpeechDecoder.load(config.out)
    assert np.array_equal(loaded.synthesize([1, 2, 3, 4]), trained[0].synthesize([1, 2, 3, 4]))
    assert run(config).fingerprint == made.fingerprint
    assert len(trained) == 1


def test_killed_and_run_again_gives_the_same_weights(
    config: DecoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(replace(config, out=tmp_path / "whole"))
    real, calls = FlowDecoder.loss, iter(range(1000))

    def dies(self: FlowDecoder, batch: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(FlowDecoder, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert run(config).fingerprint == whole.fingerprint


def test_a_window_is_a_block_and_what_came_before_it(config: DecoderConfig) -> None:
    """Every place where a block fits is drawn in time; before the first code there are codes of nothing, silent."""
    voice = Voice(untrained(config, artifacts.read(config.tokenizer)), replace(config, batch_windows=64))
    context, blocks = FLOW.context_codes, set()
    padded = [[NUM_CODES] * context + list(u.codes) for u in Rows.of(*config.codes).utterances()]
    drawn, possible = set(), set()
    for step in range(200):
        batch = voice.batch_at(step)
        block = batch.noise.shape[1]
        blocks.add(block)
        assert batch.mel.shape[:2] == batch.codes.shape == (64, context + block)
        drawn |= {tuple(codes) for codes in batch.codes.tolist()}
        possible |= {tuple(p[s : s + context + block]) for p in padded for s in range(len(p) - context - block + 1)}
        silent = (batch.mel == torch.tensor(SILENCE).half()).all(2)
        assert torch.equal(silent, batch.codes == NUM_CODES)
    assert blocks == {1, 2, 3, 4, 5}
    assert drawn == possible


def test_the_batch_of_a_step_depends_on_the_step_alone(config: DecoderConfig) -> None:
    voices = [Voice(untrained(config, artifacts.read(config.tokenizer)), config) for _ in range(2)]
    voices[1].batch_at(5)
    batches = [v.batch_at(3) for v in voices]
    assert all(torch.equal(*(getattr(b, f.name) for b in batches)) for f in fields(batches[0]))


def test_codes_start_from_the_mean_of_their_frames(config: DecoderConfig) -> None:
    voice = Voice(untrained(config, artifacts.read(config.tokenizer)), config)
    means, mean, std = voice.statistics()
    of_nothing = len(LENGTHS) * FLOW.context_codes
    assert torch.allclose(means[NUM_CODES], (of_nothing * SILENCE + mean) / (of_nothing + 1), atol=0.01)
    unused = set(range(NUM_CODES)) - {c for u in Rows.of(*config.codes).utterances() for c in u.codes}
    assert torch.allclose(means[unused.pop()], mean)
    assert torch.equal(mean[:80], mean[-80:])
    assert (std > 0).all()


def test_missing_sound_is_skipped_counted_and_too_much_of_it_refused(config: DecoderConfig) -> None:
    (config.audio[0] / "u1.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 5 items are bad.*u1"):
        run(config)
    made = run(replace(config, max_bad_share=0.2))
    assert (made.counts["utterances"], made.counts["skipped_utterances"]) == (4, 1)
    assert "u1" in (config.out / "log/skipped.jsonl").read_text()


def test_sound_that_is_not_as_long_as_its_codes_is_skipped(config: DecoderConfig) -> None:
    save(config.audio[0] / "u0.wav", np.zeros(12 * 1280 - 1281, np.float32), 16_000)
    voice = Voice(untrained(config, artifacts.read(config.tokenizer)), config)
    assert [where for where, _ in voice.skipped.bad] == ["u0"]


def test_codes_of_another_tokenizer_are_refused(config: DecoderConfig, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other", "b")
    with pytest.raises(UserError, match="made with tokenizer"):
        run(replace(config, tokenizer=tmp_path / "other"))


def test_a_code_must_be_a_whole_number_of_frames(config: DecoderConfig) -> None:
    with pytest.raises(UserError, match=r"mel.hop_samples is 250 .* divisor of 1280"):
        run(replace(config, mel=MelConfig(hop_samples=250)))


def test_utterances_shorter_than_a_block_are_not_enough(config: DecoderConfig) -> None:
    with pytest.raises(UserError, match="block of 13 codes"):
        run(replace(config, flow=replace(FLOW, block_codes=13)))
