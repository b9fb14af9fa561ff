"""What training leaves out: bad utterances and bad steps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks import in_ranks
from tests.tokenizer.conftest import save_whisper
from tests.tokenizer.training import SENTENCES, config
from tests.training.skipped import Where, changed_steps
from weft.audio import save
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.tokenizer import train
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.train import run
from weft.training.metrics import read_metrics


def test_held_out_speech_without_a_language_has_that_of_the_recipe(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": u.id, "audio": u.audio, "text": u.text} for u in read_manifest(speech)]
    rows[0]["language"], rows[1]["text"] = "en", "..."
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = replace(
        config(speech, tmp_path / "out", steps=1),
        base=save_whisper(tmp_path / "whisper"),
        language="zh",
        held_out=(tmp_path / "manifest.jsonl",),
        quantize_from_step=0,
    )
    measured: list[Any] = []
    monkeypatch.setattr(train, "measure", lambda _, utterances: measured.extend(utterances) or {})
    manifest = run(recipe)
    assert manifest is not None
    assert manifest.counts["wer_left_out"] == [rows[1]["id"]]
    assert [u.language for u in measured] == ["en", *["zh"] * 4]
    assert rows[1]["id"] not in {u.id for u in measured}


def test_unreadable_held_out_speech_is_skipped_and_too_much_is_an_error_before_training(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": u.id, "audio": u.audio, "text": u.text} for u in read_manifest(speech)]
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    rows[2]["audio"] = str(tmp_path / "bad.wav")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = config(speech, tmp_path / "out", steps=1)
    recipe = replace(recipe, held_out=(tmp_path / "manifest.jsonl",), quantize_from_step=0)
    measured: list[Any] = []
    monkeypatch.setattr(train, "measure", lambda _, utterances: measured.extend(utterances) or {})
    with pytest.raises(UserError, match=rf"1 of {len(rows)} items are bad"):
        run(replace(recipe, max_bad_fraction=0.1, out=tmp_path / "none"))
    manifest = run(replace(recipe, max_bad_fraction=0.5))
    assert manifest is not None
    assert manifest.counts["wer_left_out"] == [rows[2]["id"]]
    assert [u.id for u in measured] == [row["id"] for row in rows if row is not rows[2]]
    assert rows[2]["id"] in (tmp_path / "out/log/skipped_held_out.jsonl").read_text()


def test_bad_utterances_are_skipped_and_counted_and_too_many_stop_the_run(speech: Path, tmp_path: Path) -> None:
    rows = [{"id": u.id, "audio": u.audio, "text": u.text} for u in read_manifest(speech)]
    (tmp_path / "text.wav").write_bytes(b"this is no audio")
    save(tmp_path / "short.wav", np.zeros(1600, np.float32), 16_000)
    bad = [
        {"id": "missing", "audio": "gone.wav", "text": "a"},
        {"id": "not audio", "audio": "text.wav", "text": "a"},
        {"id": "no text", "audio": rows[0]["audio"]},
        {"id": "long", "audio": "short.wav", "text": "far too many words for a tenth of a second"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows + bad))
    recipe = replace(config(tmp_path / "manifest.jsonl", tmp_path / "out", steps=1), held_out=(), quantize_from_step=0)
    with pytest.raises(UserError, match="4 of 10 items are bad"):
        run(recipe)
    manifest = run(replace(recipe, max_bad_fraction=0.5))
    assert manifest.counts["utterances"] == len(SENTENCES)
    listed = [json.loads(line)["where"] for line in (tmp_path / "out/log/skipped.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["long", "missing", "no text", "not audio"]


@pytest.mark.parametrize("name", ["speech", "pseudo"])
def test_speech_without_transcripts_is_named(name: str, speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech, tmp_path / "untranscribed")
    for path in (tmp_path / "untranscribed").glob("manifest.json*"):
        path.unlink()
    paths: dict[str, Any] = {"speech": (speech,), name: (tmp_path / "untranscribed",)}
    with pytest.raises(UserError, match=r"untranscribed has no transcripts: add `text`, or use weft pseudo-label"):
        run(replace(config(speech, tmp_path / "out"), **paths))
    assert not (tmp_path / "out.partial").exists()


QUANTIZERS = {
    "vq": QuantizerConfig(num_codes=16, decay=0.9, commitment=1.0, restart_every_steps=2),
    "fsq": QuantizerConfig(kind="fsq", levels=(5, 3)),
}
BAD = {(1, 0, 0), (2, 1, 0), (4, 1, 0), (5, 0, 0)}  # before, at the start of, and with quantization and restarts


def changed_steps_of(recipe: TokenizerConfig, bad: set[Where]) -> list[bool]:
    return changed_steps(train, lambda: run(recipe), bad)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_skipped_step_changes_neither_model_nor_codebook_nor_optimizer(
    kind: str, speech: Path, tmp_path: Path
) -> None:
    recipe = config(speech, tmp_path / "out", steps=8, grad_accum_steps=2, max_skipped_steps=2)
    recipe = replace(recipe, held_out=(), quantize_from_step=2, model=replace(recipe.model, quantizer=QUANTIZERS[kind]))
    skipped = {step for step, _, _ in BAD}
    assert changed_steps_of(recipe, BAD) == [step not in skipped for step in range(8)]
    lines = list(read_metrics(tmp_path / "out/log"))
    assert [line.get("skipped_steps", 0) for line in lines] == [0, 1, 2, 2, 3, 4, 4, 4]
    assert ["codes_used" in line for line in lines] == [step >= 2 and step not in skipped for step in range(8)]


def changed_steps_by_kind(recipe: TokenizerConfig, bad: set[Where]) -> dict[str, list[bool]]:
    recipes = {
        kind: replace(recipe, out=recipe.out / kind, model=replace(recipe.model, quantizer=quantizer))
        for kind, quantizer in QUANTIZERS.items()
    }
    return {kind: changed_steps_of(each, bad) for kind, each in recipes.items()}


def test_a_bad_micro_batch_on_one_rank_is_skipped_on_all_ranks(speech: Path, tmp_path: Path) -> None:
    recipe = replace(config(speech, tmp_path, steps=5), held_out=(), batch_sec=8.0, quantize_from_step=1)
    found = in_ranks(changed_steps_by_kind, tmp_path, recipe, {(2, 0, 1), (3, 0, 1)})
    assert found == [{kind: [True, True, False, False, True] for kind in QUANTIZERS}] * 2
