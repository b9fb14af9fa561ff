"""What training a language model costs here: tokens a second and peak memory, beside transformers' Trainer.

    python bench/pretrain.py [--json FILE] [--quick]

Both train the same Llama of random weights (width 256, 4 layers, tied embeddings), of 4,096 and of 168,000 ids, in the
same precision, bf16 where the processor multiplies it, by AdamW, on the same documents in the same order and steps.
Documents have the lengths of interleaved web text, in pieces of at most a row: words as a log-normal of mean 495 and
median 300, which is near FineWeb's 670 text tokens a document, three tenths of them spoken at 3.8 codes a word, the
others at 1.5 ids. Ids are random, which changes no time. Tokens are those of documents, not padding.

Ours: `fit` on one row of documents, attention inside each. Peers, with transformers' default attention: Trainer with
its padding collator, and Trainer on the same ids cut into full rows, in which documents see each other. Each is
measured in a process of its own, which began for it, and they take turns; the median of rounds counts. Time is that
of the steps after the first. Memory is the most that the process ever held, its libraries, weights, gradients and
optimizer among it.
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
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from weft.lm.packing import Batch, pack, token_losses
from weft.training.loop import TrainConfig, fit, multiplies_bf16

NUM_THREADS = 2
ROW_TOKENS = 1024
MEDIAN_WORDS, SPREAD = 300, 1.0
IDS_PER_WORD = 0.7 * 1.5 + 0.3 * 3.8
TOKENS_PER_STEP = {4096: 4096, 168_000: 1024}  # by vocabulary: what Trainer takes of memory sets the second

Way = Literal["ours", "padded", "packed"]
Row = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Measured:
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
        max_position_embeddings=ROW_TOKENS,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def steps_of(vocab_size: int, num_steps: int) -> list[list[Row]]:
    """The documents of each step, or pieces of them, as (ids, loss mask), drawn from all alike."""
    rng = np.random.default_rng(0)
    words = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, 2000)
    wholes = np.maximum(2, IDS_PER_WORD * words).astype(int)
    lengths = iter(rng.permutation([min(ROW_TOKENS, n - at) for n in wholes for at in range(0, n - 1, ROW_TOKENS - 1)]))
    steps = []
    for _ in range(num_steps):
        rows: list[Row] = []
        while sum(len(ids) for ids, _ in rows) < TOKENS_PER_STEP[vocab_size]:
            length = min(int(next(lengths)), TOKENS_PER_STEP[vocab_size] - sum(len(ids) for ids, _ in rows))
            rows.append((rng.integers(3, vocab_size, length), np.ones(length, bool)))
        steps.append(rows)
    return steps


def measure(way: Way, vocab_size: int, num_steps: int) -> Measured:
    """Train for a step and `num_steps` more, which count."""
    torch.set_num_threads(NUM_THREADS)
    steps = steps_of(vocab_size, 1 + num_steps)
    with TemporaryDirectory(prefix="weft-bench-") as folder:
        ends = (by_fit if way == "ours" else by_trainer)(new_model(vocab_size), steps, way, Path(folder))
    tokens = sum(len(ids) for rows in steps[1:] for ids, _ in rows)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(tokens / sum(b - a for a, b in pairwise(ends)), peak_kib / 1024)


def by_fit(model: PreTrainedModel, steps: Sequence[Sequence[Row]], way: Way, folder: Path) -> list[float]:
    """When each step ended, by the clock."""
    ends = []

    def loss_of(_: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": token_losses(model, batch).mean()}

    def note(step: int) -> dict[str, float]:
        ends.append(time.perf_counter())
        return {}

    config = TrainConfig(steps=len(steps), warmup_steps=0, log_every_steps=1000)
    fit(model, lambda step, part: pack(steps[step][part]), loss_of, config, folder, "ours", note)
    return ends


def by_trainer(model: PreTrainedModel, steps: Sequence[Sequence[Row]], way: Way, folder: Path) -> list[float]:
    """The same by Trainer, on padded documents or on full rows."""
    ends = []

    class Note(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(steps),
        per_device_train_batch_size=1,  # an item of the dataset is a step's documents
        learning_rate=1e-3,
        weight_decay=0.01,
        bf16=multiplies_bf16("cpu"),
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    collator = DataCollatorForLanguageModeling(blank_tokenizer(), mlm=False)

    def padded(items: list[Sequence[Row]]) -> Any:
        return collator([{"input_ids": ids.tolist()} for ids, _ in items[0]])

    def packed(items: list[Sequence[Row]]) -> Any:
        rows = torch.from_numpy(np.concatenate([ids for ids, _ in items[0]])).view(-1, ROW_TOKENS)
        return {"input_ids": rows, "labels": rows}

    Trainer(
        model,
        args,
        data_collator=padded if way == "padded" else packed,
        train_dataset=steps,
        callbacks=[Note()],
    ).train()
    return ends


def blank_tokenizer() -> PreTrainedTokenizerFast:
    """What a collator asks for what padding is."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>")), pad_token="<pad>", unk_token="<unk>"
    )


def compared(vocab_size: int, num_steps: int, rounds: int) -> dict[str, Figure]:
    ways: tuple[Way, ...] = ("ours", "padded", "packed")
    taken: dict[Way, list[Measured]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                taken[way].append(process.submit(measure, way, vocab_size, num_steps).result())
    figures = {}
    speed = {way: statistics.median(m.tokens_per_sec for m in found) for way, found in taken.items()}
    peak = {way: statistics.median(m.peak_mib for m in found) for way, found in taken.items()}
    for way, name in (("padded", "Trainer, padded"), ("packed", "Trainer, packed")):
        to = f"{vocab_size} ids, to {name}"
        figures[f"{to}: speed"] = Figure(speed["ours"], speed[way], speed["ours"] / speed[way], "tokens a s")
        figures[f"{to}: memory"] = Figure(peak["ours"], peak[way], peak[way] / peak["ours"], "MiB")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="one round of one step that counts, for a first look")
    parser.add_argument("--vocab", type=int, choices=TOKENS_PER_STEP, help="that vocabulary alone")
    given = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    figures: dict[str, Figure] = {}
    for vocab_size in [given.vocab] if given.vocab else TOKENS_PER_STEP:
        figures |= compared(vocab_size, 1 if given.quick else 8, 1 if given.quick else 5)
    show(figures)
    if given.json:
        write(given.json, figures)


if __name__ == "__main__":
    main()
