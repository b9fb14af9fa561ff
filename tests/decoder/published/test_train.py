from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.decoder.published.test_flow import MEL, TINY
from weft.artifacts import read
from weft.data.speech import read_manifest
from weft.decoder.config import DecoderConfig
from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.discriminators import DiscriminatorShape
from weft.decoder.load import load_vocoder
from weft.decoder.published.dataset import PublishedDataset
from weft.decoder.published.flow import PublishedFlow
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.published.train import new_training
from weft.decoder.train import run
from weft.decoder.train_vocoder import VocoderConfig
from weft.decoder.train_vocoder import run as train_vocoder
from weft.decoder.vocoder import VocoderShape
from weft.errors import UserError
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics

SHAPE = HiFTShape(channels=8, f0_channels=8, harmonics=2)


def vocoder_config(audio: Path, out: Path, **train: Any) -> VocoderConfig:
    settings = {"steps": 4, "lr": 1e-3, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 1, **train}
    return VocoderConfig(
        out=out,
        audio=(audio,),
        kind="hift",
        hift=SHAPE,
        mel=MEL,
        discriminators=DiscriminatorShape(width=2, periods=(2,), windows=(256,)),
        train=TrainConfig(precision="fp32", **settings),
        adversarial_from_step=2,
        batch_clips=2,
        clip_sec=0.2,
    )


@pytest.fixture(scope="module")
def trained(write_voice: Callable[[Path], DecoderConfig], tmp_path_factory: pytest.TempPathFactory) -> DecoderConfig:
    """The configuration of a decoder, whose vocoder exists."""
    folder = tmp_path_factory.mktemp("published")
    config = write_voice(folder)
    assert train_vocoder(vocoder_config(folder / "audio", folder / "vocoder")) is not None
    config = replace(config, kind="published", published=TINY, vocoder=folder / "vocoder")
    assert run(config) is not None
    return config


def test_a_trained_decoder_has_the_vocoder_and_decodes(trained: DecoderConfig) -> None:
    decoder = SpeechDecoder.from_pretrained(trained.out)
    assert isinstance(decoder, PublishedDecoder)
    assert decoder.published.embed.num_embeddings == 32
    vocoder = load_vocoder(trained.vocoder or "")
    assert isinstance(vocoder, HiFT)
    assert all(torch.equal(a, b) for a, b in zip(decoder.hift.parameters(), vocoder.parameters(), strict=True))
    assert decoder.synthesize([1, 2, 3, 4, 5]).shape == (5 * 1764,)
    assert read(trained.out).parents["vocoder"] == read(trained.vocoder or Path()).fingerprint


def test_the_vocoder_learns_f0_and_its_discriminators_start_late(trained: DecoderConfig) -> None:
    assert trained.vocoder is not None
    lines = list(read_metrics(trained.vocoder / "log"))
    assert all(line["f0"] > 0 for line in lines)
    assert ["generator" in line for line in lines] == [False, False, True, True]


