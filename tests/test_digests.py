"""Digests of files: contents, samples of large files, and memory for many files."""

import numpy as np

from weft import digests as module
from weft.digests import file_digests


def test_digests_follow_contents_and_not_names(tmp_path):
    for name, content in {"a": b"same", "b": b"same", "c": b"Same"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, missing = (tmp_path / name for name in ("a", "b", "c", "missing"))
    digests = file_digests([a, b, c, missing, a])
    assert list(digests) == [a, b, c, missing]
    assert digests[a] == digests[b] != digests[c]
    assert digests[missing] == ""


def test_large_files_are_sampled_at_fixed_places(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_HASHED_BYTES", 40_000)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 1000)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes(200_000))
    other.write_bytes(b"small")
    before = file_digests([path, other])
    assert file_digests([path, other]) == before
    path.write_bytes(bytes(200_001))
    assert file_digests([path])[path] != before[path]  # the size counts
    path.write_bytes(bytes(100_000) + bytes([1]) * 20_000 + bytes(80_000))
    assert file_digests([path, other])[path] != before[path]
    other.write_bytes(b"Small")
    assert file_digests([path, other])[other] != before[other]


def test_any_number_of_files_takes_few_bytes_each_and_is_read_once(tmp_path, monkeypatch):
    read = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path, fraction: read.append(path) or digest(path, fraction))
    paths = [tmp_path / f"{i}" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_text(str(i % 7))
    digests = file_digests(paths * 3)
    assert list(digests) == sorted(paths, key=lambda path: int(path.name)) == read
    assert len(digests) == 20
    assert len(set(digests.values())) == 7
    assert tmp_path not in digests
    arrays = [value for value in vars(digests).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 48 * len(digests)
