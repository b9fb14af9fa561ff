"""Checkpoints of a training run: whole or absent, the newest found by itself, older ones removed.

save(folder, step, {"model": ..., "optimizer": ...})
found = latest(folder)        # (step, state) or None
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` after `step` finished steps, then remove the older checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}.pt"
    beside = final.with_suffix(".tmp")
    try:
        with beside.open("wb") as f:
            _write(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, final)
    finally:
        beside.unlink(missing_ok=True)
    for old in _all(folder)[:-1]:
        old.unlink()


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which raises a RuntimeError of its own over the OSError of a full disk."""
    try:
        torch.save(state, file)
    except RuntimeError as e:
        raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint as (finished steps, state), or None where there is none."""
    found = _all(folder)
    if not found:
        return None
    return int(found[-1].stem.removeprefix("step-")), torch.load(found[-1], map_location="cpu", weights_only=True)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
