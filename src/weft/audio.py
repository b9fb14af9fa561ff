"""Reading, writing and resampling of audio files, and Whisper's log-mel features.

    samples = load("a.opus")                                    # mono float32 at 16 kHz
    samples = load("talk.flac#t=30,58.4")                       # an address: weft.sound_files.address
    features = LogMel(num_mels=80)(torch.from_numpy(samples))   # (1, 80, T)

Shapes: B batch, S samples, M mel bands, T frames (100 per second).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn

from weft.errors import UserError
from weft.files import write_bytes
from weft.sound_files.address import address_of
from weft.sound_files.reader import Reader
from weft.sound_files.source import source_of

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW_SAMPLES = WINDOW_SAMPLES // 2
LOOK_AHEAD_SAMPLES = HALF_WINDOW_SAMPLES - HOP_SAMPLES
_MAX_SEC = 12 * 3600.0  # of one item: 2.8 GB
_MAX_FRAMES = 1 << 62  # more than any file has
_QUALITY = "HQ"
_TIME_TOLERANCE_SEC = 0.1  # by which a time range may end after the file
_MAX_SAMPLE = 100.0  # 40 dB over full scale: larger samples are in other units, such as 16-bit integers
_MIN_MEAN_ENERGY = 1e-4  # of that of the channels: 64 channels of unrelated noise have 0.016


def load(audio: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read a sound file, or what an address names, as mono float32 samples (S,) in [-1, 1] at `sample_rate_hz`.

    Channels are averaged. Memory is that of the result and a block. Raises UserError for a file that is missing, not
    audio, empty, truncated, not finite, in other units, longer than 12 hours, or with channels that cancel each other.
    """
    with _open(audio) as (reader, frames):
        convert = None
        if reader.rate_hz != sample_rate_hz:
            convert = soxr.ResampleStream(reader.rate_hz, sample_rate_hz, 1, quality=_QUALITY)
        pieces, energy = [], np.zeros(2)  # of the mean and of the channels
        for block in _blocks(audio, reader, frames):
            _check_samples(audio, block)
            mono = block.mean(axis=1)
            if block.shape[1] > 1:
                energy += np.vdot(mono, mono), np.vdot(block, block) / block.shape[1]
            pieces.append(mono if convert is None else convert.resample_chunk(mono))
        if convert is not None:
            pieces.append(convert.resample_chunk(np.zeros(0, np.float32), last=True))
    if energy[0] < _MIN_MEAN_ENERGY * energy[1]:
        raise UserError(f"{audio} has channels that cancel each other: export one of them")
    samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    _require_samples(audio, len(samples))
    return samples


