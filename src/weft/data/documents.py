"""Reading and writing of documents datasets from Python.

for document in read_documents("runs/demo/documents/interleaved"): ...
write_documents("runs/mine", [Document("a", "text", (Segment.of_text("The cat sat."),))])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.datasets import Rows, write_document_part
from weft.errors import UserError
from weft.plan import Plan, open_draft
from weft.records import Document


def read_documents(*folders: str | Path) -> Iterator[Document]:
    """Yield the documents of datasets, in order. Raises UserError for other directories.

    Example:
        >>> import weft
        >>> documents = weft.read_documents("runs/demo/documents/interleaved")
        >>> document = next(documents)
        >>> document.kind, document.text == "".join(s.text for s in document.segments)
        ('interleaved', True)
    """
    for folder in folders:
        artifacts.read(Path(folder), "documents")
    return Rows.of(*map(Path, folders)).documents()


def write_documents(
    out: str | Path, documents: Iterable[Document], tokenizer: str | Path | None = None, licence: str | None = None
) -> Manifest:
    """Write documents as a new dataset. `tokenizer` is the directory of the speech tokenizer of their codes.

    Raises UserError if `out` exists, and for documents with speech without a `tokenizer`.

    Example:
        >>> import weft
        >>> document = weft.Document("a", "text", (weft.Segment.of_text("The cat sat."),))
        >>> weft.write_documents("runs/mine", [document]).counts["documents"]
        1
    """
    if os.path.lexists(out):
        raise UserError(f"{out} already exists: choose another directory, or delete it")
    parents = {"tokenizer": artifacts.read_parent(Path(tokenizer), "tokenizer")} if tokenizer else {}

    def checked() -> Iterator[Document]:
        for document in documents:
            if not tokenizer and any(segment.type == "speech" for segment in document.segments):
                raise UserError(f"document {document.id!r} has speech: give the tokenizer of its codes")
            yield document

    with open_draft(Path(out), Plan("documents", {}, parents), licence) as draft:
        write_document_part(draft.folder, 0, checked())
        draft.counts["documents"] = len(Rows.of(draft.folder))
    return artifacts.read(Path(out))
