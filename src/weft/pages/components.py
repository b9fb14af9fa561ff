"""Components of self-contained HTML pages: audio, drawings, styles and script in one file without external resources.

    template = environment().get_template("view.html")         # it extends "base.html"
    html = template.render(clip=Clip(samples, 16_000, "transcript"))

In a template, `player(clip)` is a play button and `audio(clip)` the audio element; `waveform`, `cells` and `ruler` draw
audio, codes and seconds to a common `Scale`, `stripe` draws codes behind text, `chart` draws curves; `percent`,
`number` and `duration` format figures, and a missing one as a dash. Everything but `Markup` is escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from weft.text.normalize import comparison_form

_TEMPLATES = Path(__file__).with_name("templates")
_MISSING = "–"  # noqa: RUF001
_COLUMNS = 480  # of a waveform, more than a screen shows
_WINDOW_SEC, _RANGE_DB = 0.025, 80  # of a spectrogram
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
_MIN_TOP = 1e-9  # of an axis
_GOLDEN_ANGLE_DEG = 137.508  # neighbouring codes get very different hues


@dataclass(frozen=True)
class Clip:
    """Audio to play: mono samples (S,) in [-1, 1], and the transcript if known."""

    samples: np.ndarray
    sample_rate_hz: int
    text: str | None = None

    @property
    def duration_sec(self) -> float:
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True)
class Scale:
    """The common scale of drawings: seconds and peak amplitude."""

    span_sec: float
    peak: float

    @classmethod
    def of(cls, *clips: Clip) -> Scale:
        peaks = (float(np.abs(c.samples).max(initial=0.0)) for c in clips)
        return cls(max(c.duration_sec for c in clips) or 1.0, max(peaks) or 1.0)


@dataclass(frozen=True)
class Series:
    """A curve of a chart: its name, which is also its CSS class, and its (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


@cache
def environment() -> Environment:
    """Return the template engine, which escapes what is not markup and accepts missing values."""
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"percent": percent, "number": number, "duration": duration}
    env.globals |= {"player": player, "waveform": waveform, "cells": cells, "ruler": ruler, "stripe": stripe}
    env.globals |= {"audio": audio, "chart": chart, "differences": differences, "Scale": Scale}
    env.globals |= {"spectrogram": spectrogram}
    env.tests["known"] = is_known
    return env


def is_known(value: Any) -> bool:
    """Whether `value` is not missing and, if it is a number, finite."""
    if isinstance(value, int | float):
        return math.isfinite(value)
    return value is not None and not isinstance(value, ChainableUndefined)


def percent(fraction: Any) -> str:
    """Format a fraction as a percentage: 0.1234 -> 12.3 %."""
    return f"{100 * fraction:.1f}\u00a0%" if is_known(fraction) else _MISSING


def number(value: Any) -> str:
    """Format a number with at least three digits: 1.234 -> 1.23, 12345.6 -> 12,346."""
    if not is_known(value):
        return _MISSING
    decimals = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def duration(sec: Any) -> str:
    """Format seconds: 3.21 -> 3.2 s, 492 -> 8 min 12 s."""
    if not is_known(sec):
        return _MISSING
    if sec < 9.95:
        return f"{sec:.1f}\u00a0s"
    minutes, seconds = divmod(round(sec), 60)
    return f"{minutes}\u00a0min {seconds}\u00a0s" if minutes else f"{seconds}\u00a0s"


def audio(clip: Clip, small: bool = False) -> Markup:
    """Return an audio element with the clip as FLAC, which is lossless and two thirds the size of WAV.

    With `small`, it is Ogg Opus, for pages with many clips: lossy, about 5 kB per second, a quarter of FLAC. The page's
    script hides the browser's controls, which are needed where it may not run.
    """
    samples, rate_hz, kind, subtype = clip.samples, clip.sample_rate_hz, "flac", "PCM_16"
    if small:
        from weft.audio import resample  # imports torch

        rate_hz = next((rate for rate in _OPUS_RATES_HZ if rate >= rate_hz), _OPUS_RATES_HZ[-1])
        samples, kind, subtype = resample(samples, clip.sample_rate_hz, rate_hz), "ogg", "OPUS"
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate_hz, format=kind.upper(), subtype=subtype)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<audio controls preload="none" src="data:audio/{};base64,{}"></audio>').format(kind, content)


def player(clip: Clip, label: str = "Play") -> Markup:
    """Return a button that plays the clip; its progress is drawn on the elements of the same `data-track`."""
    if len(clip.samples) == 0:
        return Markup('<span class="silent">no audio</span>')
    button = Markup('<button type="button" class="play" data-play aria-label="{}"></button>').format(label)
    return Markup('<span class="player">{}{}</span>').format(button, audio(clip))


def waveform(clip: Clip, scale: Scale) -> Markup:
    """Draw the envelope of a clip."""
    edges = np.linspace(0, len(clip.samples), _COLUMNS + 1).astype(int)
    columns = [clip.samples[a : max(a + 1, b)] for a, b in pairwise(edges) if a < len(clip.samples)]
    high = [50 - 48 * float(c.max()) / scale.peak for c in columns]
    low = [50 - 48 * float(c.min()) / scale.peak for c in columns]
    outline = [*enumerate(high), *reversed(list(enumerate(low)))]
    path = "M" + "L".join(f"{x} {y:.1f}" for x, y in outline) + "Z" if outline else ""
    return Markup(
        '<div class="wave" style="width:{:.3f}%" data-seek><svg viewBox="0 0 {} 100" preserveAspectRatio="none" '
        'aria-hidden="true"><path d="{}"/></svg></div>'
    ).format(_percent_of(clip.duration_sec, scale), max(1, len(columns) - 1), path)


