"""Streams of a speech decoder, alone or many in one batch.

    stream = decoder.stream(seed=0)
    samples = stream.push(codes)                        # the audio of every block that is complete
    rest = stream.finish()

    for stream, codes in zip(streams, new_codes):       # streams of one decoder, in any state
        stream.add(codes)
    audio = decode_blocks(streams)                      # the same, with one call for all blocks of a size

A stream is a row only during a call, so streams join, leave and are dropped at any time, and each has its own state and
noise. Its audio is that of decoding it alone, apart from rounding.

Shapes: S samples, Q codes of a voice prompt, C context codes, N codes of a block, P mel values of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from weft.decoder.flow import FlowDecoder
from weft.decoder.griffin_lim import GriffinLim
from weft.decoder.mel import SILENCE
from weft.decoder.vocoder import Vocoder
from weft.errors import UserError

Codes = Sequence[int] | np.ndarray
_State = TypeVar("_State")


@dataclass(frozen=True)
class Voice:
    """A voice: the row of a speaker in the decoder's table, 0 for none, and codes (Q,) and mel (Q, P) of a prompt."""

    speaker: int = 0
    codes: Tensor | None = None
    mel: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """The models of a decoder, and the length of a code."""

    flow: FlowDecoder
    vocoder: Vocoder | GriffinLim
    mel_frames_per_code: int
    samples_per_code: int


class DecoderStream:
    """Incremental decoding of one utterance: every complete block yields its audio.

    Blocks begin at fixed codes, so any division into pushes gives the same bits as a single one, and the audio that is
    out never changes. The cost of a block does not depend on its position. The audio of a block ends
    `vocoder.delay_samples` before the block does, and `finish` returns the rest.
    """

    def __init__(self, parts: Parts, seed: int, voice: Voice) -> None:
        flow = parts.flow
        mean, context = flow.mean, flow.config.context_codes
        self.parts = parts
        self._pending: list[int] = []  # codes of an incomplete block
        self._codes = torch.full((1, context), flow.num_codes, device=mean.device)  # (1, C) before the next block
        self._mel = mean.new_full((1, context, len(mean)), SILENCE)  # (1, C, P) of these codes
        self._prompt_codes, self._prompt_mel = _padded(voice, flow)  # (1, Q) and (1, Q, P)
        self._speaker = torch.tensor([voice.speaker], device=mean.device)
        self._vocoder: Any = parts.vocoder.new_state(batch_size=1)
        self._generator = torch.Generator().manual_seed(seed)  # of the noise, which is drawn in the order of the codes
        self._num_decoded = 0
        self._num_early = parts.vocoder.delay_samples  # samples to come that precede the utterance
        self._ended = False

    def add(self, codes: Codes) -> None:
        """Take any number of codes. Raises UserError, without changing the state, for one outside the codebook."""
        assert not self._ended, "this stream has ended: start another"
        self._pending.extend(check_codes(codes, self.parts.flow.num_codes))

    def end(self) -> None:
        """Take no more codes, so that the remaining ones become a last, shorter block."""
        self._ended = True

    def push(self, codes: Codes) -> np.ndarray:
        """Take any number of codes; return the samples (S,) float32 of the blocks that they complete.

        Raises UserError, without changing the state, for a code outside the codebook.
        """
        self.add(codes)
        return decode_blocks([self])[0]

    def finish(self) -> np.ndarray:
        """Return the remaining samples and end the stream."""
        assert not self._ended, "this stream has ended: start another"
        self.end()
        return decode_blocks([self])[0]

    @property
    def num_ready(self) -> int:
        """Codes of the next block, 0 if it is not complete."""
        config = self.parts.flow.config
        size = config.block_codes if self._num_decoded else config.first_block_codes
        return size if len(self._pending) >= size else len(self._pending) if self._ended else 0

    def _take(self, num_codes: int) -> tuple[Tensor, ...]:
        """Remove the codes of the next block; return the inputs of its decoding, each with one row."""
        block = torch.tensor([self._pending[:num_codes]], device=self._codes.device)
        del self._pending[:num_codes]
        codes = torch.cat([self._prompt_codes, self._codes, block], dim=1)
        mel = torch.cat([self._prompt_mel, self._mel], dim=1)
        noise = self._noise(1, num_codes, mel.shape[2])
        self._codes = torch.cat([self._codes, block], dim=1)[:, num_codes:]
        return codes, mel, noise, self._speaker, self._noise(1, num_codes * self.parts.samples_per_code)

    def _put(self, mel: Tensor, samples: Tensor, state: Any) -> np.ndarray:
        """Keep what a block gives to the next: its mel (1, N, P) and the vocoder's state; return its audio (S,)."""
        num_codes = mel.shape[1]
        self._mel = torch.cat([self._mel, mel], dim=1)[:, num_codes:]
        self._vocoder = state
        self._num_decoded += num_codes
        audio = samples[0, self._num_early :].cpu().numpy()
        self._num_early -= samples.shape[1] - len(audio)
        return audio

    def _flush(self) -> np.ndarray:
        """Return the samples that the vocoder has not given yet, once; none without codes."""
        if self._vocoder is None or not self._num_decoded:
            return np.zeros(0, np.float32)
        last = self.parts.vocoder.flush(self._vocoder)[0, self._num_early :].cpu().numpy()
        self._vocoder = None
        return last

    def _noise(self, *shape: int) -> Tensor:
        """Return normal noise, the same on any device."""
        return torch.randn(shape, generator=self._generator).to(self._mel.device)


