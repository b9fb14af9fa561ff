"""Properties of the descriptions of errors."""

import time
from pathlib import Path

import pytest

from weft.errors import UserError, line_and_status, printable, reason_of, without_secrets


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad value:\nmore"), "bad value"),
        (ValueError(), "ValueError"),
        (MemoryError(), "not enough memory"),
        (KeyError("weights"), "missing 'weights'"),
        (OSError("https://me:secret@host/file?token=abc failed"), "https://host/file failed"),
        (ValueError("a\x1b[31mred\x00"), "a\\x1b[31mred\\x00"),
    ],
)
def test_a_reason_is_one_printable_line_without_secrets(error, reason):
    assert reason_of(error) == reason


def test_printable_text_is_unchanged_and_other_characters_are_escaped():
    assert printable("père 語 a b") == "père 語 a b"
    spaces_and_joiners = "\u00a0\u202f\u3000\u200c\u200d"
    assert printable(spaces_and_joiners) == spaces_and_joiners
    assert printable("\u202etxt.exe\udcff\n") == "\\u202etxt.exe\\udcff\\n"


def test_urls_keep_their_host_and_path():
    assert without_secrets("s3://bucket/key a.txt") == "s3://bucket/key a.txt"
    assert without_secrets("hf://datasets/me/books@main/a.parquet") == "hf://datasets/me/books@main/a.parquet"
    assert without_secrets("memory:///me:key@bucket/a") == "memory:///bucket/a"
    assert without_secrets(f"https://aws:{'t' * 2000}@host/simple") == "https://host/simple"
    assert without_secrets("(https://u:p@h.org/x.gz?X-Amz-Signature=1&b=2)") == "(https://h.org/x.gz)"


def test_a_message_for_users_has_no_credentials():
    url = "https://me:pass@word@host/a.jsonl.gz?X-Amz-Signature=abc&token=b"
    error = UserError(f"{url} cannot be read: check it")
    assert str(error) == line_and_status(error)[0] == "https://host/a.jsonl.gz cannot be read: check it"


def test_the_time_is_linear_in_the_length():
    start = time.perf_counter()
    for text in ("://" * 100_000, "a" * 300_000, "a://" + "b" * 300_000, "a://b@" * 50_000):
        without_secrets(text)
    assert time.perf_counter() - start < 2


def test_credentials_of_a_url_that_was_read_as_a_path_are_removed():
    assert without_secrets(f"{Path('https://me:key@host/x?sig=1')} does not exist") == "https:/host/x does not exist"
