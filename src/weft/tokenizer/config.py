"""Settings of `weft train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from weft.config import MODEL, NOT_IN_PLAN, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.encoder import BottleneckConfig
from weft.training.config import TrainConfig


@dataclass(frozen=True)
class WhisperShape:
    """Size of a Whisper that is trained from random weights."""

    width: PositiveInt = 192
    """Width of encoder and decoder."""
    encoder_layers: PositiveInt = 4
    """Encoder layers, before and after the bottleneck."""
    decoder_layers: PositiveInt = 1
    """Text decoder layers."""
    heads: PositiveInt = 4
    """Attention heads."""
    num_mels: PositiveInt = 80
    """Mel bands of the input."""
    vocab_size: PositiveInt = 600
    """Text vocabulary of the decoder."""


@dataclass(frozen=True)
class PartLrRatios:
    """Learning rates of the parts of a Whisper as multiples of `train.lr`; 0 keeps the weights of a part unchanged."""

    before: NonNegativeFloat = 1.0
    """Convolutions and encoder layers before the quantizer; 0 also keeps the codebook after its initialization."""
    after: NonNegativeFloat = 1.0
    """Positions and encoder layers after the quantizer."""
    decoder: NonNegativeFloat = 1.0
    """Text decoder."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Training of a speech tokenizer."""

    out: Path
    """Output directory of the tokenizer."""
    speech: tuple[Path, ...]
    """Manifests (or directories) of transcribed speech to train on."""
    pseudo: tuple[Path, ...] = ()
    """Manifests of speech with transcripts from a recognizer, such as those of `weft pseudo-label`."""
    supervised_fraction: Fraction = 0.25
    """With `pseudo`, the fraction of steps that train on `speech`. The paper's ratio is 1 to 3."""
    held_out: tuple[Path, ...] = ()
    """Manifests of transcribed speech to measure the word error rate on after training."""
    noise: tuple[Path, ...] = ()
    """Manifests (or directories) of recordings of noise, for `augment.recording_probability`."""
    base: Annotated[Path | None, MODEL] = None
    """Hugging Face Whisper to start from, a directory or a name on the Hub; not set: random weights of the shape
    `whisper`."""
    init: Path | None = None
    """Tokenizer to continue from, with the same `model`. Layers that an `encoder_only` one lacks come from `base`."""
    language: str | None = None
    """Language of utterances whose manifest names none, such as en. A multilingual `base` needs a language."""
    recase: bool = False
    """Write upper-case transcripts in sentence case, as Whisper does: lower case, but for the first letter and "I"."""
    whisper: WhisperShape = field(default_factory=WhisperShape)
    model: BottleneckConfig = field(default_factory=BottleneckConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    lr_ratio: PartLrRatios = field(default_factory=PartLrRatios)
    batch_sec: PositiveFloat = 100.0
    """Seconds of speech per batch, padding included."""
    quantize_from_step: NonNegativeInt = 0
    """Number of initial steps without quantization."""
    distillation_weight: NonNegativeFloat = 0.0
    """Weight of the distance between the encoder's output and that of `base` for the same speech; 0: none."""
    ctc_outputs: NonNegativeInt = 0
    """Outputs per code of a CTC head, an auxiliary loss that makes training from random weights feasible; 0: none."""
    ctc_weight: NonNegativeFloat = 1.0
    """CTC loss weight."""
    consistency_weight: NonNegativeFloat = 0.0
    """Weight of the distance of distorted speech to the codes of clean speech, a loss that makes codes resist noise, in
    quantized steps; 0: none. It needs distortions in `augment`."""
    max_bad_fraction: Annotated[Fraction, NOT_IN_PLAN] = 0.01
    """Fraction of unreadable utterances above which training stops."""
    cache_gb: Annotated[NonNegativeFloat, NOT_IN_PLAN] = 4.0
    """Memory per process for speech, in GB. An hour takes 0.058 with 80 mel bands, or 0.115 with noise or other
    distortions. If all speech fits, it is read once, before training."""
    load_threads: Annotated[PositiveInt, NOT_IN_PLAN] = 4
    """Threads per process that read audio ahead of the training step."""
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of speech and base, passed on to the notes of everything made from them."""
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, memory, steps per epoch and training time."""
