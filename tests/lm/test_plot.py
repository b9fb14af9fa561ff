import json
import os

import numpy as np
import pytest
from matplotlib.image import imread

from weft.lm import plot as module
from weft.lm.plot import PICTURE, plot


def written(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(num):
    """A run of two sources, one of which comes late, with a skipped step."""
    for step in range(num):
        row = {"step": step, "loss": 3 - step / num, "loss_text": 2.0, "lr": 1e-3, "grad_norm": 0.5, "mfu": 0.4}
        late = {"loss/a": 3.0, "loss_text/a": 2.0} if step > num // 2 else {}
        yield {**row, **late, "loss_speech/b": 4.0, "tokens_per_sec": 1e5, "skipped_steps": int(step > 1)}


@pytest.mark.parametrize("num", [1, 3, 2000])
def test_a_run_of_any_length_is_drawn_without_a_display(tmp_path, monkeypatch, num):
    monkeypatch.delenv("DISPLAY", raising=False)
    plot(written(tmp_path, rows_of(num)))
    picture = imread(tmp_path / PICTURE)
    assert picture.shape[:2] == (960, 1500)
    assert picture[..., :3].std() > 0.01
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", PICTURE]


def test_a_step_whose_loss_is_left_out_is_drawn_too(tmp_path):
    plot(written(tmp_path, [{"step": 0, "lr": 1e-3, "skipped_steps": 1}]))
    assert (tmp_path / PICTURE).exists()


def test_a_long_run_is_thinned_out_to_means():
    rows = [{"step": step, "loss": 2.0 * step} for step in range(9_000)]
    steps, values = module._lines(rows)["loss"]
    assert len(steps) == 300
    assert np.array_equal(2 * steps, values)
    assert (steps[0], steps[-1]) == (14.5, 8984.5)


@pytest.mark.parametrize(
    ("value", "told"), [(0.5, "0.500"), (86.0, "86.0"), (227.96, "228"), (7436.2, "7,436"), (8.6157e-5, "8.62e-05")]
)
def test_a_last_value_has_three_places_and_no_loose_point(value, told):
    assert module._last(value) == told


def test_names_are_apart_and_near_their_lines():
    assert module._apart(np.array([0.1, 0.5, 0.9]), 0.1) == pytest.approx([0.1, 0.5, 0.9])
    crowded = module._apart(np.array([0.5, 0.5, 0.52, 0.9]), 0.1)
    assert np.diff(crowded).min() == pytest.approx(0.1)
    assert crowded[:3].mean() == pytest.approx(np.mean([0.5, 0.5, 0.52]))
    assert crowded[3] == 0.9
