"""Speech codes a second that a text-to-token model writes here, and what transformers' `generate` writes of the same.

    python bench/interleave.py [--json FILE] [--quick]

Work: the spans of interleaved data, Poisson of 10 words each, 1.5 text ids and Poisson of 3.8 codes a word, asked of a
Llama of random weights (18M parameters, as many codes as GLM-4-Voice's tokenizer has). A row stops at its own number of
codes, which random weights would not do. Ours: `weft.engine`, which admits new requests as rows finish, in bf16 where
the processor multiplies it. Peer: `generate` with a static cache in fp32, on one batch of as many rows,
those of middle length, which it pads least; it goes on until its last row has stopped. Both draw at temperature 0.8,
ours among the codes and the end marker, the peer among all ids. They take turns in one run, and the median of their
times counts. Floor: the products alone, at the rate of one large product of the same precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from figures import Figure, in_turn, show, write
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from weft.engine.generate import Engine, Request, Sampling
from weft.training.loop import multiplies_bf16

NUM_THREADS = 2
BATCH_SIZE = 256
NUM_TEXT_IDS, NUM_CODES = 4096, 16_384
SPAN_WORDS, IDS_PER_WORD, CODES_PER_WORD = 10, 1.5, 3.8
SAMPLING = Sampling(temperature=0.8)
ALLOWED = range(NUM_TEXT_IDS, NUM_TEXT_IDS + NUM_CODES + 1)


def new_model() -> PreTrainedModel:
    """The size of text-to-token for one GPU and an hour, in fp32, with draws that differ from row to row."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=NUM_TEXT_IDS + NUM_CODES + 7,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            tie_word_embeddings=True,
        )
    )
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def spans(num: int) -> list[Request]:
    """Prompts of random ids, each with the number of codes that it takes."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(num):
        num_words = 1 + rng.poisson(SPAN_WORDS - 1)
        prompt = rng.integers(0, NUM_TEXT_IDS, 1 + round(IDS_PER_WORD * num_words))
        found.append(Request(prompt.tolist(), 1 + rng.poisson(CODES_PER_WORD * num_words - 1), seed=i))
    return found


class _OwnLength(StoppingCriteria):
    """Each row stops at its own number of new ids."""

    def __init__(self, prompt_length: int, requests: Sequence[Request]) -> None:
        self._ends = torch.tensor([prompt_length + r.max_new_tokens for r in requests])

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return input_ids.shape[1] >= self._ends


def peer_generate(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    """transformers' own, of one batch, padded on the left."""
    longest = max(len(r.ids) for r in requests)
    torch.manual_seed(0)
    model.generate(
        torch.tensor([[0] * (longest - len(r.ids)) + list(r.ids) for r in requests]),
        attention_mask=torch.tensor([[0] * (longest - len(r.ids)) + [1] * len(r.ids) for r in requests]),
        max_new_tokens=max(r.max_new_tokens for r in requests),
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_k=0,
        pad_token_id=0,
        eos_token_id=None,
        cache_implementation="static",
        stopping_criteria=StoppingCriteriaList([_OwnLength(longest, requests)]),
    )


def ours(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    Engine(model, BATCH_SIZE).generate(requests, SAMPLING, allowed=ALLOWED)


def floor_sec(model: PreTrainedModel, requests: Sequence[Request], dtype: torch.dtype) -> float:
    """Seconds of the products alone: those of layers for every id, those of the head for every code."""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    flops_per_sec = 2 * 2048**3 / in_turn(10, product=lambda: a @ b)["product"]
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    num_codes = sum(r.max_new_tokens for r in requests)
    num_ids = num_codes + sum(len(r.ids) - 1 for r in requests)
    return 2 * (layers * num_ids + len(ALLOWED) * model.config.hidden_size * num_codes) / flops_per_sec


def speed(num_requests: int, rounds: int) -> dict[str, Figure]:
    requests = spans(num_requests)
    num_codes = sum(r.max_new_tokens for r in requests)
    first = (num_requests - BATCH_SIZE) // 2
    few = sorted(requests, key=lambda r: len(r.ids))[first : first + BATCH_SIZE]
    whole = new_model()
    best, name = (new_model().to(torch.bfloat16), "bf16") if multiplies_bf16("cpu") else (whole, "fp32")
    taken = in_turn(rounds, ours=lambda: ours(best, requests), peer=lambda: peer_generate(whole, few))
    rate, peer = num_codes / taken["ours"], sum(r.max_new_tokens for r in few) / taken["peer"]
    floor = num_codes / floor_sec(whole, requests, best.dtype)
    unit = "codes a s"
    return {
        f"{name}, to transformers' generate": Figure(rate, peer, rate / peer, unit),
        f"{name}, to its products alone": Figure(rate, floor, rate / floor, unit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="one round, for a first look")
    given = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    figures = speed(512, 1 if given.quick else 5)
    show(figures)
    if given.json:
        write(given.json, figures)


if __name__ == "__main__":
    main()
