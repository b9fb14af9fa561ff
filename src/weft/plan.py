"""Creation of artifacts: each is created, resumed, returned as it is, or rejected, by the plan it is created from.

    plan = Plan.of("codes", config, {"tokenizer": tokenizer.manifest}, audio=speech_id(utterances), tasks=8)
    manifest = create(out, plan, write)        # write(draft) fills draft.folder and draft.counts

An existing artifact with the same plan is returned, a partial one with the same plan is resumed, and one with another
plan is an error that lists the differing settings. Files are written to OUT.partial, which is locked (`weft.lock`) and
renamed at the end, so that an artifact is complete or absent. An artifact is not finished if the contents of an input
have changed since its identity was computed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from weft import listing
from weft.artifacts import MANIFEST, Manifest, fingerprint, kind_name, loading, read, with_article
from weft.config import defaults_of, reject_url, settings_of
from weft.errors import UserError
from weft.files import ContentId, read_json_object, remove_temporary_files, sync, sync_tree, write_json
from weft.lock import locked, remove_abandoned_lock
from weft.model_card import write_card

_PLAN = "log/plan.json"
_CHANGED = "contents that changed while they were read"
MayChange = Callable[[Path, Any], bool]
"""Whether a setting of a draft, given its directory and the old value, may change when it is resumed."""


@dataclass
class Draft:
    """An artifact that is being written: its directory, and the counts and notes of the future manifest.

    `digests` are the SHA-256 of files that are known from writing them, by name.
    """

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that determines the content of an artifact.

    `settings` hold values and identities of input data (`weft.files.content_id`), never paths. `defaults` are the
    default values of settings: an artifact whose manifest lacks a setting was created with its default. `may_change`
    has the settings that may change when a draft is resumed. `flags` has the flags of settings and parents that have
    other names, for messages.
    """

    kind: str
    settings: Mapping[str, Any]
    parents: Mapping[str, Manifest] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    may_change: Mapping[str, MayChange] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)

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

    def changed_input(self) -> tuple[str, Path] | None:
        """Return the name and the file of an input whose contents have changed since its identity was computed."""
        identities = {**self.settings, **{name: manifest.fingerprint for name, manifest in self.parents.items()}}
        for name, identity in identities.items():
            if isinstance(identity, ContentId) and (path := identity.changed_file()):
                return name, path
        return None

    def describe(self, found: Mapping[str, tuple[Any, Any]]) -> str:
        """Describe differing settings with both values. The number of tasks is left out if it follows from others."""
        described = []
        for name, (old, new) in found.items():
            is_content = all(isinstance(value, str) and value.startswith("sha256:") for value in (old, new))
            flag = self.flags.get(name, name)
            if name != "tasks" or len(found) == 1:
                described.append(f"other contents of {flag}" if is_content else f"{flag} = {old} (now {new})")
        return ", ".join(described)


def create(out: Path, plan: Plan, write: Callable[[Draft], None], licence: str | None = None) -> Manifest:
    """Create the artifact `out`, or return the one that the same plan has created before.

    `write` is called with a draft whose directory holds the files of an interrupted call with the same plan, if any.
    `notes["licences"]` lists the `licence` of external inputs and those of all parents.

    Raises UserError when `out` or its draft belongs to another plan (the message lists the differing settings with both
    values), when it is not an artifact, when another process writes it, when an input changes meanwhile, and when it is
    a URL, because remote directories cannot be renamed atomically.
    """
    if not is_created(out, plan, licence):
        with open_draft(out, plan, licence) as draft:
            write(draft)
    return read(out)


def is_created(out: Path, plan: Plan, licence: str | None = None) -> bool:
    """Whether `out` was created by this plan. Raises UserError as `create` does."""
    if not os.path.lexists(out):
        return False
    manifest = read(out) if (Path(out) / MANIFEST).is_file() else None
    if manifest is None or manifest.kind != plan.kind:
        problem = f"is {with_article(kind_name(manifest.kind))}" if manifest else "already exists"
        raise UserError(f"{out} {problem}: choose another --out, or delete it")
    found = plan.differences(asdict(manifest))
    licences = manifest.notes.get("licences"), _licences(plan.parents, licence)
    if licences[0] != licences[1]:
        found["licence"] = licences
    if found:
        raise UserError(f"{out} was created with {plan.describe(found)}: choose another --out, or delete {out}")
    remove_abandoned_lock(Path(os.path.normpath(out)))
    return True


@contextmanager
def open_draft(out: Path, plan: Plan, licence: str | None = None) -> Iterator[Draft]:
    """Yield the draft of `out`, and make it the artifact when the block ends without an exception (see `create`)."""
    reject_url(out, is_output=True)
    out = _normal(out)
    with locked(out):
        if os.path.lexists(out):  # since the caller has looked
            raise UserError(f"{out} already exists: run the same command again to use it, or choose another --out")
        draft = Draft(partial_folder(out))
        if licences := _licences(plan.parents, licence):
            draft.notes["licences"] = licences
        _start(draft.folder, plan, out)
        with _reporting_errors(draft.folder):
            yield draft
        _require_same_inputs(draft.folder, plan)
        with _reporting_errors(draft.folder):
            _finish(draft, plan, out)


