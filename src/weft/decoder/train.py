"""Training of the speech decoder on the codes and the recordings of a voice: `weft train-decoder`.

manifest = run(DecoderConfig(out=..., codes=(...,), audio=(...,), tokenizer=..., train=TrainConfig(steps=600)))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from weft import launch, progress
from weft.artifacts import Manifest, read_parent, require_parent
from weft.config import NOT_IN_PLAN, Decay, Fraction, PositiveInt
from weft.data.datasets import codes_parents
from weft.data.speech import read_manifest, speech_id
from weft.decoder.dataset import DecoderDataset
from weft.decoder.decoder import KIND, SpeechDecoder
from weft.decoder.flow import FlowBatch, FlowConfig, FlowDecoder
from weft.decoder.init import load_base, start_from
from weft.decoder.mel import MelConfig
from weft.decoder.vocoder import KIND as VOCODER
from weft.decoder.vocoder import Vocoder
from weft.device import default_device
from weft.errors import UserError
from weft.plan import Draft, Plan
from weft.records import Utterance
from weft.tokenizer.artifact import load_bottleneck_config
from weft.tokenizer.encoder import ENCODER_HZ
from weft.training import distributed
from weft.training.average import Averaged
from weft.training.config import TrainConfig
from weft.training.estimate import Estimate, Memory
from weft.training.loop import discard_checkpoints, fit


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
    speakers: bool = False
    """Whether to learn the voice of each speaker that the manifests name, instead of one voice."""
    init: Path | None = None
    """Decoder of the same tokenizer and shape to continue from, such as one of many voices."""
    teacher: Path | None = None
    """Decoder of the same tokenizer and shape whose samples are imitated in `flow.euler_steps` steps, one or two,
    without guidance (`flow.guidance` = 0). Training starts from it unless `init` is set."""
    vocoder: Path | None = None
    """Directory of a trained vocoder, which becomes a part of the decoder; not set: Griffin-Lim."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    """The mel spectrogram, not used with `vocoder`, which has its own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, lr=4e-3))
    average_decay: Decay = 0.0
    """Decay of the moving average of the weights, which is the result; 0: the last weights."""
    batch_windows: PositiveInt = 32
    """Windows per batch: each is a block and its context, 1.28 s."""
    max_bad_fraction: Annotated[Fraction, NOT_IN_PLAN] = 0.01
    """Fraction of utterances without readable audio above which training does not start."""
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, memory and training time."""


def run(config: DecoderConfig) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    Raises UserError for codes of another tokenizer, for missing or too much unreadable audio, and for a mel spectrogram
    without a whole number of frames per code.
    """
    if config.dry_run:
        if launch.rank() == 0:
            progress.show(*estimate(config).lines({}))
        return None
    distributed.init()
    if config.teacher and config.flow.guidance:
        raise UserError("teacher needs a decoder without guidance: set flow.guidance to 0")
    config, vocoder = with_vocoder(config)
    parents = distributed.compute_once(lambda: _parents(config))
    audio = read_manifest(*config.audio)
    plan = Plan.of(KIND, config, parents, audio=distributed.compute_once(lambda: speech_id(audio)))
    return distributed.create(config.out, plan, lambda draft: _train(config, audio, vocoder, draft))


def _parents(config: DecoderConfig) -> dict[str, Manifest]:
    """Return the manifests of all inputs. Raises UserError for decoders of another tokenizer."""
    parents = codes_parents(config.codes, config.tokenizer)
    if config.vocoder:
        parents |= {"vocoder": read_parent(config.vocoder, VOCODER)}
    for name, folder in (("init", config.init), ("teacher", config.teacher)):
        if folder:
            parents |= {name: read_parent(folder, KIND)}
            require_parent(parents[name], "tokenizer", parents["tokenizer"])
    return parents


