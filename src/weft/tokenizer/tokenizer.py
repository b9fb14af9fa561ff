"""The speech tokenizer that users touch: sound to codes, codes back to text, whole or in a stream.

    tokenizer = SpeechTokenizer.load("runs/tokenizer")
    codes = tokenizer.encode([samples])[0]             # 16 kHz mono float32 -> 12.5 codes a second
    text = tokenizer.transcribe([codes])[0]            # by the half of the ASR model that follows the bottleneck
    stream = tokenizer.stream()
    codes = stream.push(samples)                       # the codes of every block that is finished

Speech is cut into windows as long as Whisper's (30 s), each on its own, so that any length can be tokenized.

Shapes: S samples, B batch, M mel bands, T encoder frames (50 a second; two mel frames each), N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from weft.artifacts import Manifest, loading, read, write_json
from weft.audio import HALF_WINDOW_SAMPLES, HOP_SAMPLES, LOOK_AHEAD_SAMPLES, SAMPLE_RATE_HZ, LogMel, mirror
from weft.errors import UserError
from weft.tokenizer.encoder import (
    ENCODER_HZ,
    SAMPLES_PER_FRAME,
    BottleneckConfig,
    BottleneckWhisper,
    new_quantizer,
    real_frames,
)
from weft.tokenizer.packed import Recordings, first_half, to_bf16
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.text import Prompt
from weft.training.loop import Precision, takes_bf16
from weft.weights import load_weights

if TYPE_CHECKING:
    from weft.tokenizer.streaming import TokenizerStream

KIND = "tokenizer"
Codes = Sequence[int] | np.ndarray
_Window = TypeVar("_Window")
_BATCH_SEC = 200.0
_PACK_SEC = 40.0  # of speech coded at once: what one layer makes of it fits the processor's cache
_GPU_PACK_SEC = 1200.0
_MOST_IDS_PER_SEC = 50  # of a transcript that has not run away: nobody says so many letters in a second
_MOST_IDS_MORE = 20
_SILENCE = torch.zeros(LOOK_AHEAD_SAMPLES)
_SURROUNDINGS_SAMPLES = HALF_WINDOW_SAMPLES + LOOK_AHEAD_SAMPLES
_TO_A_FRAME = torch.zeros(-_SURROUNDINGS_SAMPLES % HOP_SAMPLES)
_UNUSED_FRAMES = (_SURROUNDINGS_SAMPLES + len(_TO_A_FRAME)) // HOP_SAMPLES
_TIED = ("whisper.proj_out.weight",)  # to the embedding


class SpeechTokenizer:
    """A trained `BottleneckWhisper` with its features and, unless it is `encoder_only`, its text tokenizer."""

    def __init__(
        self,
        model: BottleneckWhisper,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.model = model
        self._text_tokenizer = text_tokenizer
        self.log_mel = LogMel(model.whisper_config.num_mel_bins, model.config.log_mel_floor)
        self._manifest = manifest
        config = model.config
        self.num_codes = model.quantizer.num_codes
        self.frame_rate_hz = ENCODER_HZ / config.pooling
        self.samples_per_code = SAMPLES_PER_FRAME * config.pooling
        self.codes_per_window = model.whisper_config.max_source_positions // config.pooling
        if not self.codes_per_window:
            raise UserError(f"pooling is {config.pooling}: a token must fit Whisper's window")
        self.codes_per_block = config.block_frames // config.pooling or self.codes_per_window

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact it was loaded from."""
        assert self._manifest is not None, "not loaded from an artifact"
        return self._manifest

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.positions_after.weight.device

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The text tokenizer of the half that reads codes."""
        assert self._text_tokenizer is not None, "there is no half that reads codes"
        return self._text_tokenizer

    @cached_property
    def prompt(self) -> Prompt:
        """How the text of the half that reads codes begins."""
        return Prompt.of(self.text_tokenizer, self.model.whisper_config)

    @classmethod
    def load(cls, folder: str | Path, precision: Precision = "fp32") -> SpeechTokenizer:
        """Load a tokenizer artifact. With bf16 the layers that make codes multiply in it, which changes a few codes in
        a thousand, and no transcript of given codes; such a one is not for training or saving. With auto they do where
        the processor, a GPU if there is one, multiplies bf16 natively. Raises UserError when the folder is not a whole
        one."""
        folder = Path(folder)
        manifest = read(folder, KIND)
        with loading(folder, "a tokenizer"):
            settings = manifest.settings["model"]
            config = BottleneckConfig(**{**settings, "quantizer": QuantizerConfig(**settings["quantizer"])})
            with torch.device("meta"):  # no memory until the weights come
                whisper = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder / "whisper"))
                model = BottleneckWhisper(config, whisper).eval()
            load_weights(model, folder / "model.safetensors", leave_out=_TIED)
            if takes_bf16(precision, "cuda" if torch.cuda.is_available() else "cpu"):
                to_bf16(model)
            if config.encoder_only:
                return cls(model, None, manifest)
            whisper.proj_out.weight = whisper.model.decoder.embed_tokens.weight
            return cls(model, AutoTokenizer.from_pretrained(folder / "text_tokenizer"), manifest)

    def save(self, folder: Path) -> None:
        """Write weights, Whisper's configuration and the text tokenizer; the caller's artifact adds the manifest."""
        self._require_fp32()
        weights = {k: v for k, v in self.model.state_dict().items() if k not in _TIED}
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
        self.model.whisper_config.save_pretrained(folder / "whisper")
        if self._text_tokenizer is not None:
            self._text_tokenizer.save_pretrained(folder / "text_tokenizer")
        write_json(folder / "bottleneck.json", asdict(self.model.config))

    def _require_fp32(self) -> None:
        if self.model.whisper.model.encoder.conv1.weight.dtype != torch.float32:
            raise UserError('this tokenizer was loaded in bf16, only to make codes: load it with precision = "fp32"')

    # sound to codes

    def features(self, samples: np.ndarray) -> Tensor:
        """Log-mel features (M, 2T) of at most a window of samples, padded with silence to whole codes."""
        return self._features([samples], [len(samples)])[0]

    def _features(self, sounds: Sequence[np.ndarray], rooms: Sequence[int]) -> list[Tensor]:
        """Features of sounds, of which `rooms` are the longest windows of the same recordings, in samples.

        Whisper's own features are of windows as long as that one: only at its end is the sound mirrored, and symmetric
        convolutions hear all its silence. All are computed in one go, each sound between its surroundings.
        """
        causal, mirrored = self.model.config.causal_convolution, self.log_mel.floor == "window"
        lengths, parts = [], []
        for sound, room in zip(sounds, rooms, strict=True):
            own, longest = (-(-n // self.samples_per_code) * self.samples_per_code for n in (len(sound), room))
            lengths.append(own if causal else max(own, longest))
            x = torch.from_numpy(np.ascontiguousarray(sound, dtype=np.float32))
            x = F.pad(x, (0, lengths[-1] - len(sound)))
            after = x[-LOOK_AHEAD_SAMPLES - 1 : -1].flip(0) if mirrored and lengths[-1] >= longest else _SILENCE
            parts += [mirror(x), x, after, _TO_A_FRAME]
        log = self.log_mel.to(self.device).log_power(torch.cat(parts)[None].to(self.device))[0]
        firsts = accumulate([0, *(n // HOP_SAMPLES + _UNUSED_FRAMES for n in lengths[:-1])])
        return [self.log_mel.floored(log[:, f : f + n // HOP_SAMPLES]) for f, n in zip(firsts, lengths, strict=True)]

    @torch.inference_mode()
    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes (uint16, 12.5 a second, the last one padded with silence) of 16 kHz mono recordings of any length."""
        window = self.codes_per_window * self.samples_per_code
        codes = [np.empty(-(-len(x) // self.samples_per_code), np.uint16) for x in audio]
        pieces = [(i, s) for i, x in enumerate(audio) for s in range(0, len(x), window)]
        num_samples = [min(window, len(audio[i]) - s) for i, s in pieces]
        pack_sec = _PACK_SEC if self.device.type == "cpu" else _GPU_PACK_SEC
        for rows in batches_by_length(num_samples, int(pack_sec * SAMPLE_RATE_HZ)):
            rows = rows[::-1]  # the longest first
            sounds = [audio[i][s : s + window] for i, s in (pieces[row] for row in rows)]
            rooms = [min(window, len(audio[pieces[row][0]])) for row in rows]
            found = self._codes(sounds, rooms)
            for (i, s), c in zip((pieces[row] for row in rows), found, strict=True):
                first = s // self.samples_per_code
                codes[i][first : first + len(c)] = c
        return codes

    def _codes(self, sounds: Sequence[np.ndarray], rooms: Sequence[int]) -> list[np.ndarray]:
        """Codes of sounds of at most a window, the longest first, whose recordings' longest windows are `rooms`."""
        num_codes = [-(-len(x) // self.samples_per_code) for x in sounds]
        recordings = Recordings(
            num_frames=[n * self.model.config.pooling for n in num_codes],
            num_real=[-(-len(x) // SAMPLES_PER_FRAME) for x in sounds],
        )
        features = self._features(sounds, rooms)
        codes = self.model.quantizer.nearest(first_half(self.model, features, recordings))
        return np.split(codes.cpu().numpy().astype(np.uint16), np.cumsum(num_codes[:-1]))

    def collate(self, features: Sequence[Tensor], num_samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pad features (M, 2T) to a batch (B, M, 2T), and say which frames (B, T) are of the sounds' own samples."""
        batch = torch.zeros(len(features), features[0].shape[0], max(f.shape[1] for f in features))
        for row, f in enumerate(features):
            batch[row, :, : f.shape[1]] = f
        return batch.to(self.device), real_frames(num_samples, batch.shape[2] // 2).to(self.device)

    def real_codes(self, valid: Tensor) -> Tensor:
        """Which codes (..., N) begin within the sound, from which frames (..., T) do."""
        return valid[..., :: self.model.config.pooling]

    def stream(self) -> TokenizerStream:
        """A new stream: `push` samples, get the codes of finished blocks."""
        from weft.tokenizer.streaming import TokenizerStream

        return TokenizerStream(self)

    # codes to text

    @torch.inference_mode()
    def transcribe(self, codes: Sequence[Codes], languages: Sequence[str | None] = ()) -> list[str]:
        """What the second half of the ASR model reads in codes, by greedy decoding.

        `languages` tell a multilingual Whisper what is spoken, which it otherwise finds out. What no one could say in
        the time is cut off. Raises UserError for a code outside the codebook, for a language that it does not know, and
        when the tokenizer is `encoder_only`.
        """
        size = self.codes_per_window
        windows = [[c[s : s + size] for s in range(0, len(c), size)] for c in codes]
        return self._transcripts(windows, len, self._hear, languages)

    @torch.inference_mode()
    def transcribe_open(self, audio: Sequence[np.ndarray], languages: Sequence[str | None] = ()) -> list[str]:
        """What the same model reads in 16 kHz mono recordings with the bottleneck open: pooled hidden states go on as
        they are, not as codes. `languages` are as in `transcribe`.

        Raises UserError for a language that it does not know, and when the tokenizer is `encoder_only`, or in bf16.
        """
        self._require_fp32()
        size = self.codes_per_window * self.samples_per_code
        windows = [[x[s : s + size] for s in range(0, len(x), size)] for x in audio]
        return self._transcripts(windows, lambda x: -(-len(x) // self.samples_per_code), self._hear_open, languages)

    def _transcripts(
        self,
        windows: Sequence[Sequence[_Window]],
        num_codes: Callable[[_Window], int],
        hear: Callable[[list[_Window]], tuple[Tensor, Tensor]],
        languages: Sequence[str | None],
    ) -> list[str]:
        """What is read in recordings, each given as its windows, from the hidden states and valid codes of `hear`."""
        places = [(i, n) for i, several in enumerate(windows) for n in range(len(several))]
        texts = [[""] * len(several) for several in windows]
        lengths = [num_codes(windows[i][n]) for i, n in places]
        for rows in batches_by_length(lengths, int(_BATCH_SEC * self.frame_rate_hz)):
            at_once = [places[r] for r in rows]
            heard, valid = hear([windows[i][n] for i, n in at_once])
            spoken = [languages[i] if languages else None for i, _ in at_once]
            for (i, n), ids in zip(at_once, self._read(heard, valid, spoken), strict=True):
                texts[i][n] = str(self.text_tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return [" ".join(several) for several in texts]

    def _hear(self, codes: Sequence[Codes]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(c) for c in codes])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.zeros(valid.shape, dtype=torch.long)
        padded[valid] = torch.from_numpy(np.concatenate([np.asarray(c, dtype=np.int64) for c in codes]))
        if int(padded.max()) >= self.num_codes or int(padded.min()) < 0:
            raise UserError(
                f"code {int(padded.max())} is outside the codebook 0..{self.num_codes - 1}: wrong tokenizer?"
            )
        valid = valid.to(self.device)
        return self.model.second_half(self.model.quantizer.lookup(padded.to(self.device)), valid), valid

    def _hear_open(self, windows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        batch, frames = self.collate([self.features(x) for x in windows], [len(x) for x in windows])
        valid = self.real_codes(frames)
        return self.model.second_half(self.model.first_half(batch, frames), valid), valid

    def _prompted(self, heard: Tensor, valid: Tensor, languages: Sequence[str | None]) -> Tensor:
        """The prompt (B, L) of each row, with the likeliest language where none is given."""
        prompt = self.prompt
        start = torch.full((len(heard), 1), prompt.start, device=heard.device)
        if not prompt.languages:
            return torch.cat([start, start.new_tensor(prompt.rest).expand(len(heard), -1)], dim=1)
        known = start.new_tensor(list(prompt.languages.values()))
        likeliest = known[self.model.text_logits(heard, valid, start)[:, -1, known].argmax(-1)].tolist()
        spoken = [
            prompt.languages[prompt.code(name)] if name else i for name, i in zip(languages, likeliest, strict=True)
        ]
        return start.new_tensor([[prompt.start, i, *prompt.rest] for i in spoken])

    def _read(self, heard: Tensor, valid: Tensor, languages: Sequence[str | None]) -> list[list[int]]:
        whisper = self.model.whisper_config
        end = self.text_tokenizer.eos_token_id
        assert isinstance(end, int)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = self._prompted(heard, valid, languages)
        read, ended = [ids], torch.zeros(len(heard), 1, dtype=torch.bool, device=heard.device)
        most = _MOST_IDS_MORE + _MOST_IDS_PER_SEC / self.frame_rate_hz * valid.sum(1, keepdim=True)
        for num in range(1, whisper.max_target_positions - ids.shape[1] + 1):
            ids = self.model.text_logits(heard, valid, ids, cache)[:, -1:].argmax(-1)
            read.append(ids.masked_fill(ended, end))
            ended |= (ids == end) | (num >= most)
            if ended.all():
                break
        return torch.cat(read, dim=1).tolist()


@torch.no_grad()
def frame_rate_of(folder: str | Path) -> float:
    """Codes a second of a tokenizer artifact. Raises UserError where it is damaged."""
    manifest = read(Path(folder), KIND)
    with loading(Path(folder), "a tokenizer"):
        return ENCODER_HZ / manifest.settings["model"]["pooling"]


def codebook_of(folder: str | Path) -> Tensor:
    """The vectors (K, D) of all codes of a tokenizer artifact, without the rest of it.

    Raises UserError where it is damaged.
    """
    folder = Path(folder)
    manifest = read(folder, KIND)
    with loading(folder, "a tokenizer"), safe_open(folder / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if name.startswith("quantizer.")]  # noqa: SIM118, no mapping
        state = {name.removeprefix("quantizer."): weights.get_tensor(name) for name in names}
        if "codebook" in state:
            return state["codebook"]
        quantizer = new_quantizer(QuantizerConfig(**manifest.settings["model"]["quantizer"]), len(state["up.weight"]))
        quantizer.load_state_dict(state)
        return quantizer.lookup(torch.arange(quantizer.num_codes))


def batches_by_length(lengths: Sequence[int], max_total: int) -> list[list[int]]:
    """Indices grouped by similar length, each group's padded size at most `max_total` (or one item)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= max_total:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
