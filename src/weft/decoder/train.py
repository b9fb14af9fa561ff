"""Training the speech decoder: codes and the recordings they came from, to a decoder of that voice.

    manifest = run(DecoderConfig(out=..., codes=(...,), audio=(...,), tokenizer=..., train=TrainConfig(steps=600)))

All mel spectrograms are computed once and kept in memory, 10 kB a second of speech. A training window is a block and
the codes before it, anywhere in an utterance; some steps take shorter blocks, as at the beginning and the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.audio import load
from weft.config import Count, Share, settings_of
from weft.data.corpus import read_manifest
from weft.data.shards import Rows
from weft.data.skipped import Skipped
from weft.decoder.decoder import KIND, SpeechDecoder
from weft.decoder.flow import FlowBatch, FlowConfig, FlowDecoder
from weft.decoder.vocoder import SILENCE, MelConfig, MelSpectrogram
from weft.errors import UserError
from weft.records import CodedUtterance
from weft.training import distributed
from weft.training.loop import TrainConfig, discard_checkpoints, fit

_ENCODER_HZ = 50  # Whisper's encoder frames, of which a tokenizer pools a few into a code
_WHOLE_BLOCK_SHARE = 0.7  # of training steps; the others take shorter blocks


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is trained from."""

    out: Path
    """Folder of the decoder to make."""
    codes: tuple[Path, ...]
    """Codes of the voice's recordings."""
    audio: tuple[Path, ...]
    """Manifests (or folders) of the recordings, found by the ids that the codes have."""
    tokenizer: Path
    """Folder of the speech tokenizer that made the codes."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, lr=4e-3))
    batch_windows: Count = 32
    """Windows in a batch: each is a block and its context, 1.28 s."""
    max_bad_share: Share = 0.01
    """Share of utterances without readable sound above which training does not start."""


def run(config: DecoderConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError for codes of another tokenizer, for sound that is missing or too often bad, and for a mel
    spectrogram of which no whole number of frames makes a code.
    """
    tokenizer = artifacts.read(config.tokenizer, "tokenizer")
    parents = {"tokenizer": tokenizer}
    for folder in config.codes:
        artifacts.require_parent(artifacts.read(folder, "codes"), "tokenizer", tokenizer)
    settings = settings_of(config, leave_out=("out", "max_bad_share"))
    if artifacts.is_made(config.out, KIND, settings, parents):
        return artifacts.read(config.out)
    with distributed.build(config.out, KIND, settings, parents) as draft, torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        decoder = untrained(config, tokenizer)
        voice = Voice(decoder, config)
        voice.skipped.check(config.max_bad_share, draft.folder / "log/skipped.jsonl")
        voice.skipped.write(draft.folder / "log/skipped.jsonl")
        decoder.flow.start_from(*voice.statistics())
        fit(decoder.flow, voice.batch_at, _losses, config.train, draft.folder, "decoder")
        if distributed.is_first():
            decoder.save(draft.folder)
        discard_checkpoints(draft.folder)
        draft.counts["parameters"] = sum(p.numel() for p in decoder.flow.parameters())
        draft.counts["utterances"] = voice.skipped.num_good
        draft.counts["skipped_utterances"] = voice.skipped.num_bad
        draft.counts["seconds"] = voice.num_codes * decoder.samples_per_code / decoder.sample_rate_hz
    return artifacts.read(config.out)


def untrained(config: DecoderConfig, tokenizer: Manifest) -> SpeechDecoder:
    """A decoder for the codes of `tokenizer`, not trained. Raises UserError where frames and codes do not meet."""
    mel = config.mel
    with artifacts.loading(config.tokenizer, "a tokenizer"):
        pooling = tokenizer.settings["model"]["pooling"]
        num_codes = tokenizer.settings["model"]["quantizer"]["num_codes"]
    frames, left_over = divmod(mel.sample_rate_hz * pooling, _ENCODER_HZ * mel.hop_samples)
    if left_over:
        rate_hz = _ENCODER_HZ / pooling
        raise UserError(
            f"mel.hop_samples is {mel.hop_samples} at {mel.sample_rate_hz} Hz, which makes no whole number of frames a "
            f"code at {rate_hz:g} codes a second: choose a divisor of {mel.sample_rate_hz / rate_hz:g}"
        )
    flow = FlowDecoder(config.flow, num_codes, frames * mel.num_mels)
    return SpeechDecoder(flow, mel)


def _losses(flow: nn.Module, batch: FlowBatch) -> dict[str, Tensor]:
    assert isinstance(flow, FlowDecoder)
    return flow.loss(batch)


