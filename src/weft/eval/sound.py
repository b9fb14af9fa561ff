"""Measures of synthesized speech: ratings by DNSMOS and UTMOS, and distances to a recording of the same words and time.

    quality = Dnsmos()(samples)                                     # samples at 16 kHz
    naturalness = Utmos(Path("utmos_state_dict.pt"))(samples)
    found = compare(recording, synthesized, sample_rate_hz)
    found.mcd_db, found.f0_error_cents, found.voicing_error, found.stoi

Sources: DNSMOS P.835 (arXiv 2110.01763), whose networks are in the package speechmos. UTMOS (arXiv 2204.02152) by the
package utmos-pytorch, whose weights are utmos_state_dict.pt of Blinorot/UTMOS-PyTorch on the Hub. Mel-cepstral distance
(Kubichek 1993) over 24 coefficients of 80 mel bands; without alignment, because a decoder keeps the timing. STOI (Taal
et al. 2011) by the package pystoi.

Shapes: S samples, T frames.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from weft.artifacts import loading
from weft.audio import SAMPLE_RATE_HZ
from weft.decoder.pitch import f0_hz
from weft.errors import UserError
from weft.weights import require_fit

_SEGMENT_SAMPLES = int(9.01 * SAMPLE_RATE_HZ)  # of DNSMOS
_NETWORK = "speechmos/dnsmos_models/sig_bak_ovr.onnx"
_OVERALL = (-0.06766283, 1.11546468, 0.04602535)  # from the network's output to the scale of listeners
_NUM_CEPSTRA = 24
_MIN_POWER = 1e-4  # of a mel band: about 50 dB below that of speech


class Dnsmos:
    """The overall quality of speech, from 1 to 5, as listeners would rate it."""

    def __init__(self) -> None:
        """Load the network. Raises UserError if speechmos or onnxruntime is not installed."""
        try:
            import onnxruntime
        except ImportError as e:
            raise UserError("DNSMOS needs onnxruntime: pip install 'weft-speech[quality]'") from e
        paths = (Path(folder) / _NETWORK for folder in sys.path)  # speechmos is not imported, because it needs librosa
        network = next((path for path in paths if path.is_file()), None)
        if network is None:
            raise UserError("DNSMOS needs speechmos: pip install 'weft-speech[quality]'")
        self._session = onnxruntime.InferenceSession(str(network))

    def __call__(self, samples: np.ndarray) -> float:
        """Return the mean over segments of 9 s, one second apart. Shorter speech (S,) is repeated, as in speechmos."""
        samples = samples.clip(-1, 1).astype(np.float32)
        while len(samples) < _SEGMENT_SAMPLES:
            samples = np.concatenate([samples, samples])
        starts = range(0, len(samples) - _SEGMENT_SAMPLES + 1, SAMPLE_RATE_HZ)
        raw = [self._session.run(None, {"input_1": samples[None, s : s + _SEGMENT_SAMPLES]})[0][0][2] for s in starts]
        return float(np.mean(np.polyval(_OVERALL, raw)))


class Utmos:
    """The naturalness of speech, from 1 to 5, as listeners would rate it."""

    def __init__(self, weights: Path) -> None:
        """Load the model. Raises UserError if utmos-pytorch is not installed, or the file is not its weights."""
        try:
            from utmos_pytorch import UTMOSScoreTorch
            from utmos_pytorch.utmos_torch import UTMOSModel
        except ImportError as e:
            raise UserError("UTMOS needs utmos-pytorch: pip install 'weft-speech[quality]'") from e
        with loading(weights, "UTMOS"):
            state = torch.load(weights, map_location="cpu", weights_only=True)
            require_fit(UTMOSModel(), state, weights)  # the package ignores missing weights
            self._model = UTMOSScoreTorch(str(weights))

    def __call__(self, samples: np.ndarray) -> float:
        """Return the rating of samples (S,) at 16 kHz."""
        return float(self._model.score(torch.from_numpy(samples.astype(np.float32)))[0])


@dataclass(frozen=True)
class Comparison:
    """Distances of synthesized speech to a recording."""

    mcd_db: float
    """Mel-cepstral distance."""
    f0_error_cents: float | None
    """Median absolute error of F0 where both are voiced; None if they never are."""
    voicing_error: float
    """Fraction of frames that are voiced in one only."""
    stoi: float
    """Short-time objective intelligibility, up to 1."""


def compare(recording: np.ndarray, synthesized: np.ndarray, sample_rate_hz: int) -> Comparison:
    """Compare samples (S,) of the same words and timing; the longer one is cut.

    Raises UserError if pystoi is not installed.
    """
    num = min(len(recording), len(synthesized))
    pair = [x[:num].astype(np.float32) for x in (recording, synthesized)]
    cepstra = [mel_cepstra(x, sample_rate_hz) for x in pair]
    pitch = f0_hz(torch.from_numpy(np.stack(pair)), sample_rate_hz, sample_rate_hz // 200).numpy()
    voiced = pitch > 0
    both = voiced[0] & voiced[1]
    cents = np.abs(1200 * np.log2(pitch[1][both] / pitch[0][both]))
    return Comparison(
        mcd_db=float(10 * np.sqrt(2) / np.log(10) * np.linalg.norm(cepstra[0] - cepstra[1], axis=1).mean()),
        f0_error_cents=float(np.median(cents)) if len(cents) else None,
        voicing_error=float((voiced[0] != voiced[1]).mean()),
        stoi=_stoi(pair[0], pair[1], sample_rate_hz),
    )


def mel_cepstra(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Return cepstral coefficients 1 to 24 (T, 24) of log-mel magnitudes every 5 ms."""
    power = np.abs(_spectrum(samples, sample_rate_hz, 0.025)) ** 2
    bands = mel_filter_bank(power.shape[1], 80, 0.0, sample_rate_hz / 2, sample_rate_hz, norm=None, mel_scale="htk")
    log = 0.5 * np.log(np.maximum(power @ bands, _MIN_POWER))
    angles = np.pi * (np.arange(80) + 0.5)[:, None] * np.arange(1, _NUM_CEPSTRA + 1) / 80
    return log @ np.cos(angles) / 80


def _frames(samples: np.ndarray, sample_rate_hz: int, window: int) -> np.ndarray:
    """Return windows (T, window) centred on times 5 ms apart."""
    padded = np.pad(samples, (window // 2, window))
    starts = np.arange(0, len(samples), sample_rate_hz // 200)
    return np.lib.stride_tricks.sliding_window_view(padded, window)[starts].astype(np.float64)


def _spectrum(samples: np.ndarray, sample_rate_hz: int, window_sec: float) -> np.ndarray:
    window = int(window_sec * sample_rate_hz)
    return np.fft.rfft(_frames(samples, sample_rate_hz, window) * np.hanning(window), 2 ** (window - 1).bit_length())


def _stoi(recording: np.ndarray, synthesized: np.ndarray, sample_rate_hz: int) -> float:
    try:
        from pystoi import stoi
    except ImportError as e:
        raise UserError("STOI needs pystoi: pip install 'weft-speech[quality]'") from e
    return float(stoi(recording, synthesized, sample_rate_hz))
