"""A whole Whisper that writes down what it hears, and how sure it is.

    transcriber = Transcriber(Path("whisper-large-v3"))
    heard = transcriber([samples], ["en"])[0]          # heard.text, heard.log_prob; a language of None is found out
    pieces = [samples[p.start : p.stop] for p in windows(samples, transcriber.window_samples)]    # of hours

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
from transformers import GenerationMixin, WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutput

from weft.audio import HOP_SAMPLES, SAMPLE_RATE_HZ
from weft.errors import UserError
from weft.tokenizer.base import load_whisper
from weft.tokenizer.text import Prompt

_CUT_WITHIN = 0.2  # of a window, at its end
_QUIET_SAMPLES = 1600  # 100 ms


@dataclass(frozen=True)
class Heard:
    """A transcript, the mean log-probability of its tokens and its end, and the code of the language, if any."""

    text: str
    log_prob: float
    language: str | None


class Transcriber:
    """A Hugging Face Whisper as a recognizer of windows of up to 30 s, by greedy decoding."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for a folder that is no whole Whisper with its text tokenizer."""
        on_gpu = torch.cuda.is_available()
        whisper, self._words = load_whisper(folder, torch.float16 if on_gpu else torch.float32)
        self.prompt = Prompt.of(self._words, whisper.config)
        if not self.prompt.rest:
            raise UserError(f"{folder} has a text tokenizer without <|startoftranscript|>: take a Whisper's own")
        self._whisper: Any = whisper.eval()
        self._whisper.to("cuda" if on_gpu else "cpu")
        self.window_samples = 2 * HOP_SAMPLES * whisper.config.max_source_positions
        self._extract = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)

    def __call__(
        self, sounds: Sequence[np.ndarray], languages: Sequence[str | None], batch_size: int = 16
    ) -> list[Heard]:
        """What is said in sounds (S,) of at most a window; a multilingual Whisper finds out a language that is None.

        Raises UserError for a language that it does not know.
        """
        heard: dict[int, Heard] = {}
        by_length = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
        for first in range(0, len(by_length), batch_size):
            rows = by_length[first : first + batch_size]
            heard |= zip(rows, self._hear([sounds[i] for i in rows], [languages[i] for i in rows]), strict=True)
        return [heard[i] for i in range(len(sounds))]

    @torch.inference_mode()
    def _hear(self, sounds: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[Heard]:
        whisper, prompt = self._whisper, self.prompt
        features = self._extract(
            list(sounds), sampling_rate=SAMPLE_RATE_HZ, max_length=self.window_samples, return_tensors="pt"
        ).input_features.to(whisper.device, whisper.dtype)
        encoded = BaseModelOutput(last_hidden_state=whisper.get_encoder()(features).last_hidden_state)
        codes = self._languages(encoded, languages)
        prompts = torch.tensor([prompt.ids(code) for code in codes], device=whisper.device)
        generated: Any = GenerationMixin.generate(  # of which Whisper's own only adds time stamps and longer recordings
            whisper,
            encoder_outputs=encoded,
            decoder_input_ids=prompts,
            max_new_tokens=whisper.config.max_target_positions - prompts.shape[1],
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids = generated.sequences[:, prompts.shape[1] :]
        texts = self._words.batch_decode(ids, skip_special_tokens=True)
        log_probs = _mean_log_probs(generated.scores, ids, whisper.config.eos_token_id).tolist()
        return [Heard(t.strip(), p, code) for t, p, code in zip(texts, log_probs, codes, strict=True)]

    def _languages(self, encoded: BaseModelOutput, languages: Sequence[str | None]) -> list[str | None]:
        """Codes of the languages, the likeliest one where none is given; None where there is but one."""
        prompt = self.prompt
        if not prompt.languages:
            return [None] * len(languages)
        known = list(prompt.languages)
        start = torch.full((len(languages), 1), prompt.start, device=self._whisper.device)
        logits = self._whisper(encoder_outputs=encoded, decoder_input_ids=start).logits[:, -1]
        likeliest = logits[:, list(prompt.languages.values())].argmax(-1).tolist()
        return [prompt.code(name) if name else known[i] for name, i in zip(languages, likeliest, strict=True)]


def _mean_log_probs(scores: Sequence[Tensor], ids: Tensor, end: int) -> Tensor:
    """Mean log-probability (B,) of what was written, ids (B, L) up to the first end, by scores (B, V) of each."""
    chosen = torch.stack(
        [s.float().log_softmax(-1).gather(1, i[:, None])[:, 0] for s, i in zip(scores, ids.T, strict=True)], dim=1
    )
    ended_before = (ids == end).cumsum(1) - (ids == end).long() > 0
    return chosen.masked_fill(ended_before, 0.0).sum(1) / (~ended_before).sum(1)


def windows(samples: np.ndarray, most: int) -> list[range]:
    """Samples (S,) cut into pieces of at most `most`, in the middle of the quietest 100 ms of a window's last fifth."""
    pieces, start = [], 0
    while len(samples) - start > most:
        first = start + most - max(_QUIET_SAMPLES, round(_CUT_WITHIN * most))
        power = np.convolve(samples[first : start + most].astype(np.float64) ** 2, np.ones(_QUIET_SAMPLES), "valid")
        stop = first + int(power.argmin()) + _QUIET_SAMPLES // 2
        pieces.append(range(start, stop))
        start = stop
    return [*pieces, range(start, len(samples))]
