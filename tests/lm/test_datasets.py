import json
import shutil
from pathlib import Path

import pytest

from weft.errors import UserError
from weft.lm.datasets import check_epochs, mixture_of, open_datasets, show
from weft.training.config import TrainConfig

TRAIN = TrainConfig(steps=40)


@pytest.fixture
def copied(tmp_path, tokens):
    """A copy of the token shards, for tests that change it."""
    return Path(shutil.copytree(tokens, tmp_path / "tokens"))


def set_counts(folder, datasets):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["datasets"] = datasets
    (folder / "manifest.json").write_text(json.dumps(manifest))


def mixture(folder, weights=None, weights_from=None):
    return mixture_of({folder: open_datasets(folder, 32)}, weights or {}, weights_from or {}, TRAIN, 256)


@pytest.mark.parametrize("names", [["speech", "interleaved"], ["interleaved", "speech"]])
def test_datasets_keep_the_order_in_which_they_were_packed(copied, names):
    set_counts(copied, {name: {"documents": 60} for name in names})
    assert list(open_datasets(copied, 32)) == names
    assert mixture(copied).names == tuple(names)


def test_the_order_of_datasets_determines_the_order_of_samples(copied):
    found = []
    for names in (["speech", "interleaved"], ["interleaved", "speech"]):
        set_counts(copied, {name: {"documents": 60} for name in names})
        samples = mixture(copied)
        found.append([samples[j][0].tolist() for j in range(50)])
    assert found[0] != found[1]


def test_datasets_that_the_manifest_does_not_list_come_last(copied):
    set_counts(copied, {"speech": {"documents": 60}})
    assert list(open_datasets(copied, 32)) == ["speech", "interleaved"]


def test_lost_shards_are_found(copied):
    set_counts(copied, {"speech": {"documents": 90}})
    with pytest.raises(UserError, match="speech contains 60 of 90 packed documents: copy it again"):
        open_datasets(copied, 32)


def test_datasets_are_weighted_by_their_size_without_weights(tokens):
    uses = mixture(tokens).uses()
    total = sum(use.tokens for use in uses.values())
    for use in uses.values():
        assert use.shares[0] == pytest.approx(use.tokens / total, abs=0.01)


def test_two_datasets_of_one_name_are_rejected(tokens, held_out):
    folders = {folder: open_datasets(folder, 32) for folder in (tokens, held_out)}
    with pytest.raises(UserError, match="two directories in tokens have a dataset 'interleaved': rename one"):
        mixture_of(folders, {}, {}, TRAIN, 256)


@pytest.mark.parametrize("step", ["0", "40", "half"])
def test_weights_from_a_step_outside_of_the_run_are_rejected(tokens, step):
    with pytest.raises(UserError, match=f"weights_from.{step} is not a step of the run: give 1 to 39"):
        mixture(tokens, weights_from={step: {"interleaved": 1.0, "speech": 0}})


def test_a_dataset_that_is_read_more_than_max_epochs_is_rejected(tokens):
    uses = mixture(tokens).uses()
    check_epochs(uses, None)
    check_epochs(uses, max(use.epochs for use in uses.values()))
    with pytest.raises(
        UserError,
        match=r"the run would read interleaved [0-9.]+ times \([0-9,]+ tokens\), speech .*, more than max_epochs 2: "
        "reduce train.steps or batch_tokens",
    ):
        check_epochs(uses, 2.0)


def test_another_dataset_is_suggested_for_the_rest_if_there_is_one(tokens):
    uses = mixture(tokens, {"interleaved": 0.9, "speech": 0.1}).uses()
    with pytest.raises(UserError, match=r'read interleaved [^:]*: give it "[0-9.]+ epochs", and another dataset the'):
        check_epochs(uses, uses["speech"].epochs)


def test_the_mixture_is_shown_as_a_table_of_what_is_read(tokens, capsys):
    weights = {"interleaved": 0.25, "speech": "rest"}
    mixed = mixture(tokens, weights, {"20": {"interleaved": 1.0, "speech": 0.0}})
    show(mixed.uses(), 40 * 256)
    head, *rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    weights_and_shares = "weight share drawn weight from 20 share drawn"
    assert " ".join(head) == f"dataset documents tokens {weights_and_shares} tokens drawn epochs"
    assert [row[:2] for row in rows] == [["interleaved", "60"], ["speech", "60"], ["total", "120"]]
    assert [row[3] for row in rows[:2]] == ["25.00%", "rest"]
    assert [row[6] for row in rows[:2]] == ["100.00%", "0.00%"]
    drawn = sum(len(mixed[j][0]) for step in range(40) for j in mixed.samples(step))
    assert rows[2][3:] == [f"{drawn:,}", "of", "10,240"]
