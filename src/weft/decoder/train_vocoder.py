"""Training of a vocoder on recordings of any voices: `weft train-vocoder`.

manifest = run(VocoderConfig(out=..., audio=(...,), train=TrainConfig(steps=20_000, lr=5e-4)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from weft import launch, progress
from weft.artifacts import Manifest
from weft.config import NOT_IN_PLAN, Decay, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from weft.data.skipped import Skipped
from weft.data.speech import load_speech, read_manifest, readable, speech_id
from weft.decoder.clips import Clips
from weft.decoder.discriminators import DiscriminatorShape
from weft.decoder.mel import MelConfig
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.vocoder import KIND, Vocoder, VocoderShape
from weft.decoder.vocoder_loss import LossConfig, VocoderTraining
from weft.device import default_device
from weft.errors import UserError
from weft.plan import Draft, Plan
from weft.records import Utterance
from weft.training import distributed, parallel
from weft.training.config import TrainConfig
from weft.training.estimate import Estimate, Memory
from weft.training.loop import discard_checkpoints, fit
from weft.training.prefetch import Prefetch
from weft.training.unreadable import check_unreadable

_MIN_CLIP_SEC = 0.2


@dataclass(frozen=True)
class VocoderConfig:
    """Training of a vocoder."""

    out: Path
    """Output directory of the vocoder."""
    audio: tuple[Path, ...]
    """Manifests (or directories) of recordings. Transcripts are not needed."""
    held_out: tuple[Path, ...] = ()
    """Manifests (or directories) of recordings to measure the result on."""
    kind: Literal["convnext", "hift"] = "convnext"
    """Network: causal ConvNeXt blocks of the shape `shape`, or HiFT of the shape `hift`, for the paper's decoder."""
    shape: VocoderShape = field(default_factory=VocoderShape)
    hift: HiFTShape = field(default_factory=HiFTShape)
    mel: MelConfig = field(default_factory=MelConfig)
    discriminators: DiscriminatorShape = field(default_factory=DiscriminatorShape)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100_000, lr=5e-4))
    adversarial_from_step: NonNegativeInt = 5000
    """Number of initial steps with the distance of mel spectrograms only."""
    average_decay: Decay = 0.999
    """Decay of the moving average of the weights, which is the result."""
    batch_clips: PositiveInt = 16
    """Clips per batch."""
    clip_sec: PositiveFloat = 0.8
    """Duration of a clip in seconds, rounded to whole frames."""
    cache_gb: Annotated[NonNegativeFloat, NOT_IN_PLAN] = 4.0
    """Memory for audio in GB; the rest is read when a step needs it."""
    max_bad_fraction: Annotated[Fraction, NOT_IN_PLAN] = 0.01
    """Fraction of unreadable recordings above which training stops."""
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, memory and training time."""

    def __post_init__(self) -> None:
        if self.clip_sec < _MIN_CLIP_SEC:
            raise UserError(
                f"clip_sec is {self.clip_sec:g}: give at least {_MIN_CLIP_SEC:g}, for the windows of the losses"
            )
        if self.kind == "hift" and self.mel.hop_samples != self.hift.frame_samples:
            raise UserError(f"mel.hop_samples is {self.mel.hop_samples}: give {self.hift.frame_samples}, those of HiFT")

    @property
    def clip_frames(self) -> int:
        """Mel frames of a clip."""
        return max(1, round(self.clip_sec * self.mel.sample_rate_hz / self.mel.hop_samples))


def run(config: VocoderConfig) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    Counts: parameters, utterances, seconds and, with `held_out`, the mel distance. Raises UserError for missing or too
    much unreadable audio.
    """
    if config.dry_run:
        if launch.rank() == 0:
            progress.show(*estimate(config).lines({}))
        return None
    distributed.init()
    audio, held_out = read_manifest(*config.audio), read_manifest(*config.held_out)
    if config.held_out and not held_out:
        raise UserError("held_out has no recordings: add some, or remove held_out")
    ids = distributed.compute_once(lambda: [speech_id(us) for us in (audio, held_out)])
    plan = Plan.of(KIND, config, {}, audio=ids[0], held_out=ids[1])
    return distributed.create(config.out, plan, lambda draft: _train(config, audio, held_out, draft))


