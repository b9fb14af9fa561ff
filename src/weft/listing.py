"""The list of an artifact's files: their names, sizes and digests.

    files = describe_files(folder, digests={})      # {"part-00000.parquet": {"bytes": 5120, "sha256": ..., "rows": 9}}
    problems = differences(folder, files)           # ["part-00000.parquet is missing"]

Not listed are the manifest, hidden files, those under `log/`, which describe the job and not its result, and the model
card, README.md, which people edit when they publish a model: with any card or none, an artifact is unchanged and has
the same fingerprint.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from weft.digests import sha256_of

MANIFEST = "manifest.json"
CARD = "README.md"
Files = Mapping[str, Mapping[str, Any]]


def describe_files(folder: Path, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of all files by name, and the number of rows of Parquet files.

    `digests` are known SHA-256 by name, of files that are not read.
    """
    names = _names(folder)

    def describe(name: str) -> dict[str, Any]:
        path = folder / name
        rows = {"rows": _num_rows(path)} if name.endswith(".parquet") else {}
        return {"bytes": path.stat().st_size, "sha256": digests.get(name) or sha256_of(path), **rows}

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(names, threads.map(describe, names), strict=True))


def differences(folder: Path, files: Files, verify: bool = False) -> list[str]:
    """Describe everything that differs from a list of files: names and sizes and, with `verify`, contents."""
    sizes = {name: _size_bytes(folder, name) for name in {*files, *_names(folder)}}
    return differences_of(files, sizes, (lambda name: sha256_of(folder / name)) if verify else None)


def differences_of(
    files: Files, sizes: Mapping[str, int | None], sha256_by_name: Callable[[str], str] | None = None
) -> list[str]:
    """Describe everything that differs from a list of files, by the sizes of all files in a directory or a store.

    A size is None for a file that is missing. Contents are compared if there is a function that returns their digests.
    """
    sizes = {name: size for name, size in sizes.items() if name in files or _is_listed(name)}
    found = _differing(files, sizes)
    if sha256_by_name:
        names = [name for name in files if name not in found]
        with ThreadPoolExecutor(4) as threads:
            digests = zip(names, threads.map(sha256_by_name, names), strict=True)
            found |= {name: "has other contents" for name, digest in digests if digest != files[name]["sha256"]}
    return [f"{name} {problem}" for name, problem in sorted(found.items())]


def _differing(files: Files, sizes: Mapping[str, int | None]) -> dict[str, str]:
    """Return what differs between a list of files and the sizes of all files, by name."""
    found = {}
    for name, expected in files.items():
        if (size_bytes := sizes.get(name)) is None:
            found[name] = "is missing"
        elif size_bytes != expected["bytes"]:
            found[name] = f"has {size_bytes} bytes, expected {expected['bytes']}"
    return found | {name: "is not part of it" for name in sizes if name not in files}


def _size_bytes(folder: Path, name: str) -> int | None:
    """Return the size of a file; None for a missing one, and for what is no file, such as a named pipe."""
    try:
        found = os.stat(f"{folder}/{name}")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a NUL, or that is not Unicode
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _names(folder: Path) -> list[str]:
    """Return the names of all files to list, sorted."""
    found = []
    for where, folders, files in os.walk(folder):
        within = "" if where == str(folder) else f"{Path(where).relative_to(folder).as_posix()}/"
        folders[:] = [name for name in folders if _is_listed(f"{within}{name}/")]
        found += [f"{within}{name}" for name in files]
    return sorted(filter(_is_listed, found))


def _is_listed(name: str) -> bool:
    """Whether a file is listed, or any file of a directory, whose name ends with a slash."""
    is_hidden = any(part[:1] == "." for part in name.split("/"))
    return not (is_hidden or name.startswith("log/") or name in (MANIFEST, CARD))


def _num_rows(path: Path) -> int:
    import pyarrow.parquet as pq  # not needed to check a list

    return pq.read_metadata(path).num_rows