class Voice:
    """Codes and mel spectrograms of one voice, laid end to end, each utterance after a context of nothing.

    Shapes: W codes of all utterances and contexts, P mel values of a code.
    """

    def __init__(self, decoder: SpeechDecoder, config: DecoderConfig) -> None:
        self._config = config
        self._nothing = decoder.num_codes
        self._context = config.flow.context_codes
        self.skipped = Skipped()
        codes, mels = self._read(decoder)
        self.lengths = np.array([len(c) for c in codes])
        if not len(self.lengths) or self.lengths.max() < config.flow.block_codes:
            self.skipped.check(config.max_bad_share)
            raise UserError(
                f"no utterance with sound is as long as a block of {config.flow.block_codes} codes: give longer ones"
            )
        self.num_codes = int(self.lengths.sum())
        self._codes = torch.cat([F.pad(c, (self._context, 0), value=self._nothing) for c in codes])  # (W,)
        self._mel = torch.cat([F.pad(m, (0, 0, self._context, 0), value=SILENCE) for m in mels])  # (W, P)
        self._first = np.cumsum(self.lengths + self._context) - self.lengths - self._context

    def _read(self, decoder: SpeechDecoder) -> tuple[list[Tensor], list[Tensor]]:
        sounds = {u.id: u.audio for u in read_manifest(*self._config.audio)}
        rows = Rows.of(*self._config.codes)
        spectrogram = decoder.vocoder.spectrogram
        codes, mels = [], []
        with progress.bar("mel", len(rows)) as advance:
            for utterance in rows.utterances():
                advance()
                try:
                    mel = _mel(utterance, sounds.get(utterance.id), decoder.samples_per_code, spectrogram)
                except UserError as e:
                    self.skipped.add(utterance.id, str(e))
                    continue
                self.skipped.num_good += 1
                codes.append(torch.tensor(decoder.checked(utterance.codes)))
                mels.append(mel.unflatten(0, (len(utterance.codes), -1)).flatten(1).half())
        return codes, mels

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean mel of each code, and of nothing, (K + 1, P), and the mean and deviation of each band (P,)."""
        mel, real = self._mel.float(), self._codes != self._nothing
        bands = mel[real].unflatten(1, (-1, self._config.mel.num_mels)).flatten(0, 1)
        repeats = mel.shape[1] // bands.shape[1]
        mean, std = bands.mean(0).repeat(repeats), bands.std(0).clamp(min=1e-3).repeat(repeats)
        counts = torch.bincount(self._codes, minlength=self._nothing + 1)[:, None]
        sums = mel.new_zeros(self._nothing + 1, mel.shape[1]).index_add_(0, self._codes, mel)
        return (sums + mean) / (counts + 1), mean, std  # a code never met is average

    def batch_at(self, step: int, part: slice = slice(None)) -> FlowBatch | None:
        """A part of a step's windows, drawn evenly from all places where a block of the step's size fits."""
        rng = np.random.default_rng((self._config.train.seed, step))
        whole = self._config.flow.block_codes
        block = whole if rng.random() < _WHOLE_BLOCK_SHARE else int(rng.integers(1, whole + 1))
        size = self._config.batch_windows
        places = np.cumsum(np.maximum(self.lengths - block + 1, 0))
        drawn = rng.integers(0, places[-1], size)
        utterance = np.searchsorted(places, drawn, side="right")
        start = self._first[utterance] + drawn - (places - np.maximum(self.lengths - block + 1, 0))[utterance]
        window = torch.from_numpy(start[:, None] + np.arange(self._context + block))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        noise = torch.randn(size, block, self._mel.shape[1], generator=generator)
        time, hidden = torch.rand(size, generator=generator), torch.rand(size, generator=generator)
        window = window[part]
        if not len(window):
            return None
        return FlowBatch(
            codes=self._codes[window],
            mel=self._mel[window].float(),
            noise=noise[part],
            time=time[part],
            hidden=hidden[part] < self._config.flow.condition_dropout,
        )


def _mel(utterance: CodedUtterance, path: str | None, samples_per_code: int, spectrogram: MelSpectrogram) -> Tensor:
    """Log-mel frames (T, M) of an utterance. Raises UserError where sound is missing or not as long as its codes."""
    if path is None:
        raise UserError("the audio manifests have no such id")
    samples = load(path, spectrogram.config.sample_rate_hz)
    num_samples = len(utterance.codes) * samples_per_code
    if abs(num_samples - len(samples)) > samples_per_code:
        raise UserError(f"{path} has {len(samples)} samples, and {len(utterance.codes)} codes last {num_samples}")
    padded = np.pad(samples, (0, max(0, num_samples - len(samples))))[:num_samples]
    return spectrogram(torch.from_numpy(padded)[None])[0]
