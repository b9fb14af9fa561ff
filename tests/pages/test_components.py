import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from tests.pages.conftest import Page, random_clip
from weft.pages.components import (
    Clip,
    Scale,
    Series,
    audio,
    chart,
    differences,
    duration,
    number,
    percent,
    series,
    waveform,
)
from weft.text.normalize import comparison_form

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dog", "<b>", "d'or"]), max_size=8).map(" ".join)


@given(WORDS, WORDS)
def test_differences_keep_every_word_of_the_transcript_and_mark_only_wrong_ones(reference: str, text: str) -> None:
    html = str(differences(reference, text))
    kept = re.sub(r"<del>.*?</del>", "", html)
    assert Markup(kept).striptags().split() == comparison_form(text).split()
    right = Markup(re.sub(r"<mark>.*?</mark>", "", kept)).striptags().split()
    expected = iter(comparison_form(reference).split())
    assert all(word in expected for word in right)  # in order
    assert ("<" in html) == (comparison_form(reference) != comparison_form(text))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), min_size=1, max_size=5))
def test_a_chart_has_every_point_inside(points: list[tuple[float, float]]) -> None:
    html = str(chart([Series("text", points)]))
    path = re.search(r'd="M([^"]*)"', html)
    assert path
    drawn = [tuple(map(float, pair.split())) for pair in path[1].split("L")]
    assert len(drawn) == len(points)
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in drawn)
    assert all(0 <= float(position) <= 100.01 for position in re.findall(r"(?:left|bottom):([\d.]+)%", html))


def test_metrics_that_are_missing_or_not_finite_are_left_out_of_a_curve() -> None:
    lines = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": float("nan")}, {"step": 2}, {"step": 3, "loss": 1.0}]
    assert series(lines, {"loss": "loss", "accuracy": "accuracy"}) == [Series("loss", [(0, 2.0), (3, 1.0)])]
    assert chart([]) == ""


def test_figures_are_formatted_with_units() -> None:
    assert [percent(0.1234), percent(1), percent(None)] == ["12.3\u00a0%", "100.0\u00a0%", "–"]  # noqa: RUF001
    assert [number(v) for v in (1.234, 98.14, 231.2, 12345.6, 7)] == ["1.23", "98.1", "231", "12,346", "7"]
    durations = [duration(v).replace("\u00a0", " ") for v in (3.21, 9.96, 59.7, 492.3)]
    assert durations == ["3.2 s", "10 s", "1 min 0 s", "8 min 12 s"]


def test_audio_is_lossless() -> None:
    clip = random_clip(0.3)
    [(samples, rate_hz)] = Page(str(audio(clip))).audio
    assert rate_hz == clip.sample_rate_hz
    np.testing.assert_allclose(samples, clip.samples, atol=1 / 30000)


def test_small_audio_sounds_the_same() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050).astype(np.float32) * 0.5
    small = str(audio(Clip(tone, 22_050), small=True))
    [(samples, rate_hz)] = Page(small).audio
    assert (rate_hz, len(samples)) == (24_000, 24_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    middle = slice(4_000, 20_000)
    assert np.corrcoef(samples[middle], expected[middle])[0, 1] > 0.99
    assert len(small) < len(str(audio(Clip(tone, 22_050))))


@pytest.mark.parametrize("num_samples", [0, 1, 100, 5000])
def test_a_waveform_stays_inside_its_box(num_samples: int) -> None:
    clip = Clip(np.random.default_rng(0).uniform(-3, 3, num_samples).astype(np.float32), 8000)
    html = str(waveform(clip, Scale.of(clip)))
    heights = [float(y) for y in re.findall(r"[ML]\d+ (-?[\d.]+)", html)]
    assert len(heights) == (2 * 480 if num_samples else 0)
    assert all(2 <= y <= 98 for y in heights)
