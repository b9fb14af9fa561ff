"""Robustness of the command line: kills, concurrent writers, full disks, damaged files, and bad inputs.

    python bench/faults.py [kills writers disk damage stale inputs] [--quick] [--seed N] [--rounds N] [--json FILE]

The script creates small models and data in a temporary directory. It has six sections:

kills      each command that creates an artifact is killed at random times and run again: the artifact has the bytes of
           an uninterrupted run, and nothing else remains
writers    two processes write to one directory: one succeeds, the other is refused or returns the same artifact
disk       the file system is full: one line says so, and the same command succeeds when there is space (needs root)
damage     files of artifacts, of unfinished jobs and of checkpoints are changed, truncated, deleted or replaced by
           pickles that execute code: each change is reported or repaired, and nothing is executed
stale      an input changes under the same path: the command reports it, and returns no earlier result
inputs     bad audio, text, settings, models and artifacts: each is skipped and counted, or refused with one line

No run may print a traceback, end by a signal, or take more than 1.5 GB above the libraries. The table has the tried and
the passed cases; each failed case is listed below it. The exit status is 1 if a case failed.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a fork must not have threads
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from weft import cli

with redirect_stdout(io.StringIO()):
    cli.run(["--version"])  # sets the environment of transformers before it is imported

from fault_damage import damage
from fault_inputs import inputs
from fault_kills import disk, kills, writers
from fault_runs import Options, Trial
from fault_stale import stale
from fault_world import World
from figures import write

Section = Callable[[World, Path, Options], Iterator[Trial]]
SECTIONS: dict[str, tuple[Section, int]] = {
    "kills": (kills, 10),
    "writers": (writers, 3),
    "disk": (disk, 5),
    "damage": (damage, 3),
    "stale": (stale, 1),
    "inputs": (inputs, 1),
}


def run(names: list[str], rounds: int | None, is_quick: bool, seed: int, only: Sequence[str]) -> list[Trial]:
    """Run sections and return their cases. Failed cases are printed as they happen."""
    for command in cli.COMMANDS.values():
        import_module(command.module)  # before the forks
    trials = []
    with TemporaryDirectory(prefix="weft-faults-") as temporary:
        folder = Path(temporary).resolve()
        world = World(folder / "world")
        for name in names:
            section, usual_rounds = SECTIONS[name]
            options = Options(1 if is_quick else rounds or usual_rounds, random.Random(seed), is_quick, only)
            start_sec = time.monotonic()
            for trial in section(world, folder / name, options):
                trials.append(trial)
                if trial.problem:
                    print(f"FAILED {trial.section}: {trial.group}: {trial.name}: {trial.problem}", flush=True)
            print(f"{name}: {time.monotonic() - start_sec:.0f} s", file=sys.stderr, flush=True)
    return trials


def show(trials: list[Trial]) -> None:
    """Print a table of tried and passed cases by section and group, and the failed cases."""
    tried = Counter((t.section, t.group) for t in trials)
    passed = Counter((t.section, t.group) for t in trials if not t.problem)
    print(f"\n{'section':<10}{'command or class':<28}{'tried':>7}{'passed':>8}")
    for section, group in tried:
        print(f"{section:<10}{group:<28}{tried[section, group]:>7}{passed[section, group]:>8}")
    print(f"{'all':<38}{tried.total():>7}{passed.total():>8}")
    for t in trials:
        if t.problem:
            print(f"{t.section}: {t.group}: {t.name}: {t.problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="sections to run; all if none is given")
    parser.add_argument("--json", type=Path, help="file for the counts and the failed cases")
    parser.add_argument("--quick", action="store_true", help="a few cases of each section, to test the script")
    parser.add_argument("--rounds", type=int, help="cases of each command in kills, writers, disk and damage")
    parser.add_argument(
        "--only", nargs="+", default=(), help="only commands, classes and cases whose name contains one of these"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times, sizes and places")
    arguments = parser.parse_args()
    names = arguments.sections or list(SECTIONS)
    trials = run(names, arguments.rounds, arguments.quick, arguments.seed, arguments.only)
    show(trials)
    if arguments.json:
        failed = [vars(t) for t in trials if t.problem]
        write(arguments.json, {"tried": len(trials), "passed": len(trials) - len(failed), "failed": failed})
    sys.exit(any(t.problem for t in trials))


if __name__ == "__main__":
    main()
