"""The speech decoder: codes to audio, whole or as a stream.

    decoder = SpeechDecoder.from_pretrained("runs/demo/decoder")
    require_parent(decoder.manifest, "tokenizer", tokenizer.manifest)     # are these the codes of its tokenizer?
    samples = decoder.synthesize(codes, seed=0)        # float32 at decoder.sample_rate_hz
    stream = decoder.stream(seed=0)
    samples = stream.push(codes)                       # the audio of every block that is complete

It has two parts: `flow` (codes to mel spectrogram) and `vocoder` (mel spectrogram to audio: trained, or Griffin-Lim).

Shapes: S samples, N codes, C context codes, P mel values of a code (frames per code * bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft import plan
from weft.artifacts import Manifest, loading, read
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.griffin_lim import GriffinLim
from weft.decoder.mel import MelConfig
from weft.decoder.published.conformer import EncoderShape
from weft.decoder.published.flow import PublishedConfig, PublishedFlow
from weft.decoder.published.hift import HiFT
from weft.decoder.published.stream import PublishedStream
from weft.decoder.published.unet import UNetShape
from weft.decoder.stream import Codes, DecoderStream, Parts, Voice, check_codes
from weft.decoder.vocoder import Vocoder
from weft.device import default_device
from weft.errors import UserError
from weft.files import read_json_object, write_json
from weft.weights import load_weights, save_weights, weights_of

KIND = "decoder"
_MIN_PROMPT_LEVEL = 1e-3
_CONFIG, _WEIGHTS = "decoder.json", "model.safetensors"


class SpeechDecoder:
    """A `FlowDecoder` with its vocoder. Every code is a whole number of mel frames."""

    def __init__(
        self,
        flow: FlowDecoder,
        mel: MelConfig,
        manifest: Manifest | None = None,
        vocoder: Vocoder | None = None,
        speakers: Sequence[str] = (),
    ) -> None:
        assert vocoder is None or vocoder.spectrogram.config == mel, "the vocoder is for another mel spectrogram"
        self.flow = flow
        self.mel = mel
        part = vocoder or GriffinLim(mel)
        self.vocoder: Vocoder | GriffinLim | HiFT = part
        self.speakers = tuple(speakers)
        """Names of the speakers of the training data, if it distinguishes them."""
        self._manifest = manifest
        self.num_codes = flow.num_codes
        self.sample_rate_hz = mel.sample_rate_hz
        self.mel_frames_per_code, remainder = divmod(flow.values_per_code, mel.num_mels)
        assert not remainder, "a code must be a whole number of mel frames"
        self.samples_per_code = self.mel_frames_per_code * mel.hop_samples
        self._parts = Parts(flow, part, self.mel_frames_per_code, self.samples_per_code)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact that it was loaded from. Its parent "tokenizer" is that of the codes."""
        assert self._manifest is not None, "not loaded from an artifact"
        return self._manifest

    def to(self, device: str) -> SpeechDecoder:
        """Move the decoder to a device."""
        self.flow.to(device)
        self.vocoder.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.flow.mean.device

    @property
    def euler_steps(self) -> int:
        """Euler steps of the flow model per block."""
        return self.flow.config.euler_steps

    @property
    def first_block_codes(self) -> int:
        """Codes that give the first audio of a stream."""
        return self.flow.config.first_block_codes

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | None = None) -> SpeechDecoder:
        """Load a decoder artifact, onto a GPU if there is one. Raises UserError if it is not complete.

        Example:
            >>> import weft
            >>> decoder = weft.SpeechDecoder.from_pretrained("runs/demo/decoder")
            >>> samples = decoder.synthesize([17, 4, 5], seed=0)
            >>> len(samples) == 3 * decoder.samples_per_code
            True
        """
        folder = Path(folder)
        manifest = read(folder, KIND)
        with loading(folder, "a decoder"):
            config = read_json_object(folder / _CONFIG)
            if "published" in config:
                return PublishedDecoder.from_files(folder, config, manifest).to(device or default_device())
            mel = MelConfig(**config["mel"])
            values_per_code = config["mel_frames_per_code"] * mel.num_mels
            speakers = config.get("speakers", [])
            flow = FlowDecoder(FlowConfig(**config["flow"]), config["num_codes"], values_per_code, len(speakers))
            load_weights(flow, folder / _WEIGHTS)
            vocoder = Vocoder.from_files(folder) if config.get("has_vocoder", False) else None
            return cls(flow.eval(), mel, manifest, vocoder, speakers).to(device or default_device())

    def save_pretrained(self, folder: str | Path) -> Manifest:
        """Save the decoder as a new artifact. Raises UserError if `folder` exists."""
        return plan.save(Path(folder), KIND, self.write_files, self._manifest)

    def write_files(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights in `dtype` and configuration into the directory of an artifact."""
        save_weights(weights_of(self.flow, dtype), folder / _WEIGHTS)
        config = {
            "flow": asdict(self.flow.config),
            "mel": asdict(self.mel),
            "num_codes": self.num_codes,
            "mel_frames_per_code": self.mel_frames_per_code,
            "has_vocoder": isinstance(self.vocoder, Vocoder),
            "speakers": list(self.speakers),
        }
        if isinstance(self.vocoder, Vocoder):
            self.vocoder.write_files(folder, dtype)
        write_json(folder / _CONFIG, config)

    def stream(self, seed: int = 0, voice: Voice | None = None) -> DecoderStream | PublishedStream:
        """Start an utterance: push codes, get the audio of complete blocks. `seed` determines the noise."""
        return DecoderStream(self._parts, seed, voice or Voice())

    def synthesize(self, codes: Codes, seed: int = 0, voice: Voice | None = None) -> np.ndarray:
        """Return float32 samples (N * samples_per_code,) of codes (N,). Raises UserError for an invalid code."""
        stream = self.stream(seed, voice)
        return np.concatenate([stream.push(codes), stream.finish()])

    def speaker(self, name: str) -> Voice:
        """Return the voice of a speaker of the training data. Raises UserError for an unknown one."""
        if name not in self.speakers:
            near = get_close_matches(name, self.speakers, 3, 0.4) or self.speakers[:3]
            hint = f"give one of its {len(self.speakers)} speakers, such as {', '.join(near)}" if near else "give none"
            raise UserError(f"{name} is not a speaker of this decoder: {hint}")
        return Voice(speaker=1 + self.speakers.index(name))

    def prompt(self, codes: Codes, samples: np.ndarray, sample_rate_hz: int, speaker: str | None = None) -> Voice:
        """Return the voice of a recording (S,) with its codes (N,), the last `flow.config.prompt_codes` of which count.

        Raises UserError for a decoder without voice prompts, another sample rate, silence, samples that are not
        finite, and codes that do not fit.
        """
        num = self.flow.config.prompt_codes
        if not num:
            raise UserError("this decoder has no voice prompts: train one with flow.prompt_codes")
        if sample_rate_hz != self.sample_rate_hz:
            raise UserError(f"the voice prompt has {sample_rate_hz} Hz: resample it to {self.sample_rate_hz} Hz")
        if abs(len(samples) - len(codes) * self.samples_per_code) > self.samples_per_code:
            raise UserError(f"the voice prompt has {len(samples)} samples, which do not fit its {len(codes)} codes")
        if not np.isfinite(samples).all():
            raise UserError("the voice prompt has samples that are not finite numbers: record it again")
        if np.abs(samples).max(initial=0.0) < _MIN_PROMPT_LEVEL:
            raise UserError("the voice prompt is silent: give a few seconds of clear speech")
        whole = np.zeros(len(codes) * self.samples_per_code, np.float32)
        whole[: len(samples)] = samples[: len(whole)]
        mel = self.vocoder.spectrogram(torch.from_numpy(whole)[None].to(self.device))[0]
        ids = torch.tensor(self.check_codes(codes), device=self.device)
        values = mel.unflatten(0, (len(ids), -1)).flatten(1)
        voice = self.speaker(speaker) if speaker else Voice()
        return replace(voice, codes=ids[-num:], mel=values[-num:])

    def check_codes(self, codes: Codes) -> list[int]:
        """Return codes as integers. Raises UserError for one outside the codebook."""
        return check_codes(codes, self.num_codes)


class PublishedDecoder(SpeechDecoder):
    """The paper's decoder, trained, or with the released weights (`weft import-glm`). It has one voice."""

    def __init__(self, flow: PublishedFlow, vocoder: HiFT, manifest: Manifest | None = None) -> None:
        assert vocoder.spectrogram.config == flow.mel, "the vocoder is for another mel spectrogram"
        self.published, self.hift, self.mel, self._manifest = flow, vocoder, flow.mel, manifest
        self.vocoder = vocoder
        self.num_codes, self.sample_rate_hz = flow.num_codes, flow.mel.sample_rate_hz
        self.samples_per_code, self.speakers = flow.samples_per_code, ()

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.published.to_mel.weight.device

    @property
    def euler_steps(self) -> int:
        """Euler steps of the flow model per block."""
        return self.published.config.euler_steps

    @property
    def first_block_codes(self) -> int:
        """Codes that give the first audio of a stream."""
        return self.published.config.encoder.block_codes

    @classmethod
    def from_files(cls, folder: Path, config: dict[str, Any], manifest: Manifest) -> PublishedDecoder:
        """Load what `write_files` wrote."""
        shape = dict(config["published"])
        encoder, estimator = EncoderShape(**shape.pop("encoder")), UNetShape(**shape.pop("estimator"))
        published, vocoder = PublishedConfig(**shape, encoder=encoder, estimator=estimator), HiFT.from_files(folder)
        flow = PublishedFlow(published, config["num_codes"], config["code_rate_hz"], vocoder.spectrogram.config)
        load_weights(flow, folder / _WEIGHTS)
        return cls(flow.eval(), vocoder, manifest)

    def write_files(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights in `dtype` and configuration into the directory of an artifact."""
        save_weights(weights_of(self.published, dtype), folder / _WEIGHTS)
        self.hift.write_files(folder, dtype)
        config = {
            "published": asdict(self.published.config),
            "num_codes": self.num_codes,
            "code_rate_hz": self.published.code_rate_hz,
        }
        write_json(folder / _CONFIG, config)

    def to(self, device: str) -> PublishedDecoder:
        """Move the decoder to a device."""
        self.published.to(device)
        self.vocoder.to(device)
        return self

    def prompt(self, codes: Codes, samples: np.ndarray, sample_rate_hz: int, speaker: str | None = None) -> Voice:
        """Raise UserError: there are no voice prompts."""
        raise UserError("this decoder has one voice: give no voice prompt")

    def stream(self, seed: int = 0, voice: Voice | None = None) -> PublishedStream:
        """Start an utterance: push codes, get the audio of complete blocks. `seed` determines the noise."""
        if voice is not None:
            raise UserError("this decoder has one voice: give none")
        return PublishedStream(self.published, self.hift, seed)
