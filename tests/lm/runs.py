"""Training runs in tests: quick, interrupted, and in several processes."""

from contextlib import contextmanager

import pytest

from weft.lm import monitor, pretrain
from weft.lm.mixture import Mixture
from weft.training.metrics import read_metrics


def skip_plot_and_peak(patch):
    """Replace the plot of a run and the measurement of its device, which take longer than a short training."""
    patch.setattr(monitor, "plot", lambda folder: None)
    patch.setattr(monitor, "peak_flops", lambda device, bf16: 1e12)


@contextmanager
def call_at(step, action):
    """Call `action` when a run requests the samples of that step."""
    samples = Mixture.samples

    def samples_at(mixture, at):
        if at == step:
            action()
        return samples(mixture, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixture, "samples", samples_at)
        yield


def interrupt():
    raise KeyboardInterrupt


def interrupted(config, step):
    """Run until that step."""
    with call_at(step, interrupt), pytest.raises(KeyboardInterrupt):
        pretrain.run(config)
    assert not config.out.exists()


def run_jobs(*jobs):
    """Call functions, given with their arguments, in a rank."""
    with pytest.MonkeyPatch.context() as patch:
        skip_plot_and_peak(patch)
        for function, *arguments in jobs:
            function(*arguments)
    return True


def metrics_without_speed(out):
    """Return the logged metrics of a run without those that measure time."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_sec", "mfu")} for line in read_metrics(out / "log")]
