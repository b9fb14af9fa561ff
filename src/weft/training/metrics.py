"""Metrics of a training run: metrics.jsonl, one line per logged step, TensorBoard event files, and trackers.

with MetricLog(folder / "log", from_step=resumed_step) as log:
    log.write(step, {"loss": 2.1, "lr": 3e-4})
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from weft.files import write_bytes
from weft.training.trackers import Tracker, Trackers

METRICS = "metrics.jsonl"
_NONE: Mapping[str, Any] = MappingProxyType({})


class MetricLog:
    """Appends metrics from `from_step` on. Lines that a killed run wrote after its last checkpoint are dropped."""

    def __init__(
        self, folder: Path, from_step: int = 0, trackers: Sequence[Tracker] = (), settings: Mapping[str, Any] = _NONE
    ) -> None:
        """Open the log. `trackers` also receive the metrics, and the `settings` of the run.

        Raises UserError if one of them is not installed.
        """
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        num_steps = 0  # of which an earlier call has written the metrics
        if self._path.exists():
            lines = list(read_metrics(folder))
            num_steps = max((int(line["step"]) + 1 for line in lines), default=0)
            kept = [line for line in lines if line["step"] < from_step]
            write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self._path.open("a")
        self._events = EventFileWriter(str(folder))
        self._trackers = Trackers(trackers, folder, settings, from_step=num_steps)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step and flush the file, without values that JSON cannot have: NaN and infinity."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._events.add_event(Event(step=step, summary=Summary(value=points)))
        self._trackers.log(step, values)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()
        self._trackers.close()


def read_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """Yield the lines of a metrics.jsonl up to the first that is damaged, as the last one is after a kill."""
    for line in (folder / METRICS).read_bytes().splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            return
        yield values