@torch.no_grad()
def decode_blocks(streams: Sequence[DecoderStream]) -> list[np.ndarray]:
    """Decode all complete blocks of some streams of one decoder; return the samples (S,) of each.

    Blocks of one size are decoded in one call. Streams that have ended also return their last samples.
    """
    audio: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] for _ in streams]
    while by_size := _ready(streams):
        for size, rows in by_size.items():
            for row, samples in zip(rows, _decode([streams[row] for row in rows], size), strict=True):
                audio[row].append(samples)
    for stream, parts in zip(streams, audio, strict=True):
        if stream._ended:
            parts.append(stream._flush())
    return [np.concatenate(parts) for parts in audio]


def _ready(streams: Sequence[DecoderStream]) -> dict[int, list[int]]:
    """Return the indices of streams with a complete block, by its size."""
    by_size: dict[int, list[int]] = {}
    for row, stream in enumerate(streams):
        if size := stream.num_ready:
            by_size.setdefault(size, []).append(row)
    return by_size


def _decode(streams: Sequence[DecoderStream], num_codes: int) -> list[np.ndarray]:
    """Decode the next block of each stream, all of one size; return their samples."""
    parts = streams[0].parts
    assert all(stream.parts is parts for stream in streams), "streams of different decoders"
    codes, before, noise, speakers, start = map(
        torch.cat, zip(*(stream._take(num_codes) for stream in streams), strict=True)
    )
    mel = parts.flow.sample(codes, before, noise, speakers)
    frames = mel.unflatten(2, (parts.mel_frames_per_code, -1)).flatten(1, 2)
    state: Any = _joined([stream._vocoder for stream in streams])
    samples = parts.vocoder.push(state, frames, start)
    states = _separated(state, len(streams))
    rows = zip(streams, mel.split(1), samples.split(1), states, strict=True)
    return [stream._put(row_mel, row_samples, row_state) for stream, row_mel, row_samples, row_state in rows]


def _joined(states: Sequence[_State]) -> _State:
    """Return dataclasses of tensors, or of lists of them, as one whose tensors have all rows."""
    if len(states) == 1:
        return states[0]

    def join(values: Sequence[Any]) -> Any:
        return [*map(torch.cat, zip(*values, strict=True))] if isinstance(values[0], list) else torch.cat([*values])

    return type(states[0])(**{f.name: join([getattr(s, f.name) for s in states]) for f in fields(states[0])})  # type: ignore[arg-type]


def _separated(state: _State, num: int) -> list[_State]:
    """Return the rows of a state as states."""
    if num == 1:
        return [state]

    def row(value: Any, i: int) -> Any:
        return [v[i : i + 1].clone() for v in value] if isinstance(value, list) else value[i : i + 1].clone()

    names = [f.name for f in fields(state)]  # type: ignore[arg-type]
    return [type(state)(**{name: row(getattr(state, name), i) for name in names}) for i in range(num)]


def check_codes(codes: Codes, num_codes: int) -> list[int]:
    """Return codes as integers. Raises UserError for one outside a codebook of `num_codes`."""
    values = np.asarray(codes, dtype=np.int64)
    outside = values[(values < 0) | (values >= num_codes)]
    if len(outside):
        raise UserError(
            f"code {outside[0]} is outside the codebook 0..{num_codes - 1}: use the tokenizer of this decoder"
        )
    return values.tolist()


def _padded(voice: Voice, flow: FlowDecoder) -> tuple[Tensor, Tensor]:
    """Return the prompt of a voice as codes (1, Q) and mel (1, Q, P), padded in front."""
    mean, num = flow.mean, flow.config.prompt_codes
    codes = torch.full((1, num), flow.num_codes, device=mean.device)
    mel = mean.new_full((1, num, len(mean)), SILENCE)
    if num and voice.codes is not None and voice.mel is not None:
        codes[0, num - len(voice.codes) :], mel[0, num - len(voice.mel) :] = voice.codes, voice.mel
    return codes, mel
