"""Training runs in tests: quick, interrupted, and in several processes."""

from contextlib import contextmanager

import pytest
import torch

from weft.lm import monitor, pretrain
from weft.lm.mixture import Mixture
from weft.lm.model import LanguageModel
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics

RESUMABLE = TrainConfig(
    steps=12, lr=1e-2, warmup_steps=5, checkpoint_every_steps=3, log_every_steps=1, precision="fp32"
)


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


def weights_of(folder):
    """Return the weights of a finished run."""
    return LanguageModel.from_pretrained(folder).model.state_dict()


def assert_close_weights(folder, expected, tolerance):
    """Check that the weights of a finished run differ from `expected` by at most `tolerance`."""
    for name, found in weights_of(folder).items():
        torch.testing.assert_close(
            found, expected[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{folder.name} {name} {m}"
        )
