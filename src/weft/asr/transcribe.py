"""Transcription with a Hugging Face Whisper, with the confidence of each transcript.

    transcriber = Transcriber(Path("whisper-large-v3"))
    transcript = transcriber([samples], ["en"])[0]     # transcript.text, transcript.log_prob
    texts = transcriber.long([samples], [None])        # recordings of any length; None detects the language

`must_end` is the limit of all transcripts, also of those from codes.

Shapes: B windows, S samples, L text tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationMixin, StoppingCriteria, StoppingCriteriaList, WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutput

from weft.asr.whisper import Prompt, load_whisper
from weft.audio import HOP_SAMPLES, SAMPLE_RATE_HZ
from weft.device import default_device
from weft.errors import UserError

_CUT_WITHIN = 0.2  # of a window, at its end
_QUIET_SAMPLES = 1600  # 100 ms
# A longer transcript is no speech: byte-level text of Whisper's most costly languages has 25 ids per second.
_MAX_IDS_PER_SEC, _MAX_EXTRA_IDS = 30, 20
_MIN_REPEATED_IDS, _MIN_REPEATS, _MAX_PERIOD_IDS = 16, 3, 32
_CHECK_EVERY_IDS = 8  # a check for repetition takes as long as a small layer


@dataclass(frozen=True)
class Transcript:
    """A text, the mean log-probability of its tokens including the end, and the language code if there are several."""

    text: str
    log_prob: float
    language: str | None


def must_end(ids: Tensor, seconds: Tensor) -> Tensor:
    """Return which transcripts (B,), with the text ids (B, L) so far, must end.

    These are longer than speech of their duration, `seconds` (B,), can be, or end in a repetition: in at least 16 ids
    that equal those up to 32 ids before, three times in a row. Greedy decoding never leaves such a loop.
    """
    length = ids.shape[1]
    ended = length >= _MAX_EXTRA_IDS + _MAX_IDS_PER_SEC * seconds
    if length % _CHECK_EVERY_IDS:
        return ended
    for period in range(1, _MAX_PERIOD_IDS + 1):
        repeated = max(_MIN_REPEATED_IDS, _MIN_REPEATS * period)
        if repeated + period <= length:
            tail = ids[:, -repeated - period :]
            ended = ended | (tail[:, period:] == tail[:, :-period]).all(1)
    return ended


class Transcriber:
    """A Whisper that transcribes windows of up to 30 s by greedy decoding, on a GPU if there is one."""

    def __init__(self, folder: Path) -> None:
        """Load a Whisper. Raises UserError for a directory without a complete Whisper and its own text tokenizer."""
        device = default_device()
        whisper, self._text_tokenizer = load_whisper(folder, torch.float16 if device == "cuda" else torch.float32)
        self.prompt = Prompt.of(self._text_tokenizer, whisper.config)
        if not self.prompt.rest:
            raise UserError(f"{folder} has a text tokenizer without <|startoftranscript|>: use Whisper's own")
        self._whisper: Any = whisper.eval()
        self._whisper.to(device)
        self.window_samples = 2 * HOP_SAMPLES * whisper.config.max_source_positions
        self._extract = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)

    def __call__(
        self, windows: Sequence[np.ndarray], languages: Sequence[str | None], batch_size: int = 16
    ) -> list[Transcript]:
        """Transcribe windows (S,) of at most `window_samples`; a language of None is detected.

        Raises UserError for a language that this Whisper lacks.
        """
        found: dict[int, Transcript] = {}
        by_length = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        for first in range(0, len(by_length), batch_size):
            rows = by_length[first : first + batch_size]
            found |= zip(rows, self._transcribe([windows[i] for i in rows], [languages[i] for i in rows]), strict=True)
        return [found[i] for i in range(len(windows))]

    def long(self, recordings: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]:
        """Transcribe recordings (S,) of any length. Raises UserError as `__call__` does."""
        pieces = [
            (i, x[piece.start : piece.stop])
            for i, x in enumerate(recordings)
            for piece in split_at_pauses(x, self.window_samples)
            if len(piece)
        ]
        transcripts = self([x for _, x in pieces], [languages[i] for i, _ in pieces])
        texts: list[list[str]] = [[] for _ in recordings]
        for (i, _), transcript in zip(pieces, transcripts, strict=True):
            texts[i].append(transcript.text)
        return [" ".join(parts) for parts in texts]

    @torch.inference_mode()
    def _transcribe(self, windows: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[Transcript]:
        whisper, prompt = self._whisper, self.prompt
        features = self._extract(
            list(windows), sampling_rate=SAMPLE_RATE_HZ, max_length=self.window_samples, return_tensors="pt"
        ).input_features.to(whisper.device, whisper.dtype)
        encoded = BaseModelOutput(last_hidden_state=whisper.get_encoder()(features).last_hidden_state)
        codes = self._language_codes(encoded, languages)
        prompts = torch.tensor([prompt.ids(code) for code in codes], device=whisper.device)
        generated: Any = GenerationMixin.generate(  # Whisper's own `generate` adds only time stamps and long recordings
            whisper,
            encoder_outputs=encoded,
            decoder_input_ids=prompts,
            max_new_tokens=whisper.config.max_target_positions - prompts.shape[1],
            stopping_criteria=StoppingCriteriaList([_Limit(prompts.shape[1], windows)]),
            pad_token_id=whisper.config.eos_token_id,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids = generated.sequences[:, prompts.shape[1] :]
        texts = self._text_tokenizer.batch_decode(ids, skip_special_tokens=True)
        log_probs = _mean_log_probs(generated.scores, ids, whisper.config.eos_token_id).tolist()
        return [Transcript(t.strip(), p, code) for t, p, code in zip(texts, log_probs, codes, strict=True)]

    def _language_codes(self, encoded: BaseModelOutput, languages: Sequence[str | None]) -> list[str | None]:
        """Return the language code of each window, the most likely one for None; None if there is only one language."""
        prompt = self.prompt
        if not prompt.languages:
            return [None] * len(languages)
        known = list(prompt.languages)
        start = torch.full((len(languages), 1), prompt.start, device=self._whisper.device)
        logits = self._whisper(encoder_outputs=encoded, decoder_input_ids=start).logits[:, -1]
        likeliest = logits[:, list(prompt.languages.values())].argmax(-1).tolist()
        return [prompt.code(name) if name else known[i] for name, i in zip(languages, likeliest, strict=True)]


class _Limit(StoppingCriteria):
    """Ends the transcripts of windows that `must_end`."""

    def __init__(self, prompt_ids: int, windows: Sequence[np.ndarray]) -> None:
        self._prompt_ids, self._seconds = prompt_ids, torch.tensor([len(x) / SAMPLE_RATE_HZ for x in windows])

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:  # type: ignore[override]
        return must_end(input_ids[:, self._prompt_ids :], self._seconds.to(input_ids.device))


def split_at_pauses(samples: np.ndarray, max_samples: int) -> list[range]:
    """Split samples (S,) into ranges of at most `max_samples`, at the quietest 100 ms of the last fifth of each."""
    pieces, start = [], 0
    while len(samples) - start > max_samples:
        first = start + max_samples - max(_QUIET_SAMPLES, round(_CUT_WITHIN * max_samples))
        tail = samples[first : start + max_samples].astype(np.float64)
        power = np.convolve(tail**2, np.ones(_QUIET_SAMPLES), "valid")
        stop = first + int(power.argmin()) + _QUIET_SAMPLES // 2
        pieces.append(range(start, stop))
        start = stop
    return [*pieces, range(start, len(samples))]


def _mean_log_probs(scores: Sequence[Tensor], ids: Tensor, end: int) -> Tensor:
    """Return the mean log-probability (B,) of ids (B, L) up to the first `end`, from the scores (B, V) of each step."""
    chosen = torch.stack(
        [s.float().log_softmax(-1).gather(1, i[:, None])[:, 0] for s, i in zip(scores, ids.T, strict=True)], dim=1
    )
    ended_before = (ids == end).cumsum(1) - (ids == end).long() > 0
    return chosen.masked_fill(ended_before, 0.0).sum(1) / (~ended_before).sum(1)
