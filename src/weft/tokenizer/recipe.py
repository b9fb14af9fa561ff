"""What `weft train-tokenizer` is told: the recipe's settings, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weft.config import Count, Natural, NonNegative, Positive, Share
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.encoder import BottleneckConfig
from weft.training.loop import TrainConfig


@dataclass(frozen=True)
class WhisperShape:
    """The size of a Whisper that is trained from nothing."""

    width: Count = 192
    """Width of encoder and decoder."""
    encoder_layers: Count = 4
    """Layers of the encoder, before and after the bottleneck."""
    decoder_layers: Count = 1
    """Layers of the text decoder."""
    heads: Count = 4
    """Attention heads."""
    num_mels: Count = 80
    """Mel bands of the input."""
    vocab_size: Count = 600
    """Text tokens of the decoder."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is trained from."""

    out: Path
    """Folder of the tokenizer to make."""
    speech: tuple[Path, ...]
    """Manifests (or folders) of speech with transcripts to train on."""
    pseudo: tuple[Path, ...] = ()
    """Manifests of speech whose transcripts a recognizer made, such as `weft pseudo-label`'s, to train on as well."""
    supervised_share: Share = 0.25
    """With `pseudo`, share of the steps that train on `speech`: 1 to 3, as in the paper."""
    held_out: tuple[Path, ...] = ()
    """Manifests of speech with transcripts to measure the word error rate on."""
    base: Path | None = None
    """Folder of a Hugging Face Whisper to start from; without one, `whisper` is trained from nothing."""
    language: str | None = None
    """Language of the utterances that name none, such as en: a multilingual `base` is told what is spoken."""
    whisper: WhisperShape = field(default_factory=WhisperShape)
    model: BottleneckConfig = field(default_factory=BottleneckConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_sec: Positive = 100.0
    """Seconds of speech in a batch, padding included."""
    quantize_from_step: Natural = 0
    """Steps of training before the codebook is set and the bottleneck closes."""
    ctc_outputs: Natural = 0
    """Letters a CTC head may read at each code while training, which makes training from nothing feasible; 0 trains
    without one."""
    ctc_weight: NonNegative = 1.0
    """Weight of the CTC loss."""
    max_bad_share: Share = 0.01
    """Share of unreadable utterances above which training stops."""
    cache_gb: NonNegative = 4.0
    """Gigabytes of memory, of each process, for features that are kept once computed: an hour of speech takes 0.058
    with 80 mel bands. Speech that fits is read once, before training."""
    load_threads: Count = 4
    """Threads, of each process, that read sound ahead of the training step."""
    licence: str | None = None
    """Licence of speech and base, which the notes of all that is made of it will tell."""
    dry_run: bool = False
    """Train nothing and make nothing: only tell parameters, memory, steps of an epoch and hours."""


# Settings that say how a tokenizer is made, and not what it becomes.
NOT_PART_OF_THE_PLAN = ("out", "max_bad_share", "cache_gb", "load_threads", "licence", "dry_run")
