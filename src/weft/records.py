"""The rows that flow between the stages: utterances, coded utterances and documents, with their Parquet schemas.

    rows = [d.to_row() for d in documents]
    pyarrow.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)

`codes` always belong to a tokenizer's codebook (0..K-1), never to a language model's vocabulary: that conversion is
`weft.vocab`'s alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

CODES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("codes", pa.list_(pa.uint16())),
        ("seconds", pa.float32()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
    ]
)

_SEGMENT = pa.struct(
    [
        ("type", pa.string()),
        ("text", pa.string()),
        ("codes", pa.list_(pa.uint16())),
        ("role", pa.string()),
        ("loss", pa.bool_()),
    ]
)
_META = pa.struct(
    [
        ("speech_ratio", pa.float32()),
        ("words", pa.int32()),
        ("seconds", pa.float32()),
        ("wer", pa.float32()),
        ("speaker", pa.string()),
        ("source", pa.string()),
        ("span_wer", pa.list_(pa.float32())),
    ]
)
DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("kind", pa.string()), ("segments", pa.list_(_SEGMENT)), ("meta", _META)]
)

KINDS = ("text", "speech", "interleaved", "asr", "tts", "dialogue")
SEGMENT_TYPES = ("text", "speech")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of an audio manifest. `audio` is a path; `text` is None where no transcript is known.

    `source` names the recording or text that consecutive utterances were cut from: they make one speech document.
    """

    id: str
    audio: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    seconds: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class CodedUtterance:
    """An utterance as speech codes: one row of a codes dataset. `codes` are integers in 0..K-1."""

    id: str
    codes: Sequence[int]
    text: str | None = None
    seconds: float | None = None
    speaker: str | None = None
    language: str | None = None
    source: str | None = None

    def to_row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CODES_SCHEMA.names}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> CodedUtterance:
        """The utterance of a row of CODES_SCHEMA. Raises ValueError for one without id or codes."""
        if row["id"] is None or row["codes"] is None:
            raise ValueError(f"utterance {row['id']!r} has no {'codes' if row['codes'] is None else 'id'}")
        return cls(**{name: row[name] for name in CODES_SCHEMA.names})


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text or of speech inside a document.

    A speech segment keeps the text it was made from, so removing speech gives back the source text. `loss` says
    whether a language model is trained on it; `role` is None outside dialogues.
    """

    type: str
    text: str | None = None
    codes: Sequence[int] | None = None
    role: str | None = None
    loss: bool = True

    @classmethod
    def of_text(cls, text: str, role: str | None = None, loss: bool = True) -> Segment:
        return cls("text", text, None, role, loss)

    @classmethod
    def of_speech(
        cls, codes: Sequence[int], text: str | None = None, role: str | None = None, loss: bool = True
    ) -> Segment:
        return cls("speech", text, codes, role, loss)


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a document: achieved speech share of its words, words, seconds of speech, read-back WER.

    `span_wer` has a value for each speech segment, None where a segment was not measured; `wer` is their mean over the
    words of the measured ones.
    """

    speech_ratio: float | None = None
    words: int | None = None
    seconds: float | None = None
    wer: float | None = None
    speaker: str | None = None
    source: str | None = None
    span_wer: Sequence[float | None] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """The hub format: one schema for every kind of training document (see KINDS)."""

    id: str
    kind: str
    segments: tuple[Segment, ...]
    meta: Meta = field(default_factory=Meta)

    @property
    def text(self) -> str:
        """The source text: every segment's text in order, spoken or written."""
        return "".join(s.text or "" for s in self.segments)

    def to_row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "segments": [{n: getattr(s, n) for n in ("type", "text", "codes", "role", "loss")} for s in self.segments],
            "meta": {n: getattr(self.meta, n) for n in _META.names},
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Document:
        """The document of a row of DOCUMENT_SCHEMA. Raises ValueError for values that no document has."""
        if row["kind"] not in KINDS:
            raise ValueError(f"document {row['id']!r} is of kind {row['kind']!r}, and none of {', '.join(KINDS)}")
        segments = tuple(Segment(**s) for s in row["segments"] or ())
        for segment in segments:
            if wrong := _wrong(segment):
                raise ValueError(f"document {row['id']!r} has a segment with {wrong}")
        return cls(row["id"], row["kind"], segments, Meta(**(row["meta"] or {})))


def _wrong(segment: Segment) -> str | None:
    """What a segment has that none can have, if so."""
    if segment.type not in SEGMENT_TYPES:
        return f"type {segment.type!r}"
    if segment.role not in (None, *ROLES):
        return f"role {segment.role!r}"
    if segment.loss is None:
        return "no loss"
    return "no codes" if segment.type == "speech" and segment.codes is None else None