def _train(config: VocoderConfig, audio: Sequence[Utterance], held_out: Sequence[Utterance], draft: Draft) -> None:
    """Train a vocoder and write the average of its weights into the draft."""
    report, skipped = draft.folder / "log/skipped.jsonl", Skipped()
    measured = readable(held_out, skipped)  # before the training, which an unreadable recording would otherwise lose
    skipped.check(config.max_bad_fraction, draft.folder / "log/skipped_held_out.jsonl")
    skipped.write(draft.folder / "log/skipped_held_out.jsonl")
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        training = new_training(config)
        training.start_average()
        parallel.replicate_model(training, default_device())
        with Clips(
            audio, config.mel, config.clip_frames, config.batch_clips, config.train.seed, config.cache_gb
        ) as clips:
            clips.skipped.check(config.max_bad_fraction, report)
            clips.skipped.write(report)
            fit_vocoder(training, clips, config, draft.folder)
            num_good, unreadable = clips.skipped.num_good, draft.folder / "log/unreadable.jsonl"
            check_unreadable(clips.unreadable, num_good, unreadable, config.max_bad_fraction)
        vocoder = training.average.model.eval()
        draft.counts["parameters"] = sum(p.numel() for p in vocoder.parameters())
        draft.counts["utterances"] = clips.skipped.num_good
        draft.counts["skipped_utterances"] = clips.skipped.num_bad
        draft.counts["seconds"] = clips.seconds
        if distributed.is_main_process():
            vocoder.write_files(draft.folder)
            if measured:
                draft.counts["mel_distance"] = mel_distance(training, measured)
        discard_checkpoints(draft.folder)


def new_training(config: VocoderConfig) -> VocoderTraining:
    """Return a vocoder and discriminators with random weights."""
    kind = config.kind
    vocoder = HiFT(config.hift, config.mel) if kind == "hift" else Vocoder(config.shape, config.mel)
    return VocoderTraining(vocoder, config.discriminators, config.loss)


def fit_vocoder(training: VocoderTraining, clips: Clips, config: VocoderConfig, folder: Path) -> None:
    """Train in place."""
    device = next(training.parameters()).device
    current = 0

    def before_step(step: int) -> None:
        nonlocal current
        current = step

    def losses(model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, VocoderTraining)
        return model.losses(samples.to(device), adversarial=current >= config.adversarial_from_step)

    def after_step(_: int, updated: bool) -> dict[str, float]:
        if updated:
            training.average.update(training.vocoder, config.average_decay)
        return {}

    with Prefetch(clips.batch_at, config.train) as prefetch:
        fit(
            training, prefetch.batch_at, losses, config.train, folder, "vocoder",
            after_step=after_step, before_step=before_step,
        )  # fmt: skip


@torch.no_grad()
def mel_distance(training: VocoderTraining, utterances: Sequence[Utterance]) -> float:
    """Return the mean distance of the mel spectrograms of whole recordings and their resynthesis."""
    vocoder, distances = training.average.model, []
    rate_hz, hop = vocoder.spectrogram.config.sample_rate_hz, vocoder.hop_samples
    for utterance in utterances:
        samples = torch.from_numpy(load_speech(utterance, rate_hz)).to(vocoder.spectrogram.window.device)[None]
        num = max(samples.shape[1], int(_MIN_CLIP_SEC * rate_hz))
        samples = F.pad(samples, (0, -(-num // hop) * hop - samples.shape[1]))
        distances.append(float(training.distance(vocoder(vocoder.spectrogram(samples)), samples)))
    return sum(distances) / len(distances)


def estimate(config: VocoderConfig) -> Estimate:
    """Return the estimate of training by `config`, with its discriminators."""
    with FakeTensorMode():
        training = new_training(config)

        def forward(clips: int) -> None:
            training.losses(torch.zeros(clips, config.clip_frames * config.mel.hop_samples), adversarial=True)

        with FlopCounterMode(display=False) as counter:
            forward(1)
        memory = Memory.of(training, forward, config.train)
    flops = 3 * counter.get_total_flops() * config.batch_clips * config.train.steps
    parameters = sum(p.numel() for p in training.vocoder.parameters())
    return Estimate(parameters, memory, flops, config.train, config.batch_clips, "clip")
