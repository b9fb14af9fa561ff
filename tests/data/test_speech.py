"""Manifests and directories of speech, and the identity of their contents."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.data.corpora import jsonl
from weft.audio import save
from weft.data import lines
from weft.data.speech import audio_lengths, load_speech, read_manifest, speech_id
from weft.errors import UserError
from weft.interleave.alignments import Alignments
from weft.plan import Plan, open_draft
from weft.records import Utterance


def test_the_fields_of_a_manifest_are_kept_and_its_paths_made_absolute(tmp_path):
    row = {
        "id": "u1",
        "audio": "wav/u1.wav",
        "text": "hi",
        "speaker": "s",
        "language": "en",
        "seconds": 2,
        "source": "b",
    }
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl([row, {"id": "u2", "audio": "/x.wav", "no": 1}]))
    first, second = read_manifest(tmp_path)
    assert (first.audio, first.text, first.speaker, first.language, first.seconds, first.source) == (
        str(tmp_path / "wav/u1.wav"), "hi", "s", "en", 2.0, "b",
    )  # fmt: skip
    assert first.problem is second.problem is None
    assert (second.audio, second.text, second.seconds) == ("/x.wav", None, None)
    assert list(read_manifest(tmp_path / "manifest.jsonl")) == [first, second]


def test_transcripts_are_recased_by_the_language_of_their_line_or_the_default(tmp_path):
    rows = [
        {"id": "a", "text": "I AM"},
        {"id": "b", "text": "ILIK", "language": "tr"},
        {"id": "c", "text": "The BBC"},
        {"id": "d"},
        {"audio": None, "text": "NO ID"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_bytes(jsonl([{"audio": "a.wav", **row} for row in rows]))
    plain, english, turkish = (list(read_manifest(path, recase=r, language=n)) for r, n in [(0, 0), (1, 0), (1, "tr")])
    assert [u.text for u in plain] == ["I AM", "ILIK", "The BBC", None, None]
    assert [u.text for u in english] == ["I am", "Il\u0131k", "The BBC", None, None]
    assert [u.text for u in turkish] == ["I am", "Il\u0131k", "The BBC", None, None]
    assert [replace(u, text=None) for u in english] == [replace(u, text=None) for u in plain]


def test_a_directory_of_audio_files_is_read_like_a_manifest(tmp_path):
    for name in ("b.flac", "s/a.WAV", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(u.id, u.audio) for u in read_manifest(tmp_path)] == [
        ("b", str(tmp_path / "b.flac")),
        ("s/a", str(tmp_path / "s/a.WAV")),
    ]
    assert [u.id for u in read_manifest(tmp_path / "b.flac", tmp_path / "s/a.WAV")] == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "not JSON"),
        (b"[]", "it is not a JSON object"),
        (b'{"id": "b"}', "it lacks `audio`"),
        (b'{"id": "b", "audio": 3}', "it lacks `audio`"),
        (b'{"audio": "b.wav"}', "it lacks `id`"),
        (b'{"id": "b", "audio": "b.wav", "text": 3}', "its `text` is 3"),
        (b'{"id": "b", "audio": "b.wav", "seconds": "1"}', "its `seconds` is '1'"),
        (b'{"id": "b", "audio": "b.wav", "offset": -1}', "its `offset` is -1"),
        (b'{"id": "b", "audio": "b.wav", "duration": 1' + b"0" * 400 + b"}", "its `duration` is 10000"),
        (b'{"id": "b\\u0000", "audio": ' + b"[" * 999 + b"]" * 999 + b"}", "not JSON: nested too deeply"),
        (b'{"id": "a", "audio": "b.wav"}', "its id 'a' also occurs in .*manifest.jsonl line 1"),
        (b'{"id": "\xff", "audio": "b.wav"}', "not UTF-8"),
    ],
)
def test_a_bad_line_of_a_manifest_is_one_bad_item(tmp_path, line, message):
    save(tmp_path / "a.wav", np.zeros(8000, np.float32), 16_000)
    (tmp_path / "manifest.jsonl").write_bytes(
        b'{"id": "a", "audio": "a.wav"}\n' + line + b'\n{"id": "c", "audio": "a.wav"}\n'
    )
    first, bad, last = read_manifest(tmp_path)
    assert (first.id, last.id, bad.id) == ("a", "c", f"{tmp_path}/manifest.jsonl line 2")
    assert re.match(message, bad.problem or "")
    with pytest.raises(UserError, match=message):
        load_speech(bad)
    assert list(audio_lengths([first, bad, last])) == [8000, bad.problem, 8000]
    assert speech_id([first, last]) != speech_id([first, bad, last])


def test_a_line_that_is_too_long_is_one_bad_item_and_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "m.jsonl").write_bytes(
        b'{"id": "a", "audio": "a.wav"}\n' + bytes(10**6) + b'\n{"id": "b", "audio": "b"}'
    )
    assert [u.problem and u.problem.split(":")[0] for u in read_manifest(tmp_path / "m.jsonl")] == [
        None,
        "longer than 64 MiB",
        None,
    ]
    (tmp_path / "words.jsonl").write_bytes(bytes(10**6))
    with pytest.raises(UserError, match=r"words.jsonl line 1 is longer than 64 MiB"):
        Alignments.of(tmp_path / "words.jsonl")


def test_ids_may_be_integers_and_missing_numbers_nan(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 7, "audio": "/a.wav", "seconds": NaN}\n')
    assert list(read_manifest(tmp_path)) == [Utterance("7", "/a.wav")]


@pytest.mark.parametrize(
    ("fields", "expected", "seconds"),
    [
        ({"offset": 1.5, "duration": 2}, "/a.wav#t=1.50000,3.50000", 2.0),
        ({"offset": 0, "duration": 2, "seconds": 3}, "/a.wav#t=0.00000,2.00000", 3.0),
        ({"offset": 1}, "/a.wav#t=1.00000", None),
        ({"duration": 2}, "/a.wav", 2.0),
        ({"audio": "/a.wav#t=10,20", "offset": 1, "duration": 2}, "/a.wav#t=11.00000,13.00000", 2.0),
        ({"audio": "/a.wav#t=10,20", "offset": 1}, "/a.wav#t=11.00000,20", None),
    ],
)
def test_offset_and_duration_select_a_part_of_the_file(tmp_path, fields, expected, seconds):
    (tmp_path / "manifest.jsonl").write_bytes(jsonl([{"id": "u", "audio": "/a.wav", **fields}]))
    [utterance] = read_manifest(tmp_path)
    assert (utterance.audio, utterance.seconds) == (expected, seconds)


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    save(tmp_path / "a.wav", np.zeros(8000, np.float32), 16_000)
    os.rename(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/a\xff.wav")
    [utterance] = read_manifest(tmp_path)
    assert utterance.id.encode().isascii()
    assert len(load_speech(utterance)) == 8000
    assert speech_id([utterance])


def test_missing_and_empty_inputs_are_rejected(tmp_path):
    (tmp_path / "a.mid").touch()
    (tmp_path / "empty.jsonl").touch()
    for path, message in (
        ("nowhere", "does not exist"),
        ("a.mid", "is not speech that weft can read"),
        ("empty.jsonl", "is empty"),
        (".", "contains no speech that weft can read"),
    ):
        with pytest.raises(UserError, match=message):
            read_manifest(tmp_path / path)


UTTERANCE = Utterance("u", "", "hi", "s", "en", 2.0, "book")


def identity_of(folder, content=b"sound", name="a.wav", part="", **changes):
    """Return the identity of an utterance whose audio is in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return speech_id([replace(UTTERANCE, audio=f"{folder / name}{part}", **changes)])


