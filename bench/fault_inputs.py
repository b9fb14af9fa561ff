"""Bad inputs and their expected outcome for bench/faults.py, as a flat list of cases."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import fault_audio
import fault_dialogues
import fault_eval
import fault_formats
import fault_manifests
import fault_models
import fault_settings
import fault_texts
from fault_cases import Case
from fault_runs import Options, Trial, finish, unreadable
from fault_world import World

_QUICK_STRIDE = 60
_PROGRAM_STRIDE = 25  # every so many cases run as a program


def inputs(world: World, folder: Path, options: Options) -> Iterator[Trial]:
    """Run every case in a directory of its own, which it may not leave."""
    folder.mkdir()
    modules = (
        fault_audio,
        fault_formats,
        fault_manifests,
        fault_texts,
        fault_dialogues,
        fault_settings,
        fault_models,
        fault_eval,
    )
    cases = [case for module in modules for case in module.cases(world)]
    if options.is_quick:
        cases = [case for case in cases if not re.search(" [MG]B|hour", case.name)][::_QUICK_STRIDE]
    for i, case in enumerate(cases):
        if not options.wants(f"{case.group} {case.name}"):
            continue
        own = folder / f"{i:04d}/work"
        own.mkdir(parents=True)
        yield Trial("inputs", case.group, case.name, _problem(case, own, is_program=i % _PROGRAM_STRIDE == 0))
        shutil.rmtree(own.parent)


def _written(folder: Path) -> Iterator[Path]:
    """Yield the files that a command has written."""
    return (path for out in folder.glob("out*") for path in (out, *out.rglob("*")) if path.is_file())


def _problem(case: Case, folder: Path, is_program: bool) -> str | None:
    how = {"is_program": is_program or not case.has_reader, "has_reader": case.has_reader}
    ended = finish(case.arguments(folder), folder, case.max_sec, stdin=case.stdin, environment=case.environment, **how)
    problem = (unreadable(ended) if case.has_reader else None) or case.check(ended, folder)
    if (folder / "canary").exists():
        return "code that came with the input was executed"
    if "secret" in ended.output or any(b"secret" in path.read_bytes() for path in _written(folder)):
        return "printed or stored a password"  # which all URLs with user information have as theirs
    if outside := [path.name for path in folder.parent.iterdir() if path != folder]:
        return f"wrote outside of its directory: {', '.join(outside)}"
    return problem
