"""Codes and mel spectrograms of a voice as training windows.

All mel spectrograms are computed once and kept in memory, 10 kB per second of speech. A window is a block and the codes
before it, anywhere in an utterance. Some steps use shorter blocks, as they occur at the start and the end of speech.

Shapes: W codes of all utterances with their contexts, K codes, P mel values of a code, T mel frames, M bands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft import progress
from weft.data.datasets import Rows
from weft.data.skipped import Skipped
from weft.data.speech import load_speech
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowBatch
from weft.decoder.mel import SILENCE, MelSpectrogram
from weft.errors import UserError
from weft.records import CodedUtterance, Utterance

_FULL_BLOCK_FRACTION = 0.7  # of training steps; the others use shorter blocks


class DecoderDataset:
    """Codes and mel spectrograms of utterances, concatenated, each after a context of the padding code."""

    def __init__(
        self,
        decoder: SpeechDecoder,
        codes: Sequence[Path],
        audio: Sequence[Utterance],
        batch_windows: int,
        seed: int,
        max_bad_fraction: float,
    ) -> None:
        """Read codes, and compute the mel spectrograms of their audio, which is found by id.

        Raises UserError if no utterance with audio is as long as a block.
        """
        self._batch_windows, self._seed, self._flow = batch_windows, seed, decoder.flow.config
        self._padding_code, self._num_mels = decoder.num_codes, decoder.mel.num_mels
        self._context = self._flow.context_codes
        self.skipped = Skipped()
        spectrogram, utterances, mels, speakers = MelSpectrogram(decoder.mel), [], [], []
        for found in read_pairs(codes, audio, decoder, spectrogram, self.skipped):
            utterances.append(found.codes)
            mels.append(found.mel.unflatten(0, (len(found.codes), -1)).flatten(1))
            speakers.append(found.speaker)
        row_of = {name: row for row, name in enumerate(decoder.speakers, 1)}
        self._speakers = torch.tensor([row_of.get(name or "", 0) for name in speakers])
        self._voices = dict[str | int, list[int]]()  # utterances of each speaker, or of one utterance if it is unknown
        for row, name in enumerate(speakers):
            self._voices.setdefault(row if name is None else name, []).append(row)
        self._voice_of = [row if name is None else name for row, name in enumerate(speakers)]
        self.lengths = np.array([len(c) for c in utterances])
        if not len(self.lengths) or self.lengths.max() < self._flow.block_codes:
            self.skipped.check(max_bad_fraction)
            raise UserError(
                f"no utterance with audio has the {self._flow.block_codes} codes of a block: give longer ones"
            )
        self.num_codes = int(self.lengths.sum())
        self._codes = torch.cat([F.pad(c, (self._context, 0), value=self._padding_code) for c in utterances])  # (W,)
        self._mel = torch.cat([F.pad(m, (0, 0, self._context, 0), value=SILENCE) for m in mels])  # (W, P)
        self._first = np.cumsum(self.lengths + self._context) - self.lengths - self._context

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean mel of each code and of padding (K + 1, P), and mean and deviation of each band (P,)."""
        mel, is_speech = self._mel.float(), self._codes != self._padding_code
        bands = mel[is_speech].unflatten(1, (-1, self._num_mels)).flatten(0, 1)
        repeats = mel.shape[1] // bands.shape[1]
        mean, std = bands.mean(0).repeat(repeats), bands.std(0).clamp(min=1e-3).repeat(repeats)
        counts = torch.bincount(self._codes, minlength=self._padding_code + 1)[:, None]
        sums = mel.new_zeros(self._padding_code + 1, mel.shape[1]).index_add_(0, self._codes, mel)
        return (sums + mean) / (counts + 1), mean, std  # a code that never occurs gets the mean

    def batch_at(self, step: int, part: slice = slice(None)) -> FlowBatch | None:
        """Return windows `part` of a step, from random positions where a block of its size fits; None for no window."""
        rng = np.random.default_rng((self._seed, step))
        full, size = self._flow.block_codes, self._batch_windows
        block = full if rng.random() < _FULL_BLOCK_FRACTION else int(rng.integers(1, full + 1))
        counts = np.maximum(self.lengths - block + 1, 0)  # of positions in each utterance
        ends = np.cumsum(counts)
        drawn = rng.integers(0, ends[-1], size)
        utterance = np.searchsorted(ends, drawn, side="right")
        start = self._first[utterance] + drawn - (ends - counts)[utterance]
        window = torch.from_numpy(start[:, None] + np.arange(self._context + block))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        noise = torch.randn(size, block, self._mel.shape[1], generator=generator)
        time, dropout = torch.rand(size, generator=generator), torch.rand(size, generator=generator)
        codes, mel = self._codes[window], self._mel[window].float()
        if self._flow.prompt_codes:
            prompts = [self._prompt(row, rng) for row in utterance.tolist()]
            codes = torch.cat([torch.stack([codes for codes, _ in prompts]), codes], dim=1)
            mel = torch.cat([torch.stack([mel for _, mel in prompts]), mel], dim=1)
        known = torch.from_numpy(rng.random(size) >= self._flow.voice_dropout)
        if not len(window[part]):
            return None
        return FlowBatch(
            codes=codes[part],
            mel=mel[part],
            noise=noise[part],
            time=time[part],
            dropped=dropout[part] < self._flow.condition_dropout,
            speakers=(self._speakers[utterance] * known)[part],
        )

    def _prompt(self, utterance: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return codes (Q,) and mel (Q, P) of a voice prompt: a part of another utterance of the voice, if any.

        It is padded in front if it is too short, and completely if it is dropped.
        """
        num, rows = self._flow.prompt_codes, self._voices[self._voice_of[utterance]]
        index, start = int(rng.integers(len(rows))), rng.random()
        row = rows[index] if rows[index] != utterance else rows[index - 1]
        length = 0 if rng.random() < self._flow.voice_dropout else min(num, int(self.lengths[row]))
        first = int(self._first[row]) + self._context + int(start * (int(self.lengths[row]) - length + 1))
        codes, mel = self._codes[first : first + length], self._mel[first : first + length].float()
        return (
            F.pad(codes, (num - length, 0), value=self._padding_code),
            F.pad(mel, (0, 0, num - length, 0), value=SILENCE),
        )


@dataclass(frozen=True)
class Pair:
    """Codes (N,) of an utterance, the log-mel frames (T, M) in fp16 of its recording, and the speaker."""

    codes: Tensor
    mel: Tensor
    speaker: str | None


def read_pairs(
    codes: Sequence[Path],
    audio: Sequence[Utterance],
    decoder: SpeechDecoder,
    spectrogram: MelSpectrogram,
    skipped: Skipped,
) -> Iterator[Pair]:
    """Yield the utterances whose audio, found by id, can be read and fits their codes."""
    by_id, rows = {u.id: u for u in audio}, Rows.of(*codes)
    with progress.bar("mel", len(rows)) as advance:
        for utterance in rows.utterances():
            advance()
            pair = None
            with skipped.on_error(utterance.id):
                mel = _mel(utterance, by_id.get(utterance.id), decoder.samples_per_code, spectrogram)
                ids = torch.tensor(decoder.check_codes(utterance.codes))
                pair = Pair(ids, mel.half(), by_id[utterance.id].speaker)
                skipped.num_good += 1
            if pair is not None:
                yield pair


def _mel(
    utterance: CodedUtterance, audio: Utterance | None, samples_per_code: int, spectrogram: MelSpectrogram
) -> Tensor:
    """Return the log-mel frames (T, M) of an utterance. Raises UserError if its audio is missing or does not fit."""
    if audio is None:
        raise UserError("the audio manifests have no utterance with this id")
    samples = load_speech(audio, spectrogram.config.sample_rate_hz)
    num_samples = len(utterance.codes) * samples_per_code
    if abs(num_samples - len(samples)) > samples_per_code:
        raise UserError(
            f"{audio.audio} has {len(samples)} samples, but its {len(utterance.codes)} codes need {num_samples}: give "
            "the audio that was tokenized"
        )
    padded = np.pad(samples, (0, max(0, num_samples - len(samples))))[:num_samples]
    padded = np.pad(padded, (0, -num_samples % spectrogram.config.hop_samples))
    return spectrogram(torch.from_numpy(padded)[None])[0]