def test_the_identity_of_speech_follows_contents_and_not_the_location(tmp_path):
    first = identity_of(tmp_path / "a")
    assert first == identity_of(tmp_path / "b") == identity_of(tmp_path / "a", name="renamed.wav")
    assert first == identity_of(tmp_path / "a", seconds=9.0)  # the duration is that of the audio
    assert first != identity_of(tmp_path / "c", b"SOUND")
    assert first != identity_of(tmp_path / "a", part="#t=0,1")
    assert identity_of(tmp_path / "a", part="#t=0,1") == identity_of(tmp_path / "b", part="#t=0,1")
    for name in ("id", "text", "speaker", "language", "source"):
        assert identity_of(tmp_path / "a", **{name: "other"}) != first
    assert identity_of(tmp_path / "a", text=None) != identity_of(tmp_path / "a", text="None") != first


def test_the_identity_of_speech_follows_the_order_of_utterances(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    first, second = (replace(UTTERANCE, id=id_, audio=str(tmp_path / "a.wav")) for id_ in "ab")
    assert speech_id([first, second]) == speech_id([first, second]) != speech_id([second, first])


def test_missing_audio_has_an_identity_that_its_arrival_changes(tmp_path):
    before = speech_id([replace(UTTERANCE, audio=str(tmp_path / "a.wav"))])
    assert identity_of(tmp_path) != before


def test_any_failure_to_measure_a_length_is_returned(monkeypatch):
    def fail(audio):
        raise MemoryError

    monkeypatch.setattr("weft.data.speech.num_samples", fail)
    assert list(audio_lengths([Utterance("a", "a.wav")])) == ["not enough memory"]


def test_lengths_are_read_from_headers_and_errors_are_returned(tmp_path):
    save(tmp_path / "a.wav", np.zeros(8000, np.float32), 16_000)
    (tmp_path / "b.wav").write_bytes(b"this is not audio")
    utterances = [Utterance("a", str(tmp_path / "a.wav")), Utterance("b", str(tmp_path / "b.wav"))]
    found, problem = audio_lengths(utterances)
    assert found == 8000
    assert "b.wav cannot be read as audio" in problem


def test_a_name_that_no_file_can_have_is_a_bad_item(tmp_path):
    rows = [{"id": str(i), "audio": name} for i, name in enumerate(["x" * 5000, "x" * 5000 + "#t=1,2", "a\0b.wav"])]
    (tmp_path / "manifest.jsonl").write_bytes(jsonl(rows))
    utterances = read_manifest(tmp_path)
    assert speech_id(utterances)
    assert all(isinstance(length, str) for length in audio_lengths(utterances))


@pytest.fixture
def artifact(tmp_path):
    """A directory of speech that weft has created."""
    with open_draft(tmp_path / "speech", Plan("audio", {"voice": "a"})) as draft:
        (draft.folder / "manifest.jsonl").write_bytes(jsonl([{"id": "u1", "audio": "u1.wav"}]))
        save(draft.folder / "u1.wav", np.zeros(100, np.float32), 16_000)
    return tmp_path / "speech"


def test_speech_that_weft_created_is_checked_as_every_artifact_is(artifact):
    path = artifact / "manifest.json"
    content = path.read_bytes()
    for given in (artifact, artifact / "manifest.jsonl"):
        assert [u.id for u in read_manifest(given)] == ["u1"]
        for stop in range(len(content) - 2):  # the last characters are a brace and perhaps a newline
            path.write_bytes(content[:stop])
            with pytest.raises(UserError, match=r"speech/manifest\.json is damaged"):
                read_manifest(given)
        path.write_bytes(content.replace(b'"voice": "a"', b'"voice":"b"'))
        with pytest.raises(UserError, match=r"settings, parents or files in manifest\.json were edited"):
            read_manifest(given)
        path.write_bytes(content)
    (artifact / "u1.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"u1\.wav has 0 bytes"):
        read_manifest(artifact)


@pytest.mark.parametrize("content", [b'{"audio_filepath": "a.wav"}\n' * 2, b"{}", b"[]", b"text", b'{"kind": "x"}'])
def test_a_manifest_json_of_others_is_not_read(artifact, content):
    (artifact / "manifest.json").write_bytes(content)
    assert [u.id for u in read_manifest(artifact)] == ["u1"]
