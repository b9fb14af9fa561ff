"""Common parts of the benchmarks: timing in turn, tables, and JSON with the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from weft.device import has_native_bf16


@dataclass(frozen=True)
class Figure:
    """A line of the table. `ratio` is the speed (or another figure) of weft relative to the baseline."""

    weft: float
    baseline: float | None
    ratio: float | None
    unit: str


def in_turn(rounds: int, **functions: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each function. They are called in turn, `rounds` times after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name, function in functions.items():
            start_sec = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start_sec)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def show(figures: Mapping[str, Figure]) -> None:
    """Print the figures as a table."""
    print(f"{'figure':<48}{'weft':>10}{'baseline':>10}{'ratio':>8}")
    for name, f in figures.items():
        baseline = "" if f.baseline is None else f"{f.baseline:.2f}"
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        print(f"{name:<48}{f.weft:>10.2f}{baseline:>10}{ratio:>8}  {f.unit}")


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON, with the machine and the versions."""
    versions = {name: version(name) for name in ("weft-speech", "torch", "transformers", "numpy")}
    values = {name: vars(f) if isinstance(f, Figure) else f for name, f in figures.items()}
    report = {"figures": values, "machine": _machine(), "versions": versions | {"python": platform.python_version()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def _machine() -> dict[str, object]:
    cpu, info = platform.processor(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "has_native_bf16": has_native_bf16("cpu"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
