import numpy as np
import pytest

from weft.eval.distortions import DISTORTIONS, at_snr_db


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Harmonics of a voice that changes its pitch."""
    phase = 2 * np.pi * np.cumsum(np.linspace(100, 200, 16_000)) / 16_000
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 15))).astype(np.float32)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_changes_speech_and_is_the_same_for_the_same_utterance(name: str, speech: np.ndarray) -> None:
    found = DISTORTIONS[name](speech, "a")
    length = {"slower": 17_778, "faster": 14_545}.get(name, 16_000)
    assert abs(len(found) - length) <= 1
    assert found.dtype == np.float32
    assert np.array_equal(DISTORTIONS[name](speech, "a"), found)
    assert len(found) != len(speech) or np.abs(found - speech).max() > 1e-3
    assert np.isfinite(found).all()
    assert 0.3 < found.std() / speech.std() < 3


def test_rooms_and_noise_differ_between_utterances(speech: np.ndarray) -> None:
    for distort in (DISTORTIONS["reverberation"], at_snr_db(10.0)):
        assert not np.allclose(distort(speech, "a"), distort(speech, "b"), atol=1e-4)


def test_silence_and_short_speech_are_accepted(speech: np.ndarray) -> None:
    for distort in (*DISTORTIONS.values(), at_snr_db(10.0)):
        assert np.isfinite(distort(np.zeros(4000, np.float32), "a")).all()
        assert np.isfinite(distort(speech[:200], "a")).all()
