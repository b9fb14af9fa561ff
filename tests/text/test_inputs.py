"""Whatever comes from outside becomes strings that can be stored, tokenized and printed, or gives a reason."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.text.inputs import decode, id_of, numbered_lines, parse_json, valid_text

ANY_TEXT = st.text()  # with surrogates and NUL characters
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
)


def strings_of(value):
    if isinstance(value, dict):
        return [s for pair in value.items() for item in pair for s in strings_of(item)]
    if isinstance(value, list):
        return [s for item in value for s in strings_of(item)]
    return [value] if isinstance(value, str) else []


@given(JSON)
def test_all_json_that_python_writes_is_read_with_valid_strings_and_without_nan(value):
    line = json.dumps(value).encode()
    found = parse_json(line)
    assert all("\0" not in s and s.encode() is not None for s in strings_of(found))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'\xef\xbb\xbf{"id": 12}', {"id": 12}),
        (b'{"seconds": NaN, "offset": -Infinity, "x": 1e999}', {"seconds": None, "offset": None, "x": None}),
        (b'{"text": "cut \\ud83d", "emoji": "\\ud83d\\ude00"}', {"text": "cut \ufffd", "emoji": "\U0001f600"}),
        (b'{"a\\u0000": ["b\\u0000c", 1, "\\\\u0000"]}', {"a": ["bc", 1, "\\u0000"]}),
    ],
)
def test_values_that_orjson_refuses_are_read(line, value):
    assert parse_json(line) == value


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'["\\u0000",' + b"[" * 1000 + b"]" * 1001, "nested too deeply"),
        (b"9" * 5000, "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16: convert it to UTF-8"),
    ],
)
def test_other_lines_give_a_reason(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(line)


def test_text_is_decoded_without_a_byte_order_mark_and_utf16_is_named():
    assert decode(b"\xef\xbb\xbfna\xc3\xafve words\0") == "naïve words"
    for encoding in ("utf-16", "utf-16-be", "utf-16-le"):
        with pytest.raises(ValueError, match="UTF-16"):
            decode("A long text.".encode(encoding))
    with pytest.raises(ValueError, match="not UTF-8: invalid start byte at byte 1"):
        decode("Füße".encode("latin-1"))


@given(ANY_TEXT)
def test_valid_text_can_be_stored_and_loses_nothing_valid(text):
    found = valid_text(text)
    assert found.encode().decode() == found == valid_text(found)
    if "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        assert found == text


@given(st.binary(min_size=1))
def test_ids_of_any_file_name_can_be_stored(name):
    assert id_of(os.fsdecode(name)).encode()
    assert id_of(name).encode()


def test_numbers_are_ids_and_missing_values_are_not():
    assert [id_of(value) for value in (7, 0, "a", 1.5, True)] == ["7", "0", "a", "1.5", "True"]
    assert [id_of(value) for value in (None, float("nan"), "", [], {})] == [None] * 5
    assert id_of(b"a\xff\0") == "a\\xff\\x00"


def test_blank_lines_are_counted_and_left_out():
    assert list(numbered_lines([b"\xef\xbb\xbf\n", b" a \r\n", b"\n", b"\xef\xbb\xbfb"])) == [(2, b"a"), (4, b"b")]
