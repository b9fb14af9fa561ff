"""Stand-ins for the packages of voice engines, which tests must not need."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


class Session:
    """A model file contains the names of its inputs. A session repeats them and its number of threads."""

    def __init__(self, path, options, providers):
        names = Path(path).read_text().split()
        if "damaged" in names:
            raise RuntimeError("Protobuf parsing failed.")
        self.inputs, self.threads = names, options.intra_op_num_threads

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.inputs]


class Kokoro:
    """Speaks the first number of the style, once for each phoneme, `speed` times slower."""

    def __init__(self):
        self.tokenizer = SimpleNamespace(known=lambda phonemes: phonemes.replace("☃", ""))

    @classmethod
    def from_session(cls, session, voices_path):
        assert isinstance(session, Session)
        return cls()

    def create(self, phonemes, voice, speed, is_phonemes):
        return np.full(int(len(phonemes) / speed), voice[0, 0, 0]), 24_000


class PiperVoice:
    """Speaks the number of the speaker, once for each letter, `length_scale` times."""

    def __init__(self, session, config):
        self.config = config

    def phonemize(self, text):
        return [list(sentence) for sentence in text.split(".") if sentence]

    def synthesize(self, text, config):
        assert (config.noise_scale, config.noise_w_scale) == (0, 0)
        for sentence in self.phonemize(text):
            samples = np.full(int(len(sentence) * config.length_scale), config.speaker_id or 0, np.float32)
            yield SimpleNamespace(audio_float_array=samples)


def piper_config(content):
    return SimpleNamespace(
        num_speakers=content["num_speakers"],
        sample_rate=content["audio"]["sample_rate"],
        espeak_voice=content["espeak"]["voice"],
        phoneme_type=content.get("phoneme_type", "espeak"),
        speaker_id_map=content.get("speaker_id_map", {}),
        length_scale=1.0,
    )


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the stand-ins."""

    def module(name, **members):
        fake = ModuleType(name)
        vars(fake).update(members)
        monkeypatch.setitem(sys.modules, name, fake)

    module("onnxruntime", InferenceSession=Session, SessionOptions=SimpleNamespace)
    module("kokoro_onnx", Kokoro=Kokoro)
    module("phonemizer", phonemize=lambda text, language, **_: text)
    module("piper", PiperVoice=PiperVoice, SynthesisConfig=SimpleNamespace)
    module("piper.config", PiperConfig=SimpleNamespace(from_dict=piper_config))