@pytest.mark.parametrize("kind", ["decoder", "vocoder"])
def test_an_interrupted_training_resumes_to_the_same_weights(
    kind: str, trained: DecoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = PublishedFlow if kind == "decoder" else HiFT
    name = "loss" if kind == "decoder" else "f0_loss"
    original, calls = getattr(owner, name), iter(range(1000))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    def train() -> Any:
        if kind == "decoder":
            return run(replace(trained, out=tmp_path / "again"))
        return train_vocoder(vocoder_config(trained.audio[0], tmp_path / "again"))

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train()
    manifest = train()
    whole = read(trained.out if kind == "decoder" else trained.vocoder or Path())
    assert manifest.fingerprint == whole.fingerprint


def test_training_continues_from_a_decoder_with_its_vocoder(trained: DecoderConfig, tmp_path: Path) -> None:
    config = replace(trained, out=tmp_path / "next", init=trained.out, vocoder=None)
    before = SpeechDecoder.from_pretrained(trained.out)
    training = new_training(config, read_manifest(*config.audio))
    assert isinstance(before, PublishedDecoder)
    assert isinstance(training.decoder, PublishedDecoder)
    for a, b in ((training.flow, before.published), (training.decoder.hift, before.hift)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(UserError, match="another shape"):
        run(replace(config, published=replace(TINY, speaker_width=5)))


@pytest.mark.parametrize("step", range(6))
def test_clips_have_the_frames_of_their_codes(step: int, trained: DecoderConfig) -> None:
    decoder = SpeechDecoder.from_pretrained(trained.out)
    assert isinstance(decoder, PublishedDecoder)
    audio = read_manifest(*trained.audio)
    dataset = PublishedDataset(decoder, trained.codes, audio, batch_clips=8, seed=0, max_bad_fraction=0)
    batch = dataset.batch_at(step)
    assert batch is not None
    num_codes = batch.codes.shape[1]
    assert 1 <= num_codes <= 12
    assert batch.mel.shape == batch.noise.shape == (8, 8, decoder.published.num_frames(num_codes))
    assert (batch.num_given <= 0.8 * batch.mel.shape[-1]).all()
    again, part = dataset.batch_at(step), dataset.batch_at(step, slice(2, 4))
    assert again is not None
    assert part is not None
    assert torch.equal(again.noise, batch.noise)
    assert torch.equal(part.mel, batch.mel[2:4])
    spectra = {tuple(p.codes.tolist()): p.mel.float() for p in dataset._pairs}
    for codes, mel in zip(batch.codes.tolist(), batch.mel, strict=True):
        found = [
            torch.equal(whole[decoder.published.num_frames(start) :][: mel.shape[1]].T, mel)
            for text, whole in spectra.items()
            for start in range(0, len(text) - num_codes + 1, 4)
            if list(text[start : start + num_codes]) == codes
        ]
        assert any(found)


def test_settings_that_do_not_fit_are_refused(trained: DecoderConfig, tmp_path: Path) -> None:
    config = replace(trained, out=tmp_path / "out")
    convnext = vocoder_config(config.audio[0], tmp_path / "convnext", steps=1)
    train_vocoder(replace(convnext, kind="convnext", shape=VocoderShape(width=8, layers=1)))
    with pytest.raises(UserError, match='kind = "hift"'):
        run(replace(config, vocoder=None))
    with pytest.raises(UserError, match="is not HiFT"):
        run(replace(config, vocoder=tmp_path / "convnext"))
    with pytest.raises(UserError, match="is HiFT"):
        run(replace(config, kind="block"))
    with pytest.raises(UserError, match="have no speakers"):
        run(replace(config, speakers=True))
    with pytest.raises(UserError, match=r"mel.hop_samples is 200: give 256"):
        replace(convnext, mel=replace(MEL, hop_samples=200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convnext"]


def test_a_dry_run_prints_the_size(
    trained: DecoderConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.training.estimate.matmul_flops_per_sec", lambda device, dtype: 1e12)
    assert run(replace(trained, dry_run=True)) is None
    decoder = SpeechDecoder.from_pretrained(trained.out)
    assert isinstance(decoder, PublishedDecoder)
    assert f"{sum(p.numel() for p in decoder.published.parameters()):,}" in capsys.readouterr().out


@torch.no_grad()
def test_the_training_of_the_vocoder_gives_the_samples_of_the_frames() -> None:
    vocoder = HiFT(SHAPE, MEL)
    mel = torch.randn(2, 5, 8)
    torch.manual_seed(0)
    samples = vocoder(mel)
    assert samples.shape == (2, 5 * 256)
    assert not torch.equal(vocoder(mel), samples)
    wave = torch.from_numpy(np.sin(2 * np.pi * 150 * np.arange(22_050) / 22_050).astype(np.float32))[None]
    vocoder.f0_out.weight.zero_()
    vocoder.f0_out.bias.fill_(150.0)
    assert vocoder.f0_loss(vocoder.spectrogram(wave[:, : 86 * 256]), wave[:, : 86 * 256]) < 5
    vocoder.f0_out.bias.fill_(250.0)
    assert vocoder.f0_loss(vocoder.spectrogram(wave[:, : 86 * 256]), wave[:, : 86 * 256]) > 90
