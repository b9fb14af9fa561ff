import numpy as np
import pytest

from tests.tokenizer.conftest import noise
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.noise import Distortions, NoiseLoop, at_snr, by_telephone, reverberate, synthetic_noise, with_noise

ALL = AugmentConfig(
    noise_probability=1.0,
    babble_probability=1.0,
    recording_probability=1.0,
    reverberation_probability=1.0,
    telephone_probability=1.0,
)


def tone(hz: float, num_samples: int = 16_000) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(num_samples) / 16_000)).astype(np.float32)


def db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(a)) / np.mean(np.square(b))))


def loop(seed: int = 0) -> NoiseLoop:
    made = NoiseLoop.of([noise(20_000, seed)], np.random.default_rng(seed))
    assert made is not None
    return made


@pytest.mark.parametrize("num_samples", [1, 1281, 40_000])
def test_distortions_keep_the_length_and_depend_only_on_the_random_numbers(num_samples: int) -> None:
    speech = noise(num_samples)
    before, distort = speech.copy(), Distortions(ALL, loop(1), loop(2))
    found = [distort(speech, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert np.array_equal(speech, before)
    assert all(f.shape == speech.shape and f.dtype == np.float32 and np.isfinite(f).all() for f in found)
    assert np.array_equal(found[0], found[1])
    assert num_samples == 1 or not np.array_equal(found[0], found[2])


def test_each_kind_is_drawn_with_its_own_probability() -> None:
    speech, rng = noise(2000), np.random.default_rng(0)
    silent = Distortions(AugmentConfig(), loop(), loop())
    assert silent(speech, rng) is speech
    for name in ("noise", "babble", "recording", "reverberation", "telephone"):
        distort = Distortions(AugmentConfig(**{f"{name}_probability": 0.25}), loop(), loop())
        changed = sum(distort(speech, rng) is not speech for _ in range(400))
        assert 60 < changed < 140


@pytest.mark.parametrize("kind", ["noise", "babble", "recording"])
def test_noise_has_a_ratio_within_the_limits(kind: str) -> None:
    config = AugmentConfig(**{f"{kind}_probability": 1.0}, min_snr_db=3.0, max_snr_db=9.0)
    distort, speech, rng = Distortions(config, loop(1), loop(2)), noise(16_000), np.random.default_rng(0)
    ratios = [db(speech, distort(speech, rng) - speech) for _ in range(60)]
    assert 2.99 < min(ratios) < 4
    assert 8 < max(ratios) < 9.01


def test_silence_and_silent_noise_change_nothing() -> None:
    silence, rng = np.zeros(16_000, np.float32), np.random.default_rng(0)
    assert not Distortions(ALL, loop(), loop())(silence, rng).any()
    assert not at_snr(silence, noise(16_000), 0.0).any()
    assert NoiseLoop.of([silence], rng) is None


def test_a_loop_repeats_equally_loud_parts_of_sounds() -> None:
    rng = np.random.default_rng(0)
    made = NoiseLoop.of([noise(20_000), 0.01 * noise(30_000, 1)], rng)
    assert made is not None
    whole = made.part(100_000, rng)
    assert np.array_equal(whole[:50_000], whole[50_000:])
    powers = sorted(np.square(whole).reshape(10, -1).mean(1))
    assert powers[0] > 0.3 * powers[-1]


def test_noise_for_evaluation_depends_on_the_name_and_is_none_of_training() -> None:
    speech = noise(16_000)
    found = [with_noise(speech, 10.0, name) for name in ("a", "a", "b")]
    assert db(speech, found[0] - speech) == pytest.approx(10, abs=0.01)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    training, evaluation = (synthetic_noise(1 << 16, np.random.default_rng(0), kind) for kind in (True, False))
    assert abs(np.corrcoef(training, evaluation)[0, 1]) < 0.1


def test_synthetic_noise_is_between_white_and_brown() -> None:
    """Its power per octave falls by 0 to 6 dB, differently from draw to draw."""
    slopes = []
    for seed in range(30):
        made = synthetic_noise(64_000, np.random.default_rng(seed))
        assert np.mean(np.square(made)) == pytest.approx(1.0, rel=0.5)
        power = np.square(np.abs(np.fft.rfft(made)))  # 4 bins per Hz
        bands = [power[4 * low : 8 * low].mean() for low in (250, 4000)]
        slopes.append(10 * np.log10(bands[1] / bands[0]) / 4)
    assert -6.5 < min(slopes) < -2
    assert -1 < max(slopes) < 0.5


def test_reverberation_decays_after_the_direct_sound_at_the_same_power() -> None:
    click = np.zeros(16_000, np.float32)
    click[4000] = 1.0
    for seed in range(10):
        heard = reverberate(click, np.random.default_rng(seed))
        assert np.abs(heard).argmax() == 4000
        assert np.abs(heard[:4000]).max() < 1e-5
        parts = [np.square(heard[s : s + 800]).sum() for s in (4001, 5600, 7200)]
        assert parts[0] > parts[1] > parts[2]
        assert db(heard, click) == pytest.approx(0, abs=0.01)


def test_a_telephone_keeps_its_band_and_removes_the_rest() -> None:
    for hz in (400, 1000, 3300):
        assert db(tone(hz), by_telephone(tone(hz)) - tone(hz)) > 25
    for hz in (100, 3600, 6000):
        assert db(tone(hz), by_telephone(tone(hz)) + 1e-9) > 30
