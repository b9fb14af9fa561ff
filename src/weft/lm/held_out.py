"""Losses on data that a model was not trained on, beside those of the model that it was made from.

    def measured(): return held_out_losses(model, units, datasets, tokens_per_batch)
    before = base_losses(draft.folder, measured)                                       # once a run
    train(model)
    draft.counts |= compared(before, measured())

What a base knew of text is partly forgotten while it learns speech: by how much, `base.loss.text` beside `loss.text`
tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from weft import artifacts
from weft.lm.losses import Tally, Units
from weft.lm.mixture import Pieces
from weft.lm.packing import Batch, pack, token_losses
from weft.training import distributed

Datasets = Sequence[tuple[str, Pieces]]  # those of one name count as one


def base_losses(folder: Path, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first process `measured` before a run, all of them calling it; kept in its `folder` for later."""
    kept = folder / "log" / "base.json"
    if not distributed.from_first(kept.exists()):
        found = measured()
        if distributed.is_first():
            artifacts.write_json(kept, found)
    return distributed.from_first(json.loads(kept.read_text()) if distributed.is_first() else {})


def held_out_losses(model: PreTrainedModel, units: Units, datasets: Datasets, tokens_per_batch: int) -> dict[str, Any]:
    """Mean losses by the names of `Tally.figures`, but for that over all targets; `held_out` has them by dataset."""
    if not datasets:
        return {}
    model.eval()
    names = sorted({name for name, _ in datasets})
    tally = Tally(units, names)
    with distributed.without_gradients(model):
        for name, pieces in datasets:
            for batch in _batches(pieces, tokens_per_batch):
                tally.add(token_losses(model, batch), batch.targets, np.full(len(batch), names.index(name)))
    return {**_by_modality(tally.figures()), "held_out": {name: _by_modality(tally.of(name)) for name in names}}


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What `held_out_losses` gave after training, and with `base.` before their names those from before."""
    both = {name: value for name, value in after.items() if name != "held_out"}
    both |= {f"base.{name}": value for name, value in before.items() if name != "held_out"}
    if "held_out" in after:
        both["held_out"] = {name: compared(before["held_out"][name], of) for name, of in after["held_out"].items()}
    return both


def _by_modality(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name != "loss"}


def _batches(pieces: Pieces, tokens_per_batch: int) -> Iterator[Batch]:
    """Every piece once, in batches of at least `tokens_per_batch` ids, the last one smaller."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(len(pieces)):
        waiting.append(pieces[i])
        if i == len(pieces) - 1 or sum(len(ids) for ids, _ in waiting) >= tokens_per_batch:
            yield pack(waiting)
            waiting = []
