import math

import numpy as np
import pytest
import torch

from tests.ranks import in_ranks
from weft.lm.loss_meter import LossMeter, Units
from weft.training import distributed

SOURCES = ("text", "interleaved", "unused")


def targets_of(vocab):
    """Return text, speech and a marker of two sources: targets, sources and losses."""
    text = vocab.text_ids("the cat sat, très bien")
    speech = vocab.codes_to_ids([3, 1, 2])
    ids = np.concatenate((text, speech, [vocab.begin_of_audio_id], text[:2]))
    sources = np.array([0] * len(text) + [1] * (len(speech) + 3))
    losses = torch.arange(1, 1 + len(ids)).float()
    return len(text), torch.from_numpy(ids), sources, losses


def test_losses_are_means_by_source_and_modality(vocab):
    num_text, targets, sources, losses = targets_of(vocab)
    meter = LossMeter(Units(vocab, frame_rate_hz=12.5), SOURCES)
    meter.add(losses, targets, sources)
    speech, last = losses[num_text : num_text + 3], losses[-2:]
    assert meter.of("text") == {
        "loss": pytest.approx(float(losses[:num_text].mean())),
        "loss.text": pytest.approx(float(losses[:num_text].mean())),
        "bits_per_byte.text": pytest.approx(
            float(losses[:num_text].sum()) / math.log(2) / len("the cat sat, très bien".encode())
        ),
    }
    interleaved = meter.of("interleaved")
    assert interleaved["loss"] == pytest.approx(float(losses[num_text:].mean()))
    assert interleaved["loss.text"] == pytest.approx(float(last.mean()))
    assert interleaved["loss.speech"] == pytest.approx(float(speech.mean()))
    assert interleaved["nats_per_sec.speech"] == pytest.approx(12.5 * float(speech.mean()))
    assert meter.of("unused") == {}
    whole = meter.metrics()
    assert whole["loss"] == pytest.approx(float(losses.mean()))
    assert whole["loss.text"] == pytest.approx(float((losses[:num_text].sum() + last.sum()) / (num_text + 2)))
    assert "nats_per_sec.speech" not in LossMeter(Units(vocab), SOURCES).metrics()


def test_parts_add_up_to_the_whole(vocab):
    _, targets, sources, losses = targets_of(vocab)
    whole, parts = (LossMeter(Units(vocab, 12.5), SOURCES) for _ in range(2))
    whole.add(losses, targets, sources)
    for part in np.array_split(np.arange(len(targets)), 4):
        parts.add(losses[part], targets[part], sources[part])
    assert parts.metrics() == pytest.approx(whole.metrics())
    assert parts.of("interleaved") == pytest.approx(whole.of("interleaved"))


def figures_of_part(units, targets, sources, losses):
    """Return the metrics after this rank has added every second target, and rank 2 nothing."""
    meter = LossMeter(units, SOURCES)
    part = slice(0, 0) if distributed.rank() == 2 else slice(distributed.rank(), None, 2)
    if distributed.rank() < 2:
        meter.add(losses[part], targets[part], sources[part])
    return meter.all_reduced().metrics(), meter.all_reduced().of("interleaved")


def test_all_reduced_meters_cover_all_ranks(vocab, tmp_path):
    _, targets, sources, losses = targets_of(vocab)
    units = Units(vocab, 12.5)
    whole = LossMeter(units, SOURCES)
    whole.add(losses, targets, sources)
    for found in in_ranks(figures_of_part, tmp_path, units, targets, sources, losses, num=3):
        assert found[0] == pytest.approx(whole.metrics())
        assert found[1] == pytest.approx(whole.of("interleaved"))
