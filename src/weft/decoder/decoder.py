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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft import plan
from weft.artifacts import Manifest, loading, read
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.griffin_lim import GriffinLim
from weft.decoder.mel import SILENCE, MelConfig
from weft.decoder.vocoder import Vocoder
from weft.device import default_device
from weft.errors import UserError
from weft.files import read_json_object, write_json
from weft.weights import load_weights, save_weights

KIND = "decoder"
Codes = Sequence[int] | np.ndarray
_CONFIG, _WEIGHTS = "decoder.json", "model.safetensors"


class SpeechDecoder:
    """A `FlowDecoder` with its vocoder. Every code is a whole number of mel frames."""

    def __init__(
        self, flow: FlowDecoder, mel: MelConfig, manifest: Manifest | None = None, vocoder: Vocoder | None = None
    ) -> None:
        assert vocoder is None or vocoder.spectrogram.config == mel, "the vocoder is for another mel spectrogram"
        self.flow = flow
        self.mel = mel
        self.vocoder: Vocoder | GriffinLim = vocoder or GriffinLim(mel)
        self._manifest = manifest
        self.num_codes = flow.num_codes
        self.sample_rate_hz = mel.sample_rate_hz
        self.mel_frames_per_code, remainder = divmod(flow.values_per_code, mel.num_mels)
        assert not remainder, "a code must be a whole number of mel frames"
        self.samples_per_code = self.mel_frames_per_code * mel.hop_samples

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
            mel = MelConfig(**config["mel"])
            values_per_code = config["mel_frames_per_code"] * mel.num_mels
            flow = FlowDecoder(FlowConfig(**config["flow"]), config["num_codes"], values_per_code)
            load_weights(flow, folder / _WEIGHTS)
            vocoder = Vocoder.from_files(folder) if config.get("has_vocoder", False) else None
            return cls(flow.eval(), mel, manifest, vocoder).to(device or default_device())

    def save_pretrained(self, folder: str | Path) -> Manifest:
        """Save the decoder as a new artifact. Raises UserError if `folder` exists."""
        return plan.save(Path(folder), KIND, self.write_files, self._manifest)

    def write_files(self, folder: Path) -> None:
        """Write weights and configuration into the directory of an artifact."""
        save_weights(self.flow.state_dict(), folder / _WEIGHTS)
        config = {
            "flow": asdict(self.flow.config),
            "mel": asdict(self.mel),
            "num_codes": self.num_codes,
            "mel_frames_per_code": self.mel_frames_per_code,
            "has_vocoder": isinstance(self.vocoder, Vocoder),
        }
        if isinstance(self.vocoder, Vocoder):
            self.vocoder.write_files(folder)
        write_json(folder / _CONFIG, config)

    def stream(self, seed: int = 0) -> DecoderStream:
        """Start an utterance: push codes, get the audio of complete blocks. `seed` determines the noise."""
        return DecoderStream(self, seed)

    def synthesize(self, codes: Codes, seed: int = 0) -> np.ndarray:
        """Return float32 samples (N * samples_per_code,) of codes (N,). Raises UserError for an invalid code."""
        stream = self.stream(seed)
        return np.concatenate([stream.push(codes), stream.finish()])

    def check_codes(self, codes: Codes) -> list[int]:
        """Return codes as integers. Raises UserError for one outside the codebook."""
        values = np.asarray(codes, dtype=np.int64)
        outside = values[(values < 0) | (values >= self.num_codes)]
        if len(outside):
            raise UserError(
                f"code {outside[0]} is outside the codebook 0..{self.num_codes - 1}: use the tokenizer of this decoder"
            )
        return values.tolist()


class DecoderStream:
    """Incremental decoding of one utterance: every complete block yields its audio.

    Blocks begin at fixed codes, so any division into pushes gives the same bits as a single one, and the audio that is
    out never changes. The cost of a block does not depend on its position. The audio of a block ends
    `decoder.vocoder.delay_samples` before the block does, and `finish` returns the rest.
    """

    def __init__(self, decoder: SpeechDecoder, seed: int) -> None:
        mean, context = decoder.flow.mean, decoder.flow.config.context_codes
        self._decoder = decoder
        self._pending: list[int] = []  # codes of an incomplete block
        self._codes = torch.full((1, context), decoder.num_codes, device=mean.device)  # (1, C) before the next block
        self._mel = mean.new_full((1, context, len(mean)), SILENCE)  # (1, C, P) of these codes
        self._vocoder: Any = decoder.vocoder.new_state(batch_size=1)
        self._generator = torch.Generator().manual_seed(seed)  # of the noise, which is drawn in the order of the codes
        self._num_decoded = 0
        self._num_early = decoder.vocoder.delay_samples  # samples to come that precede the utterance
        self._finished = False

    def push(self, codes: Codes) -> np.ndarray:
        """Take any number of codes; return the samples (S,) float32 of the blocks that they complete.

        Raises UserError, without changing the state, for a code outside the codebook.
        """
        assert not self._finished, "this stream is finished: start another"
        self._pending.extend(self._decoder.check_codes(codes))
        audio, config = [np.zeros(0, np.float32)], self._decoder.flow.config
        while len(self._pending) >= (size := config.block_codes if self._num_decoded else config.first_block_codes):
            audio.append(self._decode(size))
        return np.concatenate(audio)

    @torch.no_grad()
    def finish(self) -> np.ndarray:
        """Return the remaining samples and end the stream."""
        assert not self._finished, "this stream is finished: start another"
        self._finished = True
        audio = [np.zeros(0, np.float32)]
        if self._pending:
            audio.append(self._decode(len(self._pending)))
        if self._num_decoded:
            audio.append(self._decoder.vocoder.flush(self._vocoder)[0, self._num_early :].cpu().numpy())
        return np.concatenate(audio)

    @torch.no_grad()
    def _decode(self, num_codes: int) -> np.ndarray:
        """Decode the next `num_codes` pending codes as one block."""
        decoder = self._decoder
        block = torch.tensor([self._pending[:num_codes]], device=self._codes.device)
        del self._pending[:num_codes]
        window = torch.cat([self._codes, block], dim=1)
        mel = decoder.flow.sample(window, self._mel, self._noise(1, num_codes, self._mel.shape[2]))
        frames = mel.unflatten(2, (decoder.mel_frames_per_code, -1)).flatten(1, 2)
        samples = decoder.vocoder.push(self._vocoder, frames, self._noise(1, num_codes * decoder.samples_per_code))
        audio = samples[0, self._num_early :].cpu().numpy()
        self._num_early -= samples.shape[1] - len(audio)
        self._codes = window[:, num_codes:]
        self._mel = torch.cat([self._mel, mel], dim=1)[:, num_codes:]
        self._num_decoded += num_codes
        return audio

    def _noise(self, *shape: int) -> Tensor:
        """Return normal noise, the same on any device."""
        return torch.randn(shape, generator=self._generator).to(self._mel.device)