def spectrogram(clip: Clip) -> Markup:
    """Draw the magnitudes of a clip over a range of 80 dB, from 0 Hz at the bottom to half its sample rate."""
    from matplotlib.image import imsave

    window = 2 * round(_WINDOW_SEC * clip.sample_rate_hz / 2)
    padded = np.pad(clip.samples, (window // 2, window))
    starts = np.linspace(0, len(clip.samples), _COLUMNS).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts]
    level = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(frames * np.hanning(window))), 1e-6)).T[::-1]
    buffer = io.BytesIO()
    imsave(buffer, level, vmin=level.max() - _RANGE_DB, vmax=level.max(), cmap="magma", format="png")
    content = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="spectrogram" src="data:image/png;base64,{}">').format(content)


def cells(codes: Sequence[int], frame_rate_hz: float, scale: Scale) -> Markup:
    """Draw codes as a row of coloured cells, with the code and its time as a tooltip."""
    row = Markup("").join(
        Markup('<rect x="{}" width=".9" height="1" fill="{}"><title>code {} at {:.2f} s</title></rect>').format(
            i, colour(code), code, i / frame_rate_hz
        )
        for i, code in enumerate(codes)
    )
    return Markup(
        '<div class="cells" style="width:{:.3f}%"><svg viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" '
        'aria-label="{} codes">{}</svg></div>'
    ).format(_percent_of(len(codes) / frame_rate_hz, scale), max(1, len(codes)), len(codes), row)


def ruler(scale: Scale) -> Markup:
    """Draw the seconds of a scale."""
    marks = Markup("").join(
        Markup('<span style="left:{:.3f}%">{:g}{}</span>').format(_percent_of(t, scale), t, "" if t else " s")
        for t in _ticks(scale.span_sec, 6)
    )
    return Markup('<div class="ruler" aria-hidden="true">{}</div>').format(marks)


def colour(code: int) -> str:
    """Return the CSS colour of a code."""
    return f"hsl({code * _GOLDEN_ANGLE_DEG % 360:.0f} 40% {(52, 59, 66)[code % 3]}%)"


def stripe(codes: Sequence[int]) -> str:
    """Return codes as a CSS image, for a stripe under the words that they stand for."""
    stops = (f"{colour(code)} 0 {100 * (i + 1) / len(codes):.1f}%" for i, code in enumerate(codes))
    return f"linear-gradient(var(--along, 90deg),{','.join(stops)})" if len(codes) else "none"


def series(lines: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[Series]:
    """Return curves over steps from lines of metrics.jsonl, for the keys of `names` that occur."""
    lines = list(lines)
    curves = (
        Series(name, [(line["step"], line[key]) for line in lines if is_known(line.get(key))])
        for key, name in names.items()
    )
    return [curve for curve in curves if curve.points]


def chart(curves: Sequence[Series]) -> Markup:
    """Draw curves over steps with a common axis from 0, and a legend with their last values."""
    if not curves:
        return Markup("")
    x_max = max(_MIN_TOP, *(x for c in curves for x, _ in c.points))
    y_max = max(_MIN_TOP, *(1.04 * y for c in curves for _, y in c.points))
    legend, lines = (
        Markup("").join(Markup(markup).format(**_values(c, x_max, y_max)) for c in curves)
        for markup in ('<span class="{name}"><i></i>{name} <b>{last}</b></span>', '<path class="{name}" d="{path}"/>')
    )
    x_marks, y_marks = (
        Markup("").join(Markup(markup).format(100 * v / top, f"{v:g}") for v in _ticks(top, n))
        for markup, top, n in (
            ('<span class="x" style="left:{:.2f}%">{}</span>', x_max, 4),
            ('<span class="y" style="bottom:{:.2f}%">{}</span>', y_max, 4),
        )
    )
    return Markup(
        '<div class="chart"><div class="legend">{}</div><div class="plot">{}{}<svg viewBox="0 0 1000 1000" '
        'preserveAspectRatio="none" aria-hidden="true">{}</svg></div><div class="x-name">steps</div></div>'
    ).format(legend, x_marks, y_marks, lines)


def differences(reference: str, transcript: str) -> Markup:
    """Return a transcript with wrong words marked and missing words struck out, normalized as for error rates."""
    expected, found = comparison_form(reference).split(), comparison_form(transcript).split()
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, expected, found, autojunk=False).get_opcodes():
        if kind == "delete":
            parts.append(Markup("<del>{}</del>").format(" ".join(expected[a:b])))
        else:
            parts.append(Markup("{}" if kind == "equal" else "<mark>{}</mark>").format(" ".join(found[c:d])))
    return Markup(" ").join(parts)


def _values(curve: Series, x_max: float, y_max: float) -> dict[str, str]:
    points = (f"{1000 * x / x_max:.1f} {1000 * (1 - y / y_max):.1f}" for x, y in curve.points)
    return {"name": curve.name, "last": number(float(curve.points[-1][1])), "path": "M" + "L".join(points)}


def _ticks(top: float, max_steps: int) -> list[float]:
    """Return round values from 0 to `top`, in at most `max_steps` steps of 1, 2 or 5 times a power of ten."""
    rough = top / max_steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [round(i * step, 10) for i in range(int(top / step) + 1)]


def _percent_of(sec: float, scale: Scale) -> float:
    return min(100.0, 100 * sec / scale.span_sec)
