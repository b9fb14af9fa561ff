"""Artifacts at local paths or at URLs.

    manifest = read_manifest("s3://bucket/tokens", "tokens")        # checks names and sizes of all files
    problems = damage("s3://bucket/tokens", manifest, verify=True)  # reads all files

The files of an artifact at a URL are compared with the listing of the store. Only `damage` can read their contents.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from weft import artifacts, listing
from weft.artifacts import MANIFEST, Manifest
from weft.data.storage import File, StoredFile, files_under, is_url, open_file
from weft.errors import UserError

_BLOCK_BYTES = 1 << 20


def read_manifest(folder: str | Path, kind: str) -> Manifest:
    """Read the manifest of an artifact, and check the names and sizes of its files.

    Raises UserError as `artifacts.read` does, and for a store that cannot be read.
    """
    return _read_stored(str(folder), kind) if is_url(str(folder)) else artifacts.read(Path(folder), kind)


def read_parent(folder: str | Path, kind: str) -> Manifest:
    """Read the manifest of an artifact that another one is made from, and check also the contents of local files."""
    return _read_stored(str(folder), kind) if is_url(str(folder)) else artifacts.read_parent(Path(folder), kind)


def _read_stored(url: str, kind: str) -> Manifest:
    manifest = parse_manifest(url, kind)
    artifacts.require_unchanged(url, manifest, damage(url, manifest))
    return manifest


def parse_manifest(url: str, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact at a URL without a check of its files. Raises UserError as `read_manifest`."""
    file = _manifest_file(url, kind)
    return artifacts.parse_manifest(StoredFile(file.path, file.size_bytes).read(0, file.size_bytes), url, kind)


def damage(url: str, manifest: Manifest, verify: bool = False) -> list[str]:
    """Describe everything that differs from the manifest of an artifact at a URL, as `artifacts.damage` does.

    Raises UserError for a store that cannot be listed, and on `verify` for an artifact of format 1.
    """
    if artifacts.is_edited(manifest):
        return [artifacts.EDITED]
    if manifest.format_version == 1:
        if verify:
            raise UserError(f"{url} has format 1, which lists no files: copy it to a disk to verify it")
        return []
    root = _manifest_file(url, manifest.kind).path.removesuffix(MANIFEST)
    files = {f.path.removeprefix(root): f for f in files_under(root, lambda name: True) or ()}
    if MANIFEST not in files:
        raise UserError(f"{url} cannot be listed: use a store that lists directories, or copy it to a disk")

    def sha256(name: str) -> str:
        digest = hashlib.sha256()
        with open_file(files[name].path, files[name].size_bytes) as f:
            for block in iter(lambda: f.read(_BLOCK_BYTES), b""):
                digest.update(block)
        return digest.hexdigest()

    sizes = {name: file.size_bytes for name, file in files.items()}
    return listing.differences_of(manifest.files, sizes, sha256 if verify else None)


def _manifest_file(url: str, kind: str | None) -> File:
    found = files_under(f"{url.rstrip('/')}/{MANIFEST}", lambda name: True)
    if not found:
        what = artifacts.with_article(artifacts.kind_name(kind or "artifact"))
        raise UserError(f"{url} has no {MANIFEST}: give the URL of {what} that weft created")
    return found[0]
