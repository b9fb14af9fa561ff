"""Kokoro voices, in this process, with kokoro-onnx (`pip install weft-speech[kokoro]`).

    speech = voice("af_heart?speed=0.9", None).speak("Good morning.")

The folder `models/kokoro`, or that of `?folder=DIR`, contains the files of the ONNX release v1.0: one model (*.onnx)
and the voices (voices*.bin or voices*.npz). The samples depend on text and voice only. Texts of more than 510 phonemes
are split at punctuation. `python -m weft.voices.kokoro [DIR]` lists the voices.
"""

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from weft import progress
from weft.errors import UserError, reason_of
from weft.voices.onnx import check_inputs, loaded_once, model_folder, session
from weft.voices.voice import Speech, Voice, check_known, joined, speed_factor, split_settings

SAMPLED: tuple[str, ...] = ("speed",)
_FOLDER = "models/kokoro"
_SETTINGS = ("speed", "folder")
_LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}
_OTHERS = {"j": "Japanese", "z": "Chinese"}  # espeak-ng cannot read their characters or tones
_NAME = re.compile(rf"[{''.join(_LANGUAGES)}{''.join(_OTHERS)}][fm]_\w+")
_STYLES = (510, 1, 256)  # a style for each number of phonemes
_LISTED = "`python -m weft.voices.kokoro` lists them"
_LOG = logging.getLogger(__name__)
_LOG.setLevel(logging.ERROR)  # phonemizer warns about every foreign word


def voice(spec: str, name: str | None) -> Voice:
    """Return the voice NAME[?speed=FACTOR&folder=DIR]. Raises UserError for what is unknown, missing or invalid."""
    own, settings = split_settings("kokoro", spec, _SETTINGS)
    speed = speed_factor(f"kokoro:{spec}", settings.get("speed", "1"))
    folder = model_folder(settings.pop("folder", _FOLDER), "Kokoro model and voices")
    model, voices = _model_file(folder), _voices_file(folder)
    found = _styles(voices)
    check_known("kokoro has no voice", own, found, _LISTED)
    if own[0] in _OTHERS:
        problem = f"kokoro:{own} speaks {_OTHERS[own[0]]}, which espeak-ng cannot convert to its phonemes"
        raise UserError(f"{problem}: choose another voice")
    identity, language = joined(f"kokoro:{own}", settings), _LANGUAGES[own[0]]
    speak = partial(_speak, kokoro=_load(model, voices), style=found[own], language=language, speed=speed)
    return Voice(speak, name or identity, language, identity, (model, voices))


def speakers(spec: str) -> list[str]:
    """Return the voice itself, or for a language ("en", "en-gb") all of its voices."""
    own, settings = split_settings("kokoro", spec, _SETTINGS)
    if not any(language == own or language.startswith(f"{own}-") for language in _LANGUAGES.values()):
        return [spec]
    folder = model_folder(settings.get("folder", _FOLDER), "Kokoro model and voices")
    names = _by_language(_styles(_voices_file(folder)))
    found = [
        name for language in names if language == own or language.startswith(f"{own}-") for name in names[language]
    ]
    if not found:
        raise UserError(f"{_voices_file(folder)} has no voice of {own}: {_LISTED}")
    return [joined(name, settings) for name in found]


def _speak(text: str, kokoro: Any, style: np.ndarray, language: str, speed: float) -> Speech:
    import phonemizer

    options = {"preserve_punctuation": True, "with_stress": True, "language_switch": "remove-flags", "logger": _LOG}
    phonemes = phonemizer.phonemize(" ".join(text.replace("\0", " ").split()), language, **options)
    phonemes = kokoro.tokenizer.known(phonemes).strip()
    if not any(map(str.isalpha, phonemes)):
        return Speech(np.zeros(0, np.float32), 24_000)
    return Speech(*kokoro.create(phonemes, style, speed, is_phonemes=True))


@loaded_once
def _load(model: Path, voices: Path) -> Any:
    try:
        from kokoro_onnx import Kokoro
    except ImportError as e:
        raise UserError(
            f"Kokoro voices need kokoro-onnx ({reason_of(e)}): pip install weft-speech[kokoro], or choose other voices"
        ) from e
    check_inputs(model, [{name, "style", "speed"} for name in ("tokens", "input_ids")], "a model of Kokoro 1.0")
    return Kokoro.from_session(session(model), str(voices))


def _model_file(folder: Path) -> Path:
    return _only(folder, "model (*.onnx)", folder.glob("*.onnx"))


def _voices_file(folder: Path) -> Path:
    found = (path for path in folder.glob("voices*") if path.suffix in (".bin", ".npz"))
    return _only(folder, "file of voices (voices*.bin or voices*.npz)", found)


def _only(folder: Path, what: str, found: Any) -> Path:
    paths = sorted(found)
    if len(paths) != 1:
        listed = f"{len(paths)} ({', '.join(path.name for path in paths)})" if paths else "none"
        raise UserError(f"{folder} needs one Kokoro {what} and has {listed}: add or remove files")
    return paths[0]


@loaded_once
def _styles(path: Path) -> dict[str, np.ndarray]:
    """Read the styles of all voices. Raises UserError for other files, such as those of another version of Kokoro."""
    if path.is_file() and not is_zipfile(path):
        raise UserError(f"{path} is not a complete archive of NumPy arrays: download it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            styles = {name: file[name] for name in file.files}
    except Exception as e:
        raise UserError(f"{path} cannot be read ({reason_of(e)}): download it again") from e
    for name, style in styles.items():
        if not _NAME.fullmatch(name) or style.shape != _STYLES or style.dtype != np.float32:
            raise UserError(
                f"{path} is not a file of voices of Kokoro 1.0: {name!r} is {style.dtype} {style.shape}, "
                f"not float32 {_STYLES}: download the voices of the model"
            )
    return styles


def _by_language(names: Any) -> dict[str, list[str]]:
    return {language: sorted(name for name in names if name[0] == key) for key, language in _LANGUAGES.items()}


if __name__ == "__main__":
    given = model_folder(sys.argv[1] if sys.argv[1:] else _FOLDER, "Kokoro model and voices")
    progress.show(
        *(f"{key + ':':7} {' '.join(names)}" for key, names in _by_language(_styles(_voices_file(given))).items())
    )
