"""`weft info PATH`: the manifest of an artifact or bundle, and whether its files have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft import lock, progress
from weft.artifacts import (
    MANIFEST,
    Manifest,
    bundle_manifest,
    damage,
    kind_name,
    read_manifest,
    require_unchanged,
    with_article,
)
from weft.plan import partial_folder, read_plan


@dataclass(frozen=True)
class InfoConfig:
    """The artifact to describe."""

    path: Path
    """Directory of an artifact or of a bundle."""
    verify: bool = False
    """Read all files and compare their contents with the manifest, not only their names and sizes."""


def run(config: InfoConfig) -> None:
    """Print the description of a directory. Raises UserError for another one, and lists everything that has changed."""
    path = config.path
    if (path / MANIFEST).is_file() or not path.is_dir():
        manifest = read_manifest(path)
    elif path.name.endswith(".partial") and (path / "log/plan.json").is_file():
        _print_partial(path)
        return
    elif (path / "config.json").is_file() and not config.verify:
        progress.show(f"{path}: a Hugging Face model that weft did not create; it has no manifest")
        return
    elif (path / "tokenizer" / MANIFEST).is_file():
        manifest = bundle_manifest(path)
    else:
        manifest = read_manifest(path)
    found = damage(path, manifest, config.verify)
    _print_manifest(path, manifest)
    for problem in found:
        progress.show(f"CHANGED {problem}")
    require_unchanged(path, manifest, found)
    checked = "contents are" if config.verify else "names and sizes of files are"
    if manifest.format_version == 1 and not config.verify:
        progress.show("format 1 lists no files: use --verify to check the fingerprint")
    else:
        progress.show(f"{checked} unchanged")


def _print_manifest(path: Path, manifest: Manifest) -> None:
    progress.show(f"{path}: {with_article(kind_name(manifest.kind))}, format {manifest.format_version}")
    progress.show(f"fingerprint {manifest.fingerprint}")
    if manifest.files:
        size_bytes = sum(about["bytes"] for about in manifest.files.values())
        progress.show(f"{len(manifest.files):,} files, {size_bytes:,} bytes")
    sections = {"made from": manifest.parents, "counts": manifest.counts, "settings": manifest.settings}
    _print_sections({**sections, "notes": manifest.notes})


def _print_partial(path: Path) -> None:
    """Print the plan of a draft, and the process that writes it."""
    started = read_plan(path)
    progress.show(f"{path}: a partial {kind_name(started['kind'])}; run the same command again to resume it")
    out = path.with_name(path.name.removesuffix(".partial"))
    if partial_folder(out) == path and (owner := lock.owner_of(out)):
        progress.show(f"it is being written by {owner}, unless that process has ended")
    _print_sections({"made from": started["parents"], "settings": started["settings"]})


def _print_sections(sections: Mapping[str, Mapping[str, Any]]) -> None:
    for title, values in sections.items():
        if values:
            progress.show("")
            progress.summary({title: values})
    progress.show("")
