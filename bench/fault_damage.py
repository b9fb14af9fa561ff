"""Damaged artifacts, unfinished jobs and checkpoints for bench/faults.py."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_runs import Ended, Options, Run, Trial, difference, finish, leftovers, unreadable
from fault_world import Job, World

MAX_SEC = 240.0
_UNFINISHED = ("speak", "pseudo-label", "interleave", "interleave-aligned", "documents-text", "dialogues", "pack")
_TRAINED = ("train-tokenizer", "train-decoder", "train-text-to-token", "pretrain", "sft")
_FILES_PER_ARTIFACT = 12


class Canary:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def flip(path: Path, rng: random.Random) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path, rng: random.Random) -> None:
    """Remove a file."""
    path.unlink()


def poison(path: Path, canary: Path) -> None:
    """Replace a file by a pickle that creates `canary`, in the format of torch.save if it is such an archive."""
    payload = pickle.dumps(Canary(canary))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(payload)


_CHANGES = {"a bit changed": flip, "truncated": truncate, "deleted": delete}
_ALLOWED_OF_SPEECH = [("manifest.json", delete), ("manifest.jsonl", flip)]


def damage(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Damage files of artifacts, of unfinished jobs and of checkpoints."""
    folder.mkdir()
    names = [job.name for job in options.jobs(world.jobs)]
    for name, reader in _readers(world).items():
        if name in names:
            yield from _artifact(world, name, reader, folder / name, options)
    for name in (*_UNFINISHED, *_TRAINED):
        if name in names:
            yield from _unfinished(world, world.jobs[name], folder / f"{name}-unfinished", options)


# Finished artifacts


def _readers(world: World) -> dict[str, Callable[[str], list[str]]]:
    """Return for each kind of artifact a command that reads it."""
    speech, tokenizer, w = world["speak/audio/lines-1.flac"], ["--tokenizer", world["train-tokenizer"]], world
    return {
        "speak": lambda x: ["tokenize", x, *tokenizer],
        "pseudo-label": lambda x: ["tokenize", x, *tokenizer],
        "train-tokenizer": lambda x: ["tokenize", speech, "--tokenizer", x],
        "tokenize": lambda x: ["documents", "speech", "--source", x],
        "train-decoder": lambda x: ["resynth", speech, *tokenizer, "--decoder", x],
        "train-text-to-token": lambda x: ["interleave", w["corpus.jsonl"], "--text-to-token", x],
        "interleave": lambda x: ["pack", x, "--lm", w["init-lm"]],
        "init-lm": lambda x: ["pretrain", w["pretrain.toml"], "--base", x],
        "pack": lambda x: ["pretrain", w["pretrain.toml"], "--tokens", x],
        "pretrain": lambda x: ["sft", w["sft.toml"], "--base", x],
        "resynth": lambda x: [],
    }


def _artifact(
    world: World, name: str, reader: Callable[[str], list[str]], folder: Path, options: Options
) -> Iterator[Trial]:
    """Damage the files of an artifact one at a time, verify it, and run a command that reads it."""
    reference = world.folder / name
    files = [p.relative_to(reference) for p in sorted(reference.rglob("*")) if p.is_file()]
    files = [p for p in files if p.parts[0] != "log" and p.name != "README.md"]  # which people may edit
    for file in options.rng.sample(files, min(len(files), 2 if options.is_quick else _FILES_PER_ARTIFACT)):
        for change_name, change in _CHANGES.items():
            if file.name == "manifest.json" and change is flip:
                continue  # most of its bits describe the artifact and change nothing
            copy = folder / "copy"
            shutil.copytree(reference, copy)
            change(copy / file, options.rng)
            problem = _problem_of_verify(finish(["info", "--verify", str(copy)], folder), file)
            yield Trial("damage", name, f"info --verify: {file} {change_name}", problem)
            if arguments := reader(str(copy)):
                ended = finish([*arguments, "--out", str(folder / "out")], folder, max_sec=MAX_SEC)
                problem = unreadable(ended)
                # Speech is data without its manifest.json too, and people edit its transcripts.
                is_plain = name in ("speak", "pseudo-label") and (file.name, change) in _ALLOWED_OF_SPEECH
                if not problem and ended.status == 0 and not is_plain:
                    problem = "was read without a remark"
                yield Trial("damage", name, f"{arguments[0]}: {file} {change_name}", problem)
            shutil.rmtree(folder)


