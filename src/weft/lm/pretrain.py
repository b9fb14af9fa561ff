"""Training of a speech-text language model on token shards: pre-training and, with other data, fine-tuning.

    run(PretrainConfig(base=Path("runs/lm-init"), tokens=(Path("runs/tokens"),), out=Path("runs/lm"),
                       weights={"text": 0.3, "speech": "1 epoch", "asr": "1 epoch", "interleaved": "rest"}))

The loss is the mean over all trained ids (section 6 of the paper: all tokens, and of ASR and TTS the target side). It
is also reported by source and modality (`weft.lm.loss_meter`), during training and on held-out data. There it is
compared with the base, which shows how much text knowledge was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft import artifacts, launch, progress
from weft.artifacts import Manifest
from weft.data.datasets import tokenizer_parent
from weft.data.storage import is_url
from weft.data.stored_artifacts import read_parent
from weft.device import autocast, default_device, uses_bf16
from weft.errors import UserError
from weft.lm.datasets import Datasets, WeightsFrom, check_epochs, mixture_of, open_datasets, show
from weft.lm.estimate import config_of, estimate_lm, lora_parameters
from weft.lm.held_out import base_losses, held_out_losses, merge_losses
from weft.lm.lora import adapt, fp32_activations, merge
from weft.lm.loss_meter import Units
from weft.lm.micro_batches import MicroBatches
from weft.lm.mixture import Mixture, SourceUse
from weft.lm.model import KIND, LanguageModel, dtype_to_save, round_weights, save
from weft.lm.monitor import MicroBatch, TrainingMonitor
from weft.lm.packing import Batch, check_seq_len, pack, token_losses, training_mode
from weft.lm.pretrain_config import PretrainConfig
from weft.plan import Draft, Plan
from weft.training import checkpoint, distributed, parallel
from weft.training.loop import FIRST_ITEM, discard_checkpoints, fit
from weft.training.metrics import read_metrics
from weft.training.prefetch import Prefetch
from weft.vocab import SpeechVocab

_FRAME_RATE = "frame_rate_hz"
_MAX_EVAL_TOKENS = 4096  # per batch; a training step may have millions, for many ranks and micro-batches
_MAX_EXAMINED_SAMPLES = 100_000  # by an estimate, in about a second


@dataclass(frozen=True)
class Evaluation:
    """An evaluation during training: the metrics of a model, after every so many steps."""

    every_steps: int
    new: Callable[[SpeechVocab, str], Callable[[Any], dict[str, float]]]
    """Returns a function that measures a model, given its vocabulary and its own attention implementation."""


def run(config: PretrainConfig, evaluation: Evaluation | None = None) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    The mixture is printed first. With `lora`, adapters are trained and merged into the model after its evaluation.
    Counts: parameters (with `lora` also the trained ones), tokens, `mixture` (the use of each dataset),
    `tokens_per_sec` and `skipped_steps`. With `held_out` also `loss.text` and `loss.speech` (nats per token),
    `bits_per_byte.text`, `nats_per_sec.speech`, the same of the base with the prefix `base.`, and all of them by
    dataset in `held_out`. `log/training.png` is a plot of the metrics. Raises UserError for token shards that are
    damaged or have another vocabulary, for impossible weights, and for sequences longer than the model's positions.
    """
    if config.dry_run:
        _print_estimate(config)
        return None
    distributed.init()
    device = default_device()
    bf16 = uses_bf16(config.train.precision, device)
    dtype = torch.bfloat16 if config.lora.rank and bf16 else torch.float32
    base = LanguageModel.from_pretrained(config.base, dtype, on_meta=not distributed.is_main_process())
    check_seq_len(base.model, config.max_seq_len)
    parents = distributed.compute_once(lambda: _parents(config, base.vocab))
    mixture = _mixture(config, base.vocab.size)
    held_out = [d for f in config.held_out for d in open_datasets(f, config.max_seq_len, base.vocab.size).items()]
    plan = Plan.of(KIND, config, parents | tokenizer_parent(parents), datasets=mixture.names)
    plan = replace(plan, may_change={"weights_from": partial(_may_change, config.weights_from)})

    def write(draft: Draft) -> None:
        check_epochs(mixture.uses(), config.max_epochs)
        show(mixture.uses(), config.train.steps * config.batch_tokens)
        _Run(config, base, mixture, held_out, device, dtype, evaluation).write(draft)

    return distributed.create(config.out, plan, write)


