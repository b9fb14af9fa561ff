"""Files of numbers: memory-mapped at a local path, and read in ranges at a URL.

ids = ArrayFile("s3://bucket/tokens/text/00000.ds", size_bytes, np.dtype("<u2"))
first, second = read_slices([(ids, slice(0, 100)), (ids, slice(900, 950))])      # numpy arrays
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.data.storage import StoredFile, is_url, read_ranges


class ArrayFile:
    """A file of `size_bytes` with numbers of one type; `len(file)` is their number."""

    def __init__(self, path: str, size_bytes: int, dtype: np.dtype) -> None:
        self.dtype, self._length = dtype, size_bytes // dtype.itemsize
        self.source: StoredFile | np.ndarray
        if is_url(path):
            self.source = StoredFile(path, size_bytes)
        else:
            self.source = np.asarray(np.memmap(path, dtype, mode="r")) if size_bytes else np.zeros(0, dtype)

    def __len__(self) -> int:
        return self._length


def read_slices(slices: Sequence[tuple[ArrayFile, slice]]) -> list[np.ndarray]:
    """Return slices of files: views of local ones, and those of files at URLs by concurrent requests.

    Raises UserError if a store keeps failing.
    """
    ranges = [
        (file.source, file.dtype.itemsize * at.start, file.dtype.itemsize * at.stop)
        for file, at in slices
        if isinstance(file.source, StoredFile)
    ]
    contents = iter(read_ranges(ranges) if ranges else ())
    return [
        np.frombuffer(next(contents), file.dtype) if isinstance(file.source, StoredFile) else file.source[at]
        for file, at in slices
    ]
