"""The files in a directory of speech.

    for path, problem in files_below(Path("speech"), is_wanted): ...

Audio files that are not read, such as .m4a, are reported in one line. Links that leave the directory are not followed,
because the data set of a stranger could name any file of this machine: they are problems, unless the environment
variable WEFT_FOLLOW_SYMLINKS is 1.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from weft import progress
from weft.errors import reason_of

AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc"),
)
_OTHER_SUFFIXES = (
    *(".3gp", ".aac", ".ac3", ".adts", ".amr", ".ape", ".asf", ".avi", ".awb", ".dff", ".dsf", ".dts", ".flv"),
    *(".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".ra", ".shn", ".spx", ".tak", ".tta"),
    *(".webm", ".wma", ".wv"),
)


def is_audio(path: Path) -> bool:
    """Whether the name of a file is that of audio that can be read."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def files_below(folder: Path, is_wanted: Callable[[Path], bool]) -> Iterator[tuple[Path, str | None]]:
    """Yield the wanted files below `folder`, in the order of their paths, each with a problem or None.

    A directory with a problem is wanted. Files are not opened.
    """
    ignored: Counter[str] = Counter()
    follow = os.environ.get("WEFT_FOLLOW_SYMLINKS") == "1"
    for path, problem in sorted(_walk(folder, os.path.realpath(folder), follow, set())):
        if is_wanted(path) or (problem is not None and path.is_dir()):
            yield path, problem
        elif path.suffix.lower() in _OTHER_SUFFIXES:
            ignored[path.suffix.lower()] += 1
    if ignored:
        counts = ", ".join(f"{number} {suffix}" for suffix, number in ignored.most_common())
        progress.note(f"{folder}: files that weft cannot read are ignored ({counts}): convert them to FLAC or Opus")


def _walk(folder: Path, root: str, follow: bool, seen: set[str]) -> Iterator[tuple[Path, str | None]]:
    """Yield all files below `folder`, and the links that leave `root`; each directory is visited once."""
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    try:
        entries = list(os.scandir(folder))
    except OSError as e:
        yield folder, f"the directory cannot be read: {reason_of(e)}"
        return
    for entry in entries:
        path, is_folder = folder / entry.name, os.path.isdir(entry)
        if entry.is_symlink():
            is_inside = Path(os.path.realpath(path)).is_relative_to(root)
            if is_inside and is_folder:
                continue  # visited by its own name
            if not is_inside and not follow:
                yield path, "it is a link that leaves the directory: give its target, or set WEFT_FOLLOW_SYMLINKS=1"
                continue
        if is_folder:
            yield from _walk(path, root, follow, seen)
        else:
            yield path, None
