"""Low-rank adapters: what is trained in place of a language model's weights, so that one of 7B fits a small card.

    adapted = adapt(model, vocab, LoraConfig(rank=16), seed=0)      # needs peft
    fit(adapted, ...)
    model = merge(adapted)                                          # a plain model again

Source: arXiv 2106.09685, by PEFT. The rows of the speech tokens begin near one mean and say nothing yet, so that
adapters alone would not do: they are trained beside them, as PEFT's `trainable_token_indices`. Its other way,
`modules_to_save`, would train a copy of the whole matrix: for the 152,064 rows of a 7B Qwen, 545 M parameters with
their gradients and moments, twice where it is untied, in place of 3,584 for each of the speech tokens.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from weft.config import Natural, Positive
from weft.errors import UserError
from weft.vocab import SpeechVocab


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (needs peft)."""

    rank: Natural = 0
    """Rank of the change of each matrix; 0 trains all weights, without adapters."""
    alpha: Positive = 32.0
    """The change is multiplied by this over the rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear maps that have adapters, such as q_proj; without any, all of the layers'."""


def adapt(model: PreTrainedModel, vocab: SpeechVocab, config: LoraConfig, seed: int) -> nn.Module:
    """`model`, changed in place, as a PEFT model: only adapters and the rows of speech tokens, markers and roles train.

    It begins with the outputs of `model`. Raises UserError where peft is missing, where `targets` match nothing, and
    for a head with a bias.
    """
    try:
        import peft
    except ImportError as e:
        raise UserError("lora needs peft: pip install weft-speech[lora], or set lora.rank to 0") from e
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    if outputs.bias is not None:  # which PEFT leaves out of a head whose rows it trains
        raise UserError(f"lora is not for {type(model).__name__}, whose head has a bias: set lora.rank to 0")
    matrices = [inputs] if outputs.weight is inputs.weight else [inputs, outputs]
    names = [name for name, module in model.named_modules() if any(module is m for m in matrices)]
    audio_ids = vocab.codes_to_ids(range(vocab.num_codes)).tolist()
    ids = sorted({*audio_ids, vocab.begin_of_audio_id, vocab.end_of_audio_id, *vocab.role_start_ids.values()})
    alpha: Any = config.alpha  # which peft takes, and calls an int
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=alpha,
        target_modules=list(config.targets) or "all-linear",
        trainable_token_indices=dict.fromkeys(names, ids),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # of PEFT's asking for it
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as e:
            raise UserError(f"lora.targets {config.targets} do not fit {type(model).__name__}: {e}") from e


def merge(adapted: Any) -> PreTrainedModel:
    """The plain model with the adapters' changes in its weights, in fp32 on the CPU: bf16 would round them away."""
    return adapted.cpu().float().merge_and_unload()
