"""The vocabulary of a speech-text language model: conversion of documents to token ids.

    vocab = SpeechVocab.of(extend_tokenizer(AutoTokenizer.from_pretrained(base), num_codes=512))
    ids, mask = vocab.document_ids(document)

`codes` are indices 0..K-1 into a speech codebook; `ids` are rows of the language model's embedding. Documents are
serialized by kind (the formats of GLM-4-Voice; `<speech>` is `<|begin_of_audio|><|audio_17|>...<|end_of_audio|>`):

    text, speech, interleaved   text<speech> text<speech><eos>
    dialogue                    <|system|>\\ntext<|user|>\\n<speech><|assistant|>\\ntext<speech><eos>
    asr                         <|system|>\\nTranscribe<|user|>\\n<speech><|assistant|>\\ntext<eos>
    tts                         <|system|>\\nSpeak<|user|>\\ntext<|assistant|>\\n<speech><eos>

Consecutive speech segments keep their own markers. In a dialogue, the text and the speech of an answer alternate
(`weft.alternation`; shown above for a text of under 13 tokens). Texts are encoded segment by segment and never parsed
as control tokens. If they are split before spaces (`"the cat"`, `" sat"`), the ids are those of the whole text; a space
that a tokenizer puts before every text (Llama 2) is left out.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from weft import records
from weft.alternation import interleave_chunks
from weft.errors import UserError
from weft.records import Document, Segment
from weft.text.encode import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BEGIN_OF_AUDIO, END_OF_AUDIO = "<|begin_of_audio|>", "<|end_of_audio|>"
ROLES = {role: f"<|{role}|>" for role in records.ROLES}
TASK_PROMPTS = {"asr": "Transcribe", "tts": "Speak"}
_ANSWER = [("assistant", "text"), ("assistant", "speech")]
_GUARD = "\x01"  # not part of any word, so that it is not merged with the text after it
_END_OF_TEXT, _PADDING = "<|endoftext|>", "<|padding|>"


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, num_codes: int) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` with audio tokens for `num_codes` codes, audio markers and roles.

    Existing tokens keep their ids. Raises UserError for a tokenizer that was extended for another codebook.
    """
    from tokenizers import AddedToken

    names = [_audio_token(code) for code in range(num_codes)] + [BEGIN_OF_AUDIO, END_OF_AUDIO, *ROLES.values()]
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    found = SpeechVocab.of(extended).num_codes
    if found != num_codes:
        raise UserError(f"the tokenizer already has {found} audio tokens, not {num_codes}: start from its base model")
    return extended


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lossless byte-level BPE of at most `vocab_size` ids.

    Raises UserError if `vocab_size` is too small for the 256 bytes and the two special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special, alphabet = [_END_OF_TEXT, _PADDING], pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise UserError(f"a byte-level vocabulary of {vocab_size} is too small: give at least 258")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_END_OF_TEXT, pad_token=_PADDING, clean_up_tokenization_spaces=False
    )


