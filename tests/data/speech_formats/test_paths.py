"""Speech in all formats: the same utterances and samples, identities of contents, and damaged files."""

import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.corpora import jsonl
from tests.data.speech_formats.corpora import (
    WRITERS,
    add,
    content_of,
    cut,
    table,
    write_arrow,
    write_arrow_stream,
    write_kaldi,
    write_manifest,
    write_parquet,
    write_sounds,
    write_tar,
    write_tars,
)
from weft.audio import load
from weft.data.speech import audio_lengths, load_speech, read_manifest, speech_id
from weft.data.speech_formats import entries
from weft.digests import file_digests
from weft.errors import UserError
from weft.sound_files.address import file_of


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "sounds").mkdir()
    return write_sounds(tmp_path / "sounds")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "speech").mkdir()
    return tmp_path / "speech"


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_speech_is_read_from_every_format(folder, rows, write):
    path = write(folder, rows) or folder
    utterances = read_manifest(path)
    assert [(u.id, u.text, u.speaker, u.language, u.problem) for u in utterances] == [
        (row["id"], row["text"], row["speaker"], row["language"], None) for row in rows
    ]
    for utterance, row in zip(utterances, rows, strict=True):
        assert utterance.audio.startswith("/")
        np.testing.assert_array_equal(load_speech(utterance), load(row["audio"]))
    assert list(audio_lengths(utterances)) == [len(load(row["audio"])) for row in rows]


