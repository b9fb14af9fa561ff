"""Small random models that differ in how the engine runs them, and random requests."""

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from weft.engine.sampling import Request

VOCAB = 61
_SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**_SMALL),
    "llama, scaled angles": LlamaConfig(**_SMALL, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}),
    "qwen2": Qwen2Config(**_SMALL),
    "qwen2, sliding window": Qwen2Config(**_SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": Qwen3Config(**_SMALL, head_dim=16),
    "mistral, sliding window": MistralConfig(**_SMALL, sliding_window=6),
    "gpt2, absolute positions": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "qwen3-next, linear attention": Qwen3NextConfig(
        **{**_SMALL, "num_experts": 0}, head_dim=8, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip
SUPPORTED = {"llama", "llama, scaled angles", "qwen2", "qwen3"}
"""Configurations of models that `weft.engine.step` implements."""


def new_model(config: PretrainedConfig) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for p in model.parameters():  # larger than usual, so that the most probable id depends on the input
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
    return model


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, rng.integers(1, 12)).tolist() for _ in range(num)]


def random_requests(num: int, limit: int, seed: int = 1) -> list[Request]:
    """Return requests for less than `limit` new ids each, some for none."""
    rng = np.random.default_rng(seed)
    return [Request(p, int(rng.integers(0, limit)), seed=i) for i, p in enumerate(prompts(num, seed))]
