"""Estimates for language models: `weft pretrain RECIPE --dry-run` and `weft train-text-to-token RECIPE --dry-run`.

    lines = estimate_lm(config_of(folder), train, batch_tokens=4096, max_seq_len=512, tokens=10**9)

Only the base's config.json is read, so a run on a thousand GPUs can be planned on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weft import artifacts
from weft.errors import UserError
from weft.lm.lora import LoraConfig, speech_ids
from weft.lm.packing import check_seq_len
from weft.pretrained import load_pretrained
from weft.training.config import TrainConfig
from weft.training.cross_entropy import GPU_BLOCK_LOGITS
from weft.training.estimate import Estimate, Memory, ModelFlops
from weft.vocab import SpeechVocab


def config_of(base: Path) -> PretrainedConfig:
    """Load the config.json of a causal LM."""
    if not (base / "config.json").is_file():
        raise UserError(f"{base} has no config.json: give a Hugging Face model directory (this file is enough)")
    with artifacts.loading(base, "a causal language model"):
        config: PretrainedConfig = load_pretrained(AutoConfig, base)
        return config


def estimate_lm(
    model_config: PretrainedConfig,
    config: TrainConfig,
    batch_tokens: int,
    max_seq_len: int,
    tokens: int,
    adapters: Callable[[PreTrainedModel], int] = lambda model: 0,
    can_shard: bool = False,
    largest_step_tokens: int = 0,
) -> tuple[Estimate, dict[str, str]]:
    """Return the estimate of training a causal LM on `tokens`, and more lines for its text.

    Attention is over whole sequences. `adapters` returns the number of parameters that are trained instead of the
    model's own. Memory is that of the largest micro-batch (`weft.lm.micro_batches`). Raises UserError for a
    `max_seq_len` longer than the positions of the model.
    """
    with FakeTensorMode():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).train()
        check_seq_len(model, max_seq_len)
        num_adapters = adapters(model)
        memory = _memory(model, config, max_seq_len, num_adapters)
    flops = ModelFlops.of(model)
    products: float = flops.body + flops.head
    if num_adapters:  # frozen weights need no weight gradient
        products = products * 2 / 3 + 6 * num_adapters
    token_flops = products + flops.attention * max_seq_len
    estimate = Estimate(
        parameters=model.num_parameters(),
        memory=memory,
        flops=tokens * token_flops,
        config=config,
        items=batch_tokens / max_seq_len,
        item=f"sequence of {max_seq_len:,} tokens",
        can_shard=can_shard,
        largest_step=largest_step_tokens / max_seq_len,
    )
    trained = {"trained_parameters": f"{num_adapters:,}"} if num_adapters else {}
    return estimate, {"embeddings": _embeddings(model), **trained, "token_flops": f"{token_flops:.3g}"}


def lora_parameters(base: Path, config: LoraConfig, model: PreTrainedModel) -> int:
    """Return the number of parameters that `weft.lm.lora.adapt` trains."""
    if not config.rank:
        return 0
    targets = tuple(f".{target}" for target in config.targets)
    sizes = [
        config.rank * sum(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
        and (not targets or f".{name}".endswith(targets))
    ]
    if not sizes:
        raise UserError(f"lora.targets {config.targets} match no linear layer of {type(model).__name__}: fix the names")
    return sum(sizes) + _speech_parameters(base, model)


def _ends(model: PreTrainedModel) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the weights of the input embeddings and of the output head, which may be the same."""
    ends: Any = model.get_input_embeddings(), model.get_output_embeddings()
    return ends[0].weight, ends[1].weight


def _embeddings(model: PreTrainedModel) -> str:
    inputs, outputs = _ends(model)
    head = "tied to the head" if outputs is inputs else f"and as many in the head: {outputs.numel():,}"
    return f"{inputs.numel():,} ({inputs.shape[0]:,} rows, {head})"


def _speech_parameters(base: Path, model: PreTrainedModel) -> int:
    """Return the size of the embedding rows that are trained with adapters: none if the base has no tokenizer yet."""
    if not (base / "tokenizer_config.json").is_file():
        return 0
    with artifacts.loading(base, "a causal language model"):
        vocab = SpeechVocab.of(load_pretrained(AutoTokenizer, base))
    inputs, outputs = _ends(model)
    return len(speech_ids(vocab)) * inputs.shape[1] * (1 if outputs is inputs else 2)


def _memory(model: PreTrainedModel, config: TrainConfig, max_seq_len: int, adapters: int) -> Memory:
    """Measure the layers; head and loss are computed, because `weft.training.cross_entropy` works on parts of them."""
    inputs, outputs = _ends(model)
    num_rows, width = inputs.shape
    product_bytes = 4 if config.precision == "fp32" else 2

    def forward(sequences: int) -> None:
        model.base_model(input_ids=torch.zeros(sequences, max_seq_len, dtype=torch.int64), use_cache=False)

    def loss_bytes(sequences: float) -> float:
        tokens = sequences * max_seq_len
        logits = 12 * min(tokens * num_rows, GPU_BLOCK_LOGITS)  # fp32, with probabilities and gradients
        return logits + tokens * (product_bytes + 4) * width  # the head's input, and its gradient in fp32

    return Memory.of(model, forward, config, adapters, outputs.numel(), loss_bytes)
