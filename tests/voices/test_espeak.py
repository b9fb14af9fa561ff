"""Speech by espeak-ng: samples that depend on text and voice only, and messages about invalid voices."""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import espeakng_loader
import numpy as np
import pytest

from weft.errors import UserError
from weft.voices.espeak import languages, parse, synthesize, variants

TEXT = "The sailor left the harbor."
VOICES = [parse(spec) for spec in ("en-us", "en-gb+f3?speed=150&pitch=60", "en-us+whisper")]


def test_samples_depend_on_text_and_voice_only():
    """Repeat each voice after another one, and in several threads."""
    first = {voice: synthesize(TEXT, voice).samples for voice in VOICES}
    for voice in reversed(VOICES):
        synthesize("Quite another sentence, and a longer one at that!", VOICES[1])
        np.testing.assert_array_equal(synthesize(TEXT, voice).samples, first[voice])
    with ThreadPoolExecutor(4) as pool:
        for speech in pool.map(lambda _: synthesize(TEXT, VOICES[0]), range(8)):
            np.testing.assert_array_equal(speech.samples, first[VOICES[0]])


def test_speech_has_the_length_and_level_of_speech():
    speech = synthesize(TEXT, VOICES[0])
    samples, rate_hz = speech.samples, speech.sample_rate_hz
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 1.0 < len(samples) / rate_hz < 3.0
    assert 0.1 < np.abs(samples).max() <= 1.0
    assert not synthesize("...", VOICES[0]).samples.any()


def test_speed_and_pitch_change_the_speech():
    def length(spec):
        return len(synthesize(TEXT, parse(spec)).samples)

    def pitch_hz(spec):
        speech = synthesize("Oh.", parse(spec))
        x, rate_hz = speech.samples - speech.samples.mean(), speech.sample_rate_hz
        correlation = np.correlate(x, x, "full")[len(x) - 1 :]
        low, high = rate_hz // 400, rate_hz // 60
        return rate_hz / (low + correlation[low:high].argmax())

    assert length("en-us?speed=120") > 1.2 * length("en-us") > 1.2 * length("en-us?speed=220")
    assert pitch_hz("en-us?pitch=90") > 1.2 * pitch_hz("en-us?pitch=10")
    us, gb = (synthesize(TEXT, parse(spec)).samples for spec in ("en-us", "en-gb"))
    assert not np.array_equal(us, gb)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("en-uss", "no voice 'en-uss': did you mean en-us"),
        ("", "no voice"),
        ("en-us+f33", "no variant 'f33': did you mean f3"),
        ("en-us+", "no variant ''"),
        ("en-us?volume=3", "'volume': give only speed, pitch"),
        ("en-us?speed=fast", "speed=fast: give a whole number from 80 to 450"),
        ("en-us?pitch=100", "from 0 to 99"),
    ],
)
def test_an_unknown_voice_is_rejected_with_one_line(spec, message):
    with pytest.raises(UserError, match=message) as error:
        parse(spec)
    assert "\n" not in str(error.value)


def test_languages_are_codes_and_names_of_voice_files():
    assert {"en", "en-us", "de", "fr", "cmn"} <= languages().keys()
    assert parse("EN-us").language == "en-us"
    assert {"f3", "whisper"} <= set(variants())


def test_missing_data_is_an_error_and_does_not_end_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match="espeak-ng cannot read"):
        synthesize(TEXT, VOICES[0])


def test_an_interruption_is_raised_after_the_call():
    """The signal comes during a callback of espeak-ng, where Python would drop an exception."""
    dropped: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, dropped.append
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            synthesize(TEXT * 100, VOICES[0])
    finally:
        sys.unraisablehook = before
        signal.signal(signal.SIGINT, handler)
    assert not dropped
