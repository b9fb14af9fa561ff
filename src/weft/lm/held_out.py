"""Losses on held-out data, of the trained model and of its base.

    def measure(): return held_out_losses(model, units, datasets, tokens_per_batch)
    before = base_losses(draft.folder, [name for name, _ in datasets], measure)        # once per run
    train(model)
    draft.counts |= merge_losses(before, measure())

A base forgets part of its text knowledge while it learns speech: compare `base.loss.text` with `loss.text`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from weft import progress
from weft.errors import reason_of
from weft.files import write_json
from weft.lm.datasets import Datasets
from weft.lm.loss_meter import LossMeter, Units
from weft.lm.mixture import Pieces
from weft.lm.packing import Batch, pack, token_losses
from weft.training import distributed, parallel

_PIECES_PER_READ = 256  # requested at once from a store


def base_losses(folder: Path, names: Collection[str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `measure` on the datasets `names` before the first step.

    It is stored in `folder` for a resumed run, which measures again, with one line on stderr, if the file is damaged.
    """
    stored = folder / "log" / "base.json"
    found = distributed.compute_once(lambda: _stored_losses(stored, names))
    if found is None:
        found = measure()
        if distributed.is_main_process():
            write_json(stored, found)
    return distributed.broadcast_object(found)


def _stored_losses(path: Path, names: Collection[str]) -> dict[str, Any] | None:
    """Return the losses in a file, or None if it does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        by_name = dict(found)
        datasets = dict(by_name.pop("held_out", {}))
        if set(datasets) != set(names):
            raise ValueError("it has other datasets")
        if not all(isinstance(v, int | float) for losses in (by_name, *datasets.values()) for v in losses.values()):
            raise ValueError("a loss is not a number")
    except (OSError, ValueError, TypeError, AttributeError) as e:
        progress.note(f"weft: {path} is damaged ({reason_of(e)}): the base is measured again")
        return None
    return found


def held_out_losses(model: PreTrainedModel, units: Units, datasets: Datasets, tokens_per_batch: int) -> dict[str, Any]:
    """Return mean losses by the names of `LossMeter.metrics`, without the total; "held_out" has them by dataset.

    Datasets of the same name are measured as one.
    """
    if not datasets:
        return {}
    model.eval()
    names = list(dict.fromkeys(name for name, _ in datasets))
    meter = LossMeter(units, names)
    num_pieces = sum(len(pieces) for _, pieces in datasets)
    with parallel.no_grad(model), progress.bar("held-out data", num_pieces) as advance:
        for name, pieces in datasets:
            for batch, num in _batches(pieces, tokens_per_batch):
                losses = token_losses(model, batch)
                meter.add(losses, batch.targets, np.full(len(batch), names.index(name)))
                advance(num, f"loss {losses.mean():.3f}" if len(losses) else "")
    return {**_by_modality(meter.metrics()), "held_out": {name: _by_modality(meter.of(name)) for name in names}}


def merge_losses(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the results of `held_out_losses` after training and, with the prefix "base.", before it."""
    both = {name: value for name, value in after.items() if name != "held_out"}
    both |= {f"base.{name}": value for name, value in before.items() if name != "held_out"}
    if "held_out" in after:
        both["held_out"] = {name: merge_losses(before["held_out"][name], of) for name, of in after["held_out"].items()}
    return both


def _by_modality(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "loss"}


def _batches(pieces: Pieces, tokens_per_batch: int) -> Iterator[tuple[Batch, int]]:
    """Yield every piece once, in batches of at least `tokens_per_batch` ids, except for the last, and their number."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for i, piece in enumerate(_read(pieces)):
        waiting.append(piece)
        if i == len(pieces) - 1 or sum(len(ids) for ids, _ in waiting) >= tokens_per_batch:
            yield pack(waiting), len(waiting)
            waiting = []


def _read(pieces: Pieces) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every piece once, in order."""
    for first in range(0, len(pieces), _PIECES_PER_READ):
        yield from pieces.read(range(first, min(first + _PIECES_PER_READ, len(pieces))))
