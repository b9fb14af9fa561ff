"""Mel spectrogram to audio as a stream, by a trained network of frames.

    vocoder = Vocoder(VocoderShape(), MelConfig())
    state = vocoder.new_state(batch_size=1)
    samples = vocoder.push(state, mel)                 # as many samples as the frames last, `delay_samples` late
    last = vocoder.flush(state)                        # the last `delay_samples`

ConvNeXt blocks at the rate of the frames predict the spectrum of every frame, and an inverse STFT adds the frames up.
The first convolution looks a few frames ahead; all others are causal. Training runs the same code as a stream does, so
no frame is computed twice and nothing differs at the ends of blocks.

Shapes: B batch, S samples, T frames, M mel bands, D width, F linear bands.

Sources: Vocos (arXiv 2306.00814) for the network and its head; ConvNeXt (arXiv 2201.03545). Our choices: causality with
a bounded look-ahead, and frames that are added up with the window sum of the middle of an utterance at its ends too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.artifacts import loading
from weft.config import NonNegativeInt, PositiveInt
from weft.decoder.mel import SILENCE, MelConfig, MelSpectrogram
from weft.errors import UserError
from weft.files import read_json_object, write_json
from weft.weights import load_weights, save_weights, weights_of

KIND = "vocoder"
CONFIG, WEIGHTS = "vocoder.json", "vocoder.safetensors"
_KERNEL = 7
_CONTEXT = _KERNEL - 1  # frames
_MAX_LOG_MAGNITUDE = 5.0


@dataclass(frozen=True)
class VocoderShape:
    """Shape of the vocoder."""

    width: PositiveInt = 256
    """Width of the ConvNeXt blocks."""
    layers: PositiveInt = 6
    """ConvNeXt blocks."""
    expansion: PositiveInt = 3
    """Width of the inner layer of a block, as a multiple of `width`."""
    look_ahead_frames: NonNegativeInt = 2
    """Frames after a frame that its audio depends on, up to 6. They delay the audio."""

    def __post_init__(self) -> None:
        if self.look_ahead_frames > _CONTEXT:
            raise UserError(f"look_ahead_frames is {self.look_ahead_frames}: give at most {_CONTEXT}")


@dataclass
class VocoderState:
    """State between calls: `mel` (B, 6, M), the last frames; `hidden` (B, D, 6) of each block, its last inputs; and
    `tail` (B, S), the sum so far of samples that later frames add to."""

    mel: Tensor
    hidden: list[Tensor]
    tail: Tensor


class Vocoder(nn.Module):
    """The vocoder. Audio of a frame does not change when more frames are pushed, and is exact in any division."""

    window: Tensor
    scale: Tensor

    def __init__(self, shape: VocoderShape, mel: MelConfig) -> None:
        super().__init__()
        self.shape, self.spectrogram = shape, MelSpectrogram(mel)
        self.hop_samples = mel.hop_samples
        self.delay_samples = self.spectrogram.margin_samples + shape.look_ahead_frames * mel.hop_samples
        self.input = nn.Conv1d(mel.num_mels, shape.width, _KERNEL)
        self.input_norm = nn.LayerNorm(shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, mel.window_samples + 2)
        window = self.spectrogram.window
        sums = F.pad(window.square(), (0, -len(window) % mel.hop_samples)).view(-1, mel.hop_samples).sum(0)
        self.register_buffer("scale", 1 / sums, persistent=False)  # (hop,), of the window sum at any sample

    @classmethod
    def from_files(cls, folder: Path) -> Vocoder:
        """Load what `write_files` wrote. Raises UserError for invalid files."""
        with loading(folder, "a vocoder"):
            config = read_json_object(folder / CONFIG)
            vocoder = cls(VocoderShape(**config["shape"]), MelConfig(**config["mel"]))
            load_weights(vocoder, folder / WEIGHTS)
            return vocoder.eval()

    def write_files(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights in `dtype` and configuration into the directory of an artifact."""
        save_weights(weights_of(self, dtype), folder / WEIGHTS)
        write_json(folder / CONFIG, {"shape": asdict(self.shape), "mel": asdict(self.spectrogram.config)})

    def new_state(self, batch_size: int) -> VocoderState:
        """Return the state before the first frame: silence."""
        weight, mel = self.head.weight, self.spectrogram.config
        return VocoderState(
            weight.new_full((batch_size, _CONTEXT, mel.num_mels), SILENCE),
            [weight.new_zeros(batch_size, self.shape.width, _CONTEXT) for _ in self.blocks],
            weight.new_zeros(batch_size, mel.window_samples - mel.hop_samples),
        )

    def forward(self, mel: Tensor) -> Tensor:
        """Return the samples (B, T * hop) of whole utterances (B, T, M)."""
        state = self.new_state(len(mel))
        return torch.cat([self.push(state, mel), self.flush(state)], dim=1)[:, self.delay_samples :]

    def push(self, state: VocoderState, mel: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the audio (B, T * hop) of the next frames (B, T, M), which ends `delay_samples` before they do.

        `noise`, which Griffin-Lim needs, is not used.
        """
        frames = torch.cat([state.mel, mel], dim=1)
        state.mel = frames[:, -_CONTEXT:]
        x = self.input_norm(self.input(frames.transpose(1, 2)).transpose(1, 2))
        for i, block in enumerate(self.blocks):
            x, state.hidden[i] = block(x, state.hidden[i])
        return self._add(state, self._frames(self.head(self.norm(x))))

    def flush(self, state: VocoderState) -> Tensor:
        """Return the last `delay_samples` of an utterance."""
        silence = state.mel.new_full((len(state.mel), self.shape.look_ahead_frames, state.mel.shape[2]), SILENCE)
        late = [self.push(state, silence)] if self.shape.look_ahead_frames else []
        rest = state.tail * self.scale.repeat(-(-state.tail.shape[1] // self.hop_samples))[: state.tail.shape[1]]
        return torch.cat([*late, rest[:, : self.spectrogram.margin_samples]], dim=1)

    def _frames(self, predicted: Tensor) -> Tensor:
        """Return the windowed samples (B, T, window) of log magnitudes and phases (B, T, 2F)."""
        magnitude, phase = predicted.float().chunk(2, dim=-1)
        spectrum = torch.polar(magnitude.clamp(max=_MAX_LOG_MAGNITUDE).exp(), phase)
        window = self.spectrogram.window
        return torch.fft.irfft(spectrum, n=len(window)) * window

    def _add(self, state: VocoderState, frames: Tensor) -> Tensor:
        """Add frames (B, T, window) to the tail; return the samples (B, T * hop) that are complete."""
        num, hop = frames.shape[1], self.hop_samples
        added = self.spectrogram.add(frames) + F.pad(state.tail, (0, num * hop))
        state.tail = added[:, num * hop :]
        return added[:, : num * hop] * self.scale.repeat(num)


class _Block(nn.Module):
    """A ConvNeXt block whose convolution is causal."""

    def __init__(self, shape: VocoderShape) -> None:
        super().__init__()
        width, inner = shape.width, shape.expansion * shape.width
        self.conv = nn.Conv1d(width, width, _KERNEL, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gain = nn.Parameter(torch.full((width,), 1 / shape.layers))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (B, T, D) for inputs (B, T, D) after `before` (B, D, 6), and the last inputs."""
        inputs = torch.cat([before, x.transpose(1, 2)], dim=2)
        hidden = self.norm(self.conv(inputs).transpose(1, 2))
        return x + self.gain * self.contract(F.gelu(self.expand(hidden))), inputs[:, :, -_CONTEXT:]
