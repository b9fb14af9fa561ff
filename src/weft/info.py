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
from weft.data import stored_artifacts
from weft.data.storage import is_url
from weft.errors import without_secrets
from weft.plan import partial_folder, read_plan


@dataclass(frozen=True)
class InfoConfig:
    """The artifact to describe."""

    path: str | Path
    """Directory of an artifact or of a bundle, or URL of an artifact such as s3://bucket/tokens."""
    verify: bool = False
    """Read all files and compare their contents with the manifest, not only their names and sizes."""


def run(config: InfoConfig) -> None:
    """Print the description of a directory. Raises UserError for another one, and lists everything that has changed."""
    if is_url(str(config.path)):
        url = str(config.path)
        manifest = stored_artifacts.parse_manifest(url)
        _print_description(url, manifest, stored_artifacts.damage(url, manifest, config.verify), config.verify)
        return
    path = Path(config.path)
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
    _print_description(path, manifest, damage(path, manifest, config.verify), config.verify)


def _print_description(path: str | Path, manifest: Manifest, problems: list[str], is_verified: bool) -> None:
    """Print a manifest and the problems of its files. Raises UserError if there are any."""
    _print_manifest(without_secrets(str(path)), manifest)
    for problem in problems:
        progress.show(f"CHANGED {problem}")
    require_unchanged(path, manifest, problems)
    checked = "contents are" if is_verified else "names and sizes of files are"
    if manifest.format_version == 1 and not is_verified:
        progress.show("format 1 lists no files: use --verify to check the fingerprint")
    else:
        progress.show(f"{checked} unchanged")


def _print_manifest(path: str, manifest: Manifest) -> None:
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
