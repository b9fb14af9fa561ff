"""Speaking without sound: texts in, speech codes out, in large batches.

synthesizer = Synthesizer.load("runs/text_to_token")
codes = synthesizer.speak(["the sailor left the harbor"], seeds=[0])      # [[17, 402, ...]]
codes = synthesizer.speak(["the sailor left"], [0], [synthesizer.speakers[1]])

The model runs in this process, in bf16 where the processor multiplies it, or behind a URL that serves the same folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from weft.artifacts import Manifest, loading, read
from weft.engine.completions import CompletionsEngine
from weft.engine.generate import Engine, Request, Sampling
from weft.errors import UserError
from weft.lm.model import load_hf
from weft.text_to_token.model import KIND, most_codes, prompt_ids, spoken_form
from weft.text_to_token.normalize import normalizer
from weft.training.loop import multiplies_bf16
from weft.vocab import SpeechVocab

_TRIES = 2
_NAMED = 8  # speakers in a message
MAX_REPEAT_SEC = 2.0
"""Codes that go in circles for longer have run away. In half a million codes of read and of synthetic speech, at 12.5 a
second, the longest circle was a pause: one code for 1.2 s."""


class Synthesizer:
    """A trained text-to-token model.

    `normalize` turns a text into what is said, as in training. `frame_rate_hz` is how many codes make a second, and
    `speakers` are the voices that it knows by name, the best known first; none of a model that was trained without.
    """

    def __init__(
        self,
        engine: Engine | CompletionsEngine,
        vocab: SpeechVocab,
        manifest: Manifest,
        max_repeat_sec: float = MAX_REPEAT_SEC,
    ) -> None:
        self.manifest = manifest
        settings = manifest.settings
        self.normalize = normalizer(
            settings.get("normalize", "none"), settings.get("language", "en"), settings.get("abbreviations", ())
        )
        self.frame_rate_hz: float = manifest.counts["frame_rate_hz"]
        self.speakers: tuple[str, ...] = tuple(manifest.counts.get("speakers", ()))
        self._codes_per_character: float = manifest.counts["max_codes_per_character"]
        self._max_repeats = max(1, round(max_repeat_sec * self.frame_rate_hz))
        self._engine, self._vocab = engine, vocab
        self._sampling = Sampling(temperature=settings["temperature"])
        self._allowed = [*vocab.codes_to_ids(range(vocab.num_codes)).tolist(), vocab.end_of_audio_id]

    @classmethod
    def load(cls, folder: str | Path, url: str | None = None) -> Synthesizer:
        """Load a text-to-token artifact, onto a GPU where there is one; with a `url`, its words and limits only.

        `url` is of an OpenAI-compatible server of this folder, as `http://127.0.0.1:8000/v1`. Raises UserError when the
        folder is not a whole artifact.
        """
        folder = Path(folder)
        manifest = read(folder, KIND)
        engine: Engine | CompletionsEngine
        if url is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model, tokenizer = load_hf(folder, torch.bfloat16 if multiplies_bf16(device) else torch.float32)
            engine = Engine(model.to(device))  # type: ignore[arg-type]
        else:
            with loading(folder, "a text-to-token model"):
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
            ids_of = partial(tokenizer.encode, add_special_tokens=False)
            engine = CompletionsEngine(url, config.max_position_embeddings, ids_of)
        with loading(folder, "a text-to-token model"):
            return cls(engine, SpeechVocab.of(tokenizer), manifest)

    def speak(
        self, texts: Sequence[str], seeds: Sequence[int], speakers: Sequence[str] | None = None
    ) -> list[list[int] | None]:
        """Codes of each text, decided by the texts, their seeds (0 or more) and their speakers, by default the first.

        None where there is nothing to say, where the text is too long for the model, and where the model runs away:
        it is given as many codes as speech of such length can take, and a second seed when it does not end within or
        goes in circles. Raises UserError for a speaker that the model does not know.
        """
        if unknown := set(speakers or ()).difference(self.speakers):
            raise UserError(f"speaker {min(unknown)!r} is none that this text-to-token model knows {self._known()}")
        voices = speakers if speakers is not None else [next(iter(self.speakers), None)] * len(texts)
        spoken: list[list[int] | None] = [None] * len(texts)
        said = zip(map(self.normalize, texts), voices, strict=True)
        requests = {i: self._request(*what) for i, what in enumerate(said) if spoken_form(what[0])}
        left = [i for i, r in requests.items() if len(r.ids) + r.max_new_tokens <= self._engine.max_positions]
        for attempt in range(_TRIES):
            drawn = [replace(requests[i], seed=_seed(seeds[i], attempt)) for i in left]
            done = self._engine.generate(
                drawn, self._sampling, {self._vocab.end_of_audio_id}, self._allowed, self._max_repeats
            )
            for i, generated in zip(left, done, strict=True):
                if generated.stopped and generated.ids:
                    spoken[i] = self._vocab.ids_to_codes(generated.ids).tolist()
            left = [i for i in left if spoken[i] is None]
        return spoken

    def _request(self, text: str, speaker: str | None) -> Request:
        cap = most_codes(text, self._codes_per_character)
        return Request(prompt_ids(self._vocab, text, speaker).tolist(), cap)

    def _known(self) -> str:
        if not self.speakers:
            return "(it was trained without): leave the speaker out, or train with speakers = true"
        more = ", ..." if len(self.speakers) > _NAMED else ""
        return f"({len(self.speakers)}): give one of {', '.join(self.speakers[:_NAMED])}{more}"


def _seed(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence((int(seed), attempt)).generate_state(1, np.uint64)[0])
