"""Conversion between records and rows, and rejection of invalid rows."""

import pyarrow as pa
import pytest

from weft.records import CODES_SCHEMA, DOCUMENT_SCHEMA, KINDS, ROLES, CodedUtterance, Document, Meta, Segment

DOCUMENT = Document(
    "d",
    "dialogue",
    (
        Segment.of_text("Be kind.", "system", loss=False),
        Segment.of_speech([], "Hi", "user", loss=False),
        Segment.of_text(" you", "assistant"),
        Segment.of_speech([0, 65535], None, "assistant"),
    ),
    Meta(0.5, 4, 2.0, 0.25, "s", "book", [0.25, None]),
)
UTTERANCE = CodedUtterance("u", [0, 65535], None, 0.5, "s", "en", "book")


@pytest.mark.parametrize(("record", "schema"), [(DOCUMENT, DOCUMENT_SCHEMA), (UTTERANCE, CODES_SCHEMA)])
def test_a_record_survives_conversion_to_a_row_of_its_schema(record, schema):
    row = pa.Table.from_pylist([record.to_row()], schema=schema).to_pylist()[0]
    assert type(record).from_row(row) == record


def test_the_text_of_a_document_is_that_of_all_segments():
    assert DOCUMENT.text == "Be kind.Hi you"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", [None, *ROLES])
def test_every_kind_and_role_is_accepted(kind, role):
    document = Document("d", kind, (Segment.of_text("x", role),))
    assert Document.from_row(document.to_row()) == document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poem"}, "document 'd' has kind 'poem', expected one of text, speech"),
        ({"kind": None}, "document 'd' has kind None"),
        ({"type": "image"}, "document 'd' has a segment with type 'image'"),
        ({"role": "narrator"}, "document 'd' has a segment with role 'narrator'"),
        ({"loss": None}, "document 'd' has a segment with no loss"),
        ({"type": "speech", "codes": None}, "document 'd' has a segment with no codes"),
    ],
)
def test_a_row_with_invalid_values_is_rejected(change, message):
    row = DOCUMENT.to_row()
    for name, value in change.items():
        (row if name == "kind" else row["segments"][2])[name] = value
    with pytest.raises(ValueError, match=message):
        Document.from_row(row)


def test_a_row_without_segments_or_meta_is_an_empty_document():
    assert Document.from_row({"id": "d", "kind": "text", "segments": None, "meta": None}) == Document("d", "text", ())


@pytest.mark.parametrize(
    ("change", "message"), [({"id": None}, "utterance None has no id"), ({"codes": None}, "utterance 'u' has no codes")]
)
def test_an_utterance_without_id_or_codes_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        CodedUtterance.from_row({**UTTERANCE.to_row(), **change})
