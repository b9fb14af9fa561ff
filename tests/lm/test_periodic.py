"""Evaluation during pre-training changes nothing of the run, and works when the model is sharded."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from tests.ranks import in_ranks
from weft.artifacts import Manifest
from weft.data.datasets import write_codes_part
from weft.errors import UserError
from weft.eval.periodic import PeriodicConfig, greedy
from weft.lm.model import LanguageModel
from weft.lm.pretrain import PretrainConfig
from weft.plan import Plan, open_draft
from weft.pretraining import PretrainingConfig, run
from weft.records import CodedUtterance
from weft.training.metrics import read_metrics


def with_evaluation(config: PretrainConfig, evaluation: PeriodicConfig) -> PretrainingConfig:
    return PretrainingConfig(**{f.name: getattr(config, f.name) for f in fields(config)}, eval=evaluation)


@pytest.fixture
def evaluated(config: PretrainConfig, short_run: None, tmp_path: Path) -> PretrainingConfig:
    """A run of 11 steps that is evaluated after steps 0, 5 and 10."""
    pair = {"beginning": "The cat sat.", "right": "It slept.", "wrong": "It flew."}
    rows = [{"id": str(i), **pair} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"id": str(i), "question": "Who sat?", "answers": ["the cat"]} for i in range(2)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    names = [f"{i}.{part}" for i in range(3) for part in ("0", "right", "wrong")]
    with open_draft(tmp_path / "codes", Plan("codes", {}, {"tokenizer": Manifest("tokenizer", "t0")})) as draft:
        write_codes_part(draft.folder, 0, [CodedUtterance(name, [i % 5, 1]) for i, name in enumerate(names)])
    found = PeriodicConfig(5, tmp_path / "pairs.jsonl", tmp_path / "codes", tmp_path / "questions.jsonl")
    train = replace(config.train, steps=11, checkpoint_every_steps=4)
    return with_evaluation(replace(config, train=train), found)


def test_metrics_are_logged_and_the_weights_are_those_of_a_run_without(
    evaluated: PretrainingConfig, tmp_path: Path
) -> None:
    without = run(replace(evaluated, eval=PeriodicConfig(), out=tmp_path / "without"))
    found = run(evaluated)
    assert found is not None
    assert without is not None
    assert found.fingerprint == without.fingerprint
    lines = {line["step"]: line for line in read_metrics(evaluated.out / "log")}
    names = {"eval_TT", "eval_ST", "eval_TS", "eval_SS", "eval_questions", "eval_loss_text", "eval_loss_speech"}
    assert all(names <= lines[step].keys() for step in (0, 5, 10))
    assert all(0 <= lines[5][name] <= 1 for name in names - {"eval_loss_text", "eval_loss_speech"})
    assert lines[10]["eval_loss_text"] < lines[0]["eval_loss_text"]


def test_a_sharded_model_has_the_same_metrics(evaluated: PretrainingConfig, tmp_path: Path) -> None:
    run(evaluated)
    sharded = replace(evaluated, parallel="fsdp", out=tmp_path / "sharded")
    assert None not in in_ranks(run, tmp_path, sharded)
    a, b = ({m["step"]: m for m in read_metrics(c.out / "log")} for c in (evaluated, sharded))
    for name in ("eval_TT", "eval_SS", "eval_questions", "eval_loss_text"):
        assert b[5][name] == pytest.approx(a[5][name], abs=0.02)


def test_continuations_do_not_depend_on_the_batch(base: Path) -> None:
    lm = LanguageModel.from_pretrained(base)
    prompts = [torch.arange(3, 3 + n).numpy() for n in (2, 7, 4)]
    allowed = range(lm.vocab.first_audio_id)
    together = greedy(lm.model, prompts, 6, lm.vocab.eos_id, allowed)
    assert together == [greedy(lm.model, [p], 6, lm.vocab.eos_id, allowed)[0] for p in prompts]
    with torch.no_grad():
        ids = [*prompts[0].tolist(), *together[0][:1]]
        logits = lm.model(torch.tensor([ids])).logits[0, -1, : lm.vocab.first_audio_id]
    assert together[0][1:2] in ([int(logits.argmax())], [])


def test_evaluations_are_in_logged_steps(config: PretrainConfig) -> None:
    with pytest.raises(UserError, match=r"eval\.every_steps is 7: give a multiple"):
        with_evaluation(config, PeriodicConfig(7))
