"""Piper voices, in this process, with piper-tts (`pip install weft-speech[piper]`).

    speech = voice("en_US-joe-medium?speed=0.9", None).speak("Good morning.")

The folder `models/piper`, or that of `?folder=DIR`, contains NAME.onnx and NAME.onnx.json. The samples depend on text
and voice only, because the noise of the model is 0: onnxruntime cannot set the seed of a loaded model.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import UserError, reason_of
from weft.files import json_object
from weft.voices.onnx import check_inputs, loaded_once, model_folder, session
from weft.voices.voice import Speech, Voice, check_known, joined, speed_factor, split_settings

SAMPLED: tuple[str, ...] = ("speed",)
_FOLDER = "models/piper"
_SETTINGS = ("speed", "speaker", "folder")
_PHONEME_TYPES = ("espeak", "text")  # others need more packages, or download files
_MAX_CONFIG_BYTES = 1 << 24


def voice(spec: str, name: str | None) -> Voice:
    """Return the voice NAME[?speed=FACTOR&speaker=SPEAKER&folder=DIR].

    A speaker is a number, or a name in the configuration of the model. Raises UserError for what is unknown, missing or
    invalid.
    """
    own, settings = split_settings("piper", spec, _SETTINGS)
    speed = speed_factor(f"piper:{spec}", settings.get("speed", "1"))
    model = _model_file(own, settings.pop("folder", _FOLDER))
    piper, language = _load(model, _config_file(model))
    number = None
    if speaker := settings.get("speaker"):
        known = _speakers(piper.config)
        check_known(f"piper:{own} has no speaker", speaker, known, f"give a number below {piper.config.num_speakers}")
        number = known[speaker]
    identity = joined(f"piper:{own}", settings)
    speak = partial(_speak, piper=piper, speaker=number, speed=speed)
    return Voice(speak, name or identity, language, identity, (model, _config_file(model)))


def speakers(spec: str) -> list[str]:
    """Return the voice itself, or one for each of `?speaker=A,B` or `?speaker=all`."""
    own, settings = split_settings("piper", spec, _SETTINGS)
    given = settings.get("speaker", "")
    if given == "all":
        model = _model_file(own, settings.get("folder", _FOLDER))
        config = _load(model, _config_file(model))[0].config
        names = list(config.speaker_id_map) or list(map(str, range(config.num_speakers)))
    else:
        names = given.split(",")
    return [joined(own, settings | {"speaker": name}) for name in names] if len(names) > 1 else [spec]


def _speak(text: str, piper: Any, speaker: int | None, speed: float) -> Speech:
    from piper import SynthesisConfig

    text = text.replace("[[", "[ [")  # between which Piper reads phonemes
    chunks = []
    if any(phoneme.isalpha() for sentence in piper.phonemize(text) for phoneme in sentence):
        scale = piper.config.length_scale / speed
        config = SynthesisConfig(speaker_id=speaker, length_scale=scale, noise_scale=0.0, noise_w_scale=0.0)
        chunks = [chunk.audio_float_array for chunk in piper.synthesize(text, config)]
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    return Speech(samples, piper.config.sample_rate)


@loaded_once
def _load(model: Path, path: Path) -> tuple[Any, str]:
    """Return a PiperVoice and its language."""
    try:
        from piper import PiperVoice
        from piper.config import PiperConfig
    except ImportError as e:
        raise UserError(
            f"Piper voices need piper-tts ({reason_of(e)}): pip install weft-speech[piper], or choose other voices"
        ) from e
    if not path.is_file():
        raise UserError(f"{path} does not exist: download both files of the voice")
    logging.getLogger("piper").setLevel(logging.ERROR)  # it warns about every unknown phoneme
    try:
        content = json_object(path.read_bytes(), path.name)
        config = PiperConfig.from_dict(content)
        if (kind := content.get("phoneme_type", "espeak")) not in _PHONEME_TYPES:
            raise UserError(f"{path} needs phonemes of the type {kind}: choose another voice")
        code = content.get("language", {}).get("code") or config.espeak_voice
        language = code.lower().replace("_", "-")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is not the configuration of a Piper voice ({reason_of(e)}): download it again") from e
    inputs = {"input", "input_lengths", "scales"} | ({"sid"} if config.num_speakers > 1 else set())
    check_inputs(model, [inputs], "a Piper voice as its configuration describes")
    return PiperVoice(session=session(model), config=config), language


def _speakers(config: Any) -> dict[str, int]:
    return {str(i): i for i in range(config.num_speakers)} | dict(config.speaker_id_map)


def _model_file(name: str, folder: str) -> Path:
    found = model_folder(folder, "model of the Piper voice")
    names = sorted(path.name.removesuffix(".onnx") for path in found.glob("*.onnx"))
    check_known(f"{found} has no Piper voice", name, names, "download its two files")
    return found / f"{name}.onnx"


def _config_file(model: Path) -> Path:
    return model.with_name(f"{model.name}.json")
