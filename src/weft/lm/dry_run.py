"""What pre-training a language model would take, told before it begins: `weft pretrain RECIPE --dry-run`.

    for line in estimate(config).lines(): print(line)

Of the base only its config.json is read, and of the token shards, where they are here, their sizes: a plan for a
thousand GPUs is made on a laptop. The model is built of tensors without contents (torch's FakeTensorMode) and sent
forward once with one row and once with two, which tells what autograd would keep of each row, and what it keeps once.

FLOPs are counted as in `weft.lm.flops`, with attention over whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from weft import artifacts
from weft.errors import UserError
from weft.lm.cross_entropy import BLOCK_LOGITS
from weft.lm.flops import ModelFlops
from weft.lm.lora import LoraConfig
from weft.lm.packing import check_rows
from weft.lm.pretrain import PretrainConfig
from weft.training import distributed
from weft.training.cost import ACHIEVED_SHARE, kept_for_backward, moment_bytes, product_speed
from weft.training.loop import takes_bf16
from weft.vocab import SpeechVocab

PEAK_FLOPS_PER_SEC = 989e12  # of an H100 SXM, dense bf16 (nvidia.com/en-us/data-center/h100)
_GPUS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Parameters:
    """Parameters of a language model; a head that is tied to the embeddings has none of its own."""

    embeddings: int
    rows: int
    """Rows of the embeddings: ids that the model knows, and spare ones."""
    layers: int
    num_layers: int
    head: int
    rest: int
    trained: int

    @property
    def total(self) -> int:
        return self.embeddings + self.layers + self.head + self.rest


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, where each holds the whole model; passing buffers are left out but for the losses'."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    """bf16 copies of the weights, which a step's backward pass needs."""
    gathered: int
    """What a GPU has of other GPUs' weights and gradients at a time, where each holds a share of them: embeddings and
    head in fp32, two layers as they are multiplied."""
    token_activations: float
    """What a token leaves for the backward pass."""
    token_recomputed: float
    """The same where layers keep only their input and are computed again."""
    token_losses: int
    """What the losses take of a token besides: the head's input in the products' precision and its gradient in fp32."""
    rows: int
    """Logits of a token."""

    def on_gpu(self, tokens: int, gpus: int = 1, recomputed: bool = False) -> float:
        """Bytes on each of `gpus` that hold shares of the model, for `tokens` at once."""
        state = (self.weights + self.gradients + self.optimizer) / gpus
        copies = self.copies if gpus == 1 else self.gathered
        of_token = self.token_losses + (self.token_recomputed if recomputed else self.token_activations)
        return state + copies + self.logits(tokens) + tokens * of_token

    def logits(self, tokens: int) -> int:
        """Bytes of the logits that are there at a time, in fp32, with their probabilities and gradients."""
        return 12 * min(tokens * self.rows, BLOCK_LOGITS)


