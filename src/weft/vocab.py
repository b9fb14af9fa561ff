"""The vocabulary of a speech-text language model: the only place where speech codes become ids, and back.

    tokenizer = extend_tokenizer(AutoTokenizer.from_pretrained(base), num_codes=512)
    vocab = SpeechVocab.of(tokenizer)
    ids, mask = vocab.document_ids(document)       # a whole Document, ready for a token shard

`codes` are 0..K-1 of a speech codebook; `ids` are rows of the language model's embedding. Serialisation, by kind
(forms of GLM-4-Voice; `<speech>` stands for `<|begin_of_audio|><|audio_17|>...<|end_of_audio|>`):

    text, speech, interleaved   text<speech> text<speech><eos>
    dialogue                    <|system|>\\ntext<|user|>\\n<speech><|assistant|>\\ntext<speech><eos>
    asr                         <|system|>\\nTranscribe<|user|>\\n<speech><|assistant|>\\ntext<eos>
    tts                         <|system|>\\nSpeak<|user|>\\ntext<|assistant|>\\n<speech><eos>

Without roles the next segment continues the last; a system turn is what tells a model to repeat it in the other
modality instead. Consecutive speech segments are not merged: each keeps its markers, because each was spoken on its
own, and a seam in mid-stream would be a sound that nobody says. In a dialogue, an answer's text and the speech after it
are woven, so that it can be spoken while it is thought (`weft.rhythm`; shown above for a text of under 13 tokens). Text
is encoded as it stands, segment by segment, and never read as control tokens: cut spans before the space (`"the cat"`,
`" sat"`) and the ids are those of the uncut text. Where a tokenizer begins a text with a space of its own (Llama 2),
that space is left out.
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
from weft.errors import UserError
from weft.records import Document, Segment
from weft.rhythm import weave

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BEGIN_OF_AUDIO, END_OF_AUDIO = "<|begin_of_audio|>", "<|end_of_audio|>"
ROLES = {role: f"<|{role}|>" for role in records.ROLES}
TASK_PROMPTS = {"asr": "Transcribe", "tts": "Speak"}
_ANSWER = [("assistant", "text"), ("assistant", "speech")]
_GUARD = "\x01"  # no word has it, so that it merges with none
_END_OF_TEXT, _PADDING = "<|endoftext|>", "<|padding|>"


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, num_codes: int) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` with the audio tokens of `num_codes` codes, the audio markers and the roles.

    Tokens that it has already keep their ids. Raises UserError when it was extended before for another codebook.
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
    """A byte-level BPE of at most `vocab_size` ids for a language model from nothing: lossless on any text.

    Raises UserError when `vocab_size` leaves no room for the 256 bytes and the two special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [_END_OF_TEXT, _PADDING]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise UserError(f"a byte-level vocabulary of {vocab_size} is too small: give at least 258")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
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
        """Find the speech tokens of `tokenizer`. Raises UserError where they or its eos token are missing."""
        ids = tokenizer.get_vocab()
        needed = (_audio_token(0), BEGIN_OF_AUDIO, END_OF_AUDIO, *ROLES.values())
        if missing := [name for name in needed if name not in ids]:
            raise UserError(f"the tokenizer has no {', '.join(missing)}: extend its language model with speech first")
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
        """The highest id + 1: the rows that an embedding needs."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over every token and its id: equal where token shards can be shared."""
        items = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((items, self.eos_id)).encode()).hexdigest()[:16]

    @cached_property
    def role_start_ids(self) -> dict[str, int]:
        """The id that opens a turn of each role; the user's also tells that the assistant's turn has ended."""
        ids = self.tokenizer.get_vocab()
        return {role: ids[name] for role, name in ROLES.items()}

    @cached_property
    def document_start_ids(self) -> np.ndarray:
        """What the base model's own tokenizer puts before a text (Llama's begin token; for many nothing)."""
        ids = np.asarray(self.tokenizer("").input_ids, np.int64)
        return ids[ids != self.eos_id]

    def codes_to_ids(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids (int64) of codes. Raises UserError for a code outside 0..K-1."""
        values = np.asarray(codes, np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.num_codes):
            raise UserError(
                f"codes {values.min()}..{values.max()} do not fit a vocabulary of {self.num_codes} codes: "
                "use the speech tokenizer that the language model was extended for"
            )
        return values + self.first_audio_id

    def ids_to_codes(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes (uint16) of audio ids. Raises ValueError for an id that is no audio token."""
        values = np.asarray(ids, np.int64)
        if not np.all(self.is_audio(values)):
            raise ValueError("an id is not an audio token")
        return (values - self.first_audio_id).astype(np.uint16)

    def is_audio(self, ids: Any) -> Any:
        """Which ids are audio tokens (markers are not): an array or tensor of booleans, as `ids` is one."""
        return (ids >= self.first_audio_id) & (ids < self.first_audio_id + self.num_codes)

    def is_control(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are audio markers, roles or the end of a document: neither words nor sound."""
        control = [self.begin_of_audio_id, self.end_of_audio_id, self.eos_id, *self.role_start_ids.values()]
        return np.isin(ids, control)

    def text_ids(self, text: str) -> np.ndarray:
        """Ids (int64) of plain text; `<|user|>` and its like in the text are letters, not control tokens."""
        guard, num_guard_ids = self._guard
        return self._encode(guard + text)[num_guard_ids:]

    def _encode(self, text: str) -> np.ndarray:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        return np.asarray(ids, np.int64)

    @cached_property
    def _guard(self) -> tuple[str, int]:
        """What is put before a text while it is encoded, and its number of ids: something where the tokenizer begins
        each text with a space of its own (Llama 2), which would come between the segments of a document, else nothing.
        """
        if not self.tokenizer.tokenize("a")[0].startswith("\u2581"):
            return "", 0
        ids = self._encode(_GUARD)
        if self.tokenizer.decode(ids) != _GUARD:
            raise UserError("the tokenizer drops characters, so its texts do not come back: take another base")
        return _GUARD, len(ids)

    def speech_ids(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids (int64) of one stretch of speech between its two markers."""
        return np.concatenate(([self.begin_of_audio_id], self.codes_to_ids(codes), [self.end_of_audio_id]))

    def segment_ids(self, segment: Segment) -> np.ndarray:
        """Ids (int64) of a segment's content, without a role."""
        if segment.type == "speech":
            return self.speech_ids(segment.codes if segment.codes is not None else ())
        return self.text_ids(segment.text or "")

    def turn_start_ids(self, role: str) -> np.ndarray:
        """Ids (int64) before the content of a turn: `<|user|>\\n` for "user"."""
        return np.concatenate(([self.role_start_ids[role]], self._newline_ids))

    @cached_property
    def _newline_ids(self) -> np.ndarray:
        return self.text_ids("\n")

    def document_ids(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int64) of a whole document, and which of them a language model is trained to predict (bool).

        A segment's `loss` holds for its markers too, and for the one id that ends its turn or the document: a model
        trained on an answer learns to end it. What a template dictates otherwise (turn starts, task) is not trained.
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
        """Ids of a segment, or of an answer's text and speech in their rhythm, and which of them are trained."""
        if len(passage) == 1:
            return self.segment_ids(passage[0]), passage[0].loss
        text, speech = passage
        text_ids = self.text_ids(text.text or "")
        audio_ids = self.codes_to_ids(() if speech.codes is None else speech.codes)
        ids = weave(text_ids, audio_ids, self.begin_of_audio_id, self.end_of_audio_id)
        losses = np.full(len(text_ids), text.loss), np.full(len(audio_ids), speech.loss)
        return ids, weave(*losses, begin=speech.loss, end=speech.loss)


def _passages(document: Document) -> Iterator[tuple[Segment, ...]]:
    """The segments in order, alone or, where an answer's speech follows its text, both together."""
    segments, i = document.segments, 0
    while i < len(segments):
        woven = document.kind == "dialogue" and [(s.role, s.type) for s in segments[i : i + 2]] == _ANSWER
        yield segments[i : i + 1 + woven]
        i += 1 + woven


def _role_of(segment: Segment, kind: str) -> str | None:
    """The turn that a segment belongs to; in asr and tts the trained side is the answer."""
    if kind in TASK_PROMPTS:
        return "assistant" if segment.loss else "user"
    return segment.role


def _audio_token(code: int) -> str:
    return f"<|audio_{code}|>"
