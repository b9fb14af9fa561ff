from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoder.conftest import FLOW, LENGTHS, NUM_CODES
from weft.audio import load, save
from weft.data.datasets import Rows
from weft.data.speech import read_manifest
from weft.decoder.config import DecoderConfig
from weft.decoder.dataset import DecoderDataset
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowDecoder
from weft.decoder.mel import SILENCE
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


def named(decoder: SpeechDecoder, config: DecoderConfig, **flow: Any) -> DecoderDataset:
    """The voice's utterances by two speakers, u0 to u2 by anna and the others by bob."""
    model = FlowDecoder(replace(FLOW, **flow), NUM_CODES, 5 * 80, num_speakers=2)
    named = SpeechDecoder(model, decoder.mel, speakers=("anna", "bob"))
    audio = [replace(u, speaker="anna" if u.id in ("u0", "u1", "u2") else "bob") for u in read_manifest(*config.audio)]
    return DecoderDataset(named, config.codes, audio, 32, seed=0, max_bad_fraction=0.0)


def test_a_prompt_is_a_part_of_another_utterance_of_the_speaker(decoder: SpeechDecoder, voice: DecoderConfig) -> None:
    dataset = named(decoder, voice, prompt_codes=4, voice_dropout=0.25)
    utterances = {u.id: list(u.codes) for u in Rows.of(*voice.codes).utterances()}
    anna, bob = ([utterances[id] for id in ids] for ids in (("u0", "u1", "u2"), ("u3", "u4")))
    num_prompts, num_known = 0, 0
    for step in range(20):
        batch = dataset.batch_at(step)
        assert batch is not None
        for codes, mel, speaker in zip(batch.codes.tolist(), batch.mel, batch.speakers.tolist(), strict=True):
            prompt, window = codes[:4], [c for c in codes[4:] if c != NUM_CODES]
            given = [c for c in prompt if c != NUM_CODES]
            own = next(u for u in anna + bob if any(u[i : i + len(window)] == window for i in range(len(u))))
            assert prompt[len(prompt) - len(given) :] == given
            assert (mel[: 4 - len(given)] == SILENCE).all()
            if given:
                num_prompts += 1
                group = anna if own in anna else bob
                assert any(given == u[i : i + len(given)] for u in group if u is not own for i in range(len(u)))
            num_known += speaker > 0
            assert speaker in (0, 1 if own in anna else 2)
    assert num_prompts / 640 == pytest.approx(0.75, abs=0.06)
    assert num_known / 640 == pytest.approx(0.75, abs=0.06)


def test_without_names_the_prompt_of_a_window_is_of_its_own_utterance(
    decoder: SpeechDecoder, voice: DecoderConfig
) -> None:
    model = FlowDecoder(replace(FLOW, prompt_codes=2, voice_dropout=0.0), NUM_CODES, 5 * 80)
    dataset = DecoderDataset(
        SpeechDecoder(model, decoder.mel), voice.codes, read_manifest(*voice.audio), 16, seed=0, max_bad_fraction=0.0
    )
    utterances = [list(u.codes) for u in Rows.of(*voice.codes).utterances()]
    batch = dataset.batch_at(0)
    assert batch is not None
    assert not batch.speakers.any()
    for codes in batch.codes.tolist():
        window = [c for c in codes[2:] if c != NUM_CODES]
        own = next(u for u in utterances if any(u[i : i + len(window)] == window for i in range(len(u))))
        assert any(own[i : i + 2] == codes[:2] for i in range(len(own)))
