"""The text side of a speech tokenizer: what is heard of a text, and how the decoder's text begins.

words = text_tokenizer(transcripts, vocab_size=600)         # from nothing
letters = spoken_form(["The cat's 3 hats!"])                # ["the cat's 3 hats"]
prompt = Prompt.of(words, whisper_config)
ids = [*prompt.ids("en"), *prompt.transcript_ids(words, "The cat.", "en")]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, WhisperConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from weft.errors import UserError

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # the first ids of a text tokenizer from nothing
# Of OpenAI's Whispers for English alone, whose text tokenizer has the languages' tokens too.
_ENGLISH_VOCAB_SIZE = 51_864
_NO_SPACES = ("zh", "ja", "th", "lo", "my", "yue")  # as Whisper's own code has it


def spoken_form(texts: Sequence[str]) -> list[str]:
    """Texts in lower case without punctuation, which nobody hears."""
    normalizer = _normalizer()
    return [normalizer.normalize_str(text) for text in texts]


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s']|_"), ""),
         normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )  # fmt: skip


def text_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A BPE over the spoken form of `texts`, for a text decoder from nothing: whole words where words are few."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = _normalizer()
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class Prompt:
    """What a Whisper's decoder is given before a transcript.

    Of a multilingual one that is <|startoftranscript|><|LANGUAGE|><|transcribe|><|notimestamps|>, of one for English
    alone <|startoftranscript|><|notimestamps|>, and of one from nothing its start.
    """

    start: int
    languages: Mapping[str, int] = field(default_factory=dict)
    """Ids of the languages, by their codes, of a multilingual Whisper."""
    rest: tuple[int, ...] = ()
    """What follows the start and the language."""

    @classmethod
    def of(cls, words: PreTrainedTokenizerBase, whisper: WhisperConfig) -> Prompt:
        """The prompt of a Whisper and its text tokenizer."""
        vocab = words.get_vocab()
        start = vocab.get("<|startoftranscript|>")
        if start is None or "<|notimestamps|>" not in vocab:
            return cls(whisper.decoder_start_token_id)
        if whisper.vocab_size == _ENGLISH_VOCAB_SIZE or "<|transcribe|>" not in vocab:
            return cls(start, {}, (vocab["<|notimestamps|>"],))
        languages = {code: vocab[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocab}
        return cls(start, languages, (vocab["<|transcribe|>"], vocab["<|notimestamps|>"]))

    def ids(self, language: str | None) -> list[int]:
        """The whole prompt. Raises UserError for a language that a multilingual Whisper lacks, and for none."""
        spoken = [self.languages[self.code(language)]] if self.languages else []
        return [self.start, *spoken, *self.rest]

    def code(self, language: str | None) -> str:
        """Whisper's code of a language that is given as a code or a name: "en" of en-US, en_GB and English.

        Raises UserError for one that this Whisper does not know, and for none.
        """
        if not language:
            raise UserError(
                "it has no language, and this Whisper needs one: add it to the manifest, or give `language`"
            )
        name = language.lower()
        code = TO_LANGUAGE_CODE.get(name, re.split("[-_]", name)[0])
        if code not in self.languages:
            raise UserError(f"language {language!r} is none that this Whisper knows ({' '.join(self.languages)})")
        return code

    def transcript_ids(self, words: PreTrainedTokenizerBase, text: str, language: str | None) -> list[int]:
        """A transcript as the decoder writes it: a real Whisper begins with a space where words have one between."""
        spaced = self.rest and not (self.languages and self.code(language) in _NO_SPACES)
        return words(f" {text.strip()}" if spaced else text, add_special_tokens=False).input_ids
