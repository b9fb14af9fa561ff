"""Sound in and out: files to float32 mono samples and back, and Whisper's log-mel features.

    audio = load("a.opus", sample_rate_hz=16_000)        # any rate, channels and width that soundfile reads
    piece = load("talk.flac#t=30,58.4")                  # those seconds of it, as a W3C media fragment
    features = LogMel(num_mels=80)(torch.from_numpy(audio))   # (80, frames), one frame each 10 ms

Shapes: S samples, M mel bands, T frames (100 a second).
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

from weft.artifacts import write_bytes
from weft.errors import UserError

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW_SAMPLES = WINDOW_SAMPLES // 2
LOOK_AHEAD_SAMPLES = HALF_WINDOW_SAMPLES - HOP_SAMPLES
_LOUDEST = 100.0  # 40 dB over full scale: float samples beyond were written in other units, such as 16-bit integers
# What libsndfile's log says of a file that was cut off: less sound than its header promises, or a torn last page.
_LESS_SOUND = re.compile(r"^\s*(?:data|riff|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_TORN_OGG = "Junk after the last page"
_UNKNOWN_BYTES = 0x7F000000  # a program that writes to a pipe promises about this much or more, and means no length
# W3C media fragments, in seconds: a.wav#t=10,20 or a.wav#t=10
_FRAGMENT = re.compile(r"(?P<file>.+)#t=(?P<start>\d+(?:\.\d+)?)?(?:,(?P<stop>\d+(?:\.\d+)?))?", re.DOTALL)
_ENDS = (("start", 0), ("stop", 1e9))
_NEARLY_ALL = 0.99  # some formats only estimate their length


def load(path: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read a sound file as mono float32 samples (S,) in [-1, 1] at `sample_rate_hz`.

    Raises UserError, naming the file, for one that is missing, not audio, empty, cut off (where its format tells how
    long it should be), not finite or in other units.
    """
    with _opened(path) as (file, span):
        rate_hz, log = file.samplerate, file.extra_info
        if span.start:
            file.seek(span.start)
        samples = file.read(len(span) if span.stop < file.frames else -1, dtype="float32", always_2d=True)
    _require_whole(path, len(samples), len(span), log)
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds samples that are not finite numbers: export it again")
    if (loudest := float(np.abs(samples).max())) > _LOUDEST:
        raise UserError(f"{path} holds samples up to {loudest:.3g}, and full scale is 1: divide them by their scale")
    return resample(samples.mean(axis=1), rate_hz, sample_rate_hz)


def num_samples(path: str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """How many samples `load` gives of a file, by its header alone; some formats only estimate it.

    Raises UserError for what the header tells: a file that is missing, not audio, empty or cut off.
    """
    with _opened(path) as (file, span):
        found, rate_hz, log = len(span), file.samplerate, file.extra_info
    _require_whole(path, found, found, log)
    return (2 * found * sample_rate_hz + rate_hz) // (2 * rate_hz)  # rounded, as the resampler does


def file_of(audio: str | Path) -> Path:
    """The file of what `load` takes, without the seconds that may be named after it."""
    named = _FRAGMENT.fullmatch(str(audio))
    return Path(named["file"]) if named and not Path(audio).is_file() else Path(audio)


def part_of(audio: str, start_sec: float, stop_sec: float) -> str:
    """Those seconds of a sound, counted from its own start, as what `load` takes."""
    named = _FRAGMENT.fullmatch(audio) if file_of(audio) != Path(audio) else None
    before_sec = float(named["start"] or 0) if named else 0.0
    return f"{file_of(audio)}#t={before_sec + start_sec:.5f},{before_sec + stop_sec:.5f}"


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[soundfile.SoundFile, range]]:
    """A sound file, and which of its frames are meant."""
    file_path = file_of(path)
    if not file_path.is_file():
        raise UserError(f"{file_path} does not exist: check the path, or the manifest that names it")
    try:
        with soundfile.SoundFile(file_path) as file:
            yield file, _span(path, file)
    except soundfile.LibsndfileError as e:
        raise UserError(f"{path} cannot be read as audio ({e.error_string.rstrip('.')}): is it a sound file?") from e