@dataclass(frozen=True)
class Estimate:
    """What pre-training would take."""

    parameters: Parameters
    memory: Memory
    tokens: int
    """Tokens of the whole run."""
    because_tokens: str
    """How they were counted."""
    tokens_per_step: int
    row_tokens: int
    accumulate: int
    token_flops: float
    hours: float
    """Of all processes of this run, on this machine."""
    because_hours: str

    @property
    def flops(self) -> float:
        """Operations of the whole run."""
        return self.tokens * self.token_flops

    @property
    def checkpoint_bytes(self) -> int:
        """All weights and the moments."""
        return 4 * self.parameters.total + self.memory.optimizer

    def tokens_at_once(self, gpus: int) -> int:
        """Tokens of the largest micro-batch on each of `gpus`, at least a row."""
        return max(self.row_tokens, -(-self.tokens_per_step // (gpus * self.accumulate)))

    def days(self, gpus: int) -> float:
        """Days on `gpus` H100s."""
        return self.flops / (gpus * ACHIEVED_SHARE * PEAK_FLOPS_PER_SEC) / 86400

    def lines(self) -> list[str]:
        """The estimate for people, a figure a line, and a table by the number of GPUs."""
        of, memory = self.parameters, self.memory
        parts = f"embeddings {of.embeddings:,} of {of.rows:,} rows, {of.num_layers} layers {of.layers:,}"
        row = f"{self.row_tokens:,} tokens"
        told = {
            "parameters": f"{of.total:,} ({parts}, head {f'{of.head:,}' if of.head else 'tied'})",
            **({"trained_parameters": f"{of.trained:,}"} if of.trained != of.total else {}),
            "tokens": f"{self.tokens:,} ({self.because_tokens})",
            "token_flops": f"{self.token_flops:.3g}",
            "training_flops": f"{self.flops:.3g}",
            "weights_gb": _gb(memory.weights),
            "gradients_gb": _gb(memory.gradients),
            "optimizer_gb": _gb(memory.optimizer),
            "copies_gb": f"{_gb(memory.copies)} (weights in bf16, for the products)",
            "activations_gb": f"{_gb(self.row_tokens * memory.token_activations)} for each row of {row}, "
            f"or {_gb(self.row_tokens * memory.token_recomputed)} where layers are computed again",
            "logits_gb": f"{_gb(memory.logits(self.row_tokens))} (of a block of the vocabulary at most)",
            "checkpoint_gb": f"{_gb(self.checkpoint_bytes)} (and the finished model {_gb(4 * of.total)})",
            "training_hours": f"{self.hours:.3g} ({self.because_hours})",
        }
        return [*(f"{name:<24}{value}" for name, value in told.items()), "", *self._table()]

    def _table(self) -> list[str]:
        head = ["gpus", "tokens at once", "GB whole", "recomputed", "GB sharded", "recomputed", "days"]
        rows = [head]
        for gpus in _GPUS:
            tokens = self.tokens_at_once(gpus)
            held = [self.memory.on_gpu(tokens, n, again) for n in (1, gpus) for again in (False, True)]
            rows.append([f"{gpus}", f"{tokens:,}", *map(_gb, held), f"{self.days(gpus):.3g}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        assumed = f"{ACHIEVED_SHARE:.0%} of an H100's {PEAK_FLOPS_PER_SEC / 1e12:.0f} TFLOP/s of dense bf16"
        return [*lines, "", f"GB are those of each GPU. Days suppose {assumed}; computing layers again adds a third."]


def estimate(config: PretrainConfig, tokens: int | None = None) -> Estimate:
    """What training by `config` would take; `tokens` are those of the run, where its shards are here to tell.

    Raises UserError for a base that has no config.json of a causal language model, and for rows that do not fit it.
    """
    planned = config.train.steps * config.tokens_per_step
    steps = f"{config.train.steps:,} steps of {config.tokens_per_step:,}"
    half = config.train.precision != "fp32"  # on GPUs; this machine may take another
    with FakeTensorMode():
        model = _model(config.base)
        check_rows(model, config.row_tokens)
        parameters = _parameters(model, config)
        memory = _memory(model, parameters, config, half)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half_here = takes_bf16(config.train.precision, device)
    flops_per_sec = product_speed(device, torch.bfloat16 if half_here else torch.float32)
    token_flops = _token_flops(model, parameters, config)
    seconds = (tokens or planned) * token_flops / (ACHIEVED_SHARE * flops_per_sec * distributed.world_size())
    return Estimate(
        parameters=parameters,
        memory=memory,
        tokens=tokens or planned,
        because_tokens=f"of the shards, in {steps}" if tokens else steps,
        tokens_per_step=config.tokens_per_step,
        row_tokens=config.row_tokens,
        accumulate=config.train.accumulate,
        token_flops=token_flops,
        hours=seconds / 3600,
        because_hours=f"at {ACHIEVED_SHARE:.0%} of the {flops_per_sec / 1e12:.3g} TFLOP/s at which this {device} "
        f"multiplies {'bf16' if half_here else 'fp32'} matrices",
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}" if num_bytes < 1e12 else f"{num_bytes / 1e9:,.0f}"


def _model(base: Path) -> PreTrainedModel:
    """The model that a folder's config.json describes, in fp32, as weft trains it."""
    if not (base / "config.json").is_file():
        raise UserError(
            f"{base} has no config.json: give a Hugging Face model folder; for a dry run that file is enough"
        )
    with artifacts.loading(base, "a causal language model"):
        shape = AutoConfig.from_pretrained(base, local_files_only=True)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    return model.train()


def _parameters(model: PreTrainedModel, config: PretrainConfig) -> Parameters:
    ends: Any = model.get_input_embeddings(), model.get_output_embeddings()
    inputs, outputs = (end.weight for end in ends)
    total = model.num_parameters()
    in_layers = sum(p.numel() for layer in _layers(model) for p in layer.parameters())
    head = 0 if outputs is inputs else outputs.numel()
    matrices = 1 if outputs is inputs else 2
    trained = total
    if config.lora.rank:
        trained = _adapter_parameters(model, config.lora)
        trained += _speech_rows(config.base) * matrices * inputs.shape[1]
    return Parameters(
        embeddings=inputs.numel(),
        rows=len(inputs),
        layers=in_layers,
        num_layers=len(_layers(model)),
        head=head,
        rest=total - in_layers - inputs.numel() - head,
        trained=trained,
    )


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks that transformers can compute again in the backward pass."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _adapter_parameters(model: PreTrainedModel, config: LoraConfig) -> int:
    """Parameters of the adapters that `weft.lm.lora.adapt` makes."""
    named = {name: m for name, m in model.named_modules() if m is not model.get_output_embeddings()}
    adapted = [
        m
        for name, m in named.items()
        if isinstance(m, nn.Linear | Conv1D)
        and (not config.targets or f".{name}".endswith(tuple(f".{t}" for t in config.targets)))
    ]
    if not adapted:
        raise UserError(f"lora.targets {config.targets} do not fit {type(model).__name__}")
    return sum(config.rank * sum(m.weight.shape) for m in adapted)


def _speech_rows(base: Path) -> int:
    """Rows of the embeddings that are trained beside adapters; none where the base has no tokenizer yet."""
    if not (base / "tokenizer_config.json").is_file():
        return 0
    with artifacts.loading(base, "a causal language model"):
        vocab = SpeechVocab.of(AutoTokenizer.from_pretrained(base, local_files_only=True))
    return vocab.num_codes + len({vocab.begin_of_audio_id, vocab.end_of_audio_id, *vocab.role_start_ids.values()})


def _token_flops(model: PreTrainedModel, parameters: Parameters, config: PretrainConfig) -> float:
    of = ModelFlops.of(model)
    products, attention = of.body + of.head, of.attention * config.row_tokens
    if config.lora.rank:  # of frozen weights no gradients are made
        return products * 2 / 3 + 6 * parameters.trained + attention
    return products + attention


def _memory(model: PreTrainedModel, parameters: Parameters, config: PretrainConfig, half: bool) -> Memory:
    """Weights, gradients and moments in fp32, products in bf16 or fp32; with adapters frozen weights in bf16 alone."""
    row_tokens, trained = config.row_tokens, parameters.trained
    one, two = (_kept(model, rows, row_tokens, half) for rows in (1, 2))
    row = _Kept(*(b - a for a, b in zip(one.values, two.values, strict=True)))
    head = parameters.head or parameters.embeddings
    width = parameters.embeddings // parameters.rows
    product_bytes = 2 if half else 4
    largest = max((sum(p.numel() for p in layer.parameters()) for layer in _layers(model)), default=0)
    gathered = 8 * (parameters.total - parameters.layers) + 2 * product_bytes * 2 * largest + (2 * head if half else 0)
    frozen = config.lora.rank and half
    return Memory(
        weights=2 * parameters.total + 4 * trained if frozen else 4 * parameters.total,
        gradients=4 * trained,
        optimizer=8 * trained if config.lora.rank else moment_bytes(model, config.train.optimizer),
        copies=0 if frozen or not half else one.layers + one.outside - row.layers - row.outside + 2 * head,
        gathered=gathered,
        token_activations=(row.layers + row.outside) / row_tokens,
        token_recomputed=(row.inputs + row.largest + row.outside) / row_tokens,
        token_losses=(product_bytes + 4) * width,
        rows=parameters.rows,
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that are kept for the backward pass: by all layers, by the largest, their inputs, and outside of them."""

    layers: int
    largest: int
    inputs: int
    outside: int

    @property
    def values(self) -> tuple[int, int, int, int]:
        return self.layers, self.largest, self.inputs, self.outside


def _kept(model: PreTrainedModel, rows: int, row_tokens: int, half: bool) -> _Kept:
    """What a forward pass up to the head keeps, of rows that are a document each: shorter ones keep no more."""
    ids = torch.zeros(rows, row_tokens, dtype=torch.int64)
    before: list[int] = []
    in_layers: list[int] = []
    inputs: list[int] = []
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half), kept_for_backward(model) as kept:

        def begin(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs.append(given[0].nbytes)
            before.append(kept.bytes)

        def end(*_: Any) -> None:
            in_layers.append(kept.bytes - before[-1])

        hooks = [h for m in _layers(model) for h in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
        body: Callable[..., Any] = model.base_model
        body(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
    return _Kept(sum(in_layers), max(in_layers, default=0), sum(inputs), kept.bytes - sum(in_layers))
