"""What an artifact is and where it came from: `weft info PATH`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from weft import artifacts


@dataclass(frozen=True)
class InfoConfig:
    """Which artifact to tell about."""

    path: Path
    """Folder of an artifact."""


def run(config: InfoConfig) -> None:
    """Print an artifact's manifest, and whether its files are those it was made with."""
    manifest = artifacts.read(config.path)
    whole = artifacts.fingerprint(config.path) == manifest.fingerprint
    print(f"{config.path}: a {manifest.kind}, format {manifest.format_version}")
    print(f"fingerprint {manifest.fingerprint} ({'files are unchanged' if whole else 'FILES HAVE CHANGED since'})")
    sections = {"made from": manifest.parents, "counts": manifest.counts, "settings": manifest.settings}
    for title, values in {**sections, "notes": manifest.notes}.items():
        if values:
            print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name:<23} {value if isinstance(value, str) else json.dumps(value)}")
