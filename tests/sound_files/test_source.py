"""Sounds inside of containers are read as the same sounds in files of their own."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sound_files.files import RATE_HZ, declare_flac_frames, declare_mp3_frames, noise, write
from weft.audio import load, num_samples
from weft.errors import UserError
from weft.sound_files.address import address_of, bytes_address, file_of, row_address, with_time_range
from weft.sound_files.parquet_values import value_of

NAMES = ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.opus", "a.aiff", "a.au", "a.caf", "a.w64", "a.sph"]


def embedded(path):
    """Return addresses of a file's content: a range of bytes, a value of a column, and of a field of a struct."""
    content, folder = path.read_bytes(), path.parent
    (folder / "a.tar").write_bytes(b"junk" * 100 + content + b"RIFFjunk" * 100)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    plain, struct = pa.array([b"", content], pa.binary()), pa.array([None, {"bytes": content}], kind)
    pq.write_table(pa.table({"plain": plain, "nested": struct}), folder / "a.parquet")
    return [
        bytes_address(str(folder / "a.tar"), 400, 400 + len(content)),
        row_address(str(folder / "a.parquet"), 1, "plain"),
        row_address(str(folder / "a.parquet"), 1, "nested"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_in_a_container_equals_the_file(tmp_path, name):
    path = write(tmp_path / name, noise(2 * RATE_HZ))
    for audio in embedded(path):
        for part in ("", "#t=0.5,1.25"):
            np.testing.assert_array_equal(load(audio + part), load(f"{path}{part}"))
            assert num_samples(audio + part) == num_samples(f"{path}{part}")


def test_the_errors_of_a_sound_in_a_container_are_those_of_the_file(tmp_path):
    longer = write(tmp_path / "long.flac", noise(RATE_HZ))
    declare_flac_frames(longer, 2 * RATE_HZ)
    cut = write(tmp_path / "cut.mp3", noise(2 * RATE_HZ))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    none = tmp_path / "none.wav"
    none.write_bytes(b"no sound at all " * 500)
    for path in (longer, cut, none):
        messages = []
        for audio in (path, *embedded(path)):
            with pytest.raises(UserError) as caught:
                load(audio)
            messages.append(str(caught.value).removeprefix(str(audio)))
        assert len(set(messages)) == 1


def test_wrong_lengths_are_corrected_in_a_container_too(tmp_path):
    path = write(tmp_path / "a.mp3", noise(2 * RATE_HZ))
    expected = load(path)
    declare_mp3_frames(path, 1)
    for audio in embedded(path):
        np.testing.assert_array_equal(load(audio), expected)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("a.tar#bytes=0,99999999", "is outside of the file"),
        ("a.tar#bytes=20,10", "is outside of the file"),
        ("a.tar#bytes=0,0", "cannot be read as audio"),
        ("a.tar#bytes=0,100", "cannot be read as audio"),
        ("a.tar#row=0,plain", "cannot be read"),
        ("a.parquet#row=2,plain", "has no row 2"),
        ("a.parquet#row=0,nested", "row 0 has no bytes in the column nested"),
        ("a.parquet#row=0,other", "has no column other of bytes"),
        ("nowhere.tar#bytes=0,10", "does not exist"),
    ],
)
def test_an_address_of_something_else_is_an_error_of_one_line(tmp_path, part, message):
    embedded(write(tmp_path / "a.wav", noise(1000)))
    for read in (load, num_samples):
        with pytest.raises(UserError, match=message) as caught:
            read(f"{tmp_path}/{part}")
        assert "\n" not in str(caught.value)


def test_values_are_found_in_any_order_by_any_thread(tmp_path):
    contents = [bytes([i]) * (1000 + 7 * i) for i in range(100)]
    pq.write_table(pa.table({"a": contents}), tmp_path / "a.parquet", row_group_size=30)
    found = {}

    def read(rows):
        for row in rows:
            found[threading.get_ident(), row] = value_of(tmp_path / "a.parquet", int(row), "a")

    orders = [np.arange(100), np.arange(100)[::-1], np.random.default_rng(0).permutation(100)]
    threads = [threading.Thread(target=read, args=(rows,)) for rows in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 300
    assert all(contents[row] == content for (_, row), content in found.items())


def test_a_changed_parquet_file_is_read_again(tmp_path):
    for samples in (noise(1000), noise(1000, seed=1)):
        path = write(tmp_path / "a.wav", samples)
        audio = embedded(path)[1]
        np.testing.assert_array_equal(load(audio), load(path))


def test_a_damaged_parquet_value_is_an_error_and_the_others_are_read(tmp_path):
    contents = [bytes([i]) * 5000 for i in range(20)]
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False, "data_page_size": 5000}
    pq.write_table(pa.table({"a": contents}), tmp_path / "a.parquet", row_group_size=10, **options)
    content = (tmp_path / "a.parquet").read_bytes()
    place = content.index(contents[5])
    (tmp_path / "a.parquet").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    for _ in range(2):
        with pytest.raises(UserError, match="row 9 cannot be read"):
            value_of(tmp_path / "a.parquet", 9, "a")
        assert value_of(tmp_path / "a.parquet", 12, "a") == contents[12]


@pytest.mark.parametrize("name", ["a#bytes=1,2.wav", "a#row=1,x", "a#t=1,2", "a#bytes=1,2#t=0,1", "a#b.wav"])
def test_the_name_of_a_file_may_look_like_an_address(tmp_path, name):
    path = tmp_path / name
    write(tmp_path / "x.wav", noise(RATE_HZ)).rename(path)
    assert len(load(path)) == RATE_HZ
    assert file_of(f"{path}#t=0.25,0.5") == path
    assert len(load(f"{path}#t=0.25,0.5")) == RATE_HZ // 4


def test_time_ranges_of_parts_are_nested():
    audio = with_time_range(with_time_range("/a.tar#bytes=1,2", 1.0, 3.0), 0.5, 1.0)
    assert audio == "/a.tar#bytes=1,2#t=1.50000,2.00000"
    address = address_of(audio)
    assert (str(address.file), address.part, address.sound) == ("/a.tar", "bytes=1,2", "/a.tar#bytes=1,2")
    assert address_of("/a.parquet#row=3,my column#t=1").part == "row=3,my column"
