import pytest
import torch

from weft.lm import monitor as module
from weft.lm.datasets import mixture_of, open_datasets
from weft.lm.loss_meter import Units
from weft.lm.monitor import TrainingMonitor
from weft.lm.packing import pack, token_losses
from weft.training.config import TrainConfig

TRAIN = TrainConfig(steps=7, log_every_steps=5, checkpoint_every_steps=2, precision="fp32")


@pytest.fixture
def mixture(tokens):
    return mixture_of({tokens: open_datasets(tokens, 32)}, {}, {}, TRAIN, 256)


@pytest.fixture
def plots(monkeypatch):
    """The directories of the plots that were drawn."""
    drawn = []
    monkeypatch.setattr(module, "plot", drawn.append)
    monkeypatch.setattr(module, "peak_flops", lambda device, bf16: 1e12)
    return drawn


def metrics_of(model, vocab, mixture, folder, micro_batches=1):
    """Return the metrics of each step of a run without training."""
    monitor = TrainingMonitor(Units(vocab, 12.5), mixture, model, TRAIN, folder)
    steps = []
    for step in range(TRAIN.steps):
        for i in range(micro_batches):
            samples = mixture.samples(step)[i::micro_batches]
            part = monitor.micro_batch(step, samples, pack([mixture[j] for j in samples]))
            with torch.no_grad():
                monitor.add(part, token_losses(model, part.batch))
        steps.append(monitor.after_step(step, True))
    assert monitor.num_tokens == sum(len(mixture[j][0]) for step in range(7) for j in mixture.samples(step))
    return steps


def test_losses_are_logged_by_source_and_modality(tiny_lm, vocab, mixture, tmp_path, plots):
    steps = metrics_of(tiny_lm, vocab, mixture, tmp_path)
    assert [step for step, metrics in enumerate(steps) if metrics] == [0, 5, 6]
    metrics = {
        "loss_text",
        "loss_speech",
        "nats_per_sec_speech",
        "bits_per_byte_text",
        "loss/interleaved",
        "loss/speech",
        "loss_text/interleaved",
        "loss_speech/interleaved",
        "loss_speech/speech",
    }
    assert set(steps[0]) == metrics | {"tokens_per_sec", "mfu"}
    assert steps[0]["loss_text/interleaved"] == steps[0]["loss_text"]
    assert all(steps[step]["tokens_per_sec"] > 0 < steps[step]["mfu"] for step in (0, 5, 6))


def test_micro_batches_have_the_losses_of_the_whole_step(tiny_lm, vocab, mixture, tmp_path, plots):
    whole, parts = (metrics_of(tiny_lm, vocab, mixture, tmp_path, num) for num in (1, 3))
    for a, b in zip(whole, parts, strict=True):
        losses = {name: value for name, value in a.items() if name not in ("tokens_per_sec", "mfu")}
        assert {name: b[name] for name in losses} == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(("min_plot_sec", "num_plots"), [(0.0, 3), (1e9, 0)])
def test_plots_are_drawn_at_checkpoints_but_not_too_often(
    tiny_lm, vocab, mixture, tmp_path, plots, monkeypatch, min_plot_sec, num_plots
):
    monkeypatch.setattr(module, "_MIN_PLOT_SEC", min_plot_sec)
    metrics_of(tiny_lm, vocab, mixture, tmp_path)
    assert plots == [tmp_path / "log"] * num_plots  # after steps 1, 3 and 5
