"""Artifacts of format 1, whose manifests list no files, so that a test can change a file and see how it is read."""

import json
from pathlib import Path

from weft.artifacts import MANIFEST


def as_format_1(folder: Path) -> Path:
    """Rewrite the manifest of an artifact in format 1; return the folder."""
    found = json.loads((folder / MANIFEST).read_text())
    del found["files"]
    (folder / MANIFEST).write_text(json.dumps({**found, "format_version": 1}))
    return folder
