"""The speech tokenizer: audio to codes, codes to text, whole or as a stream.

    tokenizer = SpeechTokenizer.from_pretrained("runs/demo/tokenizer")
    codes = tokenizer.encode([samples])[0]             # 16 kHz mono float32 -> 12.5 codes per second
    text = tokenizer.transcribe([codes])[0]            # by the part of the ASR model after the bottleneck
    stream = tokenizer.stream()
    codes = stream.push(samples)                       # the codes of every block that is complete

Audio is split into windows of Whisper's length (30 s), each encoded on its own, so recordings may have any length.

Shapes: S samples, B batch, M mel bands, T encoder frames (50 per second; two mel frames each), N tokens, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperConfig, WhisperForConditionalGeneration

from weft import plan
from weft.artifacts import Manifest, loading, read
from weft.asr.whisper import Prompt
from weft.audio import HALF_WINDOW_SAMPLES, LOOK_AHEAD_SAMPLES, SAMPLE_RATE_HZ, mirror
from weft.data.batching import batches_by_length
from weft.device import Precision, default_device, uses_bf16
from weft.errors import UserError
from weft.files import write_json
from weft.pretrained import load_pretrained
from weft.tokenizer.artifact import CONFIG, KIND, WEIGHTS, load_bottleneck_config
from weft.tokenizer.decoding import greedy_decode
from weft.tokenizer.encoder import ENCODER_HZ, SAMPLES_PER_FRAME, BottleneckWhisper
from weft.tokenizer.features import FeatureExtractor
from weft.tokenizer.packed import Recordings, new_state, to_bf16, to_bottleneck
from weft.weights import load_weights, save_weights

Codes = Sequence[int] | np.ndarray
_Window = TypeVar("_Window")
_BATCH_SEC = 200.0  # of speech transcribed at once
_PACK_SEC = 40.0  # of speech encoded at once: the output of a layer then fits the processor's cache
_GPU_PACK_SEC = 1200.0
_TIED = ("whisper.proj_out.weight",)  # to the embedding


class SpeechTokenizer:
    """A `BottleneckWhisper` with its features and, unless it is `encoder_only`, its text tokenizer."""

    def __init__(
        self,
        model: BottleneckWhisper,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.model = model
        self.features = FeatureExtractor(model)
        self._text_tokenizer, self._manifest = text_tokenizer, manifest
        pooling, max_frames = model.config.pooling, model.whisper_config.max_source_positions
        if pooling > max_frames:
            raise UserError(f"pooling is {pooling}: give at most {max_frames}, the frames of Whisper's window")
        self.num_codes = model.quantizer.num_codes
        self.frame_rate_hz = ENCODER_HZ / pooling
        self.samples_per_code = SAMPLES_PER_FRAME * pooling
        self.codes_per_window = max_frames // pooling
        self.codes_per_block = model.config.block_frames // pooling or self.codes_per_window

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact that it was loaded from."""
        assert self._manifest is not None, "not loaded from an artifact"
        return self._manifest

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.features.device

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The text tokenizer of the ASR model."""
        assert self._text_tokenizer is not None, "this tokenizer is encoder_only"
        return self._text_tokenizer

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt of the ASR model's text decoder."""
        return Prompt.of(self.text_tokenizer, self.model.whisper_config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, precision: Precision = "fp32", device: str | None = None
    ) -> SpeechTokenizer:
        """Load a tokenizer artifact, onto a GPU if there is one.

        With bf16, the layers before the quantizer compute in it, which changes a few codes in a thousand; transcripts
        of given codes stay the same. Such a tokenizer can be neither trained nor saved. Raises UserError for a
        directory that is not a complete tokenizer.

        Example:
            >>> import numpy as np, weft
            >>> tokenizer = weft.SpeechTokenizer.from_pretrained("runs/demo/tokenizer")
            >>> codes = tokenizer.encode([np.zeros(16_000, np.float32)])[0]
            >>> len(codes), codes.dtype
            (13, dtype('uint16'))
        """
        folder, device = Path(folder), device or default_device()
        manifest = read(folder, KIND)
        with loading(folder, "a tokenizer"):
            config = load_bottleneck_config(folder)
            with torch.device("meta"):  # allocates no memory before the weights are read
                whisper = WhisperForConditionalGeneration(load_pretrained(WhisperConfig, folder / "whisper"))
                model = BottleneckWhisper(config, whisper).eval()
            load_weights(model, folder / WEIGHTS, leave_out=_TIED)
            if uses_bf16(precision, device):
                to_bf16(model)
            if not config.encoder_only:
                whisper.proj_out.weight = whisper.model.decoder.embed_tokens.weight
            model.to(device)
            text = None if config.encoder_only else load_pretrained(AutoTokenizer, folder / "text_tokenizer")
            return cls(model, text, manifest)

    def save_pretrained(self, folder: str | Path) -> Manifest:
        """Save the tokenizer as a new artifact. Raises UserError if `folder` exists."""
        return plan.save(Path(folder), KIND, self.write_files, self._manifest)

    def write_files(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights in `dtype`, configurations and the text tokenizer into the directory of an artifact."""
        self._require_fp32()
        weights = {k: v for k, v in self.model.state_dict().items() if k not in _TIED}
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
        save_weights(weights, folder / WEIGHTS)
        self.model.whisper_config.save_pretrained(folder / "whisper")
        if self._text_tokenizer is not None:
            self._text_tokenizer.save_pretrained(folder / "text_tokenizer")
        write_json(folder / CONFIG, asdict(self.model.config))

    def _require_fp32(self) -> None:
        if self.model.whisper.model.encoder.conv1.weight.dtype != torch.float32:
            raise UserError('this tokenizer was loaded in bf16, to compute codes only: load it with precision = "fp32"')

    # Audio to codes

    @torch.inference_mode()
    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the codes (N,) uint16 of 16 kHz mono recordings (S,) of any length, zero-padded to whole codes."""
        window = self.codes_per_window * self.samples_per_code
        codes = [np.empty(-(-len(x) // self.samples_per_code), np.uint16) for x in audio]
        pieces = [(i, s) for i, x in enumerate(audio) for s in range(0, len(x), window)]
        num_samples = [min(window, len(audio[i]) - s) for i, s in pieces]
        pack_sec = _PACK_SEC if self.device.type == "cpu" else _GPU_PACK_SEC
        for rows in batches_by_length(num_samples, int(pack_sec * SAMPLE_RATE_HZ)):
            batch = [pieces[row] for row in reversed(rows)]  # the longest first
            windows = [audio[i][s : s + window] for i, s in batch]
            longest = [min(window, len(audio[i])) for i, _ in batch]
            for (i, s), c in zip(batch, self._encode_windows(windows, longest), strict=True):
                first = s // self.samples_per_code
                codes[i][first : first + len(c)] = c
        return codes

    def _encode_windows(self, windows: Sequence[np.ndarray], longest_samples: Sequence[int]) -> list[np.ndarray]:
        """Return the codes of windows, the longest first (see `FeatureExtractor` for `longest_samples`)."""
        num_codes = [-(-len(x) // self.samples_per_code) for x in windows]
        recordings = Recordings(
            num_frames=[n * self.model.config.pooling for n in num_codes],
            num_valid=[-(-len(x) // SAMPLES_PER_FRAME) for x in windows],
        )
        features = self.features(windows, longest_samples)
        codes = self.model.quantizer.encode(to_bottleneck(self.model, features, recordings))
        return np.split(codes.cpu().numpy().astype(np.uint16), np.cumsum(num_codes[:-1]))

    def valid_codes(self, valid: Tensor) -> Tensor:
        """Return the valid codes (..., N), those that begin within the recording, from its valid frames (..., T)."""
        return valid[..., :: self.model.config.pooling]

    def stream(self) -> TokenizerStream:
        """Start a stream: push samples, get codes of complete blocks. Raises UserError as `TokenizerStream` does."""
        return TokenizerStream(self)

    # Codes to text

    @torch.inference_mode()
    def transcribe(self, codes: Sequence[Codes], languages: Sequence[str | None] = ()) -> list[str]:
        """Transcribe codes with the part of the ASR model after the bottleneck, by greedy decoding.

        `languages` are for multilingual models. One that is not given is the `language` of the tokenizer's training,
        or else detected. Transcripts too long for their duration
        are truncated. Raises UserError for an invalid code or language, and for an `encoder_only` tokenizer.
        """
        size = self.codes_per_window
        windows = [[c[s : s + size] for s in range(0, len(c), size)] for c in codes]
        return self._transcribe(windows, len, self._encode_codes, languages)

    @torch.inference_mode()
    def transcribe_unquantized(self, audio: Sequence[np.ndarray], languages: Sequence[str | None] = ()) -> list[str]:
        """Transcribe 16 kHz mono recordings with the same model, without quantizing the hidden states.

        Raises UserError for an unsupported language, and for a tokenizer that is `encoder_only` or in bf16.
        """
        self._require_fp32()
        size = self.codes_per_window * self.samples_per_code
        windows = [[x[s : s + size] for s in range(0, len(x), size)] for x in audio]
        return self._transcribe(windows, lambda x: -(-len(x) // self.samples_per_code), self._encode_audio, languages)

    def _transcribe(
        self,
        windows: Sequence[Sequence[_Window]],
        num_codes: Callable[[_Window], int],
        encode: Callable[[list[_Window]], tuple[Tensor, Tensor]],
        languages: Sequence[str | None],
    ) -> list[str]:
        """Transcribe recordings, each given as its windows; `encode` returns encoder output and valid tokens."""
        default = self._manifest.settings.get("language") if self._manifest else None
        places = [(i, n) for i, several in enumerate(windows) for n in range(len(several))]
        texts = [[""] * len(several) for several in windows]
        lengths = [num_codes(windows[i][n]) for i, n in places]
        for rows in batches_by_length(lengths, int(_BATCH_SEC * self.frame_rate_hz)):
            batch = [places[r] for r in rows]
            encoded, valid = encode([windows[i][n] for i, n in batch])
            batch_languages = [(languages[i] if languages else None) or default for i, _ in batch]
            decoded = greedy_decode(self.model, self.prompt, encoded, valid, batch_languages)
            for (i, n), ids in zip(batch, decoded, strict=True):
                texts[i][n] = str(self.text_tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return [" ".join(several) for several in texts]

    def _encode_codes(self, codes: Sequence[Codes]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(c) for c in codes])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.zeros(valid.shape, dtype=torch.long)
        padded[valid] = torch.from_numpy(np.concatenate([np.asarray(c, dtype=np.int64) for c in codes]))
        if len(invalid := padded[(padded < 0) | (padded >= self.num_codes)]):
            last = self.num_codes - 1
            raise UserError(f"code {int(invalid[0])} is outside the codebook 0..{last}: give codes of this tokenizer")
        valid = valid.to(self.device)
        return self.model.from_bottleneck(self.model.quantizer.decode(padded.to(self.device)), valid), valid

    def _encode_audio(self, windows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        features = [self.features([x], [len(x)])[0] for x in windows]
        batch, frames = self.features.collate(features, [len(x) for x in windows])
        valid = self.valid_codes(frames)
        return self.model.from_bottleneck(self.model.to_bottleneck(batch, frames), valid), valid


class TokenizerStream:
    """Incremental encoding: every complete block (of 2 s) yields its codes.

    Any division of the samples into chunks gives the codes of `SpeechTokenizer.encode`. A block is complete 2.5 ms
    after its last sample, which its last log-mel frame needs.
    """

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        """Start a stream. Raises UserError for a tokenizer whose codes depend on later audio."""
        config = tokenizer.model.config
        needed = {
            'log_mel_floor = "fixed"': config.log_mel_floor == "fixed",
            "causal_convolution = true": config.causal_convolution,
            "block_frames = 100": config.block_frames > 0,
        }
        if missing := [setting for setting, is_set in needed.items() if not is_set]:
            raise UserError(
                "this tokenizer cannot stream, because its codes depend on later audio: train one with "
                f"{', '.join(missing)}, or tokenize whole recordings"
            )
        self._tokenizer = tokenizer
        tokenizer.features.log_mel.to(tokenizer.device)
        self._pending = np.zeros(0, np.float32)
        self._start_window()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take any number of 16 kHz mono samples; return the codes (uint16) of the blocks that they complete."""
        self._pending = np.concatenate([self._pending, np.asarray(samples, dtype=np.float32)])
        codes = [np.zeros(0, np.uint16)]
        while len(self._pending) >= self._block_samples + LOOK_AHEAD_SAMPLES:
            codes.append(self._encode(self._block_samples, self._block_samples))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """Return the codes of the remaining samples, padded with zeros to a whole code, and reset the stream."""
        codes = [np.zeros(0, np.uint16)]
        while len(self._pending):
            whole = -(-len(self._pending) // self._tokenizer.samples_per_code) * self._tokenizer.samples_per_code
            num_samples = min(whole, self._block_samples)
            num_valid = min(len(self._pending), num_samples)
            self._pending = np.pad(self._pending, (0, num_samples - num_valid))
            codes.append(self._encode(num_samples, num_valid))
        self._start_window()
        return np.concatenate(codes)

    def _start_window(self) -> None:
        self._state = new_state(self._tokenizer.model)
        self._before: Tensor | None = None  # (1, 200), the last samples of the previous block
        self._codes_left = self._tokenizer.codes_per_window

    @property
    def _block_samples(self) -> int:
        """Samples of the next block. The last block of a window may be shorter."""
        return min(self._tokenizer.codes_per_block, self._codes_left) * self._tokenizer.samples_per_code

    @torch.inference_mode()
    def _encode(self, num_samples: int, num_valid: int) -> np.ndarray:
        """Return the codes of the next `num_samples`, of which `num_valid` are not padding."""
        tokenizer = self._tokenizer
        block, self._pending = self._pending[:num_samples], self._pending[num_samples:]
        self._codes_left -= num_samples // tokenizer.samples_per_code
        ends_window = not self._codes_left
        following = self._pending[: 0 if ends_window else LOOK_AHEAD_SAMPLES]
        after = np.pad(following, (0, LOOK_AHEAD_SAMPLES - len(following)))
        x = torch.from_numpy(np.concatenate([block, after]))[None].to(tokenizer.device)
        before = mirror(x) if self._before is None else self._before
        self._before = x[:, num_samples - HALF_WINDOW_SAMPLES : num_samples]
        features = tokenizer.features.log_mel.frames(torch.cat([before, x], dim=-1))
        size = Recordings([num_samples // SAMPLES_PER_FRAME], [-(-num_valid // SAMPLES_PER_FRAME)])
        model = tokenizer.model
        codes = model.quantizer.encode(to_bottleneck(model, list(features), size, self._state))
        if ends_window:
            self._start_window()
        return codes.cpu().numpy().astype(np.uint16)
