"""Manifests of artifacts: directories of weights or data, and what they were made from.

    manifest = read(folder, kind="codes")                       # checks names and sizes of all files
    parent = read_parent(folder, kind="tokenizer")              # checks their contents as well
    require_parent(lm_manifest, "tokenizer", tokenizer_manifest)

`weft.plan` creates artifacts. A manifest lists all files (`weft.listing`). The fingerprint is a hash of kind, settings,
parents and files, so a change of any of them is noticed. Counts and notes describe an artifact and are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from weft import listing
from weft.config import reject_url
from weft.digests import MAX_HASHED_BYTES, file_digests, sha256_of
from weft.errors import UserError, is_of_machine, reason_of
from weft.files import ContentId, content_id, json_object

FORMAT_VERSION = 2
MANIFEST = listing.MANIFEST
EDITED = f"the settings, parents or files in {MANIFEST} were edited"
_DATASETS = ("audio", "codes", "documents", "tokens")
_PARTS = {"tokenizer": "tokenizer", "decoder": "decoder", "text_to_token": "text_to_token", "lm": "language_model"}


@dataclass(frozen=True)
class Manifest:
    """Description of an artifact: kind, fingerprint, fingerprints of its parents, counts, settings, notes and files.

    `files` maps names to {"bytes": size, "sha256": digest}, and for Parquet files also "rows". Format 1 has none.
    """

    kind: str
    fingerprint: str
    format_version: int = FORMAT_VERSION
    parents: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact, and check the names and sizes of its files.

    Raises UserError for another directory or kind, for a newer format, and for a manifest or file that was changed.
    """
    manifest = read_manifest(folder, kind)
    require_unchanged(folder, manifest, damage(folder, manifest))
    return manifest


