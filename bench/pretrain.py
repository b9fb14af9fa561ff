"""Speed and peak memory of language model training, compared with transformers' Trainer.

    python bench/pretrain.py [--json FILE] [--quick]

All train the same Llama with random weights (width 256, 4 layers, tied embeddings, 4,096 or 168,000 ids) by AdamW, in
bf16 where it is native, on the same documents in the same order. The lengths of documents are those of interleaved web
text, in pieces of at most one sequence: words are log-normal with mean 495 and median 300, near FineWeb's 670 text
tokens per document. Three tenths of them are spoken, at 3.8 codes per word; the others have 1.5 ids per word. Ids are
random, which does not change the time. Padding does not count as tokens.

weft packs the documents of a step into one row, with attention inside each document. The baselines, with transformers'
default attention, are Trainer with its padding collator, and Trainer on full rows, in which documents attend to each
other. Each measurement has its own process, in turn; the table has medians over rounds. Time is that of the steps after
the first. Memory is the peak of the process, including libraries, weights, gradients and optimizer.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from figures import Figure, show, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from trainer import trainer_arguments
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

from weft.lm.packing import Batch, pack, token_losses
from weft.training.config import TrainConfig
from weft.training.loop import fit

NUM_THREADS = 2
MAX_SEQ_LEN = 1024
MEDIAN_WORDS, SPREAD = 300, 1.0
IDS_PER_WORD = 0.7 * 1.5 + 0.3 * 3.8
BATCH_TOKENS = {4096: 4096, 168_000: 1024}  # by vocabulary; Trainer's memory limits the second

Method = Literal["weft", "padded", "packed"]
Row = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measurement:
    """Speed and peak memory of a run."""

    tokens_per_sec: float
    peak_mib: float


def new_model(vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_SEQ_LEN,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def steps_of(vocab_size: int, num_steps: int) -> list[list[Row]]:
    """Return the documents of each step, or pieces of them, as (ids, loss mask), sampled uniformly."""
    rng = np.random.default_rng(0)
    words = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, 2000)
    documents = np.maximum(2, IDS_PER_WORD * words).astype(int)
    lengths = iter(
        rng.permutation([min(MAX_SEQ_LEN, n - i) for n in documents for i in range(0, n - 1, MAX_SEQ_LEN - 1)])
    )
    steps = []
    for _ in range(num_steps):
        rows: list[Row] = []
        while sum(len(ids) for ids, _ in rows) < BATCH_TOKENS[vocab_size]:
            length = min(int(next(lengths)), BATCH_TOKENS[vocab_size] - sum(len(ids) for ids, _ in rows))
            rows.append((rng.integers(3, vocab_size, length), np.ones(length, bool)))
        steps.append(rows)
    return steps


def measure(method: Method, vocab_size: int, num_steps: int) -> Measurement:
    """Train for a warm-up step and `num_steps` more, which are measured."""
    torch.set_num_threads(NUM_THREADS)
    steps = steps_of(vocab_size, 1 + num_steps)
    with TemporaryDirectory(prefix="weft-bench-") as folder:
        ends = (with_fit if method == "weft" else with_trainer)(new_model(vocab_size), steps, method, Path(folder))
    tokens = sum(len(ids) for rows in steps[1:] for ids, _ in rows)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measurement(tokens / sum(b - a for a, b in pairwise(ends)), peak_kib / 1024)


def with_fit(model: PreTrainedModel, steps: Sequence[Sequence[Row]], method: Method, folder: Path) -> list[float]:
    """Train with weft; return the time at the end of each step."""
    ends = []

    def loss_of(_: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": token_losses(model, batch).mean()}

    def after_step(step: int, updated: bool) -> dict[str, float]:
        ends.append(time.perf_counter())
        return {}

    config = TrainConfig(steps=len(steps), warmup_steps=0, log_every_steps=1000)
    fit(model, lambda step, part: pack(steps[step][part]), loss_of, config, folder, "weft", after_step)
    return ends


def with_trainer(model: PreTrainedModel, steps: Sequence[Sequence[Row]], method: Method, folder: Path) -> list[float]:
    """Train with Trainer, on padded documents or on full rows; return the time at the end of each step."""
    ends = []

    class Timer(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    args = trainer_arguments(folder, len(steps), lr=1e-3)
    collator = DataCollatorForLanguageModeling(blank_tokenizer(), mlm=False)

    def padded(items: list[Sequence[Row]]) -> Any:
        return collator([{"input_ids": ids.tolist()} for ids, _ in items[0]])

    def packed(items: list[Sequence[Row]]) -> Any:
        rows = torch.from_numpy(np.concatenate([ids for ids, _ in items[0]])).view(-1, MAX_SEQ_LEN)
        return {"input_ids": rows, "labels": rows}

    Trainer(
        model, args, data_collator=padded if method == "padded" else packed, train_dataset=steps, callbacks=[Timer()]
    ).train()
    return ends


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """Return a text tokenizer that only defines padding, for the collator."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>")), pad_token="<pad>", unk_token="<unk>"
    )


def compare(vocab_size: int, num_steps: int, rounds: int) -> dict[str, Figure]:
    methods: tuple[Method, ...] = ("weft", "padded", "packed")
    found: dict[Method, list[Measurement]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found[method].append(process.submit(measure, method, vocab_size, num_steps).result())
    figures = {}
    speed = {method: statistics.median(m.tokens_per_sec for m in runs) for method, runs in found.items()}
    peak = {method: statistics.median(m.peak_mib for m in runs) for method, runs in found.items()}
    for method in methods[1:]:
        name = f"{vocab_size} ids, to Trainer, {method}"
        figures[f"{name}: speed"] = Figure(speed["weft"], speed[method], speed["weft"] / speed[method], "tokens/s")
        figures[f"{name}: memory"] = Figure(peak["weft"], peak[method], peak[method] / peak["weft"], "MiB")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="one round of one measured step, to test the script")
    parser.add_argument("--vocab", type=int, choices=BATCH_TOKENS, help="only this vocabulary")
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    figures: dict[str, Figure] = {}
    for vocab_size in [arguments.vocab] if arguments.vocab else BATCH_TOKENS:
        figures |= compare(vocab_size, 1 if arguments.quick else 8, 1 if arguments.quick else 5)
    show(figures)
    if arguments.json:
        write(arguments.json, figures)


if __name__ == "__main__":
    main()
