"""Low-rank adapters (LoRA), with which a 7B model can be trained on a small GPU.

    adapted = adapt(model, vocab, LoraConfig(rank=16), seed=0)      # needs peft
    fit(adapted, ...)
    model = merge(adapted)                                          # a model without adapters

The embedding rows of new speech tokens carry no information yet, so they are trained together with the adapters, by
PEFT's `trainable_token_indices`. Its alternative `modules_to_save` would train a copy of the whole matrix: 545 M
parameters for the 152,064 rows of a 7B Qwen, twice if it is untied, instead of 3,584 per speech token.

Source: arXiv 2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from weft.config import NonNegativeInt, PositiveFloat
from weft.errors import UserError
from weft.vocab import SpeechVocab


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (needs peft)."""

    rank: NonNegativeInt = 0
    """Rank of the adapters; 0: train all weights, without adapters."""
    alpha: PositiveFloat = 32.0
    """Scale of the adapters, divided by the rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers with adapters, such as q_proj; not set: all."""


def adapt(model: PreTrainedModel, vocab: SpeechVocab, config: LoraConfig, seed: int) -> nn.Module:
    """Add adapters to `model` in place; return the PEFT model, which initially has the same outputs.

    Only adapters and the embedding rows of speech tokens, markers and roles are trained. Raises UserError if peft is
    not installed, if `targets` match nothing, and for a head with a bias.
    """
    try:
        import peft
    except ImportError as e:
        raise UserError("lora needs peft: pip install weft-speech[lora], or set lora.rank = 0") from e
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    if outputs.bias is not None:  # PEFT ignores the bias of a head whose rows it trains
        raise UserError(f"lora does not support {type(model).__name__}, whose head has a bias: set lora.rank = 0")
    matrices = [inputs] if outputs.weight is inputs.weight else [inputs, outputs]
    names = [name for name, module in model.named_modules() if any(module is m for m in matrices)]
    alpha: Any = config.alpha  # PEFT accepts a float, but its type is int
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=alpha,
        target_modules=list(config.targets) or "all-linear",
        trainable_token_indices=dict.fromkeys(names, speech_ids(vocab)),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # raised inside PEFT
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as e:
            raise UserError(f"lora.targets {config.targets} do not fit {type(model).__name__} ({e}): fix them") from e


def speech_ids(vocab: SpeechVocab) -> list[int]:
    """Return the ids of codes, markers and roles, whose embedding rows are trained."""
    audio_ids = vocab.codes_to_ids(range(vocab.num_codes)).tolist()
    return sorted({*audio_ids, vocab.begin_of_audio_id, vocab.end_of_audio_id, *vocab.role_start_ids.values()})


@contextmanager
def fp32_activations(model: Any) -> Iterator[None]:
    """Add the outputs of layers in fp32, as a model in fp32 does under autocast, also if the weights are in bf16."""
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.float())
    try:
        yield
    finally:
        hook.remove()


def merge(adapted: Any) -> PreTrainedModel:
    """Merge the adapters into the weights, in fp32 on the CPU, because bf16 would round small changes away."""
    return adapted.cpu().float().merge_and_unload()
