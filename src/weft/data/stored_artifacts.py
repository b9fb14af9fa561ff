"""Artifacts at local paths or at URLs.

    manifest = read_manifest("s3://bucket/tokens", "tokens")        # checks names and sizes of all files

The files of an artifact at a URL are compared with the listing of the store; their contents are not read.
"""

from __future__ import annotations

from pathlib import Path

from weft import artifacts, listing
from weft.artifacts import MANIFEST, Manifest
from weft.data.storage import StoredFile, files_under, is_url
from weft.errors import UserError


def read_manifest(folder: str | Path, kind: str) -> Manifest:
    """Read the manifest of an artifact, and check the names and sizes of its files.

    Raises UserError as `artifacts.read` does, and for a store that cannot be read.
    """
    return _read_stored(str(folder), kind) if is_url(str(folder)) else artifacts.read(Path(folder), kind)


def read_parent(folder: str | Path, kind: str) -> Manifest:
    """Read the manifest of an artifact that another one is made from, and check also the contents of local files."""
    return _read_stored(str(folder), kind) if is_url(str(folder)) else artifacts.read_parent(Path(folder), kind)


def _read_stored(url: str, kind: str) -> Manifest:
    what = artifacts.with_article(artifacts.kind_name(kind))
    found = files_under(f"{url.rstrip('/')}/{MANIFEST}", lambda name: True)
    if not found:
        raise UserError(f"{url} has no {MANIFEST}: give the URL of {what} that weft created")
    file = StoredFile(found[0].path, found[0].size_bytes)
    manifest = artifacts.parse_manifest(file.read(0, file.size_bytes), url, kind)
    root = found[0].path.removesuffix(MANIFEST)
    sizes = {f.path.removeprefix(root): f.size_bytes for f in files_under(root, lambda name: True) or ()}
    if MANIFEST not in sizes:
        raise UserError(f"{url} cannot be listed: use a store that lists directories, or copy {what} to a disk")
    is_edited = artifacts.is_edited(manifest)
    wrong = [artifacts.EDITED] if is_edited else listing.differences_of_sizes(manifest.files, sizes)
    artifacts.require_unchanged(url, manifest, wrong if manifest.format_version > 1 else [])
    return manifest
