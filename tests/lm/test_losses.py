import math

import numpy as np
import pytest
import torch

from tests.ranks import in_ranks
from weft.lm.losses import Tally, Units
from weft.training import distributed

SOURCES = ("plain", "woven", "never")


def targets_of(vocab):
    """Text, speech and a marker, of two sources: targets, sources and losses."""
    text = vocab.text_ids("the cat sat, très bien")
    speech = vocab.codes_to_ids([3, 1, 2])
    ids = np.concatenate((text, speech, [vocab.begin_of_audio_id], text[:2]))
    sources = np.array([0] * len(text) + [1] * (len(speech) + 3))
    losses = torch.arange(1, 1 + len(ids)).float()
    return len(text), torch.from_numpy(ids), sources, losses


def test_means_are_those_of_each_source_and_modality(vocab):
    num_text, targets, sources, losses = targets_of(vocab)
    tally = Tally(Units(vocab, frame_rate_hz=12.5), SOURCES)
    tally.add(losses, targets, sources)
    speech, last = losses[num_text : num_text + 3], losses[-2:]
    assert tally.of("plain") == {
        "loss": pytest.approx(float(losses[:num_text].mean())),
        "loss.text": pytest.approx(float(losses[:num_text].mean())),
        "bits_per_byte.text": pytest.approx(
            float(losses[:num_text].sum()) / math.log(2) / len("the cat sat, très bien".encode())
        ),
    }
    woven = tally.of("woven")
    assert woven["loss"] == pytest.approx(float(losses[num_text:].mean()))
    assert woven["loss.text"] == pytest.approx(float(last.mean()))
    assert woven["loss.speech"] == pytest.approx(float(speech.mean()))
    assert woven["nats_per_sec.speech"] == pytest.approx(12.5 * float(speech.mean()))
    assert tally.of("never") == {}
    whole = tally.figures()
    assert whole["loss"] == pytest.approx(float(losses.mean()))
    assert whole["loss.text"] == pytest.approx(float((losses[:num_text].sum() + last.sum()) / (num_text + 2)))
    assert "nats_per_sec.speech" not in Tally(Units(vocab), SOURCES).figures()


def test_parts_are_as_the_whole(vocab):
    _, targets, sources, losses = targets_of(vocab)
    whole, cut = (Tally(Units(vocab, 12.5), SOURCES) for _ in range(2))
    whole.add(losses, targets, sources)
    for part in np.array_split(np.arange(len(targets)), 4):
        cut.add(losses[part], targets[part], sources[part])
    assert cut.figures() == pytest.approx(whole.figures())
    assert cut.of("woven") == pytest.approx(whole.of("woven"))


def tally_a_share(units, targets, sources, losses):
    """A process's figures of a half, or of nothing in the third."""
    tally = Tally(units, SOURCES)
    part = slice(0, 0) if distributed.rank() == 2 else slice(distributed.rank(), None, 2)
    if distributed.rank() < 2:
        tally.add(losses[part], targets[part], sources[part])
    return tally.everywhere().figures(), tally.everywhere().of("woven")


def test_all_processes_tell_of_all(vocab, tmp_path):
    _, targets, sources, losses = targets_of(vocab)
    units = Units(vocab, 12.5)
    whole = Tally(units, SOURCES)
    whole.add(losses, targets, sources)
    for found in in_ranks(tally_a_share, tmp_path, units, targets, sources, losses, num=3):
        assert found[0] == pytest.approx(whole.figures())
        assert found[1] == pytest.approx(whole.of("woven"))
