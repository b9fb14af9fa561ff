"""Reading, writing and resampling of audio files, and Whisper's log-mel features.

    samples = load("a.opus")                                    # mono float32 at 16 kHz
    samples = load("talk.flac#t=30,58.4")                       # a time range in seconds, as a W3C media fragment
    features = LogMel(num_mels=80)(torch.from_numpy(samples))   # (1, 80, T)

Shapes: B batch, S samples, M mel bands, T frames (100 per second).
"""

from __future__ import annotations

import io
import re
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

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW_SAMPLES = WINDOW_SAMPLES // 2
LOOK_AHEAD_SAMPLES = HALF_WINDOW_SAMPLES - HOP_SAMPLES
_MAX_SAMPLE = 100.0  # 40 dB over full scale: larger samples are in other units, such as 16-bit integers
_MIN_FRACTION = 0.99  # of the length in the header, which some formats only estimate
# Signs of a truncated file in the log of libsndfile: less data than the header says, or an incomplete last page.
_LESS_DATA = re.compile(r"^\s*(?:data|riff|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_INCOMPLETE_OGG = "Junk after the last page"
_UNKNOWN_BYTES = 0x7F000000  # a program that writes to a pipe puts about this size or more into the header
_TIME_RANGE = re.compile(r"(?P<file>.+)#t=(?P<start>\d+(?:\.\d+)?)?(?:,(?P<stop>\d+(?:\.\d+)?))?", re.DOTALL)


def load(audio: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read a file, or the time range after its name, as mono float32 samples (S,) in [-1, 1] at `sample_rate_hz`.

    Raises UserError for a file that is missing, not audio, empty, truncated, not finite or in other units.
    """
    with _open(audio) as (file, frames):
        rate_hz, log = file.samplerate, file.extra_info
        if frames.start:
            file.seek(frames.start)
        samples = file.read(len(frames) if frames.stop < file.frames else -1, dtype="float32", always_2d=True)
    _check_length(audio, len(samples), len(frames), log)
    if not np.isfinite(samples).all():
        raise UserError(f"{audio} contains samples that are not finite: export it again")
    if (largest := float(np.abs(samples).max())) > _MAX_SAMPLE:
        raise UserError(f"{audio} contains samples up to {largest:.3g}: scale them to [-1, 1]")
    return resample(samples.mean(axis=1), rate_hz, sample_rate_hz)


def num_samples(audio: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Return the number of samples that `load` returns, from the file's header; an estimate in some formats.

    Raises UserError for a file that is missing, not audio, empty or truncated, as far as the header shows it.
    """
    with _open(audio) as (file, frames):
        found, rate_hz, log = len(frames), file.samplerate, file.extra_info
    _check_length(audio, found, found, log)
    return (2 * found * sample_rate_hz + rate_hz) // (2 * rate_hz)  # rounded, as the resampler does


def file_of(audio: str | Path) -> Path:
    """Return the file of an argument of `load`, without the time range."""
    return _split(audio)[0]


def with_time_range(audio: str, start_sec: float, stop_sec: float) -> str:
    """Return the time range from `start_sec` to `stop_sec` of `audio`, as an argument of `load`."""
    file, time_range = _split(audio)
    offset_sec = float(time_range["start"] or 0) if time_range else 0.0
    return f"{file}#t={offset_sec + start_sec:.5f},{offset_sec + stop_sec:.5f}"


def _split(audio: str | Path) -> tuple[Path, re.Match[str] | None]:
    """Return the file and the time range of an argument of `load`. The name of a file may look like a time range."""
    found = _TIME_RANGE.fullmatch(str(audio))
    return (Path(audio), None) if found is None or Path(audio).is_file() else (Path(found["file"]), found)


@contextmanager
def _open(audio: str | Path) -> Iterator[tuple[soundfile.SoundFile, range]]:
    """Open an audio file, and yield it with the range of frames to read."""
    path, time_range = _split(audio)
    if not path.is_file():
        problem = "does not exist" if not path.exists() else "is not a file"
        raise UserError(f"{path} {problem}: give an audio file, or fix the manifest that contains it")
    try:
        with soundfile.SoundFile(path) as file:
            frames = range(file.frames)
            if time_range:
                start = round(float(time_range["start"] or 0) * file.samplerate)
                stop = round(float(time_range["stop"] or 1e9) * file.samplerate)
                frames = frames[start:stop]
                if not frames:
                    length_sec = file.frames / file.samplerate
                    raise UserError(f"{audio} is empty or outside of the {length_sec:.3f} s of the file: fix the times")
            yield file, frames
    except soundfile.LibsndfileError as e:
        raise UserError(f"{audio} cannot be read as audio ({e.error_string.rstrip('.')}): check the file") from e


def _check_length(audio: str | Path, num_found: int, num_expected: int, log: str) -> None:
    """Raise UserError for an empty or truncated file. `log` is libsndfile's."""
    if num_found == 0:
        raise UserError(f"{audio} contains no samples: copy or export it again")
    less = _LESS_DATA.search(log)
    is_cut = _INCOMPLETE_OGG in log or (less is not None and int(less[2]) < int(less[1]) < _UNKNOWN_BYTES)
    if is_cut or num_found < _MIN_FRACTION * num_expected:
        raise UserError(f"{audio} is cut off, it is shorter than its header says: copy or export it again")


def resample(samples: np.ndarray, from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Return mono samples (S,) at another rate."""
    if from_hz == to_hz:
        return samples
    return soxr.resample(samples, from_hz, to_hz, quality="HQ").astype(np.float32)


def save(path: str | Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Write mono samples (S,), clipped to [-1, 1], as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), sample_rate_hz, format="WAV", subtype="PCM_16")
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
