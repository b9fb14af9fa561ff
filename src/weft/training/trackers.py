"""Experiment trackers: Weights & Biases and trackio, which receive the metrics of a training run.

    trackers = Trackers(("wandb",), folder / "log", settings, from_step=last_sent_step + 1)
    trackers.log(step, {"loss": 2.1})
    trackers.close()

Both have the interface of wandb. The run is named after the output directory, with a random suffix that is stored in
`tracker_run.json`, so that a resumed training continues it. A tracker that fails is reported once and then left out.
Trackers receive the metrics and the settings of training, but no command line, paths or printed lines.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from weft import progress
from weft.errors import UserError, reason_of
from weft.files import write_json

Tracker = Literal["wandb", "trackio"]

_PROJECT = "weft"
_RUN = "tracker_run.json"
_WANDB = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""Settings of wandb that leave out what it collects by itself, except for the load of the hardware. A command line can
contain credentials, as of a presigned URL."""


class Trackers:
    """The runs of the chosen trackers. Nothing is imported without one."""

    def __init__(self, names: Sequence[Tracker], folder: Path, settings: Mapping[str, Any], from_step: int = 0) -> None:
        """Start or resume a run in each tracker. Raises UserError if one is not installed.

        Metrics of steps before `from_step` are not sent, because an interrupted training has sent them: trackio would
        list them twice.
        """
        self._from_step = from_step
        modules = {name: _module(name) for name in names}
        self._runs: dict[str, Any] = {}
        run = {"project": os.environ.get("WANDB_PROJECT", _PROJECT), "config": dict(settings), "resume": "allow"}
        for name, module in modules.items():
            run["name"] = _run_name(folder)
            own = {"id": run["name"], "settings": dict(_WANDB)} if name == "wandb" else {}  # trackio resumes by name
            self._runs[name] = self._call(name, module.init, **run, **own)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if step < self._from_step:
            return
        for name, run in self._active():
            self._call(name, run.log, dict(values), step=step)

    def close(self) -> None:
        """End the runs, which uploads what is left."""
        for name, run in self._active():
            self._call(name, run.finish)

    def _active(self) -> list[tuple[str, Any]]:
        return [(name, run) for name, run in self._runs.items() if run is not None]

    def _call(self, tracker: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Call a tracker; if this fails, report it and leave the tracker out."""
        try:
            with _no_terminal():
                return function(*arguments, **settings)
        except Exception as e:  # noqa: BLE001 - training does not depend on a tracker
            self._runs[tracker] = None
            progress.note(f"weft: {tracker} has failed ({reason_of(e)}): training continues without it")


@contextmanager
def _no_terminal() -> Iterator[None]:
    """Let a tracker print to stderr, and let it read nothing: wandb would wait until somebody logs in."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin, redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            sys.stdin = stdin


def _module(name: Tracker) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(f"train.trackers needs {name}: pip install weft-speech[{name}], or remove it") from e


def _run_name(folder: Path) -> str:
    """Return the name of the run, which is created with the log."""
    stored = folder / _RUN
    if not stored.exists():
        out = folder.resolve().parent.name.removesuffix(".partial")
        write_json(stored, {"name": f"{out}-{secrets.token_hex(4)}"})
    return str(json.loads(stored.read_text())["name"])
