import numpy as np

from tests.pages.conftest import HOSTILE, assert_self_contained
from weft.pages.components import Clip, spectrogram
from weft.pages.decoder_report import SYSTEMS, Example, render

RATE = {"rate": 0.25, "low": 0.125, "high": 0.5, "num_units": 8}


def tone(hz: float = 1000.0) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)).astype(np.float32)


def test_the_page_has_every_system_with_its_figures_and_audio() -> None:
    systems = {name: {"wer": RATE, "dnsmos": {**RATE, "rate": 3.21}} for name in SYSTEMS}
    results = {
        "utterances": 1, "seconds": 1.0, "judge": HOSTILE, "systems": systems, "real_time_factor": 0.05,
        "first_sound_ms": 80.0, "threads": 2, "not_measured": {"distances": HOSTILE},
    }  # fmt: skip
    clips = {name: Clip(tone(), 16_000, "the cat") for name in SYSTEMS}
    html = render(results, [Example(f"the cat {HOSTILE}", clips)])
    assert_self_contained(html)
    for name, about in SYSTEMS.values():
        assert name in html
        assert about in html
    assert html.count("<audio") == html.count('alt="spectrogram"') == len(SYSTEMS)
    assert html.count("25.0\u00a0%") == len(SYSTEMS)
    assert html.count("3.21") == len(SYSTEMS)


def test_a_spectrogram_of_silence_is_drawn() -> None:
    assert "data:image/png" in spectrogram(Clip(np.zeros(100, np.float32), 16_000))