def read_parent(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact that another one is made from, and check the contents of its files.

    Of files of more than 4 GiB in total, only the smallest are read. Raises UserError as `read` does.
    """
    folder, manifest = Path(folder), read(folder, kind)
    by_size = sorted(manifest.files, key=lambda name: manifest.files[name]["bytes"])
    totals = accumulate(manifest.files[name]["bytes"] for name in by_size)
    names = [name for name, total in zip(by_size, totals, strict=True) if total <= MAX_HASHED_BYTES]
    digests = file_digests(folder / name for name in names)
    wrong = [f"{n} has other contents" for n in sorted(names) if digests[folder / n] != manifest.files[n]["sha256"]]
    require_unchanged(folder, manifest, wrong)
    return replace(manifest, fingerprint=ContentId(manifest.fingerprint, digests))


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of an artifact without a check of its files. Raises UserError as `read` does otherwise."""
    folder = Path(folder)
    what = with_article(kind_name(kind) if kind else "artifact")
    require_directory(folder, f"the directory of {what}")
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as e:
        raise UserError(f"{folder} has no {MANIFEST}: give the directory of {what} that weft created") from e
    return parse_manifest(content, folder, kind)


def require_directory(folder: Path, what: str) -> None:
    """Raise UserError unless `folder` is a directory, with `what` to give instead."""
    if not folder.is_dir():
        reject_url(folder)
        raise UserError(f"{folder} {'is not a directory' if folder.exists() else 'does not exist'}: give {what}")


def parse_manifest(content: bytes, folder: str | Path, kind: str | None = None) -> Manifest:
    """Return the manifest of the artifact in `folder` from its content. Raises UserError as `read_manifest` does."""
    what = with_article(kind_name(kind) if kind else "artifact")
    try:
        manifest = _parse(json_object(content, MANIFEST))
    except (ValueError, TypeError) as e:
        raise UserError(f"{folder}/{MANIFEST} is damaged ({reason_of(e)}): create {what} again") from e
    if manifest.format_version > FORMAT_VERSION:
        raise UserError(f"{folder} was written by a newer weft (format {manifest.format_version}): update weft")
    if kind and manifest.kind != kind:
        raise UserError(f"{folder} is {with_article(kind_name(manifest.kind))}: give the directory of {what}")
    return manifest


def read_bundle(folder: Path, needed: Collection[str]) -> dict[str, Manifest]:
    """Read the manifests of a bundle's parts, by the names of their directories.

    Raises UserError for another artifact, for a `needed` part that is missing, and for a part of another tokenizer.
    """
    require_directory(folder, f"a bundle, a directory with {', '.join(_PARTS)}")
    if (folder / MANIFEST).is_file():
        read_manifest(folder, "bundle")
    parts = {n: read(folder / n, kind) for n, kind in _PARTS.items() if n in needed or (folder / n).exists()}
    for name in parts.keys() - {"tokenizer"}:
        require_parent(parts[name], "tokenizer", parts["tokenizer"], folder / name)
    return parts


def bundle_manifest(folder: Path) -> Manifest:
    """Return the manifest of the directory of a bundle, from those of its parts."""
    parts = {name: part.fingerprint for name, part in read_bundle(folder, needed=("tokenizer",)).items()}
    manifest = Manifest("bundle", "", parents=parts)
    return replace(manifest, fingerprint=fingerprint(manifest))


def base_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model directory. If weft did not create it, the manifest has a fingerprint only."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return read_parent(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0][0] != ".")
    digests = file_digests(files)
    return Manifest("model", content_id([(str(p.relative_to(folder)), digests[p]) for p in files], digests))


def require_parent(child: Manifest, name: str, parent: Manifest, folder: Path | None = None) -> None:
    """Raise UserError unless `child`, the artifact in `folder`, was made from `parent`.

    A tokenizer with a parent `encoder` has its codes, so that it can take its place.
    """
    if child.parents.get(name) not in (parent.fingerprint, parent.parents.get("encoder", parent.fingerprint)):
        what, found = folder or f"this {kind_name(child.kind)}", child.parents.get(name)
        raise UserError(
            f"{what} was made with {name} {found}, not with {parent.fingerprint}: use that {name}, or create it again"
        )


def fingerprint(manifest: Manifest) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the kind, settings, parents and files of an artifact."""
    covered = [manifest.kind, manifest.settings, manifest.parents, manifest.files]
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]


def is_edited(manifest: Manifest) -> bool:
    """Whether settings, parents or files of a manifest differ from its fingerprint, which format 1 cannot tell."""
    return manifest.format_version > 1 and fingerprint(manifest) != manifest.fingerprint


def damage(folder: Path, manifest: Manifest, verify: bool = False) -> list[str]:
    """Describe everything in an artifact that differs from its manifest: names and sizes or, with `verify`, contents.

    Format 1 lists no files: only `verify` finds that they have changed, and not which of them.
    """
    folder = Path(folder)
    if is_edited(manifest):
        return [EDITED]
    if manifest.kind == "bundle":
        return _damage_of_parts(folder, manifest, verify)
    if manifest.format_version == 1:
        return ["its files have changed"] if verify and _fingerprint_1(folder) != manifest.fingerprint else []
    return listing.differences(folder, manifest.files, verify)


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Convert the exceptions that libraries raise for missing, damaged or misshapen files into a UserError.

    Others are raised unchanged: too little memory, missing permissions, a failing disk, and internal errors.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as e:
        if is_of_machine(e) or not _is_of_file(e):
            raise
        raise UserError(
            f"{folder} cannot be loaded as {what} ({reason_of(e)}): copy it again, or create it again"
        ) from e


def _is_of_file(error: BaseException) -> bool:
    """Whether an error can mean that a file is damaged or misshapen."""
    if isinstance(error, TypeError):  # of a library, or of a dataclass that is created from JSON
        return "__init__() " in str(error) or not _is_raised_here(error)
    if isinstance(error, RuntimeError):  # of torch for damaged weights; errors of devices and internal ones differ
        return type(error) is RuntimeError and "CUDA" not in str(error)
    return True


def _is_raised_here(error: BaseException) -> bool:
    """Whether an error was raised by a module of weft and not of a library."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def kind_name(kind: str) -> str:
    """Return the name of artifacts of `kind` for messages."""
    if kind == "text_to_token":
        return "text-to-token model"
    return kind.replace("_", " ") + (" dataset" if kind in _DATASETS else "")


def with_article(name: str) -> str:
    """Return a name after "a" or "an"."""
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"


def require_unchanged(folder: str | Path, manifest: Manifest, problems: list[str]) -> None:
    """Raise UserError with the first few of the `problems` of an artifact, if there are any."""
    if problems:
        shown = "; ".join([*problems[:3], *([f"and {len(problems) - 3} more"] if len(problems) > 3 else [])])
        what = kind_name(manifest.kind)
        raise UserError(f"{folder} is not the {what} that was created: {shown}: restore it, or create it again")


def _damage_of_parts(folder: Path, manifest: Manifest, verify: bool) -> list[str]:
    """Describe the parts of a bundle that are missing, damaged, or not those of its manifest."""
    found = []
    for name, expected in manifest.parents.items():
        if name not in _PARTS:
            found.append(f"{name} is not part of a bundle")
            continue
        try:
            part = read_manifest(folder / name, _PARTS[name])
        except UserError as e:
            found.append(str(e))
            continue
        if part.fingerprint != expected:
            found.append(f"{name} is {part.fingerprint}, expected {expected}")
        found += [f"{name}/{problem}" for problem in damage(folder / name, part, verify)]
    return found


def _fingerprint_1(folder: Path) -> str:
    """Return the fingerprint of an artifact of format 1, a hash of its files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] != "log" and str(name) != MANIFEST:
            total.update(f"{name.as_posix()}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()[:16]


def _parse(row: dict[str, Any]) -> Manifest:
    """Return the manifest of a JSON object. Raises ValueError or TypeError for anything else."""
    manifest = Manifest(**row)
    for name, value in vars(manifest).items():
        kind = {"kind": str, "fingerprint": str, "format_version": int}.get(name, dict)
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` is {value!r}, expected {kind.__name__}")
    for name, about in manifest.files.items():
        if not isinstance(about, dict) or [type(about.get(key)) for key in ("bytes", "sha256")] != [int, str]:
            raise ValueError(f"`files` has {about!r} for {name}, expected bytes and sha256")
    return manifest
