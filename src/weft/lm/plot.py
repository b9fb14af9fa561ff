"""A plot of a pre-training run, `log/training.png`: losses, learning rate, gradient norm and speed.

    plot(folder / "log")

It is drawn from metrics.jsonl and needs no display.
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
from matplotlib.ticker import LogLocator, NullLocator

from weft.files import write_bytes
from weft.training.metrics import read_metrics

PICTURE = "training.png"
_MAX_POINTS = 300  # per line; more are averaged
_MODALITIES = {"loss": "all", "loss_text": "text", "loss_speech": "speech"}

_Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def plot(folder: Path) -> None:
    """Draw the metrics of `folder` as `training.png` there, atomically."""
    rows = list(read_metrics(folder))
    lines = _lines(rows)
    sources = sorted({name.split("/", 1)[1] for name in lines if "/" in name})

    def by_source(metric: str) -> dict[str, str]:
        return {f"{metric}/{source}": source for source in sources}

    figure = Figure(figsize=(15, 9.6), dpi=100)
    figure.subplots_adjust(0.045, 0.045, 0.99, 0.97, wspace=0.16, hspace=0.27)
    axes = figure.subplots(3, 3).flat
    _draw(axes[0], "loss by modality, nats per token", lines, _MODALITIES)
    _draw(axes[1], "loss on text by dataset, nats per token", lines, by_source("loss_text"))
    _draw(axes[2], "loss on speech by dataset, nats per token", lines, by_source("loss_speech"))
    _draw(axes[3], "loss by dataset, nats per token", lines, by_source("loss"))
    _draw(axes[4], "bits per byte of text", lines, {"bits_per_byte_text": ""})
    _draw(axes[5], "nats per second of speech", lines, {"nats_per_sec_speech": ""})
    _draw(axes[6], "learning rate", lines, {"lr": ""}, from_zero=True)
    _draw(axes[7], "gradient norm", lines, {"grad_norm": ""}, log=True)
    _mark_skipped_steps(axes[7], rows)
    mfu = f", MFU {lines['mfu'][1][-1]:.1%}" if "mfu" in lines else ""
    _draw(axes[8], f"tokens per second{mfu}", lines, {"tokens_per_sec": ""}, from_zero=True)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(folder / PICTURE, content.getvalue())


def _lines(rows: Sequence[Mapping[str, Any]]) -> _Lines:
    """Return steps and values of each metric, averaged to at most `_MAX_POINTS`."""
    points: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            points[name].append((row["step"], value))
    lines = {}
    for name, found in points.items():
        chunks = np.array_split(np.array(found, float), min(len(found), _MAX_POINTS))
        means = np.array([chunk.mean(0) for chunk in chunks])
        lines[name] = means[:, 0], means[:, 1]
    return lines


def _draw(
    axes: Axes, title: str, lines: _Lines, names: Mapping[str, str], log: bool = False, from_zero: bool = False
) -> None:
    """Draw the lines of metrics. The legend shows their `names` and last values."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(axis="y", color="0.9")
    axes.tick_params(labelsize=8)
    shown = []
    for i, (metric, name) in enumerate(names.items()):
        if metric in lines:
            steps, values = lines[metric]
            label = f"{name} {_number(values[-1])}".strip()
            axes.plot(steps, values, "o-" if len(steps) < 3 else "-", color=f"C{i}", linewidth=1.1, ms=3, label=label)
            shown.append((steps, values))
    if not shown:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
        return
    last = max(1, *(steps[-1] for steps, _ in shown))
    axes.set_xlim(0, last)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    elif from_zero:
        axes.set_ylim(0, 1.05 * max(values.max() for _, values in shown))
    else:  # without the first tenth of the run, whose losses are much higher
        later = np.concatenate([values[steps >= last / 10] for steps, values in shown])
        later = later if len(later) else np.concatenate([values for _, values in shown])
        margin = 0.06 * (np.ptp(later) or abs(later[0]) or 1)
        axes.set_ylim(later.min() - margin, later.max() + margin)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.legend(fontsize=8)


def _number(value: float) -> str:
    """Format a value with three digits or as an integer."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".removesuffix(".")


def _mark_skipped_steps(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    counts = [row.get("skipped_steps", 0) for row in rows]
    skipped = [row["step"] for row, now, before in zip(rows, counts, [0, *counts], strict=False) if now > before]
    for step in skipped:
        axes.axvline(step, color="red", linewidth=0.8)
    if skipped:
        axes.set_title(f"gradient norm, skipped steps: {counts[-1]}", loc="left", fontsize=10, color="red")
