"""Records of the data pipeline and their Parquet schemas: utterances, coded utterances and documents.

    table = pyarrow.Table.from_pylist([d.to_row() for d in documents], schema=DOCUMENT_SCHEMA)
    documents = [Document.from_row(row) for row in table.to_pylist()]

`codes` are indices 0..K-1 into a tokenizer's codebook. `weft.vocab` converts them to ids of a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

_STRING, _FLOAT, _CODES = pa.string(), pa.float32(), pa.list_(pa.uint16())
_SEGMENT = pa.struct({"type": _STRING, "text": _STRING, "codes": _CODES, "role": _STRING, "loss": pa.bool_()})
_META = pa.struct(
    {"speech_ratio": _FLOAT, "words": pa.int32(), "seconds": _FLOAT, "wer": _FLOAT}
    | {"speaker": _STRING, "source": _STRING, "span_wer": pa.list_(_FLOAT)}
)
DOCUMENT_SCHEMA = pa.schema({"id": _STRING, "kind": _STRING, "segments": pa.list_(_SEGMENT), "meta": _META})
CODES_SCHEMA = pa.schema(
    {"id": _STRING, "text": _STRING, "codes": _CODES, "seconds": _FLOAT}
    | {"speaker": _STRING, "language": _STRING, "source": _STRING}
)

KINDS = ("text", "speech", "interleaved", "asr", "tts", "dialogue")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording of speech. `audio` is a path, optionally with a time range; `text` is None without a transcript.

    `problem` says why an entry of a manifest or directory cannot be used; such an entry has no audio. Consecutive
    utterances with the same `source`, a recording or a text, form one speech document.
    """

    id: str
    audio: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    seconds: float | None = None
    source: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class CodedUtterance:
    """An utterance as speech codes: a row of a codes dataset."""

    id: str
    codes: Sequence[int]
    text: str | None = None
    seconds: float | None = None
    speaker: str | None = None
    language: str | None = None
    source: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Return a row of CODES_SCHEMA."""
        return {name: getattr(self, name) for name in CODES_SCHEMA.names}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> CodedUtterance:
        """Return the utterance of a row of CODES_SCHEMA. Raises ValueError for a row without id or codes."""
        if row["id"] is None or row["codes"] is None:
            raise ValueError(f"utterance {row['id']!r} has no {'codes' if row['codes'] is None else 'id'}")
        return cls(**{name: row[name] for name in CODES_SCHEMA.names})


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a document, in one modality.

    A speech segment keeps the text that it was synthesized from. `loss` says whether language models are trained on the
    segment. `role` is None outside of dialogues.
    """

    type: str
    text: str | None = None
    codes: Sequence[int] | None = None
    role: str | None = None
    loss: bool = True

    @classmethod
    def of_text(cls, text: str, role: str | None = None, loss: bool = True) -> Segment:
        """Return a text segment."""
        return cls("text", text, None, role, loss)

    @classmethod
    def of_speech(
        cls, codes: Sequence[int], text: str | None = None, role: str | None = None, loss: bool = True
    ) -> Segment:
        """Return a speech segment."""
        return cls("speech", text, codes, role, loss)


@dataclass(frozen=True, slots=True)
class Meta:
    """Properties of a document.

    `speech_ratio` is the fraction of its words that are in speech segments, `seconds` the duration of its speech, and
    `wer` the word error rate of its speech when transcribed. `span_wer` has a rate for each speech segment, None for
    one that was not measured; `wer` is their mean, weighted by words.
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
    """A training document of one of the KINDS."""

    id: str
    kind: str
    segments: tuple[Segment, ...]
    meta: Meta = field(default_factory=Meta)

    @property
    def text(self) -> str:
        """The text of all segments, in order."""
        return "".join(s.text or "" for s in self.segments)

    def to_row(self) -> dict[str, Any]:
        """Return a row of DOCUMENT_SCHEMA."""
        return {
            "id": self.id,
            "kind": self.kind,
            "segments": [{n: getattr(s, n) for n in _SEGMENT.names} for s in self.segments],
            "meta": {n: getattr(self.meta, n) for n in _META.names},
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Document:
        """Return the document of a row of DOCUMENT_SCHEMA. Raises ValueError for invalid values."""
        if row["kind"] not in KINDS:
            raise ValueError(f"document {row['id']!r} has kind {row['kind']!r}, expected one of {', '.join(KINDS)}")
        segments = tuple(Segment(**s) for s in row["segments"] or ())
        for segment in segments:
            if problem := _problem(segment):
                raise ValueError(f"document {row['id']!r} has a segment with {problem}")
        return cls(row["id"], row["kind"], segments, Meta(**(row["meta"] or {})))


def _problem(segment: Segment) -> str | None:
    """Return the first invalid value of a segment, in words."""
    if segment.type not in ("text", "speech"):
        return f"type {segment.type!r}"
    if segment.role not in (None, *ROLES):
        return f"role {segment.role!r}"
    if segment.loss is None:
        return "no loss"
    return "no codes" if segment.type == "speech" and segment.codes is None else None
