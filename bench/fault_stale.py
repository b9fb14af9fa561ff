"""Inputs that change under the same path, for bench/faults.py: no command may return or mix in what it made before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_damage import MAX_SEC, stop
from fault_runs import Ended, Options, Trial, difference, finish, unreadable
from fault_world import World

# Files by the commands that read them. A byte is changed, and size and time of modification stay. Files of artifacts
# are not listed: their hashes are compared by `weft info --verify` (section damage).
_INPUTS = {
    "speak": ("lines.txt",),
    "train-tokenizer": ("speak/manifest.jsonl", "speak/audio/lines-1.flac"),
    "pseudo-label": ("speak/audio/lines-1.flac", "whisper/model.safetensors", "whisper/generation_config.json"),
    "import-glm": ("glm/model.safetensors",),
    "tokenize": ("speak/manifest.jsonl", "speak/audio/lines-1.flac"),
    "train-decoder": ("speak/audio/lines-1.flac",),
    "resynth": ("speak/audio/lines-1.flac",),
    "interleave": ("corpus.jsonl",),
    "interleave-aligned": ("words.jsonl", "speak/audio/lines-1.flac"),
    "documents-text": ("corpus.jsonl",),
    "dialogues": ("dialogues.jsonl",),
    "init-lm": ("llama/model.safetensors",),
}
_UNFINISHED = ("speak", "pseudo-label", "interleave", "interleave-aligned", "documents-text", "dialogues")


def stale(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Change an input of a finished artifact, and of an unfinished one, and run the same command again."""
    for job in options.jobs(world.jobs):
        for name in _INPUTS.get(job.name, ()):
            out = folder / f"{job.name}/out"
            shutil.copytree(world.folder / job.name, out)
            with _changed(world.folder / name):
                ended = finish(job.arguments(out), out.parent, max_sec=MAX_SEC)
            problem = _problem(ended) or difference(out, world.folder / job.name)
            yield Trial("stale", job.name, f"{name} changed after the end", problem)
            shutil.rmtree(folder)
            if job.name in _UNFINISHED and "/" not in name and stop(job, out, "log/job/completions/*", 1):
                with _changed(world.folder / name):
                    ended = finish(job.arguments(out), out.parent, max_sec=MAX_SEC)
                yield Trial("stale", job.name, f"{name} changed after a kill", _problem(ended))
                shutil.rmtree(folder)


def _problem(ended: Ended) -> str | None:
    return unreadable(ended) or (None if ended.status == 2 else "returned the earlier result, or mixed both")


@contextmanager
def _changed(path: Path) -> Iterator[None]:
    """Change a letter in the middle of a file."""
    content, state = path.read_bytes(), path.stat()
    middle = len(content) // 2
    at = next((i for i in range(middle, len(content)) if content[i : i + 1].isalpha()), middle)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
