"""Correctness and speed on a GPU: attention, generation and pre-training of a language model with 1.5B parameters.

    python bench/gpu.py [attention] [decoding] [generation] [pretraining] [--json FILE] [--quick]

- `attention`: outputs and gradients of segments in bf16, compared with a mask in fp32 on the same device.
- `decoding`: results of captured decoding of a small model in fp32, compared with continuous batching on a CPU.
- `generation`: tokens per second of 256 rows at 1.5B in bf16, captured and by continuous batching, compared with
  transformers' `generate`; and the time that one step needs to read its weights and caches.
- `pretraining`: tokens per second and peak memory at 1.5B and sequences of 8,192 tokens, compared with transformers'
  model and loss on one document per sequence; and the model FLOP utilization.

The 1.5B model has the shape of Qwen2.5-1.5B, 16,384 speech codes and random weights. `--quick` uses a tiny model on any
device, to test the script.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from figures import Figure, show, write
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from weft.device import default_device
from weft.engine import continuous
from weft.engine.captured import CapturedStep
from weft.engine.sampling import Generated, Request, Sampling
from weft.engine.step import Step
from weft.lm.attention import flash_attention_kwargs, segment_attention
from weft.lm.packing import Batch, pack, token_losses, training_mode
from weft.training.config import TrainConfig
from weft.training.estimate import ModelFlops, peak_flops
from weft.training.loop import fit

TEXT_IDS, NUM_IDS = 151_936, 151_936 + 16_384 + 8
SAMPLING = Sampling(temperature=0.8)
DEVICE = default_device()
METHODS = (
    "weft",
    "weft, checkpointing",
    "weft, compiled",
    "weft, short documents",
    "weft, short documents, compiled",
    "transformers",
)


def qwen(quick: bool, **settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    if quick:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape,
        vocab_size=NUM_IDS,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope_theta=1e6,
        **settings,
    )
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def synchronized(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its time in seconds."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start_sec = time.perf_counter()
    result = run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start_sec


def attention(quick: bool) -> dict[str, Figure]:
    """Compare the logits and gradients of packed documents with those of each document alone, in bf16."""
    model = qwen(True).to(torch.bfloat16)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, NUM_IDS, n) for n in (5, 700, 33, 256, 1)]
    ids = torch.from_numpy(np.concatenate(documents))[None].to(DEVICE)
    positions = torch.from_numpy(np.concatenate([np.arange(len(d)) for d in documents]))[None].to(DEVICE)

    def gradients(logits: Tensor) -> list[Tensor]:
        weights = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(0)).to(DEVICE)
        model.zero_grad()
        (logits[0].float() * weights).sum().backward()
        return [p.grad.float().clone() for p in model.parameters() if p.grad is not None]

    def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return max(float((x - y).detach().norm() / y.detach().norm()) for x, y in zip(a, b, strict=True))

    kwargs = flash_attention_kwargs([len(d) for d in documents], torch.device(DEVICE))
    with segment_attention(model):
        packed = model(input_ids=ids, position_ids=positions, use_cache=False, **kwargs).logits
        packed_gradients = gradients(packed)

    def alone() -> Tensor:
        parts = [model(input_ids=torch.from_numpy(d)[None].to(DEVICE), use_cache=False).logits for d in documents]
        return torch.cat(parts, dim=1)

    expected, expected_gradients = (logits := alone()), gradients(logits)
    model.float()
    exact = alone()
    exact_gradients = gradients(exact)
    return {
        "attention, packed bf16: logits": Figure(
            difference([packed.float()], [exact]), difference([expected.float()], [exact]), None, "relative error"
        ),
        "attention, packed bf16: gradients": Figure(
            difference(packed_gradients, exact_gradients),
            difference(expected_gradients, exact_gradients),
            None,
            "relative error",
        ),
    }


def requests_of(num: int, num_ids: int, max_new_tokens: int, num_prompt: int) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(rng.integers(0, num_ids, num_prompt).tolist(), max_new_tokens, seed=i) for i in range(num)]


def decoding(quick: bool) -> dict[str, Figure]:
    """Compare captured decoding in fp32 with continuous batching on a CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = qwen(True).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.1)
    requests = requests_of(100, NUM_IDS, 60, 12)
    allowed = range(TEXT_IDS, TEXT_IDS + 1000)
    captured = CapturedStep(Step(model, SAMPLING, {TEXT_IDS}, allowed), 6, 32, 128)
    on_gpu = captured.generate(requests)
    repeated = captured.generate(requests[::-1])[::-1]
    on_cpu = continuous.generate(model.cpu(), requests, SAMPLING, {TEXT_IDS}, allowed, 6, 32)

    def fraction_of_equal(a: Sequence[Generated], b: Sequence[Generated]) -> float:
        return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))

    return {
        "captured decoding, results equal to a CPU": Figure(fraction_of_equal(on_gpu, on_cpu), 1, None, "fraction"),
        "captured decoding, results equal in another order": Figure(
            fraction_of_equal(on_gpu, repeated), 1, None, "fraction"
        ),
    }


