"""Estimate of training a speech tokenizer: `weft train-tokenizer RECIPE --dry-run`.

    print("\\n".join(estimate_lines(config)))

The operations of a step and its memory follow from forward passes of a model of fake tensors; no weights are loaded.
The memory is that of the largest micro-batch that `SpeechDataset` allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft.asr.whisper import load_whisper_config
from weft.audio import SAMPLE_RATE_HZ
from weft.data.batching import ends_of_batches
from weft.data.speech import audio_lengths, read_manifest
from weft.records import Utterance
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.encoder import ENCODER_HZ, BottleneckWhisper, encoder_parameters
from weft.tokenizer.init import train_text_tokenizer, whisper_config_of
from weft.training.cross_entropy import linear_cross_entropy
from weft.training.estimate import Estimate, Memory

_TEXT_TOKENS_PER_SEC = 4.0
_TYPICAL_SEC = 12.0  # length of an utterance if there is no manifest
# Memory of activations relative to their size: micro-batches of many sizes leave blocks that later ones do not fit.
_ALLOCATED_FRACTION = 1.35  # measured with whisper-base on a CPU


@dataclass(frozen=True)
class Source:
    """Speech of a recipe: the seconds of each utterance, and the number of steps per epoch."""

    seconds: np.ndarray
    epoch_steps: float


def estimate_lines(config: TokenizerConfig) -> list[str]:
    """Return the estimate of training by `config` as text.

    Manifests that do not exist are ignored. Raises UserError for a base that is not a Whisper, and for bad manifests.
    """
    sources, whisper, window_sec = _inputs(config)
    details = {"encoder_parameters": f"{encoder_parameters(config.model, whisper):,}"}
    for name, source in sources.items():
        details[f"{name}_hours"] = f"{source.seconds.sum() / 3600:.2f} in {len(source.seconds):,} utterances"
        details[f"{name}_epoch_steps"] = f"{source.epoch_steps:,.0f}"
    return estimate(config, whisper, sources.values(), window_sec).lines(details)


def estimate(config: TokenizerConfig, whisper: WhisperConfig, sources: Iterable[Source], window_sec: float) -> Estimate:
    """Return the estimate of training on utterances, or if there are none, on those of up to `window_sec`."""
    seconds = np.concatenate([np.zeros(0), *(source.seconds for source in sources)])
    longest_sec = min(float(seconds.max(initial=0.0) or window_sec) / _slowest(config), window_sec)
    typical_sec = float(seconds.mean()) if len(seconds) else min(longest_sec, _TYPICAL_SEC)
    with FakeTensorMode():
        model = BottleneckWhisper(config.model, WhisperForConditionalGeneration(whisper))
        model.fix_parts(asdict(config.lr_ratio))
        with FlopCounterMode(display=False) as counter:
            forward(model, 1, typical_sec)
        with FlopCounterMode(display=False) as clean:
            if config.consistency_weight:
                encode(model, 1, typical_sec)
        memory = Memory.of(model, lambda utterances: forward(model, utterances, longest_sec), config.train)
    memory = replace(
        memory,
        item=_ALLOCATED_FRACTION * memory.item,
        checkpointed_item=_ALLOCATED_FRACTION * memory.checkpointed_item,
    )
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        memory=memory,
        flops=(3 * counter.get_total_flops() + clean.get_total_flops())
        * config.batch_sec
        / typical_sec
        * config.train.steps,
        config=config.train,
        items=config.batch_sec / longest_sec,
        item=f"utterance of {longest_sec:.1f} s",
    )


def _inputs(config: TokenizerConfig) -> tuple[dict[str, Source], WhisperConfig, float]:
    """Return the speech that exists by name, the Whisper's configuration, and the seconds of its window."""
    paths = {"speech": config.speech, "pseudo": config.pseudo}
    speech = {name: read_manifest(*ps) for name, ps in paths.items() if all(p.exists() for p in ps)}
    fractions = {"speech": config.supervised_fraction, "pseudo": 1 - config.supervised_fraction}
    if not config.pseudo:
        fractions["speech"] = 1.0
    whisper = _whisper_config(config, list(speech.values()))
    pooling = config.model.pooling
    window_sec = whisper.max_source_positions // pooling * pooling / ENCODER_HZ
    sources = {
        name: _source(config, utterances, window_sec, fractions[name])
        for name, utterances in speech.items()
        if utterances and fractions[name]
    }
    return sources, whisper, window_sec


def _slowest(config: TokenizerConfig) -> float:
    """Return the speed at which utterances are longest, and which their batches allow for."""
    return min(1.0, *config.augment.speeds)


def _source(
    config: TokenizerConfig, utterances: Sequence[Utterance], window_sec: float, fraction_of_steps: float
) -> Source:
    lengths = audio_lengths(utterances).samples
    usable = np.sort(lengths[(lengths >= 0) & (lengths <= window_sec * SAMPLE_RATE_HZ)])
    slowest = (usable / _slowest(config)).astype(np.int64)
    batches = ends_of_batches(slowest, int(config.batch_sec * SAMPLE_RATE_HZ))
    return Source(usable / SAMPLE_RATE_HZ, len(batches) / fraction_of_steps)


def _whisper_config(config: TokenizerConfig, sources: Sequence[Sequence[Utterance]]) -> WhisperConfig:
    if config.base:
        return load_whisper_config(config.base)
    shape = config.whisper
    texts = (u.text or "" for source in sources for u in source)
    vocab_size = len(train_text_tokenizer(texts, shape.vocab_size)) if any(map(len, sources)) else shape.vocab_size
    return whisper_config_of(shape, vocab_size)


def encode(model: BottleneckWhisper, num_utterances: int, seconds: float) -> tuple[Tensor, Tensor]:
    """Return the hidden states of utterances of some seconds before the quantizer, and their valid codes."""
    num_codes = -(-round(seconds * ENCODER_HZ) // model.config.pooling)
    num_mels = model.whisper_config.num_mel_bins
    features = torch.zeros(num_utterances, num_mels, 2 * num_codes * model.config.pooling)
    valid = torch.ones(num_utterances, num_codes, dtype=torch.bool)
    return model.to_bottleneck(features), valid


def forward(model: BottleneckWhisper, num_utterances: int, seconds: float) -> None:
    """Run the forward pass over utterances of some seconds, without the quantizer, whose cost is small."""
    whisper = model.whisper_config
    hidden, valid = encode(model, num_utterances, seconds)
    num_ids = min(4 + round(seconds * _TEXT_TOKENS_PER_SEC), whisper.max_target_positions)
    text_ids = torch.ones(num_utterances, num_ids, dtype=torch.int64)
    encoded = model.from_bottleneck(hidden, None)
    states, head = model.text_states(encoded, valid, text_ids), model.whisper.proj_out
    linear_cross_entropy(states.flatten(0, 1), head.weight, head.bias, text_ids.flatten())
