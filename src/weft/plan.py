"""Creation of artifacts: each is created, resumed, returned as it is, or rejected, by the plan it is created from.

    plan = Plan.of("codes", config, {"tokenizer": tokenizer.manifest}, audio=speech_id(utterances), tasks=8)
    manifest = create(out, plan, write)        # write(draft) fills draft.folder and draft.counts

An existing artifact with the same plan is returned, a partial one with the same plan is resumed, and one with another
plan is an error that lists the differing settings. Files are written to OUT.partial, which is renamed at the end, so
that an artifact is complete or absent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from weft.artifacts import MANIFEST, Manifest, fingerprint, kind_name, loading, read, with_article
from weft.config import defaults_of, settings_of
from weft.errors import UserError
from weft.files import sync, sync_tree, write_json

_PLAN = "log/plan.json"


@dataclass
class Draft:
    """An artifact that is being written: its directory, and the counts and notes of the future manifest."""

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that determines the content of an artifact.

    `settings` hold values and identities of input data (`weft.files.content_id`), never paths. `defaults` are the
    default values of settings: an artifact whose manifest lacks a setting was created with its default.
    """

    kind: str
    settings: Mapping[str, Any]
    parents: Mapping[str, Manifest] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, config: Any, parents: Mapping[str, Manifest] | None = None, **inputs: Any) -> Plan:
        """Return the plan of a configuration (a dataclass), with more settings such as identities of its inputs."""
        return cls(kind, {**settings_of(config), **inputs}, parents or {}, defaults_of(type(config)))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        parents = {name: manifest.fingerprint for name, manifest in self.parents.items()}
        plan = {"kind": self.kind, "settings": self.settings, "parents": parents}
        return json.loads(json.dumps(plan, default=str))

    def differences(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the differences from `other` settings and parents (plain JSON): name -> (other value, own value)."""
        own = self.to_json()
        defaults = json.loads(json.dumps(self.defaults, default=str))
        return {
            **_differences(other["settings"], own["settings"], defaults),
            **_differences(other["parents"], own["parents"], {}),
        }


def create(out: Path, plan: Plan, write: Callable[[Draft], None], licence: str | None = None) -> Manifest:
    """Create the artifact `out`, or return the one that the same plan has created before.

    `write` is called with a draft whose directory holds the files of an interrupted call with the same plan, if any.
    `notes["licences"]` lists the `licence` of external inputs and those of all parents.

    Raises UserError when `out` or its draft belongs to another plan (the message lists the differing settings with both
    values), when it is not an artifact, and when it is a URL, because remote directories cannot be renamed atomically.
    """
    if not is_created(out, plan):
        with open_draft(out, plan, licence) as draft:
            write(draft)
    return read(out)


def is_created(out: Path, plan: Plan) -> bool:
    """Whether `out` was created by this plan. Raises UserError as `create` does."""
    if not os.path.lexists(out):
        return False
    manifest = read(out) if (Path(out) / MANIFEST).is_file() else None
    if manifest is None or manifest.kind != plan.kind:
        problem = f"is {with_article(kind_name(manifest.kind))}" if manifest else "already exists"
        raise UserError(f"{out} {problem}: choose another --out, or delete it")
    if found := plan.differences(asdict(manifest)):
        raise UserError(f"{out} was created with {_describe(found)}: choose another --out, or delete {out}")
    return True


@contextmanager
def open_draft(out: Path, plan: Plan, licence: str | None = None) -> Iterator[Draft]:
    """Yield the draft of `out`, and make it the artifact when the block ends without an exception (see `create`)."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(out)):
        raise UserError(f"{out} is a URL: create it in a local or shared directory, then copy it")
    out, folder = Path(os.path.normpath(out)), _partial(out)
    _start(folder, plan, out)
    draft = Draft(folder)
    if licences := _licences(plan.parents, licence):
        draft.notes["licences"] = licences
    try:
        yield draft
    except UserError:
        if _files(folder) <= {_PLAN}:
            shutil.rmtree(folder)
        raise
    except SafetensorError as e:
        raise UserError(f"{folder} cannot be written ({e}): free some space and run the same command again") from e
    except OSError as e:
        e.filename = e.filename or str(folder)  # a failed write does not name its file
        raise
    manifest = Manifest(**plan.to_json(), fingerprint=fingerprint(folder), counts=draft.counts, notes=draft.notes)
    write_json(folder / MANIFEST, asdict(manifest))
    sync_tree(folder)
    os.replace(folder, out)
    sync(out.parent)


def amend_plan(out: Path, name: str, value: Any, is_allowed: Callable[[Path, Any], bool]) -> None:
    """Change the setting `name` of the draft of `out`, if `is_allowed(draft folder, old value)`.

    Otherwise nothing changes, and `create` reports the difference.
    """
    plan_file = _partial(out) / _PLAN
    if not plan_file.is_file():
        return
    started = _read_plan(plan_file)
    old = started["settings"].get(name)
    if old != value and is_allowed(_partial(out), old):
        write_json(plan_file, {**started, "settings": {**started["settings"], name: value}})


def save(out: Path, kind: str, write_files: Callable[[Path], None], manifest: Manifest | None) -> Manifest:
    """Save an object as a new artifact, with everything but the fingerprint of the manifest that it was loaded with.

    Raises UserError if `out` exists.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} already exists: choose another directory, or delete it")
    known = manifest or Manifest(kind, "")
    parents = {name: Manifest(name, parent) for name, parent in known.parents.items()}
    with open_draft(out, Plan(kind, known.settings, parents)) as draft:
        write_files(draft.folder)
        draft.counts.update(known.counts)
        draft.notes.update(known.notes)
    return read(out)


def _partial(out: Path) -> Path:
    """Return the draft directory of an artifact."""
    out = Path(os.path.normpath(out))
    return out.with_name(out.name + ".partial")


def _read_plan(plan_file: Path) -> dict[str, Any]:
    with loading(plan_file.parents[1], "a partial artifact"):
        return json.loads(plan_file.read_text())


def _start(folder: Path, plan: Plan, out: Path) -> None:
    """Create the draft directory `folder`, or check that it belongs to `plan`."""
    plan_file = folder / _PLAN
    if plan_file.exists():
        started = _read_plan(plan_file)
        if started["kind"] != plan.kind:
            raise UserError(f"{folder} is a partial {kind_name(started['kind'])}: choose another --out, or delete it")
        if found := plan.differences(started):
            raise UserError(
                f"{folder} was started with {_describe(found)}: restore the settings to resume it, or delete {folder}"
            )
        return
    if folder.is_file() or any(not name.startswith(f"{_PLAN}.") for name in _files(folder)):
        raise UserError(f"{folder} is needed for {out} and was not created by weft: move it, or choose another --out")
    write_json(plan_file, plan.to_json())


def _differences(old: Any, new: Any, defaults: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Return name -> (old, new) of values that differ, nested names joined by dots; a missing value is its default."""
    if isinstance(old, dict) and isinstance(new, dict):
        defaults = defaults if isinstance(defaults, dict) else {}
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            default = defaults.get(key)
            pair = old.get(key, default), new.get(key, default)
            found |= _differences(*pair, default, f"{name}.{key}".strip("."))
        return found
    return {} if old == new else {name: (old, new)}


def _describe(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Describe differing settings with both values."""
    described = []
    for name, (old, new) in found.items():
        is_content = all(isinstance(value, str) and value.startswith("sha256:") for value in (old, new))
        described.append(f"other contents of {name}" if is_content else f"{name} = {old} (now {new})")
    return ", ".join(described)


def _licences(parents: Mapping[str, Manifest], own: str | None) -> str:
    """Return the licences of all parents and the artifact's own, each once."""
    inherited = [licence for parent in parents.values() for licence in parent.notes.get("licences", "").split("; ")]
    return "; ".join(dict.fromkeys(licence for licence in (*inherited, own) if licence))


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