@dataclass(frozen=True, eq=False)
class SpeechVocab:
    """The ids of an extended tokenizer. Audio ids are contiguous: code c is id `first_audio_id + c`."""

    tokenizer: PreTrainedTokenizerBase
    num_codes: int
    first_audio_id: int
    begin_of_audio_id: int
    end_of_audio_id: int
    eos_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpeechVocab:
        """Return the vocabulary of an extended tokenizer. Raises UserError if speech tokens or the eos are missing."""
        ids = tokenizer.get_vocab()
        needed = (_audio_token(0), BEGIN_OF_AUDIO, END_OF_AUDIO, *ROLES.values())
        if missing := [name for name in needed if name not in ids]:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}: create a language model with them by weft init-lm"
            )
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token, which ends every document: set its eos_token")
        num_codes, first = 0, ids[_audio_token(0)]
        while (found := ids.get(_audio_token(num_codes))) is not None:
            if found != first + num_codes:
                raise UserError(f"{_audio_token(num_codes)} has id {found}: audio tokens must follow one another")
            num_codes += 1
        return cls(tokenizer, num_codes, first, ids[BEGIN_OF_AUDIO], ids[END_OF_AUDIO], int(tokenizer.eos_token_id))

    @cached_property
    def size(self) -> int:
        """The highest id + 1, the minimum number of embedding rows."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all tokens and ids. Vocabularies with the same ones can share token shards."""
        items = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((items, self.eos_id)).encode()).hexdigest()[:16]

    @cached_property
    def role_start_ids(self) -> dict[str, int]:
        """The id that starts a turn of each role. The user's id also ends the assistant's turn."""
        ids = self.tokenizer.get_vocab()
        return {role: ids[name] for role, name in ROLES.items()}

    @cached_property
    def document_start_ids(self) -> np.ndarray:
        """The ids that the base model's tokenizer puts before a text, such as Llama's `<|begin_of_text|>`."""
        ids = np.asarray(self.tokenizer("").input_ids, np.int64)
        return ids[ids != self.eos_id]

    def codes_to_ids(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ids (int64) of codes. Raises UserError for a code outside of 0..K-1."""
        values = np.asarray(codes, np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.num_codes):
            raise UserError(
                f"codes {values.min()}..{values.max()} do not fit a vocabulary of {self.num_codes} codes: "
                "use the speech tokenizer that the language model was created for"
            )
        return values + self.first_audio_id

    def ids_to_codes(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the codes (uint16) of audio ids. Raises ValueError for another id."""
        values = np.asarray(ids, np.int64)
        if not np.all(self.is_audio(values)):
            raise ValueError("an id is not an audio token")
        return (values - self.first_audio_id).astype(np.uint16)

    def is_audio(self, ids: Any) -> Any:
        """Return a mask of the audio tokens, without markers, as an array or a tensor like `ids`."""
        return (ids >= self.first_audio_id) & (ids < self.first_audio_id + self.num_codes)

    def is_control(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask of the audio markers, the roles and the eos."""
        control = [self.begin_of_audio_id, self.end_of_audio_id, self.eos_id, *self.role_start_ids.values()]
        return np.isin(ids, control)

    def text_ids(self, text: str) -> np.ndarray:
        """Return the ids (int64) of text, in which strings such as `<|user|>` are not control tokens."""
        return np.asarray(encode(self.tokenizer, text, *self._guard), np.int64)

    @cached_property
    def _guard(self) -> tuple[str, int]:
        """A prefix for encoding, and its number of ids: empty unless the tokenizer puts a space before every text."""
        if not self.tokenizer.tokenize("a")[0].startswith("\u2581"):
            return "", 0
        ids = encode(self.tokenizer, _GUARD)
        if self.tokenizer.decode(ids) != _GUARD:
            raise UserError("the tokenizer drops characters, so texts cannot be recovered: use another base")
        return _GUARD, len(ids)

    def speech_ids(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ids (int64) of codes between audio markers."""
        return np.concatenate(([self.begin_of_audio_id], self.codes_to_ids(codes), [self.end_of_audio_id]))

    def segment_ids(self, segment: Segment) -> np.ndarray:
        """Return the ids (int64) of a segment's content, without a role."""
        return self.speech_ids(_codes(segment)) if segment.type == "speech" else self.text_ids(segment.text or "")

    def turn_start_ids(self, role: str) -> np.ndarray:
        """Return the ids (int64) before the content of a turn, such as `<|user|>\\n`."""
        return np.concatenate(([self.role_start_ids[role]], self._newline_ids))

    @cached_property
    def _newline_ids(self) -> np.ndarray:
        return self.text_ids("\n")

    def document_ids(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (int64) of a document and their loss mask (bool).

        The `loss` of a segment also applies to its markers and to the id that ends its turn or the document. Other ids
        of the template (turn starts, tasks) have no loss.
        """
        ids, mask = [self.document_start_ids], [np.zeros(len(self.document_start_ids), bool)]

        def add(part: np.ndarray, trained: bool | np.ndarray) -> None:
            ids.append(part)
            mask.append(np.broadcast_to(trained, part.shape))

        if document.kind in TASK_PROMPTS:
            add(np.concatenate((self.turn_start_ids("system"), self.text_ids(TASK_PROMPTS[document.kind]))), False)
        role, loss = None, False
        for passage in _passages(document):
            turn = _role_of(passage[0], document.kind)
            if turn is not None and turn != role:
                start = self.turn_start_ids(turn)
                add(start, (np.arange(len(start)) == 0) & loss)
            add(*self._passage_ids(passage))
            role, loss = turn, passage[-1].loss
        add(np.array([self.eos_id]), loss)
        return np.concatenate(ids), np.concatenate(mask)

    def _passage_ids(self, passage: Sequence[Segment]) -> tuple[np.ndarray, bool | np.ndarray]:
        """Return the ids of a segment, or of an answer's text and speech in alternation, and their loss mask."""
        if len(passage) == 1:
            return self.segment_ids(passage[0]), passage[0].loss
        text, speech = passage
        text_ids = self.text_ids(text.text or "")
        audio_ids = self.codes_to_ids(_codes(speech))
        ids = interleave_chunks(text_ids, audio_ids, self.begin_of_audio_id, self.end_of_audio_id)
        losses = np.full(len(text_ids), text.loss), np.full(len(audio_ids), speech.loss)
        return ids, interleave_chunks(*losses, begin=speech.loss, end=speech.loss)


def chat_template(vocab: SpeechVocab) -> str:
    """Return the chat template (Jinja) of a text dialogue: the format in which `document_ids` serializes it.

    A message has the role system, user or assistant. Text that begins with a space or a line break may get other ids
    than in training, because a template is encoded as a whole.
    """
    tokens = vocab.tokenizer.convert_ids_to_tokens
    start, end = "".join(tokens(vocab.document_start_ids.tolist())), str(tokens(vocab.eos_id))
    names = ", ".join(f"{role!r}: {name!r}" for role, name in ROLES.items())
    return (
        f"{{%- set roles = {{{names}}} -%}}"
        f"{start}{{%- for message in messages -%}}"
        "{{- roles[message['role']] + '\\n' + message['content'] -}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- roles['assistant'] + '\\n' -}}}}"
        f"{{%- else -%}}{end}{{%- endif -%}}"
    )


def _passages(document: Document) -> Iterator[tuple[Segment, ...]]:
    """Yield the segments in order; the text of an answer together with its speech."""
    segments, i = document.segments, 0
    while i < len(segments):
        is_answer = document.kind == "dialogue" and [(s.role, s.type) for s in segments[i : i + 2]] == _ANSWER
        yield segments[i : i + 1 + is_answer]
        i += 1 + is_answer


def _role_of(segment: Segment, kind: str) -> str | None:
    """Return the role of a segment's turn. In asr and tts documents, the segment with a loss is the answer."""
    if kind in TASK_PROMPTS:
        return "assistant" if segment.loss else "user"
    return segment.role


def _codes(segment: Segment) -> Sequence[int]:
    return () if segment.codes is None else segment.codes


def _audio_token(code: int) -> str:
    return f"<|audio_{code}|>"
