import json
import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from weft.lm import plot as module
from weft.lm.plot import PICTURE, plot


def write_metrics(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_of(num_steps):
    """Yield the metrics of a run with two datasets, one of which starts late, and with a skipped step."""
    for step in range(num_steps):
        row = {"step": step, "loss": 3 - step / num_steps, "loss_text": 2.0, "lr": 1e-3, "grad_norm": 0.5, "mfu": 0.4}
        late = {"loss/a": 3.0, "loss_text/a": 2.0} if step > num_steps // 2 else {}
        yield {**row, **late, "loss_speech/b": 4.0, "tokens_per_sec": 1e5, "skipped_steps": int(step > 1)}


@pytest.mark.parametrize("num_steps", [1, 3, 2000])
def test_a_run_of_any_length_is_drawn_without_a_display(tmp_path, monkeypatch, num_steps):
    monkeypatch.delenv("DISPLAY", raising=False)
    plot(write_metrics(tmp_path, run_of(num_steps)))
    picture = imread(tmp_path / PICTURE)
    assert picture.shape[:2] == (960, 1500)
    assert picture[..., :3].std() > 0.01
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", PICTURE]


@pytest.fixture
def figure(monkeypatch):
    """The last figure, which is not saved."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: found.append(figure))
    return lambda: found[-1]


def legends_of(figure):
    """Return the texts of the legend of each panel, by title."""
    found = {}
    for axes in figure.axes:
        legend = axes.get_legend()
        found[axes.get_title(loc="left")] = [text.get_text() for text in legend.get_texts()] if legend else None
    return found


def test_legends_show_names_and_last_values(tmp_path, figure):
    plot(write_metrics(tmp_path, run_of(10)))
    assert legends_of(figure()) == {
        "loss by modality, nats per token": ["all 2.10", "text 2.00"],
        "loss on text by dataset, nats per token": ["a 2.00"],
        "loss on speech by dataset, nats per token": ["b 4.00"],
        "loss by dataset, nats per token": ["a 3.00"],
        "bits per byte of text": None,
        "nats per second of speech": None,
        "learning rate": ["0.00100"],
        "gradient norm, skipped steps: 1": ["0.500"],
        "tokens per second, MFU 40.0%": ["100,000"],
    }


def test_a_dataset_has_the_same_colour_in_all_panels(tmp_path, figure):
    rows = [{"step": 0, "loss/a": 3.0, "loss/b": 3.0, "loss_text/b": 2.0, "loss_speech/a": 2.0}]
    plot(write_metrics(tmp_path, rows))
    colours = {(line.get_label()[0], line.get_color()) for axes in figure().axes[1:4] for line in axes.lines}
    assert colours == {("a", "C0"), ("b", "C1")}


def test_the_first_tenth_of_a_run_does_not_determine_the_range(tmp_path, figure):
    rows = [{"step": step, "loss": 100.0 if step < 10 else 2.0 + step / 100} for step in range(101)]
    plot(write_metrics(tmp_path, rows))
    low, high = figure().axes[0].get_ylim()
    assert 1.9 < low < 2.1
    assert 3 < high < 3.1


def test_a_step_without_a_loss_is_drawn(tmp_path):
    plot(write_metrics(tmp_path, [{"step": 0, "lr": 1e-3, "skipped_steps": 1}]))
    assert (tmp_path / PICTURE).exists()


def test_a_long_run_is_averaged():
    rows = [{"step": step, "loss": 2.0 * step} for step in range(9_000)]
    steps, values = module._lines(rows)["loss"]
    assert len(steps) == 300
    assert np.array_equal(2 * steps, values)
    assert (steps[0], steps[-1]) == (14.5, 8984.5)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (86.0, "86.0"), (227.96, "228"), (7436.2, "7,436"), (8.6157e-5, "8.62e-05")]
)
def test_values_have_three_digits(value, text):
    assert module._number(value) == text