@contextmanager
def _reporting_errors(folder: Path) -> Iterator[None]:
    """Name the draft's directory in errors of writing, and remove it after a UserError if nothing was written."""
    try:
        yield
    except UserError:
        if _files(folder) <= {_PLAN}:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as e:
        e.filename = e.filename or str(folder)  # a failed write does not name its file
        raise
    except Exception as e:
        if found := re.search(r"os error (\d+)", str(e)):  # of safetensors and tokenizers, which are written in Rust
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from e
        raise


def _require_same_inputs(folder: Path, plan: Plan) -> None:
    """Raise UserError if an input has changed while the draft was written, which then cannot be resumed."""
    if changed := plan.changed_input():
        name, path = changed
        started = plan.to_json()
        section = "settings" if name in started["settings"] else "parents"
        write_json(folder / _PLAN, {**started, section: {**started[section], name: _CHANGED}})
        raise UserError(f"{path} has changed while it was read: delete {folder}, and run the same command again")


def _finish(draft: Draft, plan: Plan, out: Path) -> None:
    """Write the manifest of a draft and, of a model, its card, and rename the draft to `out`."""
    remove_temporary_files(draft.folder)
    if gone := next((name for name in draft.digests if not (draft.folder / name).is_file()), None):
        raise UserError(
            f"{draft.folder / gone} was removed before the {kind_name(plan.kind)} was complete: run the same command "
            f"again, and if that fails, delete {draft.folder}"
        )
    files = listing.describe_files(draft.folder, draft.digests)
    manifest = Manifest(**plan.to_json(), fingerprint="", counts=draft.counts, notes=draft.notes, files=files)
    manifest = replace(manifest, fingerprint=fingerprint(manifest))
    write_json(draft.folder / MANIFEST, asdict(manifest))
    write_card(draft.folder, manifest)
    sync_tree(draft.folder)
    if os.path.lexists(out):
        raise UserError(f"{out} was created by another program: move it, and run the same command again")
    os.replace(draft.folder, out)
    sync(out.parent)


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


def partial_folder(out: Path) -> Path:
    """Return the draft directory of an artifact."""
    out = _normal(out)
    return out.with_name(out.name + ".partial")


def _normal(out: Path) -> Path:
    """Return a path without `.` and `..`. What `..` means depends on symbolic links before it."""
    return Path(os.path.realpath(out) if ".." in Path(out).parts else os.path.normpath(out))


def read_plan(folder: Path) -> dict[str, Any]:
    """Read the plan of a draft as `Plan.to_json` returns it. Raises UserError if it is damaged."""
    with loading(folder, "a partial artifact"):
        plan = read_json_object(folder / _PLAN)
        if [type(plan.get(name)) for name in ("kind", "settings", "parents")] != [str, dict, dict]:
            raise ValueError(f"{_PLAN} has no kind, settings or parents")
        return plan


def _start(folder: Path, plan: Plan, out: Path) -> None:
    """Create the draft directory `folder`, or check that it belongs to this user and to `plan`."""
    _check_owner(folder, out)
    if (folder / _PLAN).exists():
        started = read_plan(folder)
        if started["kind"] != plan.kind:
            raise UserError(f"{folder} is a partial {kind_name(started['kind'])}: choose another --out, or delete it")
        if not (found := plan.differences(started)):
            return
        names = {name.split(".")[0] for name in found}
        settings = started["settings"]
        if not all(name in plan.may_change and plan.may_change[name](folder, settings.get(name)) for name in names):
            raise UserError(
                f"{folder} was started with {plan.describe(found)}: restore the settings to resume it, or delete "
                f"{folder}"
            )
    elif folder.is_file() or any(not name.startswith(f"{_PLAN}.") for name in _files(folder)):
        raise UserError(f"{folder} is needed for {out} and was not created by weft: move it, or choose another --out")
    write_json(folder / _PLAN, plan.to_json())


def _check_owner(folder: Path, out: Path) -> None:
    """Raise UserError for a draft with a symbolic link in place of a directory, and for that of another user."""
    for path in (folder, folder / "log", folder / _PLAN):
        if path.is_symlink():
            raise UserError(
                f"{path} is needed for {out} and was not created by weft (it is a symbolic link): move it, or choose "
                "another --out"
            )
        if path.exists() and (owner := path.stat().st_uid) != os.geteuid():
            raise UserError(f"{path} belongs to another user (uid {owner}): choose another --out")


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


def _licences(parents: Mapping[str, Manifest], own: str | None) -> str | None:
    """Return the licences of all parents and the artifact's own, each once; None if there are none."""
    inherited = [licence for parent in parents.values() for licence in parent.notes.get("licences", "").split("; ")]
    return "; ".join(dict.fromkeys(licence for licence in (*inherited, own) if licence)) or None


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