def _train(config: DecoderConfig, audio: Sequence[Utterance], vocoder: Vocoder | None, draft: Draft) -> None:
    """Train a decoder and write it into the draft."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        names = speakers_of(audio) if config.speakers else []
        decoder = SpeechDecoder(new_flow_decoder(config, len(names)), config.mel, vocoder=vocoder, speakers=names)
        dataset = DecoderDataset(
            decoder, config.codes, audio, config.batch_windows, config.train.seed, config.max_bad_fraction
        )
        dataset.skipped.check(config.max_bad_fraction, draft.folder / "log/skipped.jsonl")
        dataset.skipped.write(draft.folder / "log/skipped.jsonl")
        teacher = load_base(config.teacher, config.flow, config.mel) if config.teacher else None
        base = load_base(config.init, config.flow, config.mel) if config.init else teacher
        if base:
            start_from(decoder.flow, base.flow, base.speakers == decoder.speakers)
        else:
            decoder.flow.initialize(*dataset.statistics())
        decoder.to(default_device())
        _fit(config, decoder.flow, teacher.flow.to(default_device()) if teacher else None, dataset, draft.folder)
        if distributed.is_main_process():
            decoder.write_files(draft.folder)
        discard_checkpoints(draft.folder)
        draft.counts["parameters"] = sum(p.numel() for p in decoder.flow.parameters())
        draft.counts["utterances"] = dataset.skipped.num_good
        draft.counts["skipped_utterances"] = dataset.skipped.num_bad
        draft.counts["seconds"] = dataset.num_codes * decoder.samples_per_code / decoder.sample_rate_hz


def _fit(
    config: DecoderConfig, flow: FlowDecoder, teacher: FlowDecoder | None, dataset: DecoderDataset, folder: Path
) -> None:
    """Train a model in place; its weights are then the average, if there is one."""
    averaged = Averaged(flow) if config.average_decay else None

    def losses(_: nn.Module, batch: FlowBatch) -> dict[str, Tensor]:
        batch = batch.to(flow.mean.device)
        return flow.distillation_loss(batch, teacher) if teacher else flow.loss(batch)

    def after_step(_: int, updated: bool) -> dict[str, float]:
        if averaged and updated:
            averaged.update(config.average_decay)
        return {}

    fit(averaged or flow, dataset.batch_at, losses, config.train, folder, "decoder", after_step=after_step)
    if averaged:
        flow.load_state_dict(averaged.average.model.state_dict())


def with_vocoder(config: DecoderConfig) -> tuple[DecoderConfig, Vocoder | None]:
    """Return a configuration with the mel spectrogram of its vocoder, and the vocoder."""
    if config.vocoder is None:
        return config, None
    vocoder = Vocoder.from_pretrained(config.vocoder)
    return replace(config, mel=vocoder.spectrogram.config), vocoder


def speakers_of(audio: Iterable[Utterance]) -> list[str]:
    """Return the names of all speakers. Raises UserError if there are none."""
    names = sorted({u.speaker for u in audio if u.speaker})
    if not names:
        raise UserError("speakers is true, but no manifest names a speaker: add `speaker`, or remove speakers")
    return names


def new_flow_decoder(config: DecoderConfig, num_speakers: int = 0) -> FlowDecoder:
    """Return a model with random weights. Raises UserError if a code is not a whole number of mel frames."""
    mel, bottleneck = config.mel, load_bottleneck_config(config.tokenizer)
    frames, remainder = divmod(mel.sample_rate_hz * bottleneck.pooling, ENCODER_HZ * mel.hop_samples)
    if remainder:
        rate_hz = ENCODER_HZ / bottleneck.pooling
        raise UserError(
            f"mel.hop_samples is {mel.hop_samples} at {mel.sample_rate_hz} Hz, not a whole number of frames per "
            f"code at {rate_hz:g} codes per second: give a divisor of {mel.sample_rate_hz / rate_hz:g}"
        )
    return FlowDecoder(config.flow, bottleneck.quantizer.num_codes, frames * mel.num_mels, num_speakers)


def estimate(config: DecoderConfig) -> Estimate:
    """Return the estimate of training by `config`."""
    config, _ = with_vocoder(config)
    with FakeTensorMode():
        flow = new_flow_decoder(config)

        def forward(windows: int) -> None:
            codes = torch.zeros(windows, config.flow.before_codes + config.flow.block_codes, dtype=torch.int64)
            mel = torch.zeros(*codes.shape, flow.values_per_code)
            noise, time = mel[:, config.flow.before_codes :], torch.zeros(windows)
            flow.loss(FlowBatch(codes, mel, noise, time, time > 0, codes[:, 0]))

        with FlopCounterMode(display=False) as counter:
            forward(1)
        memory = Memory.of(flow, forward, config.train)
    flops = 3 * counter.get_total_flops() * config.batch_windows * config.train.steps
    parameters = sum(p.numel() for p in flow.parameters())
    return Estimate(parameters, memory, flops, config.train, config.batch_windows, "window")
