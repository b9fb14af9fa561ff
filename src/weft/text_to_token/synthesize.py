"""Speaking without sound: texts in, speech codes out, in large batches.

synthesizer = Synthesizer.load("runs/text_to_token")
codes = synthesizer.speak(["the sailor left the harbor"], seeds=[0])      # [[17, 402, ...]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weft.artifacts import Manifest, loading, read
from weft.engine.generate import Engine, Request, Sampling
from weft.lm.model import load_hf
from weft.text_to_token.model import KIND, most_codes, prompt_ids, spoken_form
from weft.vocab import SpeechVocab

_TRIES = 2


class Synthesizer:
    """A trained text-to-token model. `frame_rate_hz` is how many codes make a second."""

    def __init__(self, engine: Engine, vocab: SpeechVocab, manifest: Manifest) -> None:
        self.manifest = manifest
        self.frame_rate_hz: float = manifest.counts["frame_rate_hz"]
        self._codes_per_character: float = manifest.counts["max_codes_per_character"]
        self._engine, self._vocab = engine, vocab
        self._sampling = Sampling(temperature=manifest.settings["temperature"])
        self._allowed = torch.zeros(vocab.size, dtype=torch.bool)
        self._allowed[vocab.codes_to_ids(range(vocab.num_codes))] = True
        self._allowed[vocab.end_of_audio_id] = True

    @classmethod
    def load(cls, folder: str | Path) -> Synthesizer:
        """Load a text-to-token artifact, onto a GPU where there is one. Raises UserError when it is not a whole one."""
        manifest = read(Path(folder), KIND)
        model, tokenizer = load_hf(Path(folder), torch.float32)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        with loading(Path(folder), "a text-to-token model"):
            return cls(Engine(model), SpeechVocab.of(tokenizer), manifest)

    def speak(self, texts: Sequence[str], seeds: Sequence[int]) -> list[list[int] | None]:
        """Codes of each text, decided by the texts and their seeds (0 or more).

        None where there is nothing to say, where the text is too long for the model, and where the model runs away:
        it is given as many codes as speech of such length can take, and a second seed when it does not end within.
        """
        spoken: list[list[int] | None] = [None] * len(texts)
        requests = {i: self._request(text) for i, text in enumerate(texts) if spoken_form(text)}
        left = [i for i, r in requests.items() if len(r.ids) + r.max_new_tokens <= self._engine.max_positions]
        for attempt in range(_TRIES):
            drawn = [replace(requests[i], seed=_seed(seeds[i], attempt)) for i in left]
            done = self._engine.generate(drawn, self._sampling, {self._vocab.end_of_audio_id})
            for i, generated in zip(left, done, strict=True):
                if generated.stopped and generated.ids:
                    spoken[i] = self._vocab.ids_to_codes(generated.ids).tolist()
            left = [i for i in left if spoken[i] is None]
        return spoken

    def _request(self, text: str) -> Request:
        cap = most_codes(text, self._codes_per_character)
        return Request(prompt_ids(self._vocab, text).tolist(), cap, allowed=self._allowed)


def _seed(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence((int(seed), attempt)).generate_state(1, np.uint64)[0])
