"""What training a speech tokenizer would take, told before it begins: `weft train-tokenizer RECIPE --dry-run`.

    for line in estimate(config).lines(): print(line)

No weight is loaded and nothing is trained. The model is built of tensors without contents (torch's FakeTensorMode, on
its meta device) and sent forward, which tells the operations of a step and, by what autograd would keep, its memory.
The hours follow from how fast this machine multiplies matrices, which is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft.audio import SAMPLE_RATE_HZ
from weft.data.corpus import read_manifest
from weft.records import Utterance
from weft.tokenizer.base import config_of_shape, whisper_config
from weft.tokenizer.encoder import ENCODER_HZ, BottleneckWhisper, kept_parameters
from weft.tokenizer.recipe import TokenizerConfig
from weft.tokenizer.speech import lengths
from weft.tokenizer.text import text_tokenizer
from weft.tokenizer.tokenizer import batches_by_length
from weft.training import distributed
from weft.training.cost import ACHIEVED_SHARE, kept_for_backward, moment_bytes, product_speed, trained_parameters
from weft.training.loop import takes_bf16

_TEXT_TOKENS_PER_SEC = 4.0
_TYPICAL_SEC = 12.0  # an utterance's length where there is no manifest to tell


@dataclass(frozen=True)
class Memory:
    """Bytes that each process needs, the activations for its largest micro-batch; passing buffers are left out."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Source:
    """Speech of the recipe that is here: seconds of each utterance, and steps until all of it was trained on once."""

    seconds: Sequence[float]
    epoch_steps: float


