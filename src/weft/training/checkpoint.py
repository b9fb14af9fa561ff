"""Checkpoints of a training run: whole or absent, the newest found by itself, older ones removed.

save(folder, step, {"model": ..., "optimizer": ...})
step, state = load(newest(folder))        # newest gives None where there is none

Where several processes train, the first one saves, and all load the file that it finds newest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from weft.errors import UserError


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


def newest(folder: Path) -> Path | None:
    """The newest checkpoint, or None where there is none."""
    found = _all(folder.resolve())
    return found[-1] if found else None


def step_of(path: Path) -> int:
    """The finished steps of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def load(path: Path) -> tuple[int, dict[str, Any]]:
    """A checkpoint as (finished steps, state). Raises UserError where the file cannot be seen from here."""
    try:
        return step_of(path), torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise UserError(f"{path} is not there: every process must see the folder that the first one writes to") from e


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which raises a RuntimeError of its own over the OSError of a full disk."""
    try:
        torch.save(state, file)
    except RuntimeError as e:
        raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
