from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decoder.published.test_flow import MEL, TINY
from weft.audio import resample
from weft.data.speech import read_manifest
from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.published.flow import PublishedFlow
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.vocoder import Vocoder, VocoderShape
from weft.errors import UserError
from weft.eval import decoder as evaluation
from weft.eval.sound import Comparison
from weft.tokenizer.tokenizer import SpeechTokenizer

SYSTEMS = ["recording", "vocoder", "griffin_lim", "flow_griffin_lim", "decoder"]


class Judge:
    """A judge that hears the words "the cat" in a recording, and only "cat" in anything else."""

    def __init__(self, folder: Path) -> None:
        pass

    def long(self, audio: list[np.ndarray], languages: list[str | None]) -> list[str]:
        return ["the cat" if i == 0 else "cat" for i in range(len(audio))]


@pytest.fixture
def decoder(bundle: Path) -> SpeechDecoder:
    plain = SpeechDecoder.from_pretrained(bundle / "decoder")
    vocoder = Vocoder(VocoderShape(width=16, layers=1), plain.mel).eval()
    return SpeechDecoder(plain.flow, plain.mel, plain.manifest, vocoder)


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the judge and what needs optional packages: quality is the loudness, distances are constants."""
    monkeypatch.setattr(evaluation, "Transcriber", Judge)
    monkeypatch.setattr(evaluation, "Dnsmos", lambda: lambda samples: float(np.abs(samples).mean()))
    monkeypatch.setattr(evaluation, "Utmos", lambda weights: lambda samples: 4.0)
    monkeypatch.setattr(evaluation, "compare", lambda a, b, rate: Comparison(1.0, None, 0.25, 0.5))


def test_every_system_is_measured_against_the_recording(
    decoder: SpeechDecoder, bundle: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    tokenizer = SpeechTokenizer.from_pretrained(bundle / "tokenizer")
    utterances = [replace(u, text="the cat") for u in read_manifest(speech)]
    heard: dict[str, Any] = {}
    found = evaluation.measure(
        decoder, tokenizer, utterances, Path("judge"), receive=lambda u, sound, _: heard.update({u.id: sound})
    )
    assert list(found["systems"]) == SYSTEMS
    assert list(heard) == [u.id for u in utterances]
    assert all(list(sound) == SYSTEMS for sound in heard.values())
    assert found["systems"]["recording"]["wer"]["rate"] == 0
    assert "wer_difference" not in found["systems"]["recording"]
    for name in SYSTEMS[1:]:
        system = found["systems"][name]
        assert system["wer_difference"]["rate"] == system["wer"]["rate"] == 0.5
        assert (system["mcd_db"], system["f0_error_cents"], system["stoi"]) == (1.0, None, 0.5)
        loudness = [np.abs(sound[name]).mean() - np.abs(sound["recording"]).mean() for sound in heard.values()]
        assert system["dnsmos_difference"]["rate"] == pytest.approx(np.mean(loudness), rel=1e-4)
    assert found["real_time_factor"] > 0
    assert found["first_sound_ms"] > 0


def test_all_systems_are_as_long_as_the_codes(decoder: SpeechDecoder, bundle: Path) -> None:
    tokenizer = SpeechTokenizer.from_pretrained(bundle / "tokenizer")
    recording = 0.1 * np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    sound = evaluation.Renderer(decoder, tokenizer)(recording, seed=0)
    num = len(tokenizer.encode([recording])[0]) * 1280
    assert {name: len(samples) for name, samples in sound.items()} == dict.fromkeys(SYSTEMS, num)
    assert np.array_equal(sound["recording"][:9000], recording[:num])
    assert np.array_equal(sound["decoder"], decoder.synthesize(tokenizer.encode([recording])[0], seed=0))
    plain = SpeechDecoder.from_pretrained(bundle / "decoder")
    names = list(evaluation.Renderer(plain, tokenizer)(recording, seed=0))
    assert names == ["recording", "griffin_lim", "decoder"]


def test_the_systems_of_the_papers_decoder_are_as_long_as_the_codes(bundle: Path) -> None:
    tokenizer = SpeechTokenizer.from_pretrained(bundle / "tokenizer")
    flow = PublishedFlow(TINY, tokenizer.num_codes, tokenizer.frame_rate_hz, MEL)
    decoder = PublishedDecoder(flow.eval(), HiFT(HiFTShape(channels=16, f0_channels=8, harmonics=2), MEL).eval())
    sound = evaluation.Renderer(decoder, tokenizer)(np.ones(20_000, np.float32), seed=0)
    num = len(tokenizer.encode([resample(np.ones(20_000, np.float32), 22_050, 16_000)])[0]) * decoder.samples_per_code
    assert {name: len(samples) for name, samples in sound.items()} == dict.fromkeys(
        ("recording", "vocoder", "griffin_lim", "decoder"), num
    )


def test_utmos_is_measured_with_its_weights(
    decoder: SpeechDecoder, bundle: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    tokenizer, utterances = SpeechTokenizer.from_pretrained(bundle / "tokenizer"), list(read_manifest(speech))[:1]
    without = evaluation.measure(decoder, tokenizer, utterances, Path("judge"))["systems"]["decoder"]
    found = evaluation.measure(decoder, tokenizer, utterances, Path("judge"), utmos=Path("weights"))["systems"]
    assert "utmos" not in without
    assert found["decoder"]["utmos"]["rate"] == found["recording"]["utmos"]["rate"] == 4.0
    assert found["decoder"]["utmos_difference"]["rate"] == 0


def test_missing_packages_leave_their_measures_out(
    decoder: SpeechDecoder, bundle: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)

    def missing(*_: object) -> None:
        raise UserError("pip install it")

    monkeypatch.setattr(evaluation, "Dnsmos", missing)
    monkeypatch.setattr(evaluation, "compare", missing)
    tokenizer = SpeechTokenizer.from_pretrained(bundle / "tokenizer")
    found = evaluation.measure(decoder, tokenizer, list(read_manifest(speech))[:1], Path("judge"))
    assert found["not_measured"] == {"dnsmos": "pip install it", "distances": "pip install it"}
    assert all({"dnsmos", "mcd_db"}.isdisjoint(system) for system in found["systems"].values())
