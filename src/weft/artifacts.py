"""Artifacts: folders with weights or shards, whole or absent, that know what they are and what they were made from.

    with build(out, kind="codes", settings=settings, parents={"tokenizer": tokenizer.manifest}) as draft:
        write_files(draft.folder)                  # OUT.partial: a killed job finds its files there when run again
        draft.counts["utterances"] = 1200          # OUT appears, with its manifest.json, when the block ends well

    artifact = read(out, kind="codes")             # refuses a missing folder, another kind, a newer format
    require_parent(lm_manifest, "tokenizer", tokenizer_manifest)   # refuses parts that do not belong together

The fingerprint is a hash of the files, save those under `log/`, which tell how the job went and not what it made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from weft.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_PLAN = "log/plan.json"
_DATASETS = ("audio", "codes", "documents", "tokens")
_PARTS = {"tokenizer": "tokenizer", "decoder": "decoder", "text_to_token": "text_to_token", "lm": "language_model"}


@dataclass(frozen=True)
class Manifest:
    """What an artifact is: its kind, fingerprint, the fingerprints it was made from, counts, settings, data notes."""

    kind: str
    fingerprint: str
    format_version: int = FORMAT_VERSION
    parents: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Draft:
    """An artifact in the making. Fill `counts` and `notes` before the `build` block ends."""

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def plan_of(kind: str, settings: Mapping[str, Any], parents: Mapping[str, Manifest]) -> dict[str, Any]:
    """What decides an artifact's content, as plain JSON values: equal plans give equal artifacts."""
    plan = {"kind": kind, "settings": settings, "parents": {name: m.fingerprint for name, m in parents.items()}}
    return json.loads(json.dumps(plan, default=str))


@contextmanager
def build(
    out: Path,
    kind: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, Manifest] | None = None,
    licence: str | None = None,
) -> Iterator[Draft]:
    """Make the artifact `out` in `out.partial` and move it into place when the block ends without an exception.

    A second call with the same plan finds the files that a killed one left. `notes.licences` tells the `licence` of
    what comes from outside, with those of all parents. Raises UserError when `out` exists or is a URL, whose files
    cannot be moved at once, and when `out.partial` was begun with another plan.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(out)):
        raise UserError(f"{out} is a URL: make it in a folder, here or on a shared disk, and copy it when it is whole")
    out, folder = Path(os.path.normpath(out)), _unfinished(out)
    parents = parents or {}
    plan = plan_of(kind, settings, parents)
    if os.path.lexists(out):
        raise UserError(f"{out} {_what_is_there(out, plan)}: choose another --out, or delete it")
    _begin(folder, plan, out)
    draft = Draft(folder)
    if licences := _licences(parents, licence):
        draft.notes["licences"] = licences
    try:
        yield draft
    except UserError:
        _drop_if_unused(folder)
        raise
    except SafetensorError as e:
        raise UserError(f"{folder} cannot be written ({e}): free some space and run the same command again") from e
    except OSError as e:
        e.filename = e.filename or str(folder)  # a write that failed names none
        raise
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint(folder),
        parents=plan["parents"],
        counts=draft.counts,
        settings=plan["settings"],
        notes=draft.notes,
    )
    write_json(folder / MANIFEST, asdict(manifest))
    _sync_tree(folder)
    os.replace(folder, out)
    sync(out.parent)


def _licences(parents: Mapping[str, Manifest], own: str | None) -> str:
    told = [licence for parent in parents.values() for licence in parent.notes.get("licences", "").split("; ")]
    return "; ".join(dict.fromkeys(licence for licence in (*told, own) if licence))


def change_begun(out: Path, name: str, value: Any, allowed: Callable[[Path, Any], bool]) -> None:
    """Let what was begun at `out` go on with another setting `name`, if `allowed(folder, setting it had)` there.

    Without it, or where nothing was begun, nothing changes, and `build` refuses what differs.
    """
    folder = _unfinished(out)
    if not (folder / _PLAN).is_file():
        return
    begun = _plan_begun(folder)
    before = begun["settings"].get(name)
    if before != value and allowed(folder, before):
        write_json(folder / _PLAN, {**begun, "settings": {**begun["settings"], name: value}})


def _unfinished(out: Path) -> Path:
    out = Path(os.path.normpath(out))
    return out.with_name(out.name + ".partial")


def _plan_begun(folder: Path) -> dict[str, Any]:
    with loading(folder, "an artifact in the making"):
        return json.loads((folder / _PLAN).read_text())


def _begin(folder: Path, plan: dict[str, Any], out: Path) -> None:
    plan_file = folder / _PLAN
    if plan_file.exists():
        begun = _plan_begun(folder)
        if begun != plan:
            changed = ", ".join(_differences(begun, plan)) or "its plan"
            raise UserError(f"{out} was begun with another {changed}: run it as before, or delete {folder}")
        return
    if folder.is_file() or any(not name.startswith(f"{_PLAN}.") for name in _files(folder)):
        raise UserError(f"{folder} is needed to work in, and is not weft's: move it away, or choose another --out")
    write_json(plan_file, plan)


def _what_is_there(out: Path, plan: dict[str, Any]) -> str:
    """What stands where an artifact of `plan` is to be made; an artifact of its kind tells what it differs in."""
    if not (out / MANIFEST).is_file() or (found := read(out)).kind != plan["kind"]:
        return "already exists"
    made = {"kind": found.kind, "settings": found.settings, "parents": found.parents}
    return f"was made with another {', '.join(_differences(made, plan)) or 'plan'}"


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def _drop_if_unused(folder: Path) -> None:
    if _files(folder) <= {_PLAN}:
        shutil.rmtree(folder)


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}".strip("."))]
    return [] if old == new else [name.removeprefix("settings.")]


def is_made(out: Path, kind: str, settings: Mapping[str, Any], parents: Mapping[str, Manifest] | None = None) -> bool:
    """Whether `out` is a finished artifact made by this very plan, so that a rerun can skip it."""
    if not (Path(out) / MANIFEST).is_file():
        return False
    m = read(out)
    plan = plan_of(kind, settings, parents or {})
    return (m.kind, m.settings, m.parents) == (plan["kind"], plan["settings"], plan["parents"])


def read(folder: Path, kind: str | None = None) -> Manifest:
    """The manifest of an artifact. Raises UserError for a folder that is missing, unfinished or of another kind."""
    folder = Path(folder)
    what = _a(_name(kind) if kind else "artifact")
    if not folder.is_dir():
        raise UserError(
            f"{folder} {'is no folder' if folder.exists() else 'does not exist'}: give the folder of {what}"
        )
    try:
        manifest = _parse((folder / MANIFEST).read_text())
    except FileNotFoundError as e:
        raise UserError(f"{folder} has no {MANIFEST}: it is not {what} made by weft") from e
    except (ValueError, TypeError) as e:
        raise UserError(f"{folder / MANIFEST} is damaged ({e}): make {what} again") from e
    if manifest.format_version > FORMAT_VERSION:
        raise UserError(f"{folder} was written by a newer weft (format {manifest.format_version}): update weft")
    if kind and manifest.kind != kind:
        raise UserError(f"{folder} is {_a(_name(manifest.kind))}, and {what} is needed here")
    return manifest


def read_bundle(folder: Path, needed: Collection[str]) -> dict[str, Manifest]:
    """The manifests of a bundle's parts, by the names of their folders.

    Raises UserError for a part that is `needed` and missing, and for any that was made with another tokenizer.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a bundle, a folder with {', '.join(_PARTS)}")
    parts = {n: read(folder / n, kind) for n, kind in _PARTS.items() if n in needed or (folder / n).exists()}
    for name in parts.keys() - {"tokenizer"}:
        require_parent(parts[name], "tokenizer", parts["tokenizer"])
    return parts


