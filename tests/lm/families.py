"""Small random language models of common families, each with a tokenizer of the kind that its family has."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaTokenizer,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaTokenizer,
    PhiConfig,
    PhiForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from weft.lm.model import extend_lm
from weft.records import Document, Segment
from weft.vocab import SpeechVocab

NUM_CODES = 16
TEXTS = ["The cat sat on the mat, and the dog barked at the cat.", "A bird sang to the cat; the dog slept."] * 20
NUM_POSITIONS = 256
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": NUM_POSITIONS,
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "query_pre_attn_scalar": 8}


def _pieces(pre_tokenizer: Any, first: Sequence[str], **trainer: Any) -> dict[str, Any]:
    """Return vocabulary and merges of a small BPE tokenizer whose first ids are those of `first`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False, **trainer))
    model = json.loads(bpe.to_str())["model"]
    vocab = {name: i for i, name in enumerate([*first, *(n for n in model["vocab"] if n not in first)])}
    return {"vocab": vocab, "merges": [tuple(m) for m in model["merges"]]}


def _byte_level(first: Sequence[str]) -> dict[str, Any]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _pieces(pre_tokenizers.ByteLevel(add_prefix_space=False), first, initial_alphabet=alphabet)


def _with_bytes(pre_tokenizer: Any, first: Sequence[str]) -> dict[str, Any]:
    """Return a vocabulary as SentencePiece has it: words after "▁", and a piece for each byte of other characters."""
    return _pieces(pre_tokenizer, [*first, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁"])


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one special token, for all ends, and none before a text."""
    return GPT2Tokenizer(**_byte_level(["<|endoftext|>"]))


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    return Qwen2Tokenizer(**_byte_level(["<|endoftext|>"]))


def llama3_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with a begin token before every text."""
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    bpe = Tokenizer(models.BPE(**_byte_level(names)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=names[0], eos_token=names[1])


def glm_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with two tokens before every text and the roles in its vocabulary."""
    names = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE(**_byte_level(names)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", 1), ("<sop>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=names[0], pad_token=names[0], additional_special_tokens=names[1:]
    )


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    return GemmaTokenizer(**_with_bytes(split, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]), add_bos_token=True)


def llama2_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer that adds a space before a text and removes it in decoding."""
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    return LlamaTokenizer(**_with_bytes(split, ["<unk>", "<s>", "</s>"]), add_bos_token=True)


FAMILIES: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any], Callable[[], PreTrainedTokenizerBase]]] = {
    "llama2": (LlamaConfig, _SHAPE, llama2_tokenizer),
    "llama3": (LlamaConfig, _SHAPE, llama3_tokenizer),
    "qwen2": (Qwen2Config, _SHAPE, qwen_tokenizer),
    "qwen3": (Qwen3Config, _SHAPE, qwen_tokenizer),
    "glm": (GlmConfig, _SHAPE, glm_tokenizer),
    "glm4": (Glm4Config, _SHAPE, glm_tokenizer),
    "gemma": (GemmaConfig, _SHAPE, gemma_tokenizer),
    "gemma2": (Gemma2Config, _SHAPE | _WINDOWS, gemma_tokenizer),
    "gemma3": (Gemma3TextConfig, _SHAPE | _WINDOWS, gemma_tokenizer),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": NUM_POSITIONS}, gpt2_tokenizer),
}


def save_text_lm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a base model without speech tokens."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def text_lm(family: str, tied: bool, spare_rows: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a random model, with weights large enough that its outputs depend on the input, and its tokenizer."""
    config_of, shape, tokenizer_of = FAMILIES[family]
    tokenizer = tokenizer_of()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = config_of(vocab_size=len(tokenizer) + spare_rows, tie_word_embeddings=tied, **shape, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
    return model, tokenizer


CASES = [(family, tied) for family in FAMILIES for tied in (True, False)]
all_cases = pytest.mark.parametrize("case", CASES, ids=[f"{f}-{'tied' if t else 'untied'}" for f, t in CASES])
_SPEECH = Segment.of_speech([3, 0, 15, 7], "the cat")
DOCUMENTS = [
    Document("0", "interleaved", (Segment.of_text("The cat"), _SPEECH, Segment.of_text(" sat on the mat, and slept."))),
    Document("1", "asr", (Segment.of_speech([5] * 9, "a bird", loss=False), Segment.of_text("a bird sang"))),
    Document("2", "text", (Segment.of_text("The dog\nbarked  twice at 猫."),)),
    Document("3", "speech", (_SPEECH, _SPEECH)),
]


def extended_lm(family: str, tied: bool) -> tuple[PreTrainedModel, SpeechVocab]:
    """Return a random model of a family with speech tokens, and its vocabulary."""
    model, tokenizer = text_lm(family, tied)
    return model, SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))


def phi_with_head_bias() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a random model whose output head has a bias, and its tokenizer."""
    tokenizer = gpt2_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    return model, tokenizer