def _problem_of_verify(ended: Ended, file: Path) -> str | None:
    if problem := unreadable(ended):
        return problem
    if ended.status != 2:
        return "status 0, expected 2"
    return None if file.name in ended.output else f"the file is not named: {ended.messages[0]}"


# Unfinished jobs


def _unfinished(world: World, job: Job, folder: Path, options: Options) -> Iterator[Trial]:
    """Kill a job after its first task or its second checkpoint, damage each of its files, and run it again."""
    out, partial = folder / "run/out", folder / "run/out.partial"
    is_training = job.name in _TRAINED
    if not stop(job, out, "step-????????" if is_training else "log/job/completions/*", 2 if is_training else 1):
        yield Trial("damage", f"{job.name}, unfinished", "killed before its end", "it could not be killed in time")
        return
    template = folder / "template"
    partial.rename(template)
    files = [p.relative_to(template) for p in sorted(template.rglob("*")) if p.is_file()]
    files = [p for p in files if "tfevents" not in p.name and p.suffix != ".lock"]
    canary = folder / "canary"
    cases = [(file, change) for file in files for change in (*_CHANGES, "replaced by a pickle")]
    for file, change in options.rng.sample(cases, min(len(cases), 3 if options.is_quick else 16 * options.rounds)):
        shutil.copytree(template, partial, symlinks=True)
        if change in _CHANGES:
            _CHANGES[change](partial / file, options.rng)
        else:
            poison(partial / file, canary)
        ended = finish(job.arguments(out), out.parent, max_sec=MAX_SEC)
        problem = _problem_of_resumed(ended, out, world.folder / job.name, must_end=file.parts[0] != "log")
        if canary.exists():
            problem = "the pickle was executed"
            canary.rmdir()
        yield Trial("damage", f"{job.name}, unfinished", f"{file} {change}", problem)
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    if os.geteuid() == 0:
        yield _of_another_user(job, template, out)


def _problem_of_resumed(ended: Ended, out: Path, reference: Path, must_end: bool) -> str | None:
    if problem := unreadable(ended):
        return problem
    if ended.status:
        is_checkpoint = "checkpoint" in ended.messages[0] or "step-" in ended.messages[0]
        return f"status 2: {ended.messages[0]}" if must_end and not is_checkpoint else None
    return difference(out, reference) or leftovers(out)


def _of_another_user(job: Job, template: Path, out: Path) -> Trial:
    """Resume a directory that another user has prepared."""
    partial = out.with_name("out.partial")
    shutil.copytree(template, partial)
    for path in (partial, *partial.rglob("*")):
        os.chown(path, 65534, 65534)
    ended = finish(job.arguments(out), out.parent, max_sec=MAX_SEC)
    problem = unreadable(ended) or (None if ended.status == 2 else "was resumed")
    shutil.rmtree(out.parent)
    return Trial("damage", f"{job.name}, unfinished", "owned by another user", problem)


def stop(job: Job, out: Path, pattern: str, num: int) -> bool:
    """Kill a job when its partial directory has `num` entries of `pattern`; return whether it was unfinished."""
    partial = out.with_name("out.partial")
    for _ in range(8):
        out.parent.mkdir(parents=True)
        run = Run(job.arguments(out), out.parent)
        while run.poll() and _count(partial, pattern) < num:
            time.sleep(0.0005)
        run.kill()
        run.wait()
        if partial.is_dir():
            return True
        shutil.rmtree(out.parent)
    return False


def _count(folder: Path, pattern: str) -> int:
    try:
        return len(list(folder.rglob(pattern)))
    except FileNotFoundError:  # removed meanwhile
        return 0
