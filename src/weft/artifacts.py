"""Manifests of artifacts: directories of weights or data, and what they were made from.

    manifest = read(folder, kind="codes")
    require_parent(lm_manifest, "tokenizer", tokenizer_manifest)

`weft.plan` creates artifacts. The fingerprint of an artifact is a hash of its files, except those under `log/`, which
describe the job and not its result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from weft.errors import UserError, is_of_machine, reason_of
from weft.files import content_id, file_digests

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_DATASETS = ("audio", "codes", "documents", "tokens")
_PARTS = {"tokenizer": "tokenizer", "decoder": "decoder", "text_to_token": "text_to_token", "lm": "language_model"}


@dataclass(frozen=True)
class Manifest:
    """Description of an artifact: kind, fingerprint, fingerprints of its parents, counts, settings and notes."""

    kind: str
    fingerprint: str
    format_version: int = FORMAT_VERSION
    parents: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact. Raises UserError for another directory or kind, and for a newer format."""
    folder = Path(folder)
    what = with_article(kind_name(kind) if kind else "artifact")
    if not folder.is_dir():
        problem = "is not a directory" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}: give the directory of {what}")
    try:
        manifest = _parse((folder / MANIFEST).read_text())
    except FileNotFoundError as e:
        raise UserError(f"{folder} has no {MANIFEST}: give the directory of {what} that weft created") from e
    except (ValueError, TypeError) as e:
        raise UserError(f"{folder / MANIFEST} is damaged ({e}): create {what} again") from e
    if manifest.format_version > FORMAT_VERSION:
        raise UserError(f"{folder} was written by a newer weft (format {manifest.format_version}): update weft")
    if kind and manifest.kind != kind:
        raise UserError(f"{folder} is {with_article(kind_name(manifest.kind))}: give the directory of {what}")
    return manifest


def read_bundle(folder: Path, needed: Collection[str]) -> dict[str, Manifest]:
    """Read the manifests of a bundle's parts, by the names of their directories.

    Raises UserError for a `needed` part that is missing, and for a part that was made with another tokenizer.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a bundle, a directory with {', '.join(_PARTS)}")
    parts = {n: read(folder / n, kind) for n, kind in _PARTS.items() if n in needed or (folder / n).exists()}
    for name in parts.keys() - {"tokenizer"}:
        require_parent(parts[name], "tokenizer", parts["tokenizer"], folder / name)
    return parts


def base_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model directory. If weft did not create it, the manifest has a fingerprint only."""
    if (Path(folder) / MANIFEST).is_file():
        return read(folder)
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.relative_to(folder).parts[0][0] != ".")
    digests = file_digests(files)
    return Manifest("model", content_id([(str(p.relative_to(folder)), digests[p]) for p in files]))


def require_parent(child: Manifest, name: str, parent: Manifest, folder: Path | None = None) -> None:
    """Raise UserError unless `child`, the artifact in `folder`, was made from `parent`."""
    if child.parents.get(name) != parent.fingerprint:
        what, found = folder or f"this {kind_name(child.kind)}", child.parents.get(name)
        raise UserError(
            f"{what} was made with {name} {found}, not with {parent.fingerprint}: use that {name}, or create it again"
        )


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the names and contents of an artifact's files, without `log/`."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] == "log" or str(name) == MANIFEST:
            continue
        with path.open("rb") as f:
            total.update(f"{name.as_posix()}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Convert the exceptions that libraries raise for missing, damaged or misshapen files into a UserError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as e:
        if is_of_machine(e):
            raise
        raise UserError(
            f"{folder} cannot be loaded as {what} ({reason_of(e)}): copy it again, or create it again"
        ) from e


def kind_name(kind: str) -> str:
    """Return the name of artifacts of `kind` for messages."""
    if kind == "text_to_token":
        return "text-to-token model"
    return kind.replace("_", " ") + (" dataset" if kind in _DATASETS else "")


def with_article(name: str) -> str:
    """Return a name after "a" or "an"."""
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"


def _parse(text: str) -> Manifest:
    """Parse a manifest. Raises ValueError or TypeError for anything else."""
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    manifest = Manifest(**row)
    for name, value in vars(manifest).items():
        kind = {"kind": str, "fingerprint": str, "format_version": int}.get(name, dict)
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` is {value!r}, expected {kind.__name__}")
    return manifest
