from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoder.conftest import FLOW, LENGTHS, NUM_CODES
from weft.audio import load, save
from weft.data.datasets import Rows
from weft.data.speech import read_manifest
from weft.decoder.dataset import DecoderDataset
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.mel import SILENCE
from weft.decoder.train import DecoderConfig
from weft.errors import UserError


def read_dataset(decoder: SpeechDecoder, config: DecoderConfig, **changes: Any) -> DecoderDataset:
    arguments: dict[str, Any] = {"batch_windows": 4, "seed": 0, "max_bad_fraction": 0.0, **changes}
    return DecoderDataset(decoder, config.codes, read_manifest(*config.audio), **arguments)


@pytest.fixture(scope="module")
def voice(write_voice: Callable[[Path], DecoderConfig], tmp_path_factory: pytest.TempPathFactory) -> DecoderConfig:
    return write_voice(tmp_path_factory.mktemp("voice"))


def test_a_window_is_a_block_and_the_codes_before_it(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    """Every window occurs; the context before the first code is the padding code, with silence."""
    dataset = read_dataset(decoder, voice, batch_windows=64)
    context, blocks = FLOW.context_codes, set()
    padded = [[NUM_CODES] * context + list(u.codes) for u in Rows.of(*voice.codes).utterances()]
    drawn, possible = set(), set()
    for step in range(200):
        batch = dataset.batch_at(step)
        assert batch is not None
        block = batch.noise.shape[1]
        blocks.add(block)
        assert batch.mel.shape[:2] == batch.codes.shape == (64, context + block)
        drawn |= {tuple(codes) for codes in batch.codes.tolist()}
        possible |= {tuple(p[s : s + context + block]) for p in padded for s in range(len(p) - context - block + 1)}
        silent = (batch.mel == torch.tensor(SILENCE).half()).all(2)
        assert torch.equal(silent, batch.codes == NUM_CODES)
    assert blocks == {1, 2, 3, 4, 5}
    assert drawn == possible


def test_the_batch_of_a_step_depends_only_on_the_step(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    datasets = [read_dataset(decoder, voice) for _ in range(2)]
    datasets[1].batch_at(5)
    batches = [dataset.batch_at(3) for dataset in datasets]
    assert batches[0] is not None
    assert all(torch.equal(*(getattr(batch, f.name) for batch in batches)) for f in fields(batches[0]))


def test_the_parts_of_a_step_are_its_windows(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    dataset = read_dataset(decoder, voice)
    whole, parts = dataset.batch_at(3), [dataset.batch_at(3, slice(i, None, 2)) for i in range(2)]
    assert whole is not None
    for f in fields(whole):
        for i, part in enumerate(parts):
            assert torch.equal(getattr(part, f.name), getattr(whole, f.name)[i::2])
    assert dataset.batch_at(3, slice(4, None)) is None


def test_statistics_are_the_mean_mel_of_each_code(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    means, mean, std = read_dataset(decoder, voice).statistics()
    num_padding = len(LENGTHS) * FLOW.context_codes
    assert torch.allclose(means[NUM_CODES], (num_padding * SILENCE + mean) / (num_padding + 1), atol=0.01)
    unused = set(range(NUM_CODES)) - {c for u in Rows.of(*voice.codes).utterances() for c in u.codes}
    assert torch.allclose(means[unused.pop()], mean)
    assert torch.equal(mean[:80], mean[-80:])
    assert (std > 0).all()


def test_audio_of_another_length_than_its_codes_is_skipped(decoder: SpeechDecoder, config: DecoderConfig) -> None:
    save(config.audio[0] / "u0.wav", np.zeros(12 * 1280 - 1281, np.float32), 16_000)
    [(where, why)] = read_dataset(decoder, config).skipped.bad
    assert where == "u0"
    assert "its 12 codes need 15360: give the audio that was tokenized" in why


def test_any_failure_of_one_utterance_skips_it(
    decoder: SpeechDecoder, voice: DecoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_all_but_one(path: str, rate_hz: int) -> np.ndarray:
        if "u1" in path:
            raise MemoryError
        return load(path, rate_hz)

    monkeypatch.setattr("weft.data.speech.load", load_all_but_one)
    dataset = read_dataset(decoder, voice)
    assert dataset.skipped.bad == [("u1", "not enough memory")]
    assert dataset.skipped.num_good == len(LENGTHS) - 1


def test_codes_without_audio_are_skipped(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    (first, *others) = read_manifest(*voice.audio)
    dataset = DecoderDataset(decoder, voice.codes, others, batch_windows=4, seed=0, max_bad_fraction=0.0)
    assert dataset.skipped.bad == [(first.id, "the audio manifests have no utterance with this id")]
    assert dataset.num_codes == sum(LENGTHS[1:])


def test_an_utterance_as_long_as_a_block_is_required(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    short = [u for u in read_manifest(*voice.audio) if u.id == "u3"]
    with pytest.raises(UserError, match="no utterance with audio has the 5 codes of a block"):
        DecoderDataset(decoder, voice.codes, short, batch_windows=4, seed=0, max_bad_fraction=1.0)
