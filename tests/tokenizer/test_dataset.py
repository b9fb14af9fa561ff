import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.ranks import in_ranks
from tests.tokenizer.conftest import make_tokenizer, write_speech
from weft.audio import load, save
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.dataset import Batch, SpeechDataset
from weft.training.config import TrainConfig

CONFIG = TokenizerConfig(Path("out"), (), batch_sec=4.0, ctc_outputs=3, train=TrainConfig(steps=100, seed=5))
MASKED = AugmentConfig(2, 20, 2, 20, speeds=(0.9, 1.0, 1.1))
AUGMENTED = replace(CONFIG, augment=MASKED)
DISTORTED = replace(
    CONFIG,
    augment=replace(
        MASKED,
        noise_probability=0.5,
        babble_probability=0.5,
        reverberation_probability=0.5,
        telephone_probability=0.5,
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech") / "speech", 15)


def read(config: TokenizerConfig, *folders: Path) -> SpeechDataset:
    return SpeechDataset(config, make_tokenizer(), *map(read_manifest, folders))


def same(a: Batch | None, b: Batch | None) -> bool:
    assert a is not None
    assert b is not None
    return torch.equal(a.features, b.features) and torch.equal(a.valid, b.valid) and a.text_ids == b.text_ids


def ids(speech: SpeechDataset, step: int) -> list[str]:
    return [item.utterance.id for item in speech._items(step)]


def test_every_epoch_has_every_utterance_once_in_a_new_order(folder: Path) -> None:
    with read(CONFIG, folder) as speech:
        num = len(speech._batches[0])
        epochs = [[tuple(ids(speech, epoch * num + i)) for i in range(num)] for epoch in range(4)]
        for epoch in epochs:
            assert sorted(id for batch in epoch for id in batch) == sorted(f"speech-{i}" for i in range(15))
        assert len(set(map(tuple, epochs))) > 1
    with read(replace(CONFIG, train=TrainConfig(steps=100, seed=6)), folder) as other:
        assert [[tuple(ids(other, epoch * num + i)) for i in range(num)] for epoch in range(4)] != epochs


@pytest.mark.parametrize("config", [CONFIG, AUGMENTED])
def test_no_batch_is_longer_than_batch_sec(folder: Path, config: TokenizerConfig) -> None:
    with read(config, folder) as speech:
        batches = [speech.batch_at(step) for step in range(12)]
    assert all(batch and batch.features.shape[0] * batch.features.shape[2] <= 400 for batch in batches)
    assert any(batch and batch.features.shape[0] > 1 for batch in batches)


@pytest.mark.parametrize("config", [CONFIG, AUGMENTED, DISTORTED])
@pytest.mark.parametrize("cache_gb", [0.0, 3e-4])
def test_a_batch_depends_only_on_its_step(folder: Path, config: TokenizerConfig, cache_gb: float) -> None:
    """Neither the batches before nor the size of the cache change it."""
    with read(config, folder) as first, read(replace(config, cache_gb=cache_gb), folder) as other:
        steps = range(12)
        expected = {step: first.batch_at(step) for step in steps}
        assert all(same(other.batch_at(step), expected[step]) for step in reversed(steps))
        assert sum(s.data.nbytes for s in other._read._kept.values()) <= 1e9 * cache_gb
        assert (len(other._read._kept) > 0) == (cache_gb > 0)


def test_speech_that_does_not_fit_the_cache_is_read_when_a_step_needs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("weft.tokenizer.reader.load", lambda audio: opened.append(audio) or load(audio))
    with read(replace(AUGMENTED, cache_gb=0.0), folder) as speech:
        assert not opened
        for step in (3, 7):
            opened.clear()
            speech.batch_at(step)
            assert sorted(opened) == sorted(item.utterance.audio for item in speech._items(step))
        assert not speech._read._kept


def test_augmentation_differs_from_step_to_step(folder: Path) -> None:
    with (
        read(replace(AUGMENTED, batch_sec=0.1), folder) as speech,
        read(replace(CONFIG, batch_sec=0.1), folder) as plain,
    ):
        text_ids = {ids(plain, step)[0]: batch.text_ids for step in range(15) if (batch := plain.batch_at(step))}
        seen: dict[str, list[torch.Tensor]] = {}
        for step in range(45):
            batch = speech.batch_at(step)
            assert batch is not None
            assert batch.text_ids == text_ids[ids(speech, step)[0]]
            seen.setdefault(ids(speech, step)[0], []).append(batch.features)
        lengths = {tuple(f.shape[2] for f in found) for found in seen.values()}
        assert any(len(set(several)) > 1 for several in lengths)
        assert not any(torch.equal(found[0][..., :60], found[1][..., :60]) for found in seen.values())


def test_distortions_change_neither_speeds_nor_masks_nor_lengths(folder: Path) -> None:
    """And without any, speech in memory as samples has the features of speech in memory as features."""
    never = replace(AUGMENTED, augment=replace(MASKED, noise_probability=1e-12))
    with read(AUGMENTED, folder) as plain, read(never, folder) as kept, read(DISTORTED, folder) as distorted:
        num_changed = 0
        for step in range(8):
            expected, same_audio, other = (speech.batch_at(step) for speech in (plain, kept, distorted))
            assert expected is not None
            assert same_audio is not None
            assert other is not None
            assert torch.allclose(same_audio.features, expected.features, atol=2e-3)
            assert torch.equal(other.valid_frames, expected.valid_frames)
            num_changed += not torch.allclose(other.features, expected.features, atol=0.1)
        assert num_changed > 4


def test_the_clean_view_has_the_speed_and_the_masks_of_the_distorted_one(folder: Path) -> None:
    never = replace(AUGMENTED, augment=replace(MASKED, noise_probability=1e-12))
    with read(replace(DISTORTED, consistency_weight=1.0), folder) as speech, read(never, folder) as clean:
        for step in range(4):
            batch, expected = speech.batch_at(step), clean.batch_at(step)
            assert batch is not None
            assert batch.clean is not None
            assert expected is not None
            assert expected.clean is None
            assert torch.equal(batch.clean, expected.features)


def test_recordings_of_noise_are_added(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "hum.wav", (0.1 * np.sin(np.arange(16_000) * 0.8)).astype(np.float32), 16_000)
    config = replace(CONFIG, augment=AugmentConfig(recording_probability=1.0, min_snr_db=-20.0, max_snr_db=-20.0))
    noise = read_manifest(tmp_path)
    with SpeechDataset(config, make_tokenizer(), read_manifest(folder), noise=noise) as speech:
        batch = speech.batch_at(0)
    assert batch is not None
    loudest = batch.features.mean((0, 2)).argmax()
    hum_band = round(2595 * np.log10(1 + 0.8 * 16_000 / (2 * np.pi) / 700) / 2840 * 80)
    assert abs(int(loudest) - hum_band) < 8


def test_an_utterance_keeps_its_speed_if_another_would_make_it_unusable(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    (tmp_path / "speech").mkdir()
    rows = []
    for id, num_samples, text in (("long", 38_400, "cat"), ("short", 5 * 1280, "abcdefghijklm o")):
        save(tmp_path / f"speech/{id}.wav", np.full(num_samples, 0.1, np.float32), 16_000)
        rows.append({"id": id, "audio": f"{id}.wav", "text": text})
    (tmp_path / "speech/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(CONFIG, augment=AugmentConfig(speeds=(0.7, 1.5)), batch_sec=0.1)
    with SpeechDataset(config, tokenizer, read_manifest(tmp_path / "speech")) as speech:
        found = {}
        for step in range(40):
            item, batch = speech._items(step)[0], speech.batch_at(step)
            assert batch is not None
            found.setdefault(item.utterance.id, set()).add(batch.features.shape[2])
    assert found["long"] == {240, 160}
    assert found["short"] == {40, 64}


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_any_failure_of_one_utterance_leaves_it_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float
) -> None:
    def load_all_but_one(path: str) -> np.ndarray:
        if path.endswith("/3.wav"):
            raise MemoryError
        return load(path)

    monkeypatch.setattr("weft.tokenizer.reader.load", load_all_but_one)
    with read(replace(CONFIG, cache_gb=cache_gb, max_bad_fraction=0.1), folder) as speech:
        for step in range(len(speech._batches[0])):
            speech.batch_at(step)
        if not cache_gb:
            assert speech.check_unreadable(tmp_path / "unreadable.jsonl") == 1
        else:
            assert speech.skipped.bad == [("speech-3", "not enough memory")]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.4, 1.0])
def test_supervised_and_pseudo_labelled_speech_alternate_by_the_fraction(tmp_path: Path, fraction: float) -> None:
    folders = write_speech(tmp_path / "supervised", 6), write_speech(tmp_path / "pseudo", 9, seed=1)
    with read(replace(CONFIG, supervised_fraction=fraction), *folders) as speech:
        seen = [{id.split("-")[0] for id in ids(speech, step)} for step in range(200)]
        times = Counter(id for step in range(200) for id in ids(speech, step))
    assert all(len(kinds) == 1 for kinds in seen)
    for num in (40, 200):
        assert sum("supervised" in kinds for kinds in seen[:num]) == round(fraction * num)
    for kind in ("supervised", "pseudo"):
        each = [n for id, n in times.items() if id.startswith(kind)]
        assert not each or max(each) - min(each) <= 1


IN_PARTS = replace(DISTORTED, batch_sec=8.0, train=TrainConfig(steps=100, seed=5, grad_accum_steps=2))


def parts_of_steps(folder: Path) -> list[Any]:
    with read(IN_PARTS, folder) as speech:
        found = [[speech.batch_at(step, part) for part in speech.parts_of(step)] for step in range(6)]
        return [[[b.features, b.text_ids, b.codes_weight, b.chars_weight] for b in parts if b] for parts in found]


def test_ranks_and_micro_batches_divide_the_batch_of_a_step(folder: Path, tmp_path: Path) -> None:
    """Each utterance is in exactly one part, with the same features except for padding. No part is too long."""
    by_rank = in_ranks(parts_of_steps, tmp_path, folder)
    with read(IN_PARTS, folder) as speech:
        for step in range(6):
            whole = speech.batch_at(step)
            assert whole is not None
            assert (whole.codes_weight, whole.chars_weight) == (1.0, 1.0)
            parts = [part for found in by_rank for part in found[step]]
            assert all(len(f) == 1 or len(f) * f.shape[2] <= 800 / 4 for f, *_ in parts)
            for weights in ([codes for *_, codes, _ in parts], [chars for *_, chars in parts]):
                sizes = [sum(map(len, ids)) for _, ids, *_ in parts]
                assert sum(w * n for w, n in zip(weights, sizes, strict=True)) == pytest.approx(len(whole))
            rows = [(ids, features) for part in parts for features, ids in zip(part[0], part[1], strict=True)]
            assert sorted(ids for ids, _ in rows) == sorted(whole.text_ids)
            for ids, features in rows:
                several = [
                    f[:, : features.shape[1]] for f, i in zip(whole.features, whole.text_ids, strict=True) if i == ids
                ]
                assert any(torch.equal(f, features) for f in several)


@pytest.mark.parametrize("cache_gb", [0.0, 4.0])
def test_unreadable_audio_is_left_out_and_listed(tmp_path: Path, cache_gb: float) -> None:
    """Audio with a valid header is found to be unreadable only when a step needs it."""
    folder, report = write_speech(tmp_path / "speech", 6), tmp_path / "unreadable.jsonl"
    soundfile.write(folder / "3.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    config = replace(CONFIG, cache_gb=cache_gb, max_bad_fraction=0.2)
    with read(config, folder) as speech:
        batches = [speech.batch_at(step) for step in range(len(speech._batches[0]))]
        found = speech.skipped.bad or [(row["where"], row["why"]) for row in _listed(speech, report)]
        assert sum(len(batch.text_ids) for batch in batches if batch) == 5
        assert [where for where, _ in found] == ["speech-3"]
        assert "not finite" in found[0][1]
        assert speech.skipped.num_good - speech.check_unreadable(report) == 5
    with read(replace(config, max_bad_fraction=0.1), folder) as speech:
        for step in range(len(speech._batches[0])):
            speech.batch_at(step)
        with pytest.raises(UserError, match="1 of 6 items"):
            speech.skipped.check(0.1) if cache_gb else speech.check_unreadable(report)
    if not cache_gb:  # a resumed run has not read it yet
        with read(config, folder) as speech:
            assert speech.check_unreadable(report) == 1


def _listed(speech: SpeechDataset, report: Path) -> list[dict[str, str]]:
    speech.check_unreadable(report)
    return [json.loads(line) for line in report.read_text().splitlines()]


def hidden_states_by_micro_batches(folder: Path, num: int) -> list[torch.Tensor]:
    """This rank's hidden states, and the largest micro-batch that they were computed from."""
    config = replace(CONFIG, batch_sec=8.0, train=TrainConfig(steps=9, seed=3, grad_accum_steps=num))
    largest = 0
    with read(config, folder) as speech:
        model = speech._tokenizer.model
        real = model.to_bottleneck

        def to_bottleneck(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            largest = max(largest, len(features) * features.shape[2] if len(features) > 1 else 0)
            return real(features, valid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "to_bottleneck", to_bottleneck)
            return [speech.hidden_states(model, at_least=150), torch.tensor(largest)]


def test_the_hidden_states_of_the_initialization_depend_on_neither_ranks_nor_micro_batches(
    folder: Path, tmp_path: Path
) -> None:
    whole, _ = hidden_states_by_micro_batches(folder, 1)
    assert 150 <= len(whole) <= 150 + 100
    for num in (3, 20):
        parts, largest = hidden_states_by_micro_batches(folder, num)
        assert largest <= 800 / num
        assert torch.allclose(parts, whole, atol=1e-4)
    by_rank = in_ranks(hidden_states_by_micro_batches, tmp_path, folder, 2)
    assert all(len(found) and largest <= 800 / 4 for found, largest in by_rank)
    assert torch.allclose(torch.cat([found for found, _ in by_rank]), whole, atol=1e-4)


def test_hidden_states_that_are_not_finite_are_left_out(folder: Path) -> None:
    with read(CONFIG, folder) as speech:
        model = speech._tokenizer.model
        whole = speech.hidden_states(model, at_least=10_000)
        first = min(speech._sources[0], key=lambda item: item.num_samples)
        kept = speech._read._kept[first.number, 1.0]
        speech._read._kept[first.number, 1.0] = replace(kept, data=kept.data * torch.nan)
        assert len(speech.hidden_states(model, at_least=10_000)) == len(whole) - speech._scan.num_codes(
            first.num_samples
        )