@pytest.mark.parametrize("write", WRITERS)
def test_the_identity_of_speech_follows_the_contents_of_every_format(tmp_path, folder, rows, write):
    path = write(folder, rows) or folder
    first = speech_id(read_manifest(path))
    if not any(str(tmp_path / "sounds") in u.audio for u in read_manifest(path)):
        moved = tmp_path / "moved"
        shutil.copytree(folder, moved)
        assert speech_id(read_manifest(moved)) == first
        file = file_of(read_manifest(path)[2].audio)
        content = file.read_bytes()
        sound = content_of(rows[2])[60:90]
        assert content.count(sound) == 1 or file.suffix == ".parquet"
        place = content.index(sound)
        file.write_bytes(content[:place] + bytes(byte ^ 1 for byte in sound) + content[place + len(sound) :])
    else:
        sound = (tmp_path / "sounds/u2.wav").read_bytes()
        (tmp_path / "sounds/u2.wav").write_bytes(sound[:-2] + bytes(byte ^ 1 for byte in sound[-2:]))
    assert speech_id(read_manifest(path)) != first


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_tars])
def test_every_row_of_a_container_has_its_own_identity_and_files_are_read_once(folder, rows, write, monkeypatch):
    write(folder, rows)
    utterances = read_manifest(folder)
    assert len({speech_id([u]) for u in utterances}) == len(rows)
    found = []

    def digests(paths):
        found.append(list(paths))
        return file_digests(found[-1])

    monkeypatch.setattr("weft.data.speech.file_digests", digests)
    speech_id(utterances)
    assert len(set(found[0])) <= 2


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_tars])
@pytest.mark.parametrize("kept", [0, 10, 300, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_container_gives_what_is_before_the_damage_and_is_counted(folder, rows, write, kept):
    write(folder, rows)
    file = max(folder.glob("*[0-9n].*"), key=lambda path: path.stat().st_size)
    whole = read_manifest(folder)
    content = file.read_bytes()
    file.write_bytes(content[: kept if kept >= 1 else int(kept * len(content))])
    found = read_manifest(folder)
    good, bad = [u for u in found if u.problem is None], [u for u in found if u.problem]
    assert bad or good == list(whole)  # nothing but the end mark of a tar file is lost
    assert all(file.name in u.problem for u in bad)
    assert good == [u for u in whole if u in good]
    for u in good:
        assert len(load_speech(u))
    assert {u.id for u in whole if file_of(u.audio) != file} <= {u.id for u in good}


def test_much_lost_data_is_many_bad_items(folder, rows):
    many = [{**rows[0], "id": f"u{i}"} for i in range(40)]
    write_tar(folder / "0.tar", many)
    write_tar(folder / "1.tar", [{**row, "id": f"v{row['id']}"} for row in many])
    content = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(content[:4096] + b"\xff" * 512 + content[4608:])
    problems = [u.problem for u in read_manifest(folder)]
    assert 35 <= sum(p is not None for p in problems) <= 45
    assert problems.count(None) <= 41


def write_empty_parquet(folder, rows):
    pq.write_table(table(rows).slice(0, 0), folder / "a.parquet")


def write_empty_arrow(folder, rows):
    write_arrow_stream(folder / "a.arrow", table(rows).slice(0, 0))


def write_empty_tar(folder, rows):
    write_tar(folder / "a.tar", [])


@pytest.mark.parametrize("write", [write_empty_parquet, write_empty_arrow, write_empty_tar])
def test_intact_files_without_utterances_are_named(folder, rows, write):
    write(folder, rows)
    for path in (folder, *folder.iterdir()):
        with pytest.raises(UserError, match=f"{path} contains no utterances: give files with speech"):
            read_manifest(path)


@pytest.mark.parametrize("write", WRITERS)
def test_a_text_of_the_size_of_a_book_is_a_bad_item(folder, rows, write, monkeypatch):
    monkeypatch.setattr(entries, "MAX_DOCUMENT_BYTES", 100)
    rows[1]["text"] *= 100
    found = read_manifest(write(folder, rows) or folder)
    assert [u.id for u in found if u.problem is None] == [row["id"] for row in rows if row is not rows[1]]
    assert [u.problem for u in found if u.problem] == ["its `text` is longer than 64 MiB: split it"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_without_audio_is_rejected_with_its_columns(folder, name):
    content = pa.table({"text": ["a"], "wave": [[0.1, 0.2]], "about": [{"path": "x"}]})
    if name.endswith("parquet"):
        pq.write_table(content, folder / name)
    else:
        write_arrow_stream(folder / name, content)
    for path in (folder, folder / name):
        with pytest.raises(UserError) as caught:
            read_manifest(path)
        assert "has no audio column, it has text (string), wave (list<item: double>), about (struct)" in str(
            caught.value
        ).replace("element", "item")


def test_the_audio_column_is_found_by_its_type_or_name(folder, rows):
    speech = table(rows).rename_columns(["recording", *table(rows).column_names[1:]])
    pq.write_table(speech, folder / "a.parquet")
    assert len(load_speech(read_manifest(folder)[0])) == 1600
    twice = speech.append_column("answer", speech["recording"])
    pq.write_table(twice, folder / "a.parquet")
    with pytest.raises(UserError, match=r"several audio columns \(recording, answer\)"):
        read_manifest(folder)
    pq.write_table(twice.append_column("audio", speech["recording"]), folder / "a.parquet")
    assert read_manifest(folder)[0].audio.endswith("#row=0,audio")


def test_columns_have_the_names_of_common_data_sets(folder, rows):
    speech = pa.table(
        {
            "audio": [content_of(row) for row in rows],
            "sentence": [row["text"] for row in rows],
            "client_id": [7] * 5,
            "locale": pa.array([0, 1, 1, None, 5]),
        }
    ).replace_schema_metadata({"huggingface": '{"info": {"features": {"locale": {"names": ["en", "fr"]}}}}'})
    pq.write_table(speech, folder / "a.parquet")
    utterances = read_manifest(folder)
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        (f"a.parquet:{i}", row["text"], "7") for i, row in enumerate(rows)
    ]
    assert [u.language for u in utterances] == ["en", "fr", "fr", None, None]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_rows_of_a_table_are_bad_items(folder, rows, kind):
    sounds = [{"bytes": content_of(rows[0])}, None, {"bytes": None}, {"bytes": b""}, {"bytes": content_of(rows[4])}]
    texts = pa.array([b"a", b"b", b"c", b"d", b"\xff"]).view(pa.string())
    speech = pa.table(
        {"audio": pa.array(sounds, pa.struct({"bytes": pa.binary()})), "text": texts, "id": [1, 2, 3, 4, 5]}
    )
    if kind == "parquet":
        pq.write_table(speech, folder / "a.parquet")
    else:
        write_arrow_stream(folder / "a.arrow", speech, 5)
    found = read_manifest(folder)
    assert [(u.problem or "").split(":")[0] for u in found] == [
        "", "its `audio` is empty", "its `audio` is empty", "", "not UTF-8",
    ]  # fmt: skip
    assert audio_lengths(found)[0] == 1600
    assert "cannot be read as audio" in audio_lengths(found)[3]


def test_a_damaged_row_group_is_as_many_bad_items_as_it_has_rows(folder, rows):
    speech = table(rows, text=[str(i) * 1000 for i in range(5)])
    options = {"compression": "none", "write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    pq.write_table(speech, folder / "a.parquet", row_group_size=2, **options)
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content.replace(b"2" * 100, b"x" * 100, 1))
    found = read_manifest(folder)
    assert [u.problem is None for u in found] == [True, True, False, False, True]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_arrow_file_is_rejected(folder, rows, compression):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as f, pa.ipc.new_file(f, table(rows).schema, options=options) as file:
        file.write_table(table(rows))
    with pytest.raises(UserError, match="is compressed: write it without compression, or as Parquet"):
        read_manifest(folder)


def test_links_to_containers_outside_of_a_directory_are_refused(tmp_path, folder, rows, monkeypatch):
    for write, name in ((write_parquet, "train.parquet"), (write_tars, "0.tar")):
        elsewhere, speech = tmp_path / f"elsewhere-{name}", tmp_path / f"speech-{name}"
        elsewhere.mkdir()
        speech.mkdir()
        write(elsewhere, rows)
        (speech / name).symlink_to(elsewhere / name)
        monkeypatch.delenv("WEFT_FOLLOW_SYMLINKS", raising=False)
        [bad] = read_manifest(speech)
        assert "it is a link that leaves the directory" in bad.problem
        monkeypatch.setenv("WEFT_FOLLOW_SYMLINKS", "1")
        assert len(load_speech(read_manifest(speech)[0])) == 1600


def test_one_format_of_a_directory_is_read_and_the_others_are_reported(folder, rows, capsys):
    write_tars(folder, rows)
    write_parquet(folder, rows)
    assert all(u.audio.startswith(f"{folder}/train.parquet#") for u in read_manifest(folder))
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line == f"{folder}: its Parquet and Arrow files are read, its tar files are ignored: give them by their names"
    )
    assert len(read_manifest(folder / "0.tar", folder / "1.tar")) == 5
    shutil.copy(rows[0]["audio"], folder)
    assert [u.audio for u in read_manifest(folder)] == [f"{folder}/u0.wav"]
    write_kaldi(folder, rows[:2])
    assert len(read_manifest(folder)) == 2
    write_manifest(folder, rows[:3])
    assert len(read_manifest(folder)) == 3


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_compressed_tar_file_is_rejected(folder, name):
    (folder / name).touch()
    with pytest.raises(UserError, match="is compressed, so that sounds in it cannot be read one by one"):
        read_manifest(folder / name)


def test_nothing_in_a_container_is_executed(folder, rows):
    marker = folder / "executed"

    class Attack:
        def __reduce__(self):
            return open, (str(marker), "w")

    import tarfile

    with tarfile.open(folder / "a.tar", "w") as tar:
        for suffix in ("wav", "txt", "json", "pyd", "pickle", "pth"):
            add(tar, f"a.{suffix}", pickle.dumps(Attack()))
        add(tar, "b.wav", content_of(rows[0]))
    found = read_manifest(folder)
    assert [u.problem is None for u in found] == [False, True]
    folder.joinpath("cuts.jsonl").write_bytes(
        jsonl([cut(rows[0], recording={**cut(rows[0])["recording"], "sources": [
            {"type": "command", "channels": [0], "source": f"touch {marker}"}]})])
    )  # fmt: skip
    [bad] = read_manifest(folder / "cuts.jsonl")
    assert "is a command, which is not read" in bad.problem
    for u in (*found, bad):
        audio_lengths([u])
    assert not marker.exists()
