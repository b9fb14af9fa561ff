import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training.models import CONFIG, all_equal, data, loss, model, weights_of
from weft.errors import UserError
from weft.training.config import TrainConfig
from weft.training.loop import fit
from weft.training.metrics import read_metrics


class FakeTracker(ModuleType):
    """A module with the interface of wandb and trackio."""

    def __init__(self, fails_in: str = "") -> None:
        super().__init__("tracker")
        self.fails_in, self.starts, self.lines, self.finished = fails_in, list[dict[str, Any]](), list[Any](), 0

    def _fail(self, where: str) -> None:
        if where == self.fails_in:
            raise ConnectionError("no network\nsecond line")

    def init(self, **settings: Any) -> "FakeTracker":
        self._fail("init")
        self.starts.append(settings)
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._fail("log")
        self.lines.append({"step": step, **values})

    def finish(self) -> None:
        self._fail("finish")
        self.finished += 1


def with_trackers(*names: Any, steps: int = 9) -> TrainConfig:
    return TrainConfig(**{**vars(CONFIG), "trackers": names, "steps": steps})


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeTracker]:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    fakes = {"wandb": FakeTracker(), "trackio": FakeTracker()}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return fakes


def test_trackers_receive_the_metrics_and_a_resumed_run_is_continued(
    trackers: dict[str, FakeTracker], tmp_path: Path
) -> None:
    folder = tmp_path / "lm.partial"
    stopped = RuntimeError("stopped")

    def failing(step: int, part: slice) -> Any:
        if step == 5:
            raise stopped
        return data(step, part)

    config = with_trackers("wandb", "trackio")
    with pytest.raises(RuntimeError) as raised:
        fit(model(), failing, loss, config, folder, "test")
    assert raised.value is stopped
    fit(model(), data, loss, config, folder, "test")
    for name, tracker in trackers.items():
        first, second = tracker.starts
        assert first == second
        assert first["name"].startswith("lm-")
        assert (first["project"], first["resume"]) == ("weft", "allow")
        assert first.get("id") == (first["name"] if name == "wandb" else None)
        assert first["config"]["lr"] == CONFIG.lr
        assert tracker.lines == list(read_metrics(folder / "log"))
        assert len(tracker.lines) == 9
        assert tracker.finished == 2


def test_a_tracker_cannot_ask_and_collects_nothing_else(
    trackers: dict[str, FakeTracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Asking(FakeTracker):
        def init(self, **settings: Any) -> FakeTracker:
            print("Enter your choice:")
            if not sys.stdin.isatty():
                assert not sys.stdin.read()
            return super().init(choice=sys.stdin.isatty(), **settings)

    terminal = Terminal("1\n")
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setitem(sys.modules, "wandb", asking := Asking())
    fit(model(), data, loss, with_trackers("wandb"), tmp_path / "lm", "test")
    assert sys.stdin is terminal
    assert not asking.starts[0]["choice"]
    assert capsys.readouterr().out == ""
    wanted = {"console": "off", "disable_git": True, "x_disable_meta": True, "x_disable_machine_info": True}
    assert wanted.items() <= asking.starts[0]["settings"].items()


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_tracker_that_fails_never_ends_training(
    moment: str, trackers: dict[str, FakeTracker], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers["wandb"].fails_in = moment
    tracked, plain = model(), model()
    fit(tracked, data, loss, with_trackers("wandb", "trackio"), tmp_path / "tracked", "test")
    fit(plain, data, loss, CONFIG, tmp_path / "plain", "test")
    assert all_equal(weights_of(tracked), weights_of(plain))
    message = "weft: wandb has failed (no network): training continues without it\n"
    assert capsys.readouterr().err.count(message) == 1
    assert len(trackers["trackio"].lines) == 9


def test_no_tracker_is_imported_unless_it_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    fit(model(), data, loss, CONFIG, tmp_path / "without", "test")
    assert not (tmp_path / "without/log/tracker_run.json").exists()
    with pytest.raises(UserError, match=r"train.trackers needs trackio: pip install weft-speech\[trackio\]"):
        fit(model(), data, loss, with_trackers("trackio"), tmp_path / "with", "test")
