"""`weft info PATH`: the manifest of an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft import artifacts, progress


@dataclass(frozen=True)
class InfoConfig:
    """The artifact to describe."""

    path: Path
    """Directory of an artifact."""


def run(config: InfoConfig) -> None:
    """Print the manifest of an artifact, and whether its files have changed since it was created."""
    manifest = artifacts.read(config.path)
    is_unchanged = artifacts.fingerprint(config.path) == manifest.fingerprint
    kind = artifacts.with_article(artifacts.kind_name(manifest.kind))
    print(f"{config.path}: {kind}, format {manifest.format_version}")
    print(f"fingerprint {manifest.fingerprint} ({'files are unchanged' if is_unchanged else 'FILES HAVE CHANGED'})")
    sections = {"made from": manifest.parents, "counts": manifest.counts, "settings": manifest.settings}
    for title, values in {**sections, "notes": manifest.notes}.items():
        if values:
            print()
            progress.summary({title: values})
