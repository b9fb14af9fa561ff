"""Text corpora of files and directories.

    for document in read_texts("books/", "web.jsonl.zst"): ...
    corpus = TextCorpus.of("books/"); corpus.read(task_range(corpus.size_bytes, task, num_tasks), skipped)

Files are .txt (split at paragraphs into documents of about 700 words), or .jsonl, .jsonl.gz, .jsonl.zst, .parquet,
.arrow and .feather with a field `text` and optionally `id`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from weft.data.file_range import FileRange, TextDocument
from weft.data.formats import read, suffix_of
from weft.data.skipped import Skipped
from weft.data.storage import File, files_under, identities_of, is_url, name_of, path_of
from weft.errors import UserError
from weft.files import content_id
from weft.text.inputs import id_of


@dataclass(frozen=True)
class TextCorpus:
    """The files of a corpus as one sequence of bytes, of which any range can be read on its own."""

    files: tuple[FileRange, ...]
    found: tuple[File, ...]
    """The same files as `files_under` returned them."""

    @classmethod
    def of(cls, *paths: str | Path) -> TextCorpus:
        """Find the text files at and below `paths`, in order. Raises UserError if there are none."""
        found = [file for path in paths for file in _text_files(path_of(path))]
        if twice := next((name for name, n in Counter(name_of(file.path) for file in found).items() if n > 1), None):
            raise UserError(f"{twice} is given twice: give each file once")
        folders = [name_of(file.path).split("/")[:-1] for file in found]
        root = "/".join([*os.path.commonprefix(folders), ""])  # noqa: RUF071 - of lists, part by part
        found = [file for file in found if file.size_bytes]
        if not found:
            raise UserError(f"{', '.join(map(str, paths))}: all text files are empty: give files with text")
        names = [id_of(name_of(f.path).removeprefix(root)) or "" for f in found]
        files = [FileRange(f.path, n, 0, f.size_bytes, f.size_bytes) for f, n in zip(found, names, strict=True)]
        return cls(tuple(files), tuple(found))

    @property
    def size_bytes(self) -> int:
        """The total size of the files."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        """The end of each file in the sequence of bytes."""
        return list(accumulate(file.size_bytes for file in self.files))

    @property
    def identity(self) -> str:
        """An identity that changes with the relative names and contents of the files."""
        identities = identities_of(self.found)
        digests = {Path(f.path): i for f, i in zip(self.found, identities, strict=True) if not is_url(f.path)}
        return content_id([(f.name, f.size_bytes, i) for f, i in zip(self.files, identities, strict=True)], digests)

    def read(self, byte_range: range, skipped: Skipped) -> Iterator[TextDocument]:
        """Yield the documents that begin in a range of the corpus's bytes; bad ones are added to `skipped`.

        Ranges that cover the corpus yield each document once. Ids are those of the corpus, or `file:position`.
        """
        for i in range(bisect_right(self._ends, byte_range.start), len(self.files)):
            file, first = self.files[i], self._ends[i] - self.files[i].size_bytes
            if first >= byte_range.stop:
                return
            start, stop = max(byte_range.start - first, 0), min(byte_range.stop - first, file.size_bytes)
            yield from read(FileRange(file.path, file.name, start, stop, file.size_bytes), skipped)


def read_texts(*paths: str | Path, max_bad_fraction: float = 0.01) -> Iterator[TextDocument]:
    """Yield all documents of a corpus, in order. Raises UserError at the end if too many of them are bad."""
    corpus, skipped = TextCorpus.of(*paths), Skipped()
    yield from corpus.read(range(corpus.size_bytes), skipped)
    skipped.check(max_bad_fraction)


def _text_files(path: str) -> list[File]:
    files = files_under(path, _is_text)
    if not files:
        what = "does not exist" if files is None else "contains no text"
        raise UserError(
            f"{path} {what}: give .txt, .jsonl (.gz, .zst), .parquet, .arrow or .feather files, or directories of them"
        )
    return files


def _is_text(name: str) -> bool:
    """Whether a file is part of a corpus. Cache files of the `datasets` library are not."""
    return suffix_of(name) is not None and not (name.startswith("cache-") and name.endswith(".arrow"))
