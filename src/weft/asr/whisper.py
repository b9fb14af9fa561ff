"""Hugging Face Whispers: loading them, and the prompts of their text decoders.

whisper, text_tokenizer = load_whisper(Path("whisper-small"))
prompt = Prompt.of(text_tokenizer, whisper.config)
ids = [*prompt.ids("en"), *prompt.transcript_ids(text_tokenizer, "The cat.", "en")]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from weft.artifacts import loading, require_directory
from weft.errors import UserError
from weft.pretrained import load_on_meta, load_pretrained, read_config
from weft.text.encode import encode

_ENGLISH_VOCAB_SIZE = 51_864  # of OpenAI's English-only Whispers, whose text tokenizers have language tokens too
_UNSPACED_LANGUAGES = ("zh", "ja", "th", "lo", "my", "yue")  # as in Whisper's own code


def load_whisper(
    folder: Path, dtype: torch.dtype = torch.float32, on_meta: bool = False
) -> tuple[WhisperForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a Hugging Face Whisper and its text tokenizer; `on_meta`, without its weights, on torch's meta device.

    Raises UserError for a directory without one, and for missing or unexpected weights.
    """
    with loading(folder, "a Hugging Face Whisper"):
        load_whisper_config(folder)
        text_tokenizer = load_pretrained(AutoTokenizer, folder)
        if on_meta:
            return load_on_meta(AutoModelForSpeechSeq2Seq, folder, dtype=dtype), text_tokenizer
        whisper, info = load_pretrained(WhisperForConditionalGeneration, folder, dtype=dtype, output_loading_info=True)
        for keys, problem in (("missing_keys", "lacks weights of"), ("unexpected_keys", "has weights unknown to")):
            if names := sorted(info[keys]):
                raise UserError(f"{folder} {problem} its config.json, {first_few(names)}: copy it again")
        return whisper, text_tokenizer


def load_whisper_config(folder: Path) -> WhisperConfig:
    """Load the configuration of a Hugging Face Whisper. Raises UserError for a directory without one."""
    require_directory(folder, "the directory of a Hugging Face Whisper")
    with loading(folder, "a Hugging Face Whisper"):
        kind = read_config(folder).get("model_type") if (folder / "config.json").is_file() else None
        if kind != "whisper":
            found = f"its model type is {kind}" if kind else "it has no config.json"
            raise UserError(f"{folder} is not a Hugging Face Whisper ({found}): give the directory of one")
        config: WhisperConfig = load_pretrained(WhisperConfig, folder)
        return config


def load_prompt(folder: Path) -> Prompt:
    """Load the prompt of a Hugging Face Whisper. Raises UserError for a directory without one."""
    config = load_whisper_config(folder)
    with loading(folder, "a Hugging Face Whisper"):
        return Prompt.of(load_pretrained(AutoTokenizer, folder), config)


@dataclass(frozen=True)
class Prompt:
    """The ids that Whisper's text decoder reads before a transcript.

    Multilingual: <|startoftranscript|><|LANGUAGE|><|transcribe|><|notimestamps|>. English-only:
    <|startoftranscript|><|notimestamps|>. A Whisper that weft trains from random weights: its start id.
    """

    start: int
    languages: Mapping[str, int] = field(default_factory=dict)
    """Ids of the languages of a multilingual Whisper, by language code."""
    rest: tuple[int, ...] = ()
    """Ids after the start and the language."""

    @classmethod
    def of(cls, text_tokenizer: PreTrainedTokenizerBase, whisper: WhisperConfig) -> Prompt:
        """Return the prompt of a Whisper with this text tokenizer."""
        vocab = text_tokenizer.get_vocab()
        start = vocab.get("<|startoftranscript|>")
        if start is None or "<|notimestamps|>" not in vocab:
            return cls(whisper.decoder_start_token_id)
        if whisper.vocab_size == _ENGLISH_VOCAB_SIZE or "<|transcribe|>" not in vocab:
            return cls(start, {}, (vocab["<|notimestamps|>"],))
        languages = {code: vocab[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocab}
        return cls(start, languages, (vocab["<|transcribe|>"], vocab["<|notimestamps|>"]))

    def ids(self, language: str | None) -> list[int]:
        """Return the prompt. Raises UserError if a multilingual Whisper gets no language, or one that it lacks."""
        language_ids = [self.languages[self.code(language)]] if self.languages else []
        return [self.start, *language_ids, *self.rest]

    def code(self, language: str | None) -> str:
        """Return Whisper's code of a language, given as a code or a name: "en" for en-US, en_GB and English.

        Raises UserError for no language, or one that this Whisper lacks.
        """
        if not language:
            raise UserError("this multilingual Whisper needs a language: add it to the manifest, or set `language`")
        name = language.lower()
        code = TO_LANGUAGE_CODE.get(name, re.split("[-_]", name)[0])
        if code not in self.languages:
            raise UserError(f"this Whisper has no language {language!r}: give one of {' '.join(self.languages)}")
        return code

    def transcript_ids(self, text_tokenizer: PreTrainedTokenizerBase, text: str, language: str | None) -> list[int]:
        """Return the ids of a transcript, in which strings such as `<|endoftext|>` are not control tokens.

        A real Whisper's begins with a space in languages that have spaces.
        """
        spaced = self.rest and not (self.languages and self.code(language) in _UNSPACED_LANGUAGES)
        return encode(text_tokenizer, f" {text.strip()}" if spaced else text)


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names in words, with the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
