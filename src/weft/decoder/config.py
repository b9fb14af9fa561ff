"""Configuration of the training of a speech decoder, and what any kind of flow model gives to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from torch import Tensor, nn

from weft.config import NOT_IN_PLAN, Decay, Fraction, PositiveInt
from weft.data.skipped import Skipped
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig
from weft.decoder.mel import MelConfig
from weft.decoder.published.flow import PublishedConfig
from weft.training.config import TrainConfig


@dataclass(frozen=True)
class DecoderConfig:
    """Training of a speech decoder."""

    out: Path
    """Output directory of the decoder."""
    codes: tuple[Path, ...]
    """Codes datasets of the voice's recordings."""
    audio: tuple[Path, ...]
    """Manifests (or directories) of the recordings, which are matched to codes by id."""
    tokenizer: Path
    """Directory of the speech tokenizer that computed the codes."""
    kind: Literal["block", "published"] = "block"
    """Flow model: blocks with a context of fixed length (`flow`), or the paper's (`published`), which needs HiFT."""
    speakers: bool = False
    """Whether to learn the voice of each speaker that the manifests name, instead of one voice."""
    init: Path | None = None
    """Decoder of the same tokenizer and shape to continue from, such as one of many voices."""
    teacher: Path | None = None
    """Decoder of the same tokenizer and shape whose samples are imitated in `flow.euler_steps` steps, one or two,
    without guidance (`flow.guidance` = 0). Training starts from it unless `init` is set."""
    vocoder: Path | None = None
    """Directory of a trained vocoder, which becomes a part of the decoder; not set: that of `init`, or Griffin-Lim."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    """The mel spectrogram, not used with `vocoder` or `init`, which have their own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, lr=4e-3))
    average_decay: Decay = 0.0
    """Decay of the moving average of the weights, which is the result; 0: the last weights."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the saved weights, of the vocoder too; they are computed in fp32."""
    batch_windows: PositiveInt = 32
    """Windows per batch: each is a block and its context, 1.28 s. Of the kind "published", clips."""
    max_bad_fraction: Annotated[Fraction, NOT_IN_PLAN] = 0.01
    """Fraction of utterances without readable audio above which training does not start."""
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, memory and training time."""


class Dataset(Protocol):
    """The data of a training, and the utterances that are left out."""

    skipped: Skipped
    num_codes: int

    def batch_at(self, step: int, part: slice) -> Any:
        """Return a part of the batch of a step."""


@dataclass(frozen=True)
class Training:
    """A decoder and its flow model, which is trained in place."""

    decoder: SpeechDecoder
    flow: nn.Module
    dataset: Dataset
    loss_of: Callable[[Any], dict[str, Tensor]]
    """The losses of a batch on the device of the flow model."""


NewModel = Callable[[], tuple[nn.Module, Callable[[int], None]]]
"""Creates a flow model, and a function that computes its loss for a number of items."""