def generation(quick: bool) -> dict[str, Figure]:
    """Generate speech codes for prompts of 60 text ids, of two calls, of which the second is measured."""
    num_rows, num_new, num_prompt = (8, 8, 4) if quick else (256, 230, 60)
    model = qwen(quick).to(torch.bfloat16).eval()
    allowed = range(TEXT_IDS, TEXT_IDS + 16_384)
    requests = requests_of(num_rows * (1 if quick else 4), TEXT_IDS, num_new, num_prompt)
    step = Step(model, SAMPLING, {TEXT_IDS + 16_384}, allowed)
    captured = CapturedStep(step, None, num_rows, num_prompt + num_new)
    rates = {}
    for name, run in {
        "captured": lambda: captured.generate(requests),
        "continuous": lambda: continuous.generate(
            model, requests[:num_rows], SAMPLING, {TEXT_IDS + 16_384}, allowed, None, num_rows
        ),
    }.items():
        if name == "captured":
            run()
        results, sec = synchronized(run)
        rates[name] = sum(len(r.ids) for r in results) / sec
    ids = torch.tensor([r.ids for r in requests[:num_rows]], device=DEVICE)
    run = partial(
        model.generate,
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=0.8,
        top_k=0,
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        pad_token_id=0,
    )
    output, sec = synchronized(run)
    rates["generate"] = (output.shape[1] - num_prompt) * num_rows / sec
    config: Any = model.config
    body = sum(p.numel() for k, p in model.named_parameters() if "embed_tokens" not in k)
    cache = (
        2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    )
    step_bytes = 2 * (body + 16_384 * config.hidden_size + num_rows * cache * (num_prompt + num_new / 2))
    limit = num_rows / (step_bytes / copy_bytes_per_sec())
    name = f"generation, {num_rows} rows"
    return {
        f"{name}: to generate": Figure(
            rates["captured"], rates["generate"], rates["captured"] / rates["generate"], "tokens/s"
        ),
        f"{name}: to continuous batching": Figure(
            rates["captured"], rates["continuous"], rates["captured"] / rates["continuous"], "tokens/s"
        ),
        f"{name}: to memory bandwidth": Figure(rates["captured"], limit, rates["captured"] / limit, "tokens/s"),
    }


def copy_bytes_per_sec() -> float:
    """Measure the bytes read and written per second by copying 2 GB, the best of eight."""
    source = torch.empty(1 << (31 if DEVICE == "cuda" else 26), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / min(synchronized(lambda: target.copy_(source))[1] for _ in range(8))


def pretraining(quick: bool) -> dict[str, Figure]:
    """Measure each method in its own process, because compiled layers keep memory."""
    found = {}
    for method in METHODS:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found[method] = process.submit(train, method, quick).result()
    baseline = found["transformers"]
    figures = {}
    for method, (rate, peak_gib, mfu) in found.items():
        figures[f"pre-training, {method}: speed"] = Figure(rate, baseline[0], rate / baseline[0], "tokens/s")
        figures[f"pre-training, {method}: memory"] = Figure(peak_gib, baseline[1], None, "GiB")
        figures[f"pre-training, {method}: MFU"] = Figure(mfu, baseline[2], None, "fraction")
    return figures


def train(method: str, quick: bool) -> tuple[float, float, float]:
    """Train for five steps and measure the last three; return tokens per second, peak memory in GiB, and MFU."""
    max_seq_len, num_sequences = (128, 2) if quick else (8192, 4)
    num_documents = 16 if "short" in method else 1  # in a sequence
    rng = np.random.default_rng(0)
    steps = [[rng.integers(0, NUM_IDS, max_seq_len) for _ in range(num_sequences)] for _ in range(5)]
    model = qwen(quick).train()
    own, ends = method.startswith("weft"), list[float]()

    def batch_at(step: int, part: slice) -> Batch:
        return pack([(d, np.ones(len(d), bool)) for ids in steps[step][part] for d in np.split(ids, num_documents)])

    def loss_of(_: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if own:
            return {"loss": token_losses(model, batch).mean()}
        ids = batch.ids.view(-1, max_seq_len).to(DEVICE)
        return {"loss": model(input_ids=ids, labels=ids, use_cache=False).loss}

    def after_step(step: int, updated: bool) -> dict[str, float]:
        synchronized(lambda: None)
        ends.append(time.perf_counter())
        return {}

    config = TrainConfig(steps=5, warmup_steps=0, precision="bf16", grad_accum_steps=num_sequences)
    mode = training_mode(model, "checkpointing" in method, compiled="compiled" in method) if own else nullcontext()
    with TemporaryDirectory() as folder, mode:
        fit(model, batch_at, loss_of, config, Path(folder), method, after_step)
    num_tokens, sec = max_seq_len * num_sequences, (ends[4] - ends[1]) / 3
    operations = ModelFlops.of(model).of_batch(num_tokens, num_tokens, num_tokens * max_seq_len // num_documents)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    return num_tokens / sec, peak_gib, operations / sec / peak_flops(torch.device(DEVICE), bf16=True)


PARTS = {f.__name__: f for f in (attention, decoding, generation, pretraining)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="parts to run; all if none is given")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to test the script")
    arguments = parser.parse_args()
    figures: dict[str, Figure] = {}
    for name in arguments.parts or PARTS:
        found = PARTS[name](arguments.quick)
        show(found)
        figures |= found
    if arguments.json:
        write(arguments.json, figures)


if __name__ == "__main__":
    main()