def num_samples(audio: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Return the number of samples that `load` returns: from the header where it is exact, or by decoding the file.

    The headers of WAV, AIFF, CAF, AU, W64 and FLAC are exact, except those of compressed audio in WAV and AIFF. Raises
    UserError as `load` does, as far as the header or the length shows the problem.
    """
    with _open(audio) as (reader, frames):
        rate_hz, is_exact = reader.rate_hz, reader.num_frames is not None
        found = len(frames) if is_exact else sum(map(len, _blocks(audio, reader, frames)))
    num = (2 * found * sample_rate_hz + rate_hz) // (2 * rate_hz)  # rounded, as the resampler does
    _require_samples(audio, num)
    return num


@contextmanager
def _open(audio: str | Path) -> Iterator[tuple[Reader, range]]:
    """Open a sound, and yield it with the range of frames to read, which may end after the sound."""
    address = address_of(audio)
    path = address.file
    if not os.path.isfile(path):  # a device or a named pipe is not opened, which could wait forever
        problem = "does not exist" if not os.path.exists(path) else "is not a file"
        raise UserError(f"{path} {problem}: give an audio file, or fix the manifest that contains it")
    with Reader(source_of(address)) as reader:
        frames = range(_MAX_FRAMES if reader.num_frames is None else reader.num_frames)
        if address.has_times:
            start = round(float(address.start or 0) * reader.rate_hz)
            stop = _MAX_FRAMES if address.stop is None else round(float(address.stop) * reader.rate_hz)
            frames = range(start, max(start, stop))
        if reader.num_frames is not None:
            _check_length(audio, reader, frames, len(range(reader.num_frames)[frames.start : frames.stop]))
            frames = range(reader.num_frames)[frames.start : frames.stop]
        yield reader, frames


def _blocks(audio: str | Path, reader: Reader, frames: range) -> Iterator[np.ndarray]:
    """Yield the frames in a range as blocks (F, C). Raises UserError if there are too many, none, or fewer."""
    found = 0
    for block in reader.blocks(frames.start, frames.stop):
        found += len(block)
        if found > _MAX_SEC * reader.rate_hz:
            break
        yield block
    _check_length(audio, reader, frames, found)


def _check_length(audio: str | Path, reader: Reader, frames: range, found: int) -> None:
    if found > _MAX_SEC * reader.rate_hz:
        raise UserError(f"{audio} is longer than {_MAX_SEC / 3600:g} hours: split it, or give time ranges (#t=0,3600)")
    if not address_of(audio).has_times:
        _require_samples(audio, found)
    length = "" if reader.num_frames is None else f"{reader.num_frames / reader.rate_hz:.3f} s of the "
    if not found:
        raise UserError(f"{audio} is empty or outside of the {length}file: fix the times")
    if frames.stop < _MAX_FRAMES and found < len(frames) - _TIME_TOLERANCE_SEC * reader.rate_hz:
        raise UserError(f"{audio} ends after the {length}file: fix the times, or copy the file again")


def _require_samples(audio: str | Path, num: int) -> None:
    if not num:  # also if it is shorter than one sample of the rate to which it is converted
        raise UserError(f"{audio} contains no samples: copy or export it again")


def _check_samples(audio: str | Path, samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise UserError(f"{audio} contains samples that are not finite: export it again")
    if (largest := float(np.abs(samples).max())) > _MAX_SAMPLE:
        raise UserError(f"{audio} contains samples up to {largest:.3g}: scale them to [-1, 1]")


def resample(samples: np.ndarray, from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Return mono samples (S,) at another rate."""
    if from_hz == to_hz:
        return samples
    return soxr.resample(samples, from_hz, to_hz, quality=_QUALITY).astype(np.float32)


def save(path: str | Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Write mono samples (S,), clipped to [-1, 1], as 16-bit FLAC if the name ends with .flac, else as 16-bit WAV."""
    buffer, kind = io.BytesIO(), "FLAC" if Path(path).suffix.lower() == ".flac" else "WAV"
    soundfile.write(buffer, np.clip(samples, -1, 1), sample_rate_hz, format=kind, subtype="PCM_16")
    write_bytes(Path(path), buffer.getvalue())


class LogMel(nn.Module):
    """Whisper's log-mel features, (S,) or (B, S) -> (B, M, T) with T = S / 160.

    `floor="window"` is Whisper's: values are at least 8 below the maximum of the window, so that a later loud sound
    changes earlier features. `floor="fixed"` is a constant and allows streaming: the frames of the first s samples
    depend on samples up to s + 40 only (the centred window's look-ahead).
    """

    FIXED_FLOOR = -6.5  # log10 of power: 8 below 1.5, the maximum of speech at a normal level

    filters: Tensor
    window: Tensor

    def __init__(self, num_mels: int = 80, floor: str = "window") -> None:
        super().__init__()
        if floor not in ("window", "fixed"):
            raise ValueError(f"floor is {floor!r}: give 'window' or 'fixed'")
        from transformers.audio_utils import mel_filter_bank

        num_bins, max_hz = 1 + WINDOW_SAMPLES // 2, SAMPLE_RATE_HZ / 2
        filters = mel_filter_bank(num_bins, num_mels, 0.0, max_hz, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney")
        self.floor = floor
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Return the features of whole recordings, whose edges are mirrored as in Whisper's centred STFT."""
        x = torch.atleast_2d(samples)
        right = x[:, -LOOK_AHEAD_SAMPLES - 1 : -1].flip(-1)
        return self.frames(torch.cat([mirror(x), x, right], dim=-1))

    def frames(self, padded: Tensor) -> Tensor:
        """Return the features of S samples in context, (B, 200 + S + 40) -> (B, M, T).

        A frame is centred on its first sample, so that 200 samples before and 40 after are needed.
        """
        return self.floored(self.log_power(padded))

    def log_power(self, padded: Tensor) -> Tensor:
        """Return log10 of the power in each band: `frames` before the floor and the scaling."""
        spectrum = torch.stft(
            padded, WINDOW_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # five times as fast as abs().square()
        return (self.filters @ power).clamp(min=1e-10).log10()

    def floored(self, log: Tensor) -> Tensor:
        """Return the features for the log power (..., M, T) of a window."""
        floor = log.amax(dim=(-2, -1), keepdim=True) - 8.0 if self.floor == "window" else self.FIXED_FLOOR
        return (torch.maximum(log, torch.as_tensor(floor, device=log.device)) + 4.0) / 4.0


def mirror(samples: Tensor) -> Tensor:
    """Return the context of the centred STFT before the first sample, which mirrors the start: (B, S) -> (B, 200)."""
    return samples[..., 1 : HALF_WINDOW_SAMPLES + 1].flip(-1)
