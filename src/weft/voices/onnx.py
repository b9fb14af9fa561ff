"""ONNX models of voices, which onnxruntime runs in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from weft.digests import state_of
from weft.errors import UserError, reason_of

_T = TypeVar("_T")


def loaded_once(load: Callable[..., _T]) -> Callable[..., _T]:
    """Decorate a function of paths of files: its result is kept, for this process, until one of the files changes."""
    kept = cache(lambda paths, states: load(*paths))

    @wraps(load)
    def get(*paths: Path) -> _T:
        return kept(paths, tuple(map(state_of, paths)))

    return get


@loaded_once
def session(path: Path) -> Any:
    """Return the onnxruntime session of a model, one per process, with OMP_NUM_THREADS threads (not set: all cores).

    A worker of a job has its share of the cores. Raises UserError for a file that is not an ONNX model.
    """
    import onnxruntime

    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    options.log_severity_level = 4  # errors are raised, not printed
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise UserError(f"{path} cannot be loaded ({reason_of(e)}): download it again") from e


def check_inputs(path: Path, wanted: Sequence[set[str]], kind: str) -> None:
    """Raise UserError if a model has not one of the sets of inputs that its kind has."""
    given = {i.name for i in session(path).get_inputs()}
    if given not in wanted:
        listed = ", ".join(sorted(given)) or "none"
        raise UserError(f"{path} is not {kind} (its inputs are {listed}): give one, or another folder")


def model_folder(value: str, kind: str) -> Path:
    """Return the folder of models that a voice names. Raises UserError if it does not exist."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: download the {kind} into it, or add ?folder=DIR to the voice")
    return folder
