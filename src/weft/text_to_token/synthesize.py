"""Speech codes from text, in large batches and without any audio.

    synthesizer = Synthesizer.from_pretrained("runs/demo/text_to_token")
    codes = synthesizer.synthesize(["the sailor left the harbor"], seeds=[0])      # [[17, 402, ...]]
    codes = synthesizer.synthesize(["the sailor left"], [0], [synthesizer.speakers[1]])

The model runs in this process, in bf16 where the hardware supports it, or behind a URL that serves the same directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from weft import plan
from weft.artifacts import Manifest, loading, read
from weft.device import default_device, inference_dtype
from weft.engine.completions import CompletionsEngine
from weft.engine.generate import Engine
from weft.engine.sampling import Request, Sampling
from weft.errors import UserError
from weft.lm.model import load_causal_lm, save
from weft.pretrained import load_pretrained
from weft.text.normalize import spoken_form, text_normalizer
from weft.text_to_token.prompt import KIND, max_codes, prompt_ids
from weft.text_to_token.wer_filter import Rejection
from weft.vocab import SpeechVocab

_NUM_ATTEMPTS = 2
_MAX_NAMES = 8  # of speakers in a message
# Codes that repeat in a cycle for longer never end. In half a million codes of read and of synthetic speech, the
# longest cycle was a pause: one code for 1.2 s.
_MAX_LOOP_SEC = 2.0


class Synthesizer:
    """A trained text-to-token model.

    Attributes:
        manifest: Manifest of the artifact.
        normalize: Text normalization of the training, applied to every text.
        frame_rate_hz: Codes per second.
        speakers: Names of the voices, the one with most training data first; empty for a model trained without names.
        language: Language of the training data; None if it is unknown, or if there are several.
    """

    def __init__(self, engine: Engine | CompletionsEngine, vocab: SpeechVocab, manifest: Manifest) -> None:
        self.manifest = manifest
        settings = manifest.settings
        self.normalize = text_normalizer(
            settings.get("normalize", "none"), settings.get("language", "en"), settings.get("abbreviations", ())
        )
        self.frame_rate_hz: float = manifest.counts["frame_rate_hz"]
        self.speakers: tuple[str, ...] = tuple(manifest.counts.get("speakers", ()))
        self.language: str | None = _language(manifest)
        self._codes_per_character: float = manifest.counts["max_codes_per_character"]
        self._max_loop_ids = max(1, round(_MAX_LOOP_SEC * self.frame_rate_hz))
        self._engine, self._vocab = engine, vocab
        self._sampling = Sampling(temperature=settings["temperature"])
        self._allowed = [*vocab.codes_to_ids(range(vocab.num_codes)).tolist(), vocab.end_of_audio_id]

    @classmethod
    def from_pretrained(cls, folder: str | Path, url: str | None = None) -> Synthesizer:
        """Load a text-to-token artifact, onto a GPU if there is one.

        `url` is the address of an OpenAI-compatible server of this directory, such as http://127.0.0.1:8000/v1; the
        weights are then not loaded. Raises UserError for a directory that is not a complete artifact.

        Example:
            >>> import weft
            >>> synthesizer = weft.Synthesizer.from_pretrained("runs/demo/text_to_token")
            >>> codes = synthesizer.synthesize(["the sailor left the harbor"], seeds=[0])[0]
            >>> codes is None or max(codes) < 512
            True
        """
        folder = Path(folder)
        manifest = read(folder, KIND)
        engine: Engine | CompletionsEngine
        if url is None:
            device = default_device()
            model, tokenizer = load_causal_lm(folder, inference_dtype(device))
            engine = Engine(model.to(device))  # type: ignore[arg-type]
        else:
            with loading(folder, "a text-to-token model"):
                tokenizer = load_pretrained(AutoTokenizer, folder)
                config = load_pretrained(AutoConfig, folder)
            encode = partial(tokenizer.encode, add_special_tokens=False)
            engine = CompletionsEngine(url, config.max_position_embeddings, encode)
        with loading(folder, "a text-to-token model"):
            return cls(engine, SpeechVocab.of(tokenizer), manifest)

    def save_pretrained(self, folder: str | Path) -> Manifest:
        """Save the model, in the precision it was loaded in, as a new artifact.

        Raises UserError if `folder` exists, and for a synthesizer that uses a URL.
        """
        if not isinstance(self._engine, Engine):
            raise UserError("this synthesizer uses a URL and has no weights: load its directory without a URL")
        model, tokenizer = self._engine.model, self._vocab.tokenizer
        return plan.save(Path(folder), KIND, lambda draft: save(model, tokenizer, draft), self.manifest)

    def synthesize(
        self, texts: Sequence[str], seeds: Sequence[int], speakers: Sequence[str] | None = None
    ) -> list[list[int] | None]:
        """Return the codes of each text, which depend on the text, its seed (0 or more) and its speaker only.

        The default speaker is the first. The result is None for a text without anything to pronounce, for one too long
        for the model, and for speech that exceeds the longest plausible duration or repeats itself, also with a second
        seed. Raises UserError for an unknown speaker.
        """
        if unknown := set(speakers or ()).difference(self.speakers):
            raise UserError(f"this text-to-token model has no speaker {min(unknown)!r}{self._known_speakers()}")
        voices = speakers if speakers is not None else [next(iter(self.speakers), None)] * len(texts)
        codes: list[list[int] | None] = [None] * len(texts)
        prompts = [self._prompt(text, voice) for text, voice in zip(texts, voices, strict=True)]
        requests = {i: prompt for i, prompt in enumerate(prompts) if isinstance(prompt, Request)}
        remaining = list(requests)
        for attempt in range(_NUM_ATTEMPTS):
            seeded = [replace(requests[i], seed=_seed(seeds[i], attempt)) for i in remaining]
            done = self._engine.generate(
                seeded, self._sampling, {self._vocab.end_of_audio_id}, self._allowed, self._max_loop_ids
            )
            for i, generated in zip(remaining, done, strict=True):
                if generated.stopped and generated.ids:
                    codes[i] = self._vocab.ids_to_codes(generated.ids).tolist()
            remaining = [i for i in remaining if codes[i] is None]
        return codes

    def problem_of(self, text: str, speaker: str | None = None) -> Rejection | None:
        """Return why no seed gives codes of a text, or None if one may."""
        prompt = self._prompt(text, speaker or next(iter(self.speakers), None))
        return None if isinstance(prompt, Request) else prompt

    def _prompt(self, text: str, voice: str | None) -> Request | Rejection:
        """Return the request of the codes of a text, or why there is none."""
        text = self.normalize(text)
        if not spoken_form(text):
            return "nothing_to_pronounce"
        ids = prompt_ids(self._vocab, text, voice).tolist()
        request = Request(ids, max_codes(text, self._codes_per_character))
        return request if len(ids) + request.max_new_tokens <= self._engine.max_positions else "too_long"

    def _known_speakers(self) -> str:
        if not self.speakers:
            return ", because it was trained without names: leave the speaker out, or train with speakers = true"
        more = ", ..." if len(self.speakers) > _MAX_NAMES else ""
        return f": give one of its {len(self.speakers)}, {', '.join(self.speakers[:_MAX_NAMES])}{more}"


def _language(manifest: Manifest) -> str | None:
    """Return the language of the training data, or else that of the number words."""
    languages = manifest.counts.get("languages", [])
    if not languages and manifest.settings.get("normalize", "none") != "none":
        languages = [manifest.settings.get("language")]
    return languages[0] if len(languages) == 1 else None


def _seed(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence((int(seed), attempt)).generate_state(1, np.uint64)[0])
