import json
import math
from pathlib import Path

import pytest

from weft.training.metrics import MetricLog, read_metrics


def test_lines_after_the_last_checkpoint_are_dropped(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        for step in range(5):
            log.write(step, {"loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    with MetricLog(tmp_path, from_step=3) as log:
        log.write(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert list(tmp_path.glob("events*"))


@pytest.mark.parametrize("damage", [b"\x80\x02.", b"[1]", b"{}", b"[" * 100_000, b'{"step": "a"}'])
def test_lines_up_to_a_damaged_one_are_kept(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n' + damage + b'\n{"step": 2}\n')
    with MetricLog(tmp_path, from_step=2) as log:
        log.write(2, {"loss": 1.0})
    assert list(read_metrics(tmp_path)) == [{"step": 0}, {"step": 2, "loss": 1.0}]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write(0, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    assert list(read_metrics(tmp_path)) == [{"step": 0, "lr": 0.1}]
