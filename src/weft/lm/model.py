"""The language model: any Hugging Face causal LM whose vocabulary knows speech, as an artifact and as an object.

    lm = LanguageModel.load("runs/demo/lm");  lm.model, lm.vocab, lm.manifest
    model = new_lm(LmConfig(), extend_tokenizer(tokenizer, num_codes=512), seed=0)     # from nothing
    tokenizer = extend_lm(model, tokenizer, num_codes=512, seed=0)                     # or any base model

Its folder is a plain Hugging Face model folder, which AutoModelForCausalLM and AutoTokenizer load, with weft's
manifest beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weft import artifacts
from weft.artifacts import Manifest
from weft.errors import UserError
from weft.vocab import SpeechVocab, extend_tokenizer

KIND = "language_model"
_ATTENTION = "sdpa"  # the kernel that keeps packed documents apart in rows of any number (see weft.lm.packing)
_SPREAD = 0.1  # deviation of new embedding rows from the old rows' mean, as a share of the old rows' own
_MAX_DRAWN_FROM = 4096  # old rows that new ones are mixed from: enough for their covariance, cheap in a large model


@dataclass(frozen=True)
class LmConfig:
    """The shape of a language model made from nothing: a Llama with tied embeddings."""

    hidden: int = 192
    """Width."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 3
    """Attention heads; 64 wide or more is fastest."""
    ffn: int = 512
    """Width of the feed-forward layers."""
    max_position_tokens: int = 2048
    """Longest sequence."""


@dataclass(frozen=True)
class LanguageModel:
    """A speech-text language model as loaded: in evaluation mode, on the CPU."""

    model: PreTrainedModel
    vocab: SpeechVocab
    manifest: Manifest

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.vocab.tokenizer

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
        """Load an artifact of kind "language_model". Raises UserError where that fails."""
        manifest = artifacts.read(folder, KIND)
        model, tokenizer = load_hf(folder, dtype)
        return cls(model.eval(), SpeechVocab.of(tokenizer), manifest)


def new_lm(config: LmConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama with random weights, for the vocabulary of `tokenizer`."""
    if config.hidden % config.heads or config.hidden // config.heads % 2:
        raise UserError(f"hidden {config.hidden} over {config.heads} heads must give an even whole width a head")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llama = LlamaConfig(
            vocab_size=SpeechVocab.of(tokenizer).size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.ffn,
            max_position_embeddings=config.max_position_tokens,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return AutoModelForCausalLM.from_config(llama, attn_implementation=_ATTENTION)


def extend_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_codes: int, seed: int
) -> PreTrainedTokenizerBase:
    """Give `model` (changed in place) the speech tokens of `num_codes` codes; returns the extended tokenizer.

    Rows of tokens that `tokenizer` had stay as they are. New ones are drawn near the mean of the old, with their
    covariance: far rows would take probability from every old token (nlp.stanford.edu/~johnhew/vocab-expansion.html).
    Tied or untied, and where a model has spare rows, as Qwen does, they are used before the matrix grows.
    """
    extended = extend_tokenizer(tokenizer, num_codes)
    old_ids = sorted(tokenizer.get_vocab().values())
    new_ids = sorted(set(extended.get_vocab().values()) - set(old_ids))
    if not new_ids:
        return extended
    if new_ids[-1] >= len(_embeddings(model)[0]):
        model.resize_token_embeddings(new_ids[-1] + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for weight in _embeddings(model):
        _draw_rows(weight, old_ids, new_ids, generator)
    return extended


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """The matrices with a row for each id: input and output, or one where they are tied."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    return [inputs.weight] if outputs.weight is inputs.weight else [inputs.weight, outputs.weight]


@torch.no_grad()
def _draw_rows(weight: Tensor, old_ids: list[int], new_ids: list[int], generator: torch.Generator) -> None:
    """Set rows `new_ids` to the mean of rows `old_ids` plus random mixtures of their deviations from it."""
    old = weight[old_ids].float()
    mean = old.mean(0)
    chosen = torch.randperm(len(old_ids), generator=generator)[:_MAX_DRAWN_FROM]
    mixture = torch.randn(len(new_ids), len(chosen), generator=generator) / len(chosen) ** 0.5
    weight[new_ids] = (mean + _SPREAD * mixture @ (old[chosen] - mean)).to(weight.dtype)


def load_hf(folder: Path, dtype: torch.dtype | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of any Hugging Face causal LM folder; dtype "auto" keeps the files' own.

    Raises UserError for a folder that is missing, incomplete or damaged.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model folder")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=_ATTENTION, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"{folder} does not load as a causal language model ({reason}): is it whole?") from e
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} has no weights for {missing[0]} and {len(missing) - 1} others: is it whole?")
    return model, tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model and its tokenizer as a Hugging Face folder; the caller's artifact adds the manifest."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
