"""What the training of a decoder needs for a flow model of blocks (`weft.decoder.flow`).

check(config)
training = new_training(config, audio)          # decoder, flow model, data and loss
flow, forward = new_forward(config)             # for an estimate
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from weft.decoder.config import DecoderConfig, NewModel, Training
from weft.decoder.dataset import DecoderDataset
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowBatch, FlowDecoder
from weft.decoder.init import load_base, start_from
from weft.decoder.load import load_vocoder
from weft.decoder.vocoder import Vocoder
from weft.device import default_device
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.artifact import load_bottleneck_config
from weft.tokenizer.encoder import ENCODER_HZ


def check(config: DecoderConfig) -> None:
    """Raise UserError for settings that do not fit together."""
    if config.teacher and config.flow.guidance:
        raise UserError("teacher needs a decoder without guidance: set flow.guidance to 0")


def new_training(config: DecoderConfig, audio: Sequence[Utterance]) -> Training:
    """Return a decoder with random weights or those of `init` or `teacher`, and its data."""
    config, vocoder = with_vocoder(config)
    names = speakers_of(audio) if config.speakers else []
    flow = new_flow_decoder(config, len(names))
    decoder = SpeechDecoder(flow, config.mel, vocoder=vocoder, speakers=names)
    dataset = DecoderDataset(
        decoder, config.codes, audio, config.batch_windows, config.train.seed, config.max_bad_fraction
    )
    teacher = load_base(config.teacher, config.flow, config.mel) if config.teacher else None
    base = load_base(config.init, config.flow, config.mel) if config.init else teacher
    if base:
        start_from(flow, base.flow, base.speakers == decoder.speakers)
    else:
        flow.initialize(*dataset.statistics())
    if teacher:
        imitated = teacher.to(default_device()).flow
        return Training(decoder, flow, dataset, lambda batch: flow.distillation_loss(batch, imitated))
    return Training(decoder, flow, dataset, flow.loss)


def with_vocoder(config: DecoderConfig) -> tuple[DecoderConfig, Vocoder | None]:
    """Return the vocoder, and the configuration with its mel spectrogram.

    Without one, both are those of the decoder to continue from, if any. Raises UserError for HiFT.
    """
    if config.vocoder:
        vocoder = load_vocoder(config.vocoder)
        if not isinstance(vocoder, Vocoder):
            raise UserError(f'{config.vocoder} is HiFT, for decoders of kind = "published": give another vocoder')
        return replace(config, mel=vocoder.spectrogram.config), vocoder
    if folder := config.init or config.teacher:
        decoder = SpeechDecoder.from_pretrained(folder, device="cpu")
        return replace(config, mel=decoder.mel), decoder.vocoder if isinstance(decoder.vocoder, Vocoder) else None
    return config, None


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


def for_estimate(config: DecoderConfig) -> NewModel:
    """Return a function that creates a flow model, and one that computes its loss for a number of windows."""
    config, _ = with_vocoder(config)

    def new_model() -> tuple[FlowDecoder, Callable[[int], None]]:
        flow = new_flow_decoder(config)

        def forward(windows: int) -> None:
            codes = torch.zeros(windows, config.flow.before_codes + config.flow.block_codes, dtype=torch.int64)
            mel = torch.zeros(*codes.shape, flow.values_per_code)
            noise, time = mel[:, config.flow.before_codes :], torch.zeros(windows)
            flow.loss(FlowBatch(codes, mel, noise, time, time > 0, codes[:, 0]))

        return flow, forward

    return new_model
