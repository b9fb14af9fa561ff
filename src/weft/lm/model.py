"""Speech-text language models: any Hugging Face causal LM whose vocabulary contains speech tokens.

    lm = LanguageModel.from_pretrained("runs/demo/lm");  lm.model, lm.vocab, lm.manifest
    tokenizer = extend_lm(model, tokenizer, num_codes=512, seed=0)                     # of any base model
    model = new_lm(LmConfig(), extend_tokenizer(tokenizer, num_codes=512), seed=0)     # with random weights

The directory of a language model is a plain Hugging Face model directory, which AutoModelForCausalLM and AutoTokenizer
load, with weft's manifest beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import PositiveInt
from weft.device import attn_implementation
from weft.errors import UserError
from weft.pretrained import load_on_meta, load_pretrained
from weft.vocab import SpeechVocab, chat_template, extend_tokenizer
from weft.weights import require_finite, save_pretrained

KIND = "language_model"
SaveDtype = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STD = 0.1  # standard deviation of new embedding rows relative to that of the existing rows
_FEATURES = 256  # dimensions in which new rows differ
_MAX_MIXED_ROWS = 4096  # existing rows that new ones are mixed from: enough for their covariance
# Matrices grow to a multiple of 64 rows, for which GPUs compute products at full speed: 128 bytes of fp16 or bf16
# (docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication).
_ROW_MULTIPLE = 64


@dataclass(frozen=True)
class LmConfig:
    """Shape of a language model with random weights: a Llama with tied embeddings."""

    hidden: PositiveInt = 192
    """Hidden size."""
    layers: PositiveInt = 3
    """Layers."""
    heads: PositiveInt = 3
    """Attention heads; a head size of 64 or more is fastest."""
    ffn: PositiveInt = 512
    """Hidden size of the feed-forward layers."""
    max_position_tokens: PositiveInt = 2048
    """Longest sequence."""


@dataclass(frozen=True)
class LanguageModel:
    """A loaded speech-text language model, in evaluation mode."""

    model: PreTrainedModel
    vocab: SpeechVocab
    manifest: Manifest

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.vocab.tokenizer

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", on_meta: bool = False
    ) -> LanguageModel:
        """Load a language model artifact; `on_meta`, without its weights, on torch's meta device.

        Raises UserError if it is not complete.
        """
        manifest = artifacts.read(Path(folder), KIND)
        model, tokenizer = load_causal_lm(Path(folder), dtype, on_meta)
        if not on_meta:
            model.to(device)  # type: ignore[arg-type]
        return cls(model.eval(), SpeechVocab.of(tokenizer), manifest)  # type: ignore[arg-type]


def new_lm(
    config: LmConfig, tokenizer: PreTrainedTokenizerBase, seed: int, codebook: Tensor | None = None
) -> PreTrainedModel:
    """Return a Llama with random weights for the vocabulary of `tokenizer`.

    With the speech tokenizer's `codebook` (K, D), similar codes get similar embeddings, which shortens training.
    """
    vocab = SpeechVocab.of(tokenizer)
    llama = llama_config(config, vocab.size)
    llama.bos_token_id, llama.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    llama.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(llama, attn_implementation=attn_implementation())
    if codebook is not None:
        audio_ids = vocab.codes_to_ids(range(len(codebook))).tolist()
        text_ids = sorted(set(tokenizer.get_vocab().values()) - set(audio_ids))
        generator = torch.Generator().manual_seed(seed)
        for weight in _embeddings(model):
            _initialize_rows(weight, text_ids, audio_ids, generator, _project(codebook, generator), std=1.0)
    return model


def llama_config(config: LmConfig, vocab_size: int) -> LlamaConfig:
    """Return the configuration of a Llama of this shape."""
    if config.hidden % config.heads or config.hidden // config.heads % 2:
        raise UserError(f"model.hidden is {config.hidden}: give an even multiple of model.heads, {config.heads}")
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.ffn,
        max_position_embeddings=config.max_position_tokens,
        tie_word_embeddings=True,
    )


def extend_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_codes: int,
    seed: int,
    codebook: Tensor | None = None,
) -> PreTrainedTokenizerBase:
    """Add the speech tokens of `num_codes` codes to `model`, in place; return the extended tokenizer.

    The model may be on the meta device, without weights.

    Rows of existing tokens do not change. New rows are sampled near their mean, with their covariance: distant rows
    would take probability from every existing token (nlp.stanford.edu/~johnhew/vocab-expansion.html). With the speech
    tokenizer's `codebook` (K, D), similar codes get similar rows. Embeddings may be tied or untied. Unused rows of the
    base (Qwen has some) are used before a matrix grows. New biases are the mean of the existing ones.

    A matrix grows to a multiple of 64 rows. Unused rows are the mean of the existing rows, so that their initial logit
    is the mean logit. They are never targets, so training lowers it. The generation config lists all unused rows as
    `suppress_tokens`, so that neither weft's engine nor transformers samples them.
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
        initialized_ids = [*new_ids, *range(new_ids[-1] + 1, num_rows)]
    else:
        initialized_ids = new_ids  # the base's other unused rows are improbable from its training
    generator = torch.Generator().manual_seed(seed)
    features = torch.zeros(len(initialized_ids), _FEATURES)
    features[: len(new_ids)] = torch.randn(len(new_ids), _FEATURES, generator=generator)
    if codebook is not None:
        audio_ids = SpeechVocab.of(extended).codes_to_ids(range(num_codes))
        features[np.searchsorted(new_ids, audio_ids)] = _project(codebook, generator)
    for weight in _embeddings(model):
        _initialize_rows(weight, old_ids, initialized_ids, generator, features, _STD)
    outputs: Any = model.get_output_embeddings()
    if outputs.bias is not None:  # Phi has one
        outputs.bias.data[initialized_ids] = outputs.bias.data[old_ids].mean()
    generation: Any = model.generation_config
    suppressed = {*(generation.suppress_tokens or ()), *range(num_rows)} - set(extended.get_vocab().values())
    generation.suppress_tokens = sorted(suppressed) or None
    return extended


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """Return the matrices with a row per id: input and output, or one if they are tied."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    return [inputs.weight] if outputs.weight is inputs.weight else [inputs.weight, outputs.weight]


def _project(codebook: Tensor, generator: torch.Generator) -> Tensor:
    """Return features of codes, (K, _FEATURES): a random projection of their deviations, with unit variance."""
    deviations = (codebook - codebook.mean(0)).float().cpu()
    projected = deviations @ torch.randn(deviations.shape[1], _FEATURES, generator=generator)
    return projected / projected.std()


@torch.no_grad()
def _initialize_rows(
    weight: Tensor,
    old_ids: list[int],
    new_ids: list[int],
    generator: torch.Generator,
    features: Tensor,
    std: float,
) -> None:
    """Set rows `new_ids` to the mean of rows `old_ids` plus random mixtures of their deviations from it.

    Rows with similar `features` (new rows, _FEATURES) get similar mixtures. Nothing is done on the meta device.
    """
    if weight.is_meta:
        return
    old = weight[old_ids].float()
    mean = old.mean(0)
    chosen = torch.randperm(len(old_ids), generator=generator)[:_MAX_MIXED_ROWS]
    mixture = features @ torch.randn(_FEATURES, len(chosen), generator=generator) / (len(chosen) * _FEATURES) ** 0.5
    weight[new_ids] = (mean + std * mixture @ (old[chosen] - mean)).to(weight.dtype)


def load_causal_lm(
    folder: Path, dtype: torch.dtype | str, on_meta: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a Hugging Face causal LM; the dtype "auto" keeps that of the files.

    With `on_meta`, the model has everything but weights. Raises UserError for a directory that is missing, incomplete
    or damaged.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model directory")
    # None is the fused kernel where a model has one. Gemma 2 does not load with "sdpa".
    attention = None if attn_implementation() == "sdpa" else attn_implementation()
    with artifacts.loading(folder, "a causal language model"):
        tokenizer = load_pretrained(AutoTokenizer, folder)
        settings = {"dtype": dtype, "attn_implementation": attention}
        if on_meta:
            return load_on_meta(AutoModelForCausalLM, folder, **settings), tokenizer
        model, info = load_pretrained(AutoModelForCausalLM, folder, **settings, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} has no weights for {missing[0]} ({len(missing)} are missing): copy it again")
    require_finite(model.state_dict(), folder)
    return model, tokenizer


def dtype_to_save(setting: SaveDtype, base: Path | None) -> torch.dtype:
    """Return the dtype in which a model is saved: with "auto" that of its base, fp32 without one."""
    if setting != "auto":
        return _DTYPES[setting]
    if base is None:
        return torch.float32
    with artifacts.loading(base, "a causal language model"):
        return load_pretrained(AutoConfig, base).dtype or torch.float32


@torch.no_grad()
def round_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of `model`, which may be sharded, to values of `dtype`, in place."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.copy_(weight.to(dtype))


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write model and tokenizer as a Hugging Face model directory. The manifest is added by the caller's artifact.

    The model is converted to `dtype` in place, and keeps its own without one. The chat template is the format of weft's
    dialogues, whichever the base had.
    """
    save_pretrained(model if dtype is None else model.to(dtype), folder)  # type: ignore[arg-type]
    tokenizer.chat_template = chat_template(SpeechVocab.of(tokenizer))
    tokenizer.save_pretrained(folder)