def _name(kind: str) -> str:
    """What an artifact of `kind` is called in a sentence."""
    if kind == "text_to_token":
        return "text-to-token model"
    return kind.replace("_", " ") + (" dataset" if kind in _DATASETS else "")


def _a(name: str) -> str:
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"


def _parse(text: str) -> Manifest:
    """A manifest from its JSON. Raises ValueError or TypeError for anything else."""
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    manifest = Manifest(**row)
    for f in fields(Manifest):
        value, kind = getattr(manifest, f.name), _TYPES[f.name]
        if not isinstance(value, kind):
            raise ValueError(f"`{f.name}` is {value!r}, and no {kind.__name__}")
    return manifest


_TYPES = {"kind": str, "fingerprint": str, "format_version": int} | dict.fromkeys(
    ("parents", "counts", "settings", "notes"), dict
)


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Turn what libraries raise over files that are missing, damaged or of another shape into a UserError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(":. ")
        reason = f"it lacks {reason}" if isinstance(e, KeyError) else reason
        raise UserError(f"{folder} does not load as {what} ({reason}): copy it again, or make it again") from e


def require_parent(child: Manifest, name: str, parent: Manifest) -> None:
    """Raise UserError unless `child` was made from `parent`."""
    if child.parents.get(name) != parent.fingerprint:
        raise UserError(
            f"this {_name(child.kind)} was made with {name} {child.parents.get(name)}, not {parent.fingerprint}: "
            f"use the {name} it was made with, or make it again"
        )


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits of a SHA-256 over the names and contents of the artifact's files, `log/` left out."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] == "log" or str(name) == MANIFEST:
            continue
        with path.open("rb") as f:
            total.update(f"{name.as_posix()}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside, synced to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_of(path)
    try:
        with beside.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def beside_of(path: Path) -> Path:
    """Where a process writes a file before it is whole: a name of its own, as a cluster may do a task in two places."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def check_writable(path: Path, suffix: str = "") -> None:
    """Raise UserError or OSError, before long work, where a file `path` could not be written after it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if suffix and path.suffix.lower() != suffix:
        raise UserError(f"{path} is to become a {suffix} file: give it a name that ends so")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.touch()
    beside.unlink()


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
