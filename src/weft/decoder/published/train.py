"""What the training of a decoder needs for the paper's flow model.

    check(config)
    training = new_training(config, audio)          # decoder, flow model, data and loss
    flow, forward = for_estimate(config)()          # the flow model alone, and a function that computes its loss

Its vocoder is HiFT, trained by `weft train-vocoder`, or that of a decoder to continue from, such as an imported one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from weft.decoder.config import DecoderConfig, NewModel, Training
from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.load import load_vocoder
from weft.decoder.published.dataset import PublishedDataset
from weft.decoder.published.flow import PublishedBatch, PublishedConfig, PublishedFlow
from weft.decoder.published.hift import HiFT
from weft.errors import UserError
from weft.records import Utterance
from weft.tokenizer.artifact import load_bottleneck_config
from weft.tokenizer.encoder import ENCODER_HZ


def check(config: DecoderConfig) -> None:
    """Raise UserError for settings that do not fit together."""
    for name in ("speakers", "teacher"):
        if getattr(config, name):
            raise UserError(f'decoders of kind = "published" have no {name}: remove it')
    if not config.vocoder and not config.init:
        raise UserError(
            'a decoder of kind = "published" needs vocoder, trained by weft train-vocoder with kind = "hift", or init'
        )
    base, mel = load_init(config), vocoder_of(config).spectrogram.config
    if base and base.mel != mel:
        raise UserError(f"{config.vocoder} has another mel spectrogram than {config.init}: leave out vocoder")


def new_training(config: DecoderConfig, audio: Sequence[Utterance]) -> Training:
    """Return a decoder with random weights or those of `init`, and its data."""
    base, vocoder = load_init(config), vocoder_of(config)
    flow = new_flow(config, vocoder)
    if base:
        flow.load_state_dict(base.published.state_dict())
    decoder = PublishedDecoder(flow, vocoder)
    dataset = PublishedDataset(
        decoder, config.codes, audio, config.batch_windows, config.train.seed, config.max_bad_fraction
    )
    return Training(decoder, flow, dataset, flow.loss)


def load_init(config: DecoderConfig) -> PublishedDecoder | None:
    """Return the decoder to continue from. Raises UserError if it has another shape."""
    if not config.init:
        return None
    decoder = SpeechDecoder.from_pretrained(config.init, device="cpu")
    if not isinstance(decoder, PublishedDecoder):
        raise UserError(f'{config.init} is of kind = "block": set this kind, or give a decoder of kind = "published"')
    if _shape(decoder.published.config) != _shape(config.published):
        raise UserError(f"{config.init} has another shape ({decoder.published.config}): give its settings [published]")
    return decoder


def _shape(config: PublishedConfig) -> tuple[object, ...]:
    return config.encoder, config.estimator, config.speaker_width


def vocoder_of(config: DecoderConfig) -> HiFT:
    """Return the vocoder. Raises UserError if it is not HiFT."""
    if not config.vocoder:
        base = load_init(config)
        assert base is not None, "check was not called"
        return base.hift
    vocoder = load_vocoder(config.vocoder)
    if not isinstance(vocoder, HiFT):
        raise UserError(f'{config.vocoder} is not HiFT: give a vocoder trained with kind = "hift"')
    return vocoder


def new_flow(config: DecoderConfig, vocoder: HiFT) -> PublishedFlow:
    """Return a flow model with random weights."""
    bottleneck = load_bottleneck_config(config.tokenizer)
    num_codes, rate_hz = bottleneck.quantizer.num_codes, ENCODER_HZ / bottleneck.pooling
    return PublishedFlow(config.published, num_codes, rate_hz, vocoder.spectrogram.config)


def for_estimate(config: DecoderConfig) -> NewModel:
    """Return a function that creates a flow model, and one that computes its loss for a number of longest clips."""
    vocoder = vocoder_of(config)
    num_codes = config.published.max_clip_blocks * config.published.encoder.block_codes

    def new_model() -> tuple[PublishedFlow, Callable[[int], None]]:
        flow = new_flow(config, vocoder)

        def forward(clips: int) -> None:
            codes = torch.zeros(clips, num_codes, dtype=torch.int64)
            mel, time = torch.zeros(clips, flow.mel.num_mels, flow.num_frames(num_codes)), torch.zeros(clips)
            flow.loss(PublishedBatch(codes, mel, mel, time, codes[:, 0], time > 0))

        return flow, forward

    return new_model
