import math

import pytest

from weft.data.token_shards import TokenShards
from weft.lm.held_out import base_losses, held_out_losses, merge_losses
from weft.lm.loss_meter import Units
from weft.lm.mixture import Pieces


def test_losses_do_not_depend_on_the_batches(held_out, vocab, tiny_lm):
    names = ("interleaved", "speech")
    datasets = [(name, Pieces(TokenShards(held_out / name), 32)) for name in names]
    small, large = (held_out_losses(tiny_lm, Units(vocab), datasets, tokens) for tokens in (1, 10_000))
    by_dataset = [metrics.pop("held_out") for metrics in (small, large)]
    assert small == pytest.approx(large, rel=1e-5)
    assert set(small) == {"loss.text", "loss.speech", "bits_per_byte.text"}
    assert small["loss.text"] == pytest.approx(math.log(vocab.size), rel=0.05)
    for name in names:
        assert by_dataset[0][name] == pytest.approx(by_dataset[1][name], rel=1e-5)
    assert by_dataset[0]["interleaved"]["loss.text"] == small["loss.text"]
    assert set(by_dataset[0]["speech"]) == {"loss.speech"}


def test_without_datasets_there_are_no_losses(vocab, tiny_lm):
    assert held_out_losses(tiny_lm, Units(vocab), [], 100) == {}
    assert merge_losses({}, {}) == {}


MEASURED = {"loss.text": 2.0, "held_out": {"a": {"loss.text": 2.0}}}


def test_the_base_is_measured_once(tmp_path, capsys):
    measured = iter([MEASURED])
    first, again = (base_losses(tmp_path, ["a"], lambda: next(measured)) for _ in range(2))
    assert first == again == MEASURED
    assert base_losses(tmp_path / "no datasets", [], dict) == base_losses(tmp_path / "no datasets", [], dict) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    ["", "{", "\0" * 90, "\xff", "[]", "[[1, 2]]", "3", "null", "{}", '{"loss.text": 2.0}', '{"held_out": 1}',
     '{"held_out": {"a": 1}}', '{"held_out": {"a": {"loss.text": "2"}}}', '{"held_out": {"b": {"loss.text": 2}}}',
     '{"loss.text": null, "held_out": {"a": {}}}'],
)  # fmt: skip
def test_the_base_is_measured_again_if_its_losses_are_damaged(tmp_path, content, capsys):
    base_losses(tmp_path, ["a"], lambda: MEASURED)
    stored = tmp_path / "log" / "base.json"
    stored.write_bytes(content.encode("latin-1"))
    assert base_losses(tmp_path, ["a"], lambda: MEASURED) == MEASURED
    assert capsys.readouterr().err.startswith(f"weft: {stored} is damaged (")
    assert base_losses(tmp_path, ["a"], lambda: pytest.fail("measured again")) == MEASURED
    assert capsys.readouterr().err == ""


def test_losses_of_the_base_are_listed_beside_those_of_the_result():
    before = {"loss.text": 2.0, "held_out": {"a": {"loss.text": 2.0}}}
    after = {"loss.text": 1.0, "held_out": {"a": {"loss.text": 1.0}}}
    expected = {"loss.text": 1.0, "base.loss.text": 2.0}
    assert merge_losses(before, after) == {**expected, "held_out": {"a": expected}}
