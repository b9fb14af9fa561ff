"""Training a speech-text language model on token shards: pre-training, and with other shards and base, fine-tuning.

    run(PretrainConfig(base=Path("runs/lm-start"), tokens=(Path("runs/tokens"),), out=Path("runs/lm"),
                       weights={"text": 0.3, "speech": "1 epoch", "asr": "1 epoch", "woven": "rest"}))

The loss is over all trained ids alike (section 6 of arXiv 2411.17607 trains on every token, of ASR and TTS on the
target side). It is also told apart by source and modality (`weft.lm.losses`), while it trains (`weft.lm.watch`) and on
what is held out, where the base is measured too: a reader sees what training made of its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.config import Count, Positive
from weft.data.shards import TokenShards, tokenizer_of
from weft.errors import UserError
from weft.lm.held_out import base_losses, compared, held_out_losses
from weft.lm.lora import LoraConfig, adapt, merge
from weft.lm.losses import Units
from weft.lm.mixture import Mixture, Pieces, Share
from weft.lm.model import KIND, LanguageModel, save
from weft.lm.packing import Batch, check_rows, in_training, pack, token_losses
from weft.lm.shares import Weight
from weft.lm.watch import Part, Watch
from weft.training import checkpoint, distributed
from weft.training.loop import HOUSEKEEPING, TrainConfig, discard_checkpoints, fit, takes_bf16
from weft.training.metrics import read_metrics
from weft.training.prefetch import Prefetch
from weft.vocab import SpeechVocab

_FRAME_RATE = "frame_rate_hz"
_MEASURED_AT_ONCE = 4096  # tokens: a step's may be millions, which many processes and micro-batches share

WeightsFrom = dict[str, dict[str, Weight]]


@dataclass(frozen=True)
class PretrainConfig:
    """What a language model is trained from, on what, and how."""

    base: Path
    """Language model to continue from."""
    tokens: tuple[Path, ...]
    """Token shards, packed for the vocabulary of `base`."""
    out: Path
    """Folder of the language model to make."""
    weights: dict[str, Weight] = field(default_factory=dict)
    """Of each dataset, by its name: share of the tokens (0.3; together 1), "2 epochs" in all, or "rest", in one place.
    Without any, in proportion to their sizes."""
    weights_from: WeightsFrom = field(default_factory=dict)
    """Other weights, by the step from which they hold. A run that was stopped may go on with others, from its newest
    checkpoint or a later step on."""
    max_epochs: Positive | None = None
    """A run that would pass a dataset more often than this is refused before it begins."""
    held_out: tuple[Path, ...] = ()
    """Token shards that base and result are measured on, and that are not trained on."""
    tokens_per_step: Count = 4096
    """Tokens of a step, about: a step is a fixed number of documents or pieces of them."""
    row_tokens: Count = 512
    """Longest piece of a document, and longest row of documents that see each other."""
    attention: Literal["document", "row"] = "document"
    """How far ids see back: to the begin of their document, or past it to that of a row of `row_tokens`."""
    recompute: bool = False
    """Layers keep their inputs alone and run again in the backward pass: less memory for a third more time."""
    compile: bool = False
    """Layers run as torch.compile makes them, which it takes about a minute for."""
    parallel: Literal["replicate", "shard"] = "replicate"
    """What each of many processes holds: the whole model (DDP), or a part of every parameter, gradient and moment
    (FSDP2), for a model that does not fit one GPU; each micro-batch then waits for all processes. A run that was
    stopped may go on the other way, on any number of processes: they give the same gradients."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    dry_run: bool = False
    """Train nothing and make nothing: only tell parameters, memory, tokens, and days by the number of GPUs."""


def command(config: PretrainConfig) -> Manifest | None:
    """`run`, or with `dry_run` a print of what it would take; of the base its config.json is enough then.

    Where the token shards are here, their mixture is shown, and refused, as before a run.
    """
    if not config.dry_run:
        return run(config)
    from weft.lm.dry_run import estimate

    tokens = None
    if all(folder.exists() for folder in config.tokens):
        shares = _mixture(config).shares()
        _check_epochs(shares, config.max_epochs)
        _show(shares)
        tokens = sum(share.tokens_drawn for share in shares.values())
    told = estimate(config, tokens).lines()
    if distributed.is_first():
        print("\n".join(told))
    return None


