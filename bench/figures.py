"""What every bench here shares: works timed in turn, figures as a table and as JSON, and what they were taken on."""

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

from weft.training.loop import multiplies_bf16


@dataclass(frozen=True)
class Figure:
    """A line of the table. `ratio` is how many times better ours is, or what share of the peer's."""

    ours: float
    peer: float | None
    ratio: float | None
    unit: str


def in_turn(rounds: int, **works: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each of `works`, done one after another `rounds` times, and once before."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + rounds):
        for name, work in works.items():
            begun_sec = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun_sec)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def show(figures: Mapping[str, Figure]) -> None:
    """Print the table."""
    print(f"{'figure':<48}{'ours':>10}{'peer':>10}{'ratio':>8}")
    for name, f in figures.items():
        peer = "" if f.peer is None else f"{f.peer:.2f}"
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        print(f"{name:<48}{f.ours:>10.2f}{peer:>10}{ratio:>8}  {f.unit}")


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """The figures as JSON, beside the machine and the versions."""
    versions = {name: version(name) for name in ("weft-speech", "torch", "transformers", "numpy")}
    told = {name: vars(f) if isinstance(f, Figure) else f for name, f in figures.items()}
    report = {"figures": told, "machine": _machine(), "versions": versions | {"python": platform.python_version()}}
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
        "multiplies_bf16": multiplies_bf16("cpu"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