def _span(path: str | Path, file: soundfile.SoundFile) -> range:
    whole = range(file.frames)
    if file_of(path) == Path(path):
        return whole
    named = _FRAGMENT.fullmatch(str(path))
    assert named is not None
    start, stop = (round(float(named[which] or default) * file.samplerate) for which, default in _ENDS)
    if not start < min(stop, file.frames):
        raise UserError(f"{path} names nothing of the {file.frames / file.samplerate:.3f} s that there are: mend it")
    return whole[start:stop]


def _require_whole(path: str | Path, found_samples: int, promised_samples: int, log: str) -> None:
    if found_samples == 0:
        raise UserError(f"{path} holds no samples: it is empty or cut off")
    if found_samples < _NEARLY_ALL * promised_samples or _is_cut(log):
        raise UserError(f"{path} is cut off: it holds less sound than it promises; copy or export it again")


def _is_cut(log: str) -> bool:
    less = _LESS_SOUND.search(log)
    return _TORN_OGG in log or (less is not None and int(less[2]) < int(less[1]) < _UNKNOWN_BYTES)


def resample(samples: np.ndarray, from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Band-limited resampling of mono samples (S,)."""
    if from_hz == to_hz:
        return samples
    return soxr.resample(samples, from_hz, to_hz, quality="HQ").astype(np.float32)


def wav_bytes(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """Mono samples (S,) in [-1, 1] as the bytes of a 16-bit WAV file; louder samples are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), sample_rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def save(path: str | Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Write mono samples (S,) as a 16-bit WAV file, whole or not at all."""
    write_bytes(Path(path), wav_bytes(samples, sample_rate_hz))


class LogMel(nn.Module):
    """Whisper's log-mel features (S,) or (B, S) -> (B, M, T), T = S / 160, with a choice of floor.

    `floor="window"` is Whisper's own: values are clamped to 8 below the loudest of the window, so that a later loud
    sound changes earlier features. `floor="fixed"` clamps at a constant, which a stream can compute: the frames of
    the first s samples depend on samples up to s + 40 (the centred window's look-ahead) and on nothing later.
    """

    FIXED_FLOOR = -6.5  # log10 of power: 8 below the 1.5 that speech at a normal level peaks at

    filters: Tensor
    window: Tensor

    def __init__(self, num_mels: int = 80, floor: str = "window") -> None:
        super().__init__()
        if floor not in ("window", "fixed"):
            raise ValueError(f"floor is 'window' or 'fixed', not {floor!r}")
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            1 + WINDOW_SAMPLES // 2,
            num_mels,
            0.0,
            SAMPLE_RATE_HZ / 2,
            SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.floor = floor
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Features of whole recordings, their edges mirrored as Whisper's centred STFT does."""
        x = torch.atleast_2d(samples)
        right = x[:, -LOOK_AHEAD_SAMPLES - 1 : -1].flip(-1)
        return self.frames(torch.cat([mirror(x), x, right], dim=-1))

    def frames(self, padded: Tensor) -> Tensor:
        """Features of samples with their surroundings: (B, 200 + S + 40) -> (B, M, T). A frame is centred on its
        first sample, so it needs 200 samples before and, past the last frame's hop, 40 after."""
        return self.floored(self.log_power(padded))

    def log_power(self, padded: Tensor) -> Tensor:
        """What `frames` gives before the floor: log10 of the power in each band."""
        spectrum = torch.stft(
            padded, WINDOW_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # a fifth of the time of abs().square()
        return (self.filters @ power).clamp(min=1e-10).log10()

    def floored(self, log: Tensor) -> Tensor:
        """Features of the log power (..., M, T) of a window."""
        floor = log.amax(dim=(-2, -1), keepdim=True) - 8.0 if self.floor == "window" else self.FIXED_FLOOR
        return (torch.maximum(log, torch.as_tensor(floor, device=log.device)) + 4.0) / 4.0


def mirror(samples: Tensor) -> Tensor:
    """What the centred STFT supposes before the first sample: its neighbourhood mirrored, (B, S) -> (B, 200)."""
    return samples[..., 1 : HALF_WINDOW_SAMPLES + 1].flip(-1)
