"""The speech decoder that users touch: codes to sound, whole or in a stream.

    decoder = SpeechDecoder.load("runs/decoder")
    require_parent(decoder.manifest, "tokenizer", tokenizer.manifest)     # are these codes its own?
    samples = decoder.synthesize(codes, seed=0)        # float32 at decoder.sample_rate_hz
    stream = decoder.stream(seed=0)
    samples = stream.push(codes)                       # the sound of every block that is finished

Two parts: `flow` (codes to mel spectrogram, trained) and `vocoder` (mel spectrogram to sound).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from weft.artifacts import Manifest, loading, read, write_json
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.streaming import DecoderState, DecoderStream
from weft.decoder.vocoder import SILENCE, MelConfig, Vocoder
from weft.errors import UserError
from weft.weights import load_weights

KIND = "decoder"
Codes = Sequence[int] | np.ndarray
_CONFIG, _WEIGHTS = "decoder.json", "model.safetensors"


class SpeechDecoder:
    """A trained `FlowDecoder` with its vocoder. Each code is a whole number of mel frames."""

    def __init__(self, flow: FlowDecoder, mel: MelConfig, manifest: Manifest | None = None) -> None:
        self.flow = flow
        self.mel = mel
        self.vocoder = Vocoder(mel)
        self._manifest = manifest
        self.num_codes = flow.num_codes
        self.sample_rate_hz = mel.sample_rate_hz
        self.mel_frames_per_code, left_over = divmod(flow.values_per_code, mel.num_mels)
        assert not left_over, "a code's mel values are whole frames"
        self.samples_per_code = self.mel_frames_per_code * mel.hop_samples

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact it was loaded from; its parent "tokenizer" is the one whose codes it reads."""
        assert self._manifest is not None, "not loaded from an artifact"
        return self._manifest

    @classmethod
    def load(cls, folder: str | Path) -> SpeechDecoder:
        """Load a decoder artifact. Raises UserError when the folder is not a whole one."""
        folder = Path(folder)
        manifest = read(folder, KIND)
        with loading(folder, "a decoder"):
            config = json.loads((folder / _CONFIG).read_text())
            mel = MelConfig(**config["mel"])
            values_per_code = config["mel_frames_per_code"] * mel.num_mels
            flow = FlowDecoder(FlowConfig(**config["flow"]), config["num_codes"], values_per_code)
            load_weights(flow, folder / _WEIGHTS)
            return cls(flow.eval(), mel, manifest)

    def save(self, folder: Path) -> None:
        """Write weights and configuration; the caller's artifact adds the manifest."""
        save_file({k: v.contiguous() for k, v in self.flow.state_dict().items()}, folder / _WEIGHTS)
        config = {
            "flow": asdict(self.flow.config),
            "mel": asdict(self.mel),
            "num_codes": self.num_codes,
            "mel_frames_per_code": self.mel_frames_per_code,
        }
        write_json(folder / _CONFIG, config)

    def stream(self, seed: int = 0) -> DecoderStream:
        """A new utterance: `push` codes, get the sound of finished blocks. `seed` is of its noise."""
        return DecoderStream(self, seed)

    def synthesize(self, codes: Codes, seed: int = 0) -> np.ndarray:
        """The sound of codes (N,) as float32 samples (N * samples_per_code,).

        Raises UserError for a code outside the codebook.
        """
        stream = self.stream(seed)
        return np.concatenate([stream.push(codes), stream.finish()])

    def checked(self, codes: Codes) -> list[int]:
        """`codes` as integers. Raises UserError for one outside the codebook."""
        values = np.asarray(codes, dtype=np.int64)
        outside = values[(values < 0) | (values >= self.num_codes)]
        if len(outside):
            raise UserError(
                f"code {outside[0]} out of range 0..{self.num_codes - 1}: use the tokenizer it was made for"
            )
        return values.tolist()

    def new_state(self, seed: int) -> DecoderState:
        """The state before an utterance: the codes before it are the one for nothing, and they were silent."""
        mean, context = self.flow.mean, self.flow.config.context_codes
        return DecoderState(
            waiting=[],
            codes=torch.full((1, context), self.num_codes, device=mean.device),
            mel=mean.new_full((1, context, len(mean)), SILENCE),
            vocoder=self.vocoder.new_state(batch_size=1),
            generator=torch.Generator().manual_seed(seed),
        )
