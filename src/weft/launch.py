"""What a launcher of many processes (torchrun) says of this one, read from its environment without importing torch.

    torchrun --nproc-per-node 8 -m weft pretrain RECIPE.toml       # each process finds its rank and world_size here

A process that was started alone is rank 0 of a world of one.
"""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes work on this job together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Which of them this is: the first, 0, writes files and talks."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0
