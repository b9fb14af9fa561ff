"""Speed and peak memory of tokenizer training, compared with transformers' Trainer: `bench/tokenizer.py --train`.

All train a Whisper of base shape by AdamW on the same batches of 100 s of speech with their transcripts, in bf16 where
it is native: weft with a bottleneck after layer 3, 12.5 codes per second and 1,024 codes, and Trainer without one. The
recipe of transformers pads the features of every utterance to 30 s; `weft's batches` is Trainer with the padding of
weft, for which the length of Whisper's input is changed before every batch.

Features and ids are random, which does not change the time; the lengths are those of LibriSpeech, with four ids per
second. Each measurement has its own process, in turn; the table has medians over rounds. Time is that of the steps
after the first three. Memory is the peak of the process over all steps, whose batches all have different sizes, above
that before the model, and compared with the estimate of `weft train-tokenizer --dry-run`.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from figures import Figure
from torch import Tensor, nn
from trainer import trainer_arguments
from transformers import Trainer, TrainerCallback, WhisperConfig, WhisperForConditionalGeneration

from weft.data.batching import batches_by_length
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.dataset import Batch
from weft.tokenizer.encoder import SAMPLES_PER_FRAME, BottleneckConfig, BottleneckWhisper, valid_frames
from weft.tokenizer.estimate import Source, estimate
from weft.tokenizer.objective import AsrObjective
from weft.tokenizer.quantizer import QuantizerConfig
from weft.training.config import TrainConfig
from weft.training.loop import fit

NUM_THREADS = 2
BATCH_SEC = 100.0
FRAME_RATE_HZ, POOLING = 50, 4
IDS_PER_SEC = 4.0
PROMPT = [50258, 50259, 50359, 50363]
WARM_UP_STEPS = 3
MODEL = BottleneckConfig(layer=3, log_mel_floor="fixed", quantizer=QuantizerConfig(num_codes=1024, init="samples"))

Method = Literal["weft", "30 s windows", "weft's batches"]
METHODS: tuple[Method, ...] = ("weft", "30 s windows", "weft's batches")


@dataclass(frozen=True)
class Measurement:
    """Speed and peak memory of a run, and the estimate of the memory."""

    sec_per_sec: float
    peak_gb: float
    estimated_gb: float


def new_whisper(base: Path | None) -> WhisperForConditionalGeneration:
    """Return the Whisper in a directory, or one of base shape with random weights."""
    torch.manual_seed(0)
    if base is not None:
        return WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    layers = {"encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
    return WhisperForConditionalGeneration(WhisperConfig(d_model=512, **layers, **heads))


def batches(lengths_sec: Sequence[float], num_steps: int) -> list[list[int]]:
    """Return the encoder frames of each utterance in each step, in random order, as `SpeechDataset` groups them."""
    frames = [round(sec * FRAME_RATE_HZ / POOLING) * POOLING for sec in lengths_sec]
    groups = [[frames[i] for i in rows] for rows in batches_by_length(frames, int(BATCH_SEC * FRAME_RATE_HZ))]
    rng = np.random.default_rng(0)
    order = [int(i) for _ in range(-(-num_steps // len(groups))) for i in rng.permutation(len(groups))]
    return [groups[i] for i in order[:num_steps]]


def batch_of(num_frames: Sequence[int], step: int) -> Batch:
    """Return random features and transcripts of utterances with these numbers of frames."""
    rng = np.random.default_rng(step)
    features = torch.zeros(len(num_frames), 80, 2 * max(num_frames))
    for row, n in enumerate(num_frames):
        features[row, :, : 2 * n] = torch.from_numpy(rng.standard_normal((80, 2 * n), np.float32))
    frames = valid_frames([SAMPLES_PER_FRAME * n for n in num_frames], max(num_frames))
    ids = [rng.integers(0, 50_000, round(n / FRAME_RATE_HZ * IDS_PER_SEC)).tolist() for n in num_frames]
    return Batch(features, frames, frames[:, ::POOLING], [PROMPT + i for i in ids], [[] for _ in ids], quantize=True)


def measure(method: Method, base: Path | None, lengths_sec: Sequence[float], num_steps: int) -> Measurement:
    """Train for some steps, and measure them without the first."""
    torch.set_num_threads(NUM_THREADS)
    steps = batches(lengths_sec, WARM_UP_STEPS + num_steps)
    before_gb = peak_gb()
    whisper = new_whisper(base)
    shape = deepcopy(whisper.config)
    with TemporaryDirectory(prefix="weft-bench-") as folder:
        if method == "weft":
            ends = with_fit(whisper, steps, Path(folder))
        else:
            ends = with_trainer(whisper, steps, method, folder)
    seconds = sum(map(sum, steps[WARM_UP_STEPS:])) / FRAME_RATE_HZ
    elapsed = sum(b - a for a, b in pairwise(ends[WARM_UP_STEPS - 1 :]))
    config = TokenizerConfig(Path(), (), model=MODEL, batch_sec=BATCH_SEC, train=TrainConfig(len(steps)))
    expected = estimate(config, shape, [Source(np.array(lengths_sec), 1.0)], 30.0)
    gb = expected.memory.on_device(expected.items_on_device(1)) / 1e9
    return Measurement(seconds / elapsed, peak_gb() - before_gb, gb)


def peak_gb() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def with_fit(whisper: WhisperForConditionalGeneration, steps: Sequence[Sequence[int]], folder: Path) -> list[float]:
    """Train with weft; return the time at the end of each step."""
    model, ends = BottleneckWhisper(MODEL, whisper), list[float]()
    with torch.no_grad():
        first = batch_of(steps[0], 0)
        hidden = model.to_bottleneck(first.features, first.valid_frames)[first.valid]
        model.quantizer.initialize(hidden, torch.Generator().manual_seed(0))

    def loss_of(objective: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(objective, AsrObjective)
        return objective.losses(batch, ctc_weight=1.0)

    def after_step(step: int, updated: bool) -> dict[str, float]:
        model.quantizer.update()
        ends.append(time.perf_counter())
        return {}

    config = TrainConfig(len(steps), lr=1e-5, log_every_steps=1000, checkpoint_every_steps=len(steps) + 1)
    objective = AsrObjective(model, num_chars=0, ctc_outputs=0)
    fit(objective, lambda step, _: batch_of(steps[step], step), loss_of, config, folder, "weft", after_step)
    return ends


def with_trainer(
    whisper: WhisperForConditionalGeneration, steps: Sequence[Sequence[int]], method: Method, folder: str
) -> list[float]:
    """Train with Trainer, on features padded to 30 s or as weft pads them; return the time at the end of each step."""
    ends = list[float]()

    class Timer(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    def collate(items: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Tensor]:
        ((step, num_frames),) = items  # an item of the dataset has the utterances of a step
        batch = batch_of(num_frames, step)
        features = batch.features
        if method == "30 s windows":
            features = nn.functional.pad(features, (0, 3000 - features.shape[2]))
        # The first id of the prompt is not a label, because it is the decoder's start token.
        labels = [torch.tensor([*ids[1:], 50257]) for ids in batch.text_ids]
        return {
            "input_features": features,
            "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    if method == "weft's batches":
        accept_any_length(whisper)
    args = trainer_arguments(folder, len(steps), lr=1e-5)
    Trainer(whisper, args, data_collator=collate, train_dataset=list(enumerate(steps)), callbacks=[Timer()]).train()
    return ends


def accept_any_length(whisper: WhisperForConditionalGeneration) -> None:
    """Let Whisper's encoder accept features of any length up to 30 s."""
    encoder = whisper.model.encoder
    positions = encoder.embed_positions.weight

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        num_frames = (kwargs["input_features"] if "input_features" in kwargs else args[0]).shape[2] // 2
        encoder.config.max_source_positions = num_frames
        encoder.embed_positions = nn.Embedding.from_pretrained(positions[:num_frames])

    encoder.register_forward_pre_hook(before, with_kwargs=True)


def compare(base: Path | None, lengths_sec: Sequence[float], num_steps: int, rounds: int) -> dict[str, Figure]:
    """Return the figures of weft and of Trainer."""
    found: dict[Method, list[Measurement]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(method == "weft"))  # as the weft command sets it
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found[method].append(process.submit(measure, method, base, lengths_sec, num_steps).result())
    speed = {method: statistics.median(m.sec_per_sec for m in runs) for method, runs in found.items()}
    peak = {method: statistics.median(m.peak_gb for m in runs) for method, runs in found.items()}
    figures = {}
    for method in METHODS[1:]:
        name, ratio = f"training, to Trainer, {method}", speed["weft"] / speed[method]
        figures[f"{name}: speed"] = Figure(speed["weft"], speed[method], ratio, "s of speech/s")
        figures[f"{name}: memory"] = Figure(peak["weft"], peak[method], peak[method] / peak["weft"], "GB")
    estimated = found["weft"][0].estimated_gb
    figures["training, memory, to the estimate"] = Figure(peak["weft"], estimated, peak["weft"] / estimated, "GB")
    return figures
