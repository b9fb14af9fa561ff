import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.errors import UserError
from weft.eval.sound import Dnsmos, Utmos, compare, mel_cepstra

RATE = 16_000
_PACKAGES = ("pystoi", "speechmos", "onnxruntime", "utmos_pytorch")
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in _PACKAGES}


def voice(pitch: np.ndarray, rate_hz: int = RATE, formant_hz: float = 700.0) -> np.ndarray:
    """Harmonics of a pitch for every sample (S,), the strongest near a formant."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    levels = [1 / (1 + ((k * pitch.mean() - formant_hz) / 300) ** 2) for k in range(1, 20)]
    return (0.1 * sum(a * np.sin(k * phase) for k, a in enumerate(levels, 1))).astype(np.float32)


def test_cepstra_have_the_spectral_shape_and_not_the_level() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    a, b = (noise + voice(np.full(RATE, 120.0), formant_hz=hz) for hz in (700.0, 1500.0))
    assert np.allclose(mel_cepstra(a, RATE), mel_cepstra(2 * a, RATE), atol=1e-3)
    assert np.abs(mel_cepstra(a, RATE) - mel_cepstra(b, RATE)).max() > 0.1


@pytest.mark.skipif(not _INSTALLED["pystoi"], reason="needs pystoi")
def test_a_recording_equals_itself_and_differs_from_others() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(rng.uniform(0.1, 1, 30), RATE // 10)
    a = (level * voice(np.repeat(rng.uniform(100, 200, 6), RATE // 2))).astype(np.float32)
    same = compare(a, a, RATE)
    assert same.mcd_db == same.f0_error_cents == same.voicing_error == 0
    assert same.stoi == pytest.approx(1, abs=1e-6)
    higher = compare(a, (level * voice(np.full(len(a), 300.0))).astype(np.float32), RATE)
    assert higher.mcd_db > 1
    assert higher.f0_error_cents is not None
    assert higher.f0_error_cents > 500


@pytest.mark.skipif(not (_INSTALLED["speechmos"] and _INSTALLED["onnxruntime"]), reason="needs speechmos")
def test_dnsmos_rates_noise_low() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    assert 1.0 < Dnsmos()(noise) < 2.0


@pytest.mark.skipif(not _INSTALLED["utmos_pytorch"], reason="needs utmos-pytorch")
def test_utmos_loads_all_of_its_weights_and_nothing_else(tmp_path: Path) -> None:
    from utmos_pytorch.utmos_torch import UTMOSModel

    state = UTMOSModel().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    assert np.isfinite(Utmos(tmp_path / "weights.pt")(0.1 * np.random.default_rng(0).standard_normal(RATE)))
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "part.pt")
    for name in ("part.pt", "missing.pt"):
        with pytest.raises(UserError, match=name):
            Utmos(tmp_path / name)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pystoi", None)
    with pytest.raises(UserError, match=r"weft-speech\[quality\]"):
        compare(np.ones(RATE, np.float32), np.ones(RATE, np.float32), RATE)
    monkeypatch.setitem(__import__("sys").modules, "utmos_pytorch", None)
    with pytest.raises(UserError, match=r"weft-speech\[quality\]"):
        Utmos(Path("weights.pt"))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"weft-speech\[quality\]"):
        Dnsmos()