def run(config: PretrainConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    The mixture is shown first, as a table on stderr. With `lora`, adapters are trained, and merged into the model when
    it has been measured. Counts tell parameters (with `lora` also the trained ones), tokens, `mixture` (what was read
    of each dataset), `tokens_per_sec` (padding not counted) and `skipped_steps`. With `held_out` they have `loss.text`
    and `loss.speech` (nats a token), `bits_per_byte.text` and `nats_per_sec.speech`, the same of the base behind
    `base.`, and all of them by dataset in `held_out`. `log/training.png` shows how it went. Raises UserError for shards
    that are damaged or of another vocabulary, weights that cannot be kept, and rows longer than the model's positions.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = takes_bf16(config.train.precision, device)
    dtype = torch.bfloat16 if config.lora.rank and half else torch.float32
    base = LanguageModel.load(config.base, dtype)
    check_rows(base.model, config.row_tokens)
    parents = {"base": base.manifest}
    for name, folders in (("tokens", config.tokens), ("held_out", config.held_out)):
        parents |= {f"{name} {i}": _tokens_manifest(folder, base.vocab) for i, folder in enumerate(folders)}
    parents |= tokenizer_of(parents)
    left_out = ("base", "tokens", "held_out", "out", "max_epochs", "parallel", "recompute", "compile", "dry_run")
    settings = {k: v for k, v in asdict(config).items() if k not in left_out}
    settings["train"] = {k: v for k, v in settings["train"].items() if k not in HOUSEKEEPING}
    if artifacts.is_made(config.out, KIND, settings, parents):
        return artifacts.read(config.out)
    mixture = _mixture(config, base.vocab.size)
    # Opened before training, that they are found damaged before it.
    held_out = [d for f in config.held_out for d in _datasets(f, config.row_tokens, base.vocab.size).items()]
    shares = mixture.shares()
    _check_epochs(shares, config.max_epochs)
    _show(shares)
    if distributed.is_first():
        agree = partial(_agree, config.weights_from)
        artifacts.change_begun(config.out, "weights_from", config.weights_from, agree)
    with distributed.build(config.out, KIND, settings, parents) as draft:
        draft.counts["parameters"] = base.model.num_parameters()
        model: Any = _adapted(base, config)
        if config.lora.rank:
            draft.counts["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        units = Units(base.vocab, base.manifest.counts.get(_FRAME_RATE))
        with in_training(model, config.recompute, config.compile):
            model = distributed.shard(model, device, half) if config.parallel == "shard" else model.to(device)
            sharded = distributed.is_sharded(model)

            at_once = min(config.tokens_per_step, max(_MEASURED_AT_ONCE, config.row_tokens))

            def measured() -> dict[str, Any]:
                if not (sharded or distributed.is_first()):  # sharded, it computes with all processes or not at all
                    return {}
                with (
                    distributed.peers(computing=True),
                    torch.autocast(device, torch.bfloat16, enabled=sharded and half),
                ):
                    return held_out_losses(model, units, held_out, at_once)

            before = base_losses(draft.folder, measured)
            draft.counts["tokens_per_sec"] = _train(model, units, mixture, config, draft.folder)
            draft.counts |= compared(before, measured())
        draft.counts["tokens"] = sum(share.tokens_drawn for share in shares.values())
        draft.counts["mixture"] = {name: asdict(share) for name, share in shares.items()}
        if units.frame_rate_hz is not None:
            draft.counts[_FRAME_RATE] = units.frame_rate_hz
        weights = distributed.whole_weights(model) if sharded else None
        if distributed.is_first():
            draft.counts["skipped_steps"] = max(m.get("skipped_steps", 0) for m in read_metrics(draft.folder / "log"))
            if weights is not None:
                model = _adapted(LanguageModel.load(config.base, dtype), config)
                model.load_state_dict(weights)
            save(merge(model) if config.lora.rank else model, base.tokenizer, draft.folder)
        discard_checkpoints(draft.folder)
    return artifacts.read(config.out)


def _adapted(base: LanguageModel, config: PretrainConfig) -> nn.Module:
    """What is trained: the base, or with `lora` adapters on it."""
    return adapt(base.model, base.vocab, config.lora, config.train.seed) if config.lora.rank else base.model


def _train(model: PreTrainedModel, units: Units, mixture: Mixture, config: PretrainConfig, folder: Path) -> float:
    """Train `model` and return the tokens a second, padding not counted."""
    watch = Watch(units, mixture, model, config.train, folder)

    def batch_at(step: int, part: slice) -> Batch | None:
        samples = mixture.samples(step)[part]
        row_tokens = config.row_tokens if config.attention == "row" else None
        return pack([mixture[j] for j in samples], row_tokens) if samples else None

    def part_at(step: int, part: slice) -> Part | None:
        batch = (ahead.batch_at if ahead else batch_at)(step, part)
        if batch is None:
            return None
        if part == distributed.ANY:
            return Part(batch, None)
        return watch.part(step, mixture.samples(step)[part], batch)

    def loss_of(_: nn.Module, part: Part) -> dict[str, Tensor]:
        losses = token_losses(model, part.batch)
        watch.see(part, losses)
        return {"loss": losses.sum() / max(1, len(losses))}

    # On a CPU the thread would hold up the one that trains, by more than batches take.
    on_gpu = model.device.type == "cuda"
    with Prefetch(batch_at, config.train) if on_gpu else nullcontext() as ahead:
        seconds = fit(model, part_at, loss_of, config.train, folder, "language model", watch.after)
    watch.plot()
    return distributed.total(watch.num_tokens) / seconds  # an interrupted run measures its speed on the steps since


def _mixture(config: PretrainConfig, vocab_size: int | None = None) -> Mixture:
    sources: dict[str, Pieces] = {}
    for folder in config.tokens:
        for name, pieces in _datasets(folder, config.row_tokens, vocab_size).items():
            if name in sources:
                raise UserError(f"two folders in tokens hold a dataset {name!r}: rename one and pack it again")
            sources[name] = pieces
    total = sum(pieces.num_tokens for pieces in sources.values())
    by_size = {name: pieces.num_tokens / max(1, total) for name, pieces in sources.items()}
    weights = {0: config.weights or by_size}
    for step, others in config.weights_from.items():
        if not (step.isdecimal() and 0 < int(step) < config.train.steps):
            raise UserError(f"weights_from.{step} is no step of the run: give one of 1 to {config.train.steps - 1}")
        weights[int(step)] = others
    return Mixture(sources, weights, config.train.steps, config.tokens_per_step, config.train.seed)


def _agree(weights_from: WeightsFrom, folder: Path, begun: WeightsFrom) -> bool:
    """Whether a run in the making was `begun` with the weights that it is to have, in all steps of its checkpoint."""
    newest = checkpoint.newest(folder / "checkpoints")
    done = checkpoint.step_of(newest) if newest else 0
    old, new = ({int(step): w for step, w in by.items() if int(step) < done} for by in (begun, weights_from))
    return old == new


def _check_epochs(shares: Mapping[str, Share], most: float | None) -> None:
    over = {name: share for name, share in shares.items() if most is not None and share.epochs > most}
    if over:
        told = ", ".join(f"{name} {s.epochs:.4g} times ({s.tokens_drawn:,} tokens)" for name, s in over.items())
        raise UserError(
            f"the run would pass {told}, and max_epochs is {most:g}: "
            f'give {"it" if len(over) == 1 else "them"} "{most:g} epochs" and another dataset the "rest"'
        )


def _show(shares: Mapping[str, Share]) -> None:
    """The mixture as a table, a line a dataset."""
    steps = dict.fromkeys(step for share in shares.values() for step in share.shares)
    columns = ["dataset", "documents", "tokens", *(f"from step {step}" if step else "share" for step in steps)]
    rows = [
        [name, f"{s.documents:,}", f"{s.tokens:,}", *(f"{s.shares[step]:.2%}" for step in steps),
         f"{s.tokens_drawn:,}", f"{s.epochs:.2f}"]
        for name, s in shares.items()
    ]  # fmt: skip
    progress.table([*columns, "tokens drawn", "epochs"], rows)


def _datasets(folder: Path, row_tokens: int, vocab_size: int | None) -> dict[str, Pieces]:
    """The datasets of packed token shards, by name: a folder of shards each, as many documents as were packed."""
    packed = artifacts.read(folder, "tokens").counts.get("datasets", {})
    names = {path.parent.name for path in Path(folder).glob("*/*.ds")} | set(packed)
    datasets = {name: TokenShards(Path(folder) / name, vocab_size) for name in sorted(names)}
    for name, counts in packed.items():
        if (found := len(datasets[name])) != counts["documents"]:
            raise UserError(
                f"{Path(folder) / name} holds {found:,} documents of the {counts['documents']:,} that were packed: "
                "copy it again, or pack the dataset again"
            )
    return {name: Pieces(shards, row_tokens) for name, shards in datasets.items()}


def _tokens_manifest(folder: Path, vocab: SpeechVocab) -> Manifest:
    manifest = artifacts.read(folder, "tokens")
    if manifest.settings.get("vocab") != vocab.fingerprint:
        raise UserError(f"{folder} was packed for another vocabulary: pack its datasets with --lm this base")
    return manifest
