from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from weft.parquet_pages import largest_page

OPTIONS = [
    {},
    {"use_dictionary": False},
    {"data_page_version": "2.0", "use_dictionary": False},
    {"write_statistics": False, "compression": "none"},
    {"write_page_checksum": True, "compression": "gzip"},
]


def chunk_of(path):
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return start, chunk.total_compressed_size, chunk.total_uncompressed_size


@pytest.mark.parametrize("options", OPTIONS)
def test_the_size_of_the_largest_page_is_found(tmp_path, options):
    """The texts are in one page; and in one of many pages, of which one has a long text."""
    path = tmp_path / "a.parquet"
    texts = [f"text {i} " * 50 for i in range(2000)]
    pages = {"data_page_size": 1 << 30, "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(pa.table({"text": texts}), path, **pages, **options)
    start, size_bytes, unpacked = chunk_of(path)
    with path.open("rb") as f:
        one = largest_page(f, start, size_bytes)
    assert sum(map(len, texts)) <= one <= unpacked
    texts[700] = "long " * 40_000
    pages = {"data_page_size": 1000, "write_batch_size": 10, "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, **{**options, **pages})
    start, size_bytes, _ = chunk_of(path)
    with path.open("rb") as f:
        assert 200_000 <= largest_page(f, start, size_bytes) < 220_000


def test_a_damaged_header_is_a_value_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(500)]}), path, data_page_size=100, write_batch_size=9)
    start, size_bytes, _ = chunk_of(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for i in rng.integers(start, start + size_bytes, 5):
            damaged[i] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(1, len(damaged)))])
        with path.open("rb") as f, suppress(ValueError):
            assert largest_page(f, start, size_bytes) >= 0
    path.write_bytes(bytes([0x15, *[0xFF] * 3_000_000]))  # a number without an end
    with path.open("rb") as f, pytest.raises(ValueError, match="a page header is damaged"):
        largest_page(f, 0, size_bytes)
