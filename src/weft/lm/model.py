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

import numpy as np
import torch
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
from weft.config import Count
from weft.errors import UserError
from weft.training.loop import quickest_attention
from weft.vocab import SpeechVocab, extend_tokenizer
from weft.weights import require_finite

KIND = "language_model"
_SPREAD = 0.1  # deviation of new embedding rows from the old rows' mean, as a share of the old rows' own
_NUM_TRAITS = 256  # directions in which new rows differ from each other
_MAX_DRAWN_FROM = 4096  # old rows that new ones are mixed from: enough for their covariance, cheap in a large model
# A matrix that grows gets a multiple of 64 rows: 128 bytes of fp16 or bf16, in whole numbers of which matrix units take
# a product's sides at full speed (docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication).
_ROW_MULTIPLE = 64


@dataclass(frozen=True)
class LmConfig:
    """The shape of a language model made from nothing: a Llama with tied embeddings."""

    hidden: Count = 192
    """Width."""
    layers: Count = 3
    """Transformer blocks."""
    heads: Count = 3
    """Attention heads; 64 wide or more is fastest."""
    ffn: Count = 512
    """Width of the feed-forward layers."""
    max_position_tokens: Count = 2048
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


def new_lm(
    config: LmConfig, tokenizer: PreTrainedTokenizerBase, seed: int, codebook: Tensor | None = None
) -> PreTrainedModel:
    """A Llama with random weights, for the vocabulary of `tokenizer`.

    With the speech tokenizer's `codebook` (K, D), codes that sound alike begin alike, which spares a small model much
    of what it would have to find out about 512 strangers.
    """
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
        model = AutoModelForCausalLM.from_config(llama, attn_implementation=quickest_attention())
    if codebook is not None:
        audio_ids = SpeechVocab.of(tokenizer).codes_to_ids(range(len(codebook))).tolist()
        text_ids = sorted(set(tokenizer.get_vocab().values()) - set(audio_ids))
        generator = torch.Generator().manual_seed(seed)
        for weight in _embeddings(model):
            _draw_rows(weight, text_ids, audio_ids, generator, _project(codebook, generator), spread=1.0)
    return model


def extend_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_codes: int,
    seed: int,
    codebook: Tensor | None = None,
) -> PreTrainedTokenizerBase:
    """Give `model` (changed in place) the speech tokens of `num_codes` codes; returns the extended tokenizer.

    Rows of tokens that `tokenizer` had stay as they are. New ones are drawn near the mean of the old, with their
    covariance: far rows would take probability from every old token (nlp.stanford.edu/~johnhew/vocab-expansion.html).
    With the speech tokenizer's `codebook` (K, D), the draws of codes that sound alike are alike. Tied or untied, and
    where a model has spare rows, as Qwen does, they are used before the matrix grows.

    A matrix that grows does so to a multiple of 64 rows. The spare ones are the old rows' mean: their logit is the mean
    of the old tokens', so that each has at most the old tokens' mean probability, and training, of which they are never
    a target, lowers it. What rows are spare stands in the generation config, as `suppress_tokens`: neither weft's
    engine nor transformers' `generate` draws them.
    """
    extended = extend_tokenizer(tokenizer, num_codes)
    old_ids = sorted(tokenizer.get_vocab().values())
    new_ids = sorted(set(extended.get_vocab().values()) - set(old_ids))
    if not new_ids:
        return extended
    num_rows = len(_embeddings(model)[0])
    if new_ids[-1] >= num_rows:
        model.resize_token_embeddings(new_ids[-1] + 1, pad_to_multiple_of=_ROW_MULTIPLE, mean_resizing=False)
        num_rows = len(_embeddings(model)[0])
        drawn_ids = [*new_ids, *range(new_ids[-1] + 1, num_rows)]
    else:
        drawn_ids = new_ids  # the spare rows left are the base's own, which its training made unlikely
    generator = torch.Generator().manual_seed(seed)
    traits = torch.zeros(len(drawn_ids), _NUM_TRAITS)
    traits[: len(new_ids)] = torch.randn(len(new_ids), _NUM_TRAITS, generator=generator)
    if codebook is not None:
        audio_ids = SpeechVocab.of(extended).codes_to_ids(range(num_codes))
        traits[np.searchsorted(new_ids, audio_ids)] = _project(codebook, generator)
    for weight in _embeddings(model):
        _draw_rows(weight, old_ids, drawn_ids, generator, traits, _SPREAD)
    _draw_bias(model, old_ids, drawn_ids)
    generation: Any = model.generation_config
    suppressed = {*(generation.suppress_tokens or ()), *range(num_rows)} - set(extended.get_vocab().values())
    generation.suppress_tokens = sorted(suppressed) or None
    return extended


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """The matrices with a row for each id: input and output, or one where they are tied."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    return [inputs.weight] if outputs.weight is inputs.weight else [inputs.weight, outputs.weight]


def _project(codebook: Tensor, generator: torch.Generator) -> Tensor:
    """What tells codes apart, (K, _NUM_TRAITS): their deviations in random directions, of unit variance."""
    deviations = (codebook - codebook.mean(0)).float().cpu()
    projected = deviations @ torch.randn(deviations.shape[1], _NUM_TRAITS, generator=generator)
    return projected / projected.std()


@torch.no_grad()
def _draw_rows(
    weight: Tensor, old_ids: list[int], new_ids: list[int], generator: torch.Generator, traits: Tensor, spread: float
) -> None:
    """Set rows `new_ids` to the mean of rows `old_ids` plus mixtures of their deviations from it: random ones, alike
    where the rows' `traits` (new rows, _NUM_TRAITS) are alike."""
    old = weight[old_ids].float()
    mean = old.mean(0)
    chosen = torch.randperm(len(old_ids), generator=generator)[:_MAX_DRAWN_FROM]
    mixture = traits @ torch.randn(_NUM_TRAITS, len(chosen), generator=generator) / (len(chosen) * _NUM_TRAITS) ** 0.5
    weight[new_ids] = (mean + spread * mixture @ (old[chosen] - mean)).to(weight.dtype)


@torch.no_grad()
def _draw_bias(model: PreTrainedModel, old_ids: list[int], new_ids: list[int]) -> None:
    """Set the biases of new output rows, where a model has any (Phi), to the mean of the old ones'."""
    outputs: Any = model.get_output_embeddings()
    if outputs.bias is not None:
        outputs.bias[new_ids] = outputs.bias[old_ids].mean()


def load_hf(folder: Path, dtype: torch.dtype | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of any Hugging Face causal LM folder; dtype "auto" keeps the files' own.

    Raises UserError for a folder that is missing, incomplete or damaged.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model folder")
    # The fused kernel is transformers' default where a model has it; by its name, Gemma 2 would not load.
    attention = None if quickest_attention() == "sdpa" else quickest_attention()
    with artifacts.loading(folder, "a causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} has no weights for {missing[0]} and {len(missing) - 1} others: is it whole?")
    require_finite(model.state_dict(), folder)
    return model, tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model and its tokenizer as a Hugging Face folder; the caller's artifact adds the manifest."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
