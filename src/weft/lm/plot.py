"""One picture of a run of pre-training, `log/training.png`: losses, what they are measured by, and how it goes.

    plot(folder / "log")

Drawn from metrics.jsonl alone, at any time, without a display.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from weft.artifacts import write_bytes
from weft.training.metrics import read_metrics

PICTURE = "training.png"
_MAX_POINTS = 300  # of a line; more are drawn as means of stretches
_LABEL_GAP = 0.075  # of a panel's height, between the names of its lines
_MAX_NAME = 12  # letters of a dataset's name that fit beside a panel
_GREY, _RED = "0.45", "#c1272d"
_MODALITIES = {"loss": ("all", "0.25"), "loss_text": ("text", "#1f77b4"), "loss_speech": ("speech", "#e07b00")}
_SOURCES = ("#1f77b4", "#e07b00", "#2a9d4e", "#8e5bb5", "#a0522d", "#d0559b", "#5f6b6d", "#9a9b1e", "#17a2b8")

# Of a line: where it is drawn, its name and its colour.
_Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def plot(folder: Path) -> None:
    """Draw what the metrics of `folder` tell as `training.png` there, which is never seen half written."""
    rows = list(read_metrics(folder))
    lines = _lines(rows)
    sources = sorted({name.split("/", 1)[1] for name in lines if "/" in name})
    colours = {name: _SOURCES[i % len(_SOURCES)] for i, name in enumerate(sources)}

    def by_source(metric: str) -> dict[str, tuple[str, str]]:
        return {f"{metric}/{name}": (name, colours[name]) for name in sources}

    figure = Figure(figsize=(15, 9.6), dpi=100)
    figure.subplots_adjust(0.04, 0.045, 0.925, 0.97, wspace=0.42, hspace=0.27)
    axes = figure.subplots(3, 3).flat
    _draw(next(axes), "loss by modality, nats a token", lines, _MODALITIES)
    _draw(next(axes), "loss on text by dataset, nats a token", lines, by_source("loss_text"))
    _draw(next(axes), "loss on speech by dataset, nats a token", lines, by_source("loss_speech"))
    _draw(next(axes), "loss by dataset, nats a token", lines, by_source("loss"))
    _draw(next(axes), "bits a byte of text", lines, {"bits_per_byte_text": ("", _MODALITIES["loss_text"][1])})
    _draw(next(axes), "nats a second of speech", lines, {"nats_per_sec_speech": ("", _MODALITIES["loss_speech"][1])})
    _draw(next(axes), "learning rate", lines, {"lr": ("", _GREY)}, from_zero=True)
    norms = next(axes)
    _draw(norms, "gradient norm", lines, {"grad_norm": ("", _GREY)}, log=True)
    _mark(norms, rows)
    mfu = lines["mfu"][1][-1] if "mfu" in lines else None
    speed = "tokens a second" + ("" if mfu is None else f", now {mfu:.1%} of the peak FLOP/s")
    _draw(next(axes), speed, lines, {"tokens_per_sec": ("", _GREY)}, from_zero=True)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(folder / PICTURE, content.getvalue())


def _lines(rows: Sequence[Mapping[str, Any]]) -> _Lines:
    """Steps and values of each metric, where it was told, thinned out to means of stretches."""
    points: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            points[name].append((row["step"], value))
    lines = {}
    for name, found in points.items():
        stretches = np.array_split(np.array(found, float), min(len(found), _MAX_POINTS))
        means = np.array([stretch.mean(0) for stretch in stretches])
        lines[name] = means[:, 0], means[:, 1]
    return lines


def _draw(
    axes: Axes,
    title: str,
    lines: _Lines,
    told: Mapping[str, tuple[str, str]],
    log: bool = False,
    from_zero: bool = False,
) -> None:
    """Lines, by metric a name and a colour, each named at its end."""
    shown = {name: lines[name] for name in told if name in lines}
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.7)
    axes.tick_params(labelsize=8, colors=_GREY)
    axes.set_xlabel("step", fontsize=8, color=_GREY)
    for name, (steps, values) in shown.items():
        axes.plot(steps, values, color=told[name][1], linewidth=1.1, marker="o" if len(steps) < 3 else None, ms=3)
    if not shown:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=_GREY)
        return
    last = max(float(steps[-1]) for steps, _ in shown.values())
    axes.set_xlim(0, max(last, 1))
    if log:
        _log_scale(axes, np.concatenate([values for _, values in shown.values()]))
    elif from_zero:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(*_range([(steps / max(last, 1), values) for steps, values in shown.values()]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_number))
    _name(axes, [(told[name], float(values[-1])) for name, (_, values) in shown.items()])


def _range(shown: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """What of the values is seen: all but the heights from which the first tenth of a run falls."""
    later = np.concatenate([values[share >= 0.1] if (share >= 0.1).any() else values for share, values in shown])
    low, high = float(later.min()), float(later.max())
    margin = 0.06 * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """A scale of one factor of ten or more."""
    tens = np.log10(values[values > 0]) if (values > 0).any() else np.zeros(1)
    low, high = tens.min(), tens.max()
    spare = max(0.05, (1 - (high - low)) / 2)
    axes.set_yscale("log")
    axes.set_ylim(10 ** (low - spare), 10 ** (high + spare))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())


def _number(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _last(value: float) -> str:
    """A line's last value, to three places or to the whole number."""
    return _number(value) if value >= 1000 else f"{value:#.3g}".removesuffix(".")


def _name(axes: Axes, ends: Sequence[tuple[tuple[str, str], float]]) -> None:
    """Name and last value of each line, as near to its end as the other names let it."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((1, value))[1] for _, value in ends])
    order = np.argsort(heights)
    for i, height in zip(order, _apart(np.clip(heights[order], 0, 1), _LABEL_GAP), strict=True):
        (name, colour), value = ends[i]
        told = f"{name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'} {_last(value)}"
        axes.annotate(told.strip(), (1.01, height), xycoords="axes fraction", fontsize=8, color=colour, va="center")


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """The numbers nearest to rising `heights` of which each is at least `gap` over the one before."""
    crowds: list[tuple[float, int]] = []  # mean of what each would be at without the gaps below it, and how many
    for i, height in enumerate(heights):
        crowds.append((float(height) - i * gap, 1))
        while len(crowds) > 1 and crowds[-2][0] > crowds[-1][0]:
            (a, m), (b, n) = crowds[-2:]
            crowds[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in crowds], [n for _, n in crowds]) + gap * np.arange(len(heights))


def _mark(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Where steps were skipped."""
    counts = [row.get("skipped_steps", 0) for row in rows]
    skipped = [row["step"] for row, now, before in zip(rows, counts, [0, *counts], strict=False) if now > before]
    for step in skipped:
        axes.axvline(step, color=_RED, linewidth=0.8)
    if skipped:
        axes.set_title(f"gradient norm; {counts[-1]} steps skipped", loc="left", fontsize=10, color=_RED)