@dataclass(frozen=True)
class Estimate:
    """What training would take, all processes together but for the memory."""

    parameters: int
    kept_parameters: int
    memory: Memory
    micro_batch: tuple[int, float]
    """Utterances of the largest micro-batch, and seconds of each."""
    step_flops: float
    hours: float
    because: str
    """What the hours suppose."""
    sources: dict[str, Source] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The estimate for people, a figure a line."""
        memory = self.memory
        parts = {name: f"{getattr(memory, name) / 1e9:.3g}" for name in ("weights", "gradients", "optimizer")}
        at_once = f"activations {memory.activations / 1e9:.3g} of {self.micro_batch[0]} x {self.micro_batch[1]:.1f} s"
        told = {
            "parameters": f"{self.parameters:,}",
            "kept_parameters": f"{self.kept_parameters:,}",
            "memory_gb": f"{memory.total / 1e9:.3g} ({', '.join(map(' '.join, parts.items()))}, {at_once})",
            "step_flops": f"{self.step_flops:.3g}",
        }
        for name, source in self.sources.items():
            told[f"{name}_hours"] = f"{sum(source.seconds) / 3600:.2f} in {len(source.seconds):,} utterances"
            told[f"{name}_epoch_steps"] = f"{source.epoch_steps:,.0f}"
        told["training_hours"] = f"{self.hours:.3g} ({self.because})"
        return [f"{name:<24}{value}" for name, value in told.items()]


def estimate(config: TokenizerConfig) -> Estimate:
    """What training by `config` would take here. Raises UserError for a base that is none, and for bad manifests."""
    spoken = {name: _here(paths) for name, paths in (("speech", config.speech), ("pseudo", config.pseudo))}
    shares = {"speech": config.supervised_share, "pseudo": 1 - config.supervised_share}
    if not config.pseudo:
        shares["speech"] = 1.0
    whisper = _whisper(config, [u.text or "" for us in spoken.values() for u in us])
    pooling = config.model.pooling
    window_sec = whisper.max_source_positions // pooling * pooling / ENCODER_HZ
    sources = {
        name: _source(found, config.batch_sec, window_sec, shares[name])
        for name, found in spoken.items()
        if found and shares[name]
    }
    every = [sec for source in sources.values() for sec in source.seconds]
    longest = max(every, default=window_sec)
    typical = sum(every) / len(every) if every else min(longest, _TYPICAL_SEC)
    num_parts = config.train.accumulate * distributed.world_size()
    micro_batch = max(1, round(config.batch_sec / longest / num_parts)), longest

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = takes_bf16(config.train.precision, device)
    with FakeTensorMode(), torch.device(device):
        model = BottleneckWhisper(config.model, WhisperForConditionalGeneration(whisper))
        step_flops = 3 * _forward(model, 1, typical, half)[0] * config.batch_sec / typical
        activation_bytes = _forward(model, *micro_batch, half)[1]
    flops_per_sec = product_speed(device, torch.bfloat16 if half else torch.float32)
    seconds = config.train.steps * step_flops / (ACHIEVED_SHARE * flops_per_sec * distributed.world_size())
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        kept_parameters=kept_parameters(config.model, whisper),
        memory=_memory(model, config, activation_bytes),
        micro_batch=micro_batch,
        step_flops=step_flops,
        hours=seconds / 3600,
        because=f"{config.train.steps} steps, each 3 forward passes, at {ACHIEVED_SHARE:.0%} of the "
        f"{flops_per_sec / 1e12:.3g} TFLOP/s at which this {device} multiplies {'bf16' if half else 'fp32'} matrices",
        sources=sources,
    )


def _here(paths: Sequence[Path]) -> list[Utterance]:
    """The utterances of manifests, none where one is not on this machine."""
    return read_manifest(*paths) if all(path.exists() for path in paths) else []


def _source(utterances: Sequence[Utterance], batch_sec: float, window_sec: float, share_of_steps: float) -> Source:
    with ThreadPoolExecutor(4) as threads:
        found = [n for n in lengths(utterances, threads) if isinstance(n, int) and n <= window_sec * SAMPLE_RATE_HZ]
    batches = batches_by_length(found, int(batch_sec * SAMPLE_RATE_HZ))
    return Source([n / SAMPLE_RATE_HZ for n in found], len(batches) / share_of_steps)


def _whisper(config: TokenizerConfig, texts: Sequence[str]) -> WhisperConfig:
    if config.base:
        return whisper_config(config.base)
    shape = config.whisper
    return config_of_shape(shape, len(text_tokenizer(texts, shape.vocab_size)) if texts else shape.vocab_size)


def _memory(model: BottleneckWhisper, config: TokenizerConfig, activation_bytes: int) -> Memory:
    """Weights, gradients and moments are in fp32; several processes sum their gradients in place."""
    parameters, trained = (sum(p.numel() for p in ps) for ps in (model.parameters(), trained_parameters(model)))
    return Memory(
        weights=4 * parameters + sum(b.nbytes for b in model.buffers()),
        gradients=4 * trained,
        optimizer=moment_bytes(model, config.train.optimizer),
        activations=activation_bytes,
    )


def _forward(model: BottleneckWhisper, rows: int, seconds: float, half: bool) -> tuple[int, int]:
    """Floating-point operations of a forward pass over `rows` utterances, and bytes that the backward pass needs.

    The quantizer is left out: beside the layers it costs little.
    """
    config, whisper = model.config, model.whisper_config
    num_codes = -(-round(seconds * ENCODER_HZ) // config.pooling)
    features = torch.zeros(rows, whisper.num_mel_bins, 2 * num_codes * config.pooling)
    valid = torch.ones(rows, num_codes, dtype=torch.bool)
    text_ids = torch.ones(rows, min(4 + round(seconds * _TEXT_TOKENS_PER_SEC), whisper.max_target_positions)).long()

    with (
        FlopCounterMode(display=False) as counter,
        torch.autocast(features.device.type, torch.bfloat16, enabled=half),
        kept_for_backward(model) as kept,
    ):
        heard = model.second_half(model.first_half(features, valid), valid)
        logits = model.text_logits(heard, valid, text_ids)
        F.cross_entropy(logits.float().flatten(0, 1), text_ids.flatten())
    return counter.get_total_flops(), kept.bytes