@dataclass
class _Run:
    """The training of a language model."""

    config: PretrainConfig
    base: LanguageModel
    mixture: Mixture
    held_out: Datasets
    device: str
    dtype: torch.dtype
    evaluation: Evaluation | None

    def write(self, draft: Draft) -> None:
        """Train the model and write it into the draft."""
        config, base = self.config, self.base
        uses = self.mixture.uses()
        save_dtype = dtype_to_save(config.save_dtype, config.base)
        units = Units(base.vocab, base.manifest.counts.get(_FRAME_RATE))
        draft.counts["parameters"] = base.model.num_parameters()
        own = base.model.config._attn_implementation
        measure = self.evaluation.new(base.vocab, own) if self.evaluation else None
        model: Any = self._adapted(base)
        if config.lora.rank:
            draft.counts["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with training_mode(model, config.activation_checkpointing, config.compile):
            if config.parallel == "fsdp":
                model = parallel.shard_model(model, self.device, uses_bf16(config.train.precision, self.device))
            else:
                model = parallel.replicate_model(model, self.device)
            names = [name for name, _ in self.held_out]
            before = base_losses(draft.folder, names, lambda: self._evaluate(model, units))
            evaluate = partial(self._evaluate_now, model, units, measure)
            draft.counts["tokens_per_sec"] = _train(model, units, self.mixture, config, draft.folder, evaluate)
            if not config.lora.rank:
                round_weights(model, save_dtype)
            draft.counts |= merge_losses(before, self._evaluate(model, units))
        draft.counts["tokens"] = sum(use.tokens_drawn for use in uses.values())
        draft.counts["mixture"] = {name: asdict(use) for name, use in uses.items()}
        if units.frame_rate_hz is not None:
            draft.counts[_FRAME_RATE] = units.frame_rate_hz
        self._save(model, draft, save_dtype)
        discard_checkpoints(draft.folder)

    def _adapted(self, base: LanguageModel) -> nn.Module:
        """Return the base, with adapters if there are any."""
        config = self.config
        return adapt(base.model, base.vocab, config.lora, config.train.seed) if config.lora.rank else base.model

    def _evaluate(self, model: Any, units: Units) -> dict[str, Any]:
        """Return the held-out losses: of a sharded model on all ranks together, otherwise only on rank 0.

        They are computed in the precision of training, in which all ways to train a base give the same loss of it.
        """
        is_sharded = parallel.is_sharded(model)
        if not (is_sharded or distributed.is_main_process()):
            return {}
        config = self.config
        tokens_per_batch = min(config.batch_tokens, max(_MAX_EVAL_TOKENS, config.max_seq_len))
        with (
            distributed.peer_errors(computing=True),
            autocast(self.device, config.train.precision),
            fp32_activations(model),
        ):
            return held_out_losses(model, units, self.held_out, tokens_per_batch)

    def _evaluate_now(
        self, model: Any, units: Units, measure: Callable[[Any], dict[str, float]] | None, step: int
    ) -> dict[str, float]:
        """Return the metrics of an evaluation after a step, if one is due."""
        if self.evaluation is None or measure is None or step % self.evaluation.every_steps:
            return {}
        losses = {k: v for k, v in self._evaluate(model, units).items() if k != "held_out"}
        metrics = {f"eval_{name.replace('.', '_')}": value for name, value in losses.items()}
        if parallel.is_sharded(model) or distributed.is_main_process():
            with parallel.no_grad(model), autocast(self.device, self.config.train.precision), fp32_activations(model):
                metrics |= measure(model)
        model.train()
        return metrics

    def _save(self, model: Any, draft: Draft, dtype: torch.dtype) -> None:
        """Write the trained model, from rank 0."""
        weights = parallel.full_state_dict(model) if parallel.is_sharded(model) else None
        if not distributed.is_main_process():
            return
        draft.counts["skipped_steps"] = max(m.get("skipped_steps", 0) for m in read_metrics(draft.folder / "log"))
        if weights is not None:
            has_adapters = bool(self.config.lora.rank)
            model = self._adapted(LanguageModel.from_pretrained(self.config.base, self.dtype, on_meta=not has_adapters))
            model.load_state_dict(
                weights, assign=not has_adapters
            )  # merging adapters needs a model off the meta device
            if not has_adapters:
                model.tie_weights()
        save(merge(model) if self.config.lora.rank else model, self.base.tokenizer, draft.folder, dtype)


def _train(
    model: PreTrainedModel,
    units: Units,
    mixture: Mixture,
    config: PretrainConfig,
    folder: Path,
    evaluate: Callable[[int], dict[str, float]],
) -> float:
    """Train `model` in place and return the tokens per second. `evaluate(step)` returns more metrics of a step."""
    monitor = TrainingMonitor(units, mixture, model, config.train, folder)
    parts = MicroBatches(mixture.samples, mixture.length, config.batch_tokens, config.train.grad_accum_steps)

    def batch_at(step: int, part: slice) -> Batch | None:
        samples = parts.samples(step, part)
        max_seq_len = config.max_seq_len if config.attention == "sequence" else None
        return pack(mixture.read(samples), max_seq_len) if samples else None

    def micro_batch_at(step: int, part: slice) -> MicroBatch | None:
        batch = (prefetch.batch_at if prefetch else batch_at)(step, part)
        if batch is None:
            return None
        if part == FIRST_ITEM:
            return MicroBatch(batch, None)
        return monitor.micro_batch(step, parts.samples(step, part), batch)

    def loss_of(_: nn.Module, micro_batch: MicroBatch) -> dict[str, Tensor]:
        losses = token_losses(model, micro_batch.batch)
        monitor.add(micro_batch, losses)
        return {"loss": losses.sum() / max(1, len(losses))}

    # On a CPU, a prefetching thread slows training down by more than the batches of local files take.
    waits = model.device.type == "cuda" or any(is_url(str(folder)) for folder in config.tokens)
    with Prefetch(batch_at, config.train, parts.parts_of) if waits else nullcontext() as prefetch:
        seconds = fit(
            model,
            micro_batch_at,
            loss_of,
            config.train,
            folder,
            "language model",
            lambda step, updated: {**monitor.after_step(step, updated), **evaluate(step)},
            parts_of=parts.parts_of,
        )
    monitor.plot()
    num_tokens = distributed.all_reduce_sum(monitor.num_tokens)  # of the steps since a run was resumed
    if not num_tokens and distributed.is_main_process():  # it was resumed after its last step
        return list(read_metrics(folder / "log"))[-1]["tokens_per_sec"]
    return num_tokens / seconds


def _mixture(config: PretrainConfig, vocab_size: int | None = None) -> Mixture:
    folders = {folder: open_datasets(folder, config.max_seq_len, vocab_size) for folder in config.tokens}
    return mixture_of(folders, config.weights, config.weights_from, config.train, config.batch_tokens)


def _may_change(new: WeightsFrom, folder: Path, old: WeightsFrom | None) -> bool:
    """Whether a partial run may continue with other weights: those of all steps before its checkpoint must be equal."""
    newest = checkpoint.newest(folder / "checkpoints")
    done = checkpoint.step_of(newest) if newest else 0
    before = [{int(step): w for step, w in weights.items() if int(step) < done} for weights in (old or {}, new)]
    return before[0] == before[1]


def _parents(config: PretrainConfig, vocab: SpeechVocab) -> dict[str, Manifest]:
    """Return the manifests of base and token shards. Raises UserError for shards of another vocabulary."""
    parents = {"base": artifacts.read_parent(config.base, KIND)}
    for name, folders in (("tokens", config.tokens), ("held_out", config.held_out)):
        for i, folder in enumerate(folders):
            parents[f"{name} {i}"] = manifest = read_parent(folder, "tokens")
            if manifest.settings.get("vocab") != vocab.fingerprint:
                raise UserError(f"{folder} was packed for another vocabulary: pack its datasets with this base as --lm")
    return parents


def _print_estimate(config: PretrainConfig) -> None:
    """Print the estimate and, if the token shards exist, the mixture, which is checked at the end as before a run."""
    if launch.rank():
        return
    uses: dict[str, SourceUse] = {}
    steps = f"{config.train.steps:,} steps of {config.batch_tokens:,}"
    tokens, basis = config.train.steps * config.batch_tokens, steps
    largest_step_tokens = 0
    if all(is_url(str(folder)) or Path(folder).exists() for folder in config.tokens):
        mixture = _mixture(config)
        uses = mixture.uses()
        show(uses, tokens)
        tokens, basis = sum(use.tokens_drawn for use in uses.values()), f"of the shards, in {steps}"
        largest_step_tokens = _largest_step_tokens(mixture, config.train.steps)
    adapters = partial(lora_parameters, config.base, config.lora)
    estimate, details = estimate_lm(
        config_of(config.base),
        config.train,
        config.batch_tokens,
        config.max_seq_len,
        tokens,
        adapters,
        can_shard=True,
        largest_step_tokens=largest_step_tokens,
    )
    progress.show(*estimate.lines(details | {"tokens": f"{tokens:,} ({basis})"}))
    check_epochs(uses, config.max_epochs)


def _largest_step_tokens(mixture: Mixture, steps: int) -> int:
    """Return the tokens of the largest step. Of large steps, which vary less, only the first are examined."""
    steps = min(steps, max(1, _MAX_EXAMINED_SAMPLES // len(mixture.samples(0))))
    return max(sum(map(mixture.length, mixture.samples(step))) for step in range(steps))
