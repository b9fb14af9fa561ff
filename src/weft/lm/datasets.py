"""Packed datasets of a training run, and their mixture.

datasets = open_datasets(Path("runs/tokens"), max_seq_len=512)            # {"text": Pieces, "speech": Pieces}
mixture = mixture_of({Path("runs/tokens"): datasets}, weights, {}, train, batch_tokens=4096)
show(mixture.uses(), requested_tokens=1000 * 4096)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from weft import progress
from weft.data.storage import files_under, path_of
from weft.data.stored_artifacts import read_manifest
from weft.data.token_shards import TokenShards
from weft.errors import UserError
from weft.lm.mixture import Mixture, Pieces, SourceUse
from weft.lm.source_weights import Weight
from weft.training.config import TrainConfig

WeightsFrom = dict[str, dict[str, Weight]]
Datasets = Sequence[tuple[str, Pieces]]


def open_datasets(folder: str | Path, max_seq_len: int, vocab_size: int | None = None) -> dict[str, Pieces]:
    """Open the datasets of token shards at a path or URL by name, in the order in which they were packed.

    Raises UserError if documents are missing, and for damaged shards.
    """
    packed = read_manifest(folder, "tokens").counts.get("datasets", {})
    shards = files_under(path_of(folder), lambda name: name.endswith(".ds")) or []
    names = [*packed, *sorted({file.path.split("/")[-2] for file in shards} - set(packed))]
    datasets = {name: TokenShards(f"{str(folder).rstrip('/')}/{name}", vocab_size) for name in names}
    for name, counts in packed.items():
        if (found := len(datasets[name])) != counts["documents"]:
            raise UserError(
                f"{folder}/{name} contains {found:,} of {counts['documents']:,} packed documents: copy it again, "
                "or pack the dataset again"
            )
    return {name: Pieces(shards, max_seq_len) for name, shards in datasets.items()}


def mixture_of(
    folders: Mapping[str | Path, Mapping[str, Pieces]],
    weights: Mapping[str, Weight],
    weights_from: WeightsFrom,
    train: TrainConfig,
    batch_tokens: int,
) -> Mixture:
    """Return the mixture of a run. Without `weights`, datasets are weighted in proportion to their sizes.

    Raises UserError for datasets of the same name, and for impossible weights.
    """
    sources: dict[str, Pieces] = {}
    for datasets in folders.values():
        for name, pieces in datasets.items():
            if name in sources:
                raise UserError(f"two directories in tokens have a dataset {name!r}: rename one and pack it again")
            sources[name] = pieces
    total = sum(pieces.num_tokens for pieces in sources.values())
    by_size = {name: pieces.num_tokens / max(1, total) for name, pieces in sources.items()}
    by_step: dict[int, Mapping[str, Weight]] = {0: weights or by_size}
    for step, others in weights_from.items():
        if not (step.isdecimal() and 0 < int(step) < train.steps):
            raise UserError(f"weights_from.{step} is not a step of the run: give 1 to {train.steps - 1}")
        by_step[int(step)] = others
    return Mixture(sources, by_step, train.steps, batch_tokens, train.seed)


def check_epochs(uses: Mapping[str, SourceUse], max_epochs: float | None) -> None:
    """Raise UserError for datasets that a run would read more than `max_epochs` times."""
    over = {name: use for name, use in uses.items() if max_epochs is not None and use.epochs > max_epochs}
    if over:
        readings = ", ".join(f"{name} {u.epochs:.4g} times ({u.tokens_drawn:,} tokens)" for name, u in over.items())
        remedy = f'give {"it" if len(over) == 1 else "them"} "{max_epochs:g} epochs", and another dataset the "rest"'
        if len(over) == len(uses):
            remedy = "reduce train.steps or batch_tokens, give more data, or increase max_epochs"
        raise UserError(f"the run would read {readings}, more than max_epochs {max_epochs:g}: {remedy}")


def show(uses: Mapping[str, SourceUse], requested_tokens: int) -> None:
    """Print what a run will read as a table, one line per dataset, and the total of the `requested_tokens`."""
    steps = dict.fromkeys(step for use in uses.values() for step in use.shares)
    columns = ["dataset", "documents", "tokens"]
    for step in steps:
        columns += [f"weight from {step}" if step else "weight", "share drawn"]
    rows = []
    for name, use in uses.items():
        row = [name, f"{use.documents:,}", f"{use.tokens:,}"]
        for step in steps:
            weight = use.weights[step]
            row += [weight if isinstance(weight, str) else f"{weight:.2%}", f"{use.shares[step]:.2%}"]
        rows.append([*row, f"{use.tokens_drawn:,}", f"{use.epochs:.2f}"])
    drawn = sum(use.tokens_drawn for use in uses.values())
    total = f"{drawn:,} of {requested_tokens:,}"
    rows.append(["total", *(f"{sum(n):,}" for n in zip(*((u.documents, u.tokens) for u in uses.values()), strict=True)),
                 *[""] * (2 * len(steps)), total, ""])  # fmt: skip
    progress.table([*columns, "tokens drawn", "epochs"], rows)
