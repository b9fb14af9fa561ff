"""Rank and number of processes of a run under torchrun, read from the environment without importing torch.

torchrun --nproc-per-node 8 -m weft pretrain RECIPE.toml
"""

from __future__ import annotations

import os


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Return the index of this process. Process 0 writes files and prints."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0
