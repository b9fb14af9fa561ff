import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.ranks import in_ranks
from tests.tokenizer.conftest import save_whisper, write_speech
from tests.training.bases import train_from_rank_0, without_weights
from tests.training.skipped import Where, changed_steps
from weft.artifacts import Manifest
from weft.audio import load, save
from weft.config import settings_of
from weft.data.speech import read_manifest
from weft.errors import UserError
from weft.tokenizer import train
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.codebook import CodebookMonitor
from weft.tokenizer.config import PartLrRatios, TokenizerConfig, WhisperShape
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.init import from_whisper
from weft.tokenizer.quantizer import QuantizerConfig, VectorQuantizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.train import run
from weft.training.config import TrainConfig
from weft.training.metrics import read_metrics
from weft.voices.speak import Line, speak_lines

SENTENCES = ["the cat sat", "a dog ran off", "birds sing", "one red boat", "the old house", "rain and wind"]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    speak_lines([Line(f"u{i}", text, "espeak:en-us") for i, text in enumerate(SENTENCES)], folder)
    return folder


def config(speech: Path, out: Path, **train_settings: Any) -> TokenizerConfig:
    return TokenizerConfig(
        out=out,
        speech=(speech,),
        held_out=(speech,),
        whisper=WhisperShape(width=32, encoder_layers=2, decoder_layers=1, heads=2, vocab_size=40),
        model=BottleneckConfig(
            layer=1,
            log_mel_floor="fixed",
            quantizer=QuantizerConfig(num_codes=16, decay=0.9, commitment=1.0, restart_every_steps=2),
        ),
        train=replace(
            TrainConfig(
                steps=8, lr=2e-3, warmup_steps=2, checkpoint_every_steps=2, log_every_steps=1, precision="fp32"
            ),
            **train_settings,
        ),
        batch_sec=4.0,
        quantize_from_step=3,
        ctc_outputs=3,
    )


@pytest.fixture(scope="module")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizerConfig, Manifest]:
    """A configuration and the manifest of the tokenizer that it has trained."""
    recipe = config(speech, tmp_path_factory.mktemp("trained") / "tokenizer")
    return recipe, run(recipe)


@contextmanager
def interrupted_at(*calls: int) -> Iterator[None]:
    """Interrupt the training inside at these computations of the loss, counted from 0."""
    real, numbers = train.AsrObjective.losses, iter(range(1000))

    def losses(self: train.AsrObjective, *arguments: Any) -> dict[str, torch.Tensor]:
        if next(numbers) in calls:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.AsrObjective, "losses", losses)
        yield


def test_a_run_interrupted_at_any_step_resumes_to_the_same_weights(
    trained: tuple[TokenizerConfig, Manifest], tmp_path: Path
) -> None:
    recipe = replace(trained[0], out=tmp_path / "resumed")
    with interrupted_at(1, 5, 9):
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(recipe)
        resumed = run(recipe)
    assert resumed.fingerprint == trained[1].fingerprint
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed/log/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(8))


def test_the_saved_tokenizer_is_the_trained_one(trained: tuple[TokenizerConfig, Manifest], speech: Path) -> None:
    recipe, manifest = trained
    assert {"wer", "cer", "codes_used_share", "parameters"} <= manifest.counts.keys()
    tokenizer = SpeechTokenizer.from_pretrained(recipe.out)
    codes = tokenizer.encode([load(u.audio) for u in read_manifest(speech)])
    assert all(c.max() < 16 for c in codes)
    assert len(tokenizer.transcribe(codes)) == len(SENTENCES)
    with pytest.raises(UserError, match="code 16"):
        tokenizer.transcribe([[3, 16]])
    assert not recipe.out.with_name("tokenizer.partial").exists()
    assert not (recipe.out / "checkpoints").exists()


def test_settings_that_cannot_change_the_result_never_block_a_resume(
    trained: tuple[TokenizerConfig, Manifest], speech: Path, tmp_path: Path
) -> None:
    """Nor do other paths of the same speech."""
    recipe, manifest = trained
    shutil.copytree(speech, tmp_path / "moved")
    changed = replace(
        recipe,
        speech=(tmp_path / "moved",),
        held_out=(tmp_path / "moved/manifest.jsonl",),
        cache_gb=0.0,
        load_threads=1,
        licence="CC0",
        max_bad_fraction=0.5,
        train=replace(
            recipe.train,
            grad_accum_steps=2,
            checkpoint_every_steps=5,
            keep_checkpoints=1,
            log_every_steps=3,
            max_skipped_steps=9,
        ),
    )
    assert settings_of(changed) == settings_of(recipe)
    assert run(replace(changed, licence=None)) == manifest
    out = tmp_path / "interrupted"
    with interrupted_at(5), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=out))
    resumed = run(replace(changed, out=out))
    assert resumed.settings == manifest.settings
    assert [line["step"] for line in read_metrics(out / "log")] == [0, 1, 2, 3, 6, 7]
    assert resumed.notes["licences"] == "CC0"


CHANGES: dict[str, Callable[[TokenizerConfig], TokenizerConfig]] = {
    r"train\.lr = 0\.002 \(now 0\.003\)": lambda c: replace(c, train=replace(c.train, lr=3e-3)),
    r"recase = False \(now True\)": lambda c: replace(c, recase=True),
    r"batch_sec = 4\.0 \(now 5\.0\)": lambda c: replace(c, batch_sec=5.0),
    r"model\.quantizer\.num_codes = 16 \(now 8\)": lambda c: replace(
        c, model=replace(c.model, quantizer=replace(c.model.quantizer, num_codes=8))
    ),
    r"augment\.time_masks = 0 \(now 1\), whisper\.width = 32 \(now 64\)": lambda c: replace(
        c, augment=AugmentConfig(time_masks=1), whisper=replace(c.whisper, width=64)
    ),
    "other contents of held_out": lambda c: replace(c, held_out=()),
}


@pytest.mark.parametrize("message", CHANGES)
def test_another_setting_blocks_a_resume_and_both_values_are_reported(
    message: str, trained: tuple[TokenizerConfig, Manifest]
) -> None:
    recipe, manifest = trained
    with pytest.raises(UserError, match=f"was created with {message}: choose another --out, or delete"):
        run(CHANGES[message](recipe))
    assert run(recipe) == manifest


def test_edited_speech_and_settings_block_the_resume_of_a_partial_tokenizer(speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech, tmp_path / "speech")
    (tmp_path / "speech/manifest.json").unlink()  # otherwise it is an artifact, in which nothing may be edited
    recipe = replace(config(tmp_path / "speech", tmp_path / "out"), held_out=())
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        run(recipe)
    with pytest.raises(UserError, match=r"out\.partial was started with train\.lr = 0\.002 \(now 0\.1\): restore"):
        run(replace(recipe, train=replace(recipe.train, lr=0.1)))
    audio = Path(read_manifest(tmp_path / "speech")[0].audio)
    original = audio.read_bytes()
    save(audio, 0.5 * load(audio), 16_000)
    with pytest.raises(UserError, match=r"out\.partial was started with other contents of speech: restore"):
        run(recipe)
    audio.write_bytes(original)
    assert run(recipe).counts["utterances"] == len(SENTENCES)


def test_a_run_with_pseudo_labels_augmentation_and_no_cache_resumes_exactly(speech: Path, tmp_path: Path) -> None:
    plain = config(speech, tmp_path / "whole", steps=5, grad_accum_steps=2)
    recipe = replace(
        plain,
        held_out=(),
        pseudo=(speech,),
        supervised_fraction=0.5,
        cache_gb=0.0,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1)),
    )
    whole = run(recipe)
    assert whole.fingerprint != run(replace(recipe, augment=AugmentConfig(), out=tmp_path / "plain")).fingerprint
    with interrupted_at(7), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=tmp_path / "resumed"))
    assert run(replace(recipe, out=tmp_path / "resumed", cache_gb=1.0)).fingerprint == whole.fingerprint


def test_noise_resumes_exactly_and_belongs_to_the_plan(speech: Path, tmp_path: Path) -> None:
    recipe = replace(
        config(speech, tmp_path / "whole", steps=5),
        held_out=(),
        noise=(speech,),
        augment=AugmentConfig(babble_probability=0.5, recording_probability=0.5, reverberation_probability=0.5),
    )
    whole = run(recipe)
    with interrupted_at(4), pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=tmp_path / "resumed"))
    assert run(replace(recipe, out=tmp_path / "resumed", cache_gb=0.0)).fingerprint == whole.fingerprint
    write_speech(tmp_path / "noise", 1)
    with pytest.raises(UserError, match="other contents of noise"):
        run(replace(recipe, noise=(tmp_path / "noise",)))
    with pytest.raises(UserError, match="consistency_weight needs distortions"):
        run(replace(recipe, noise=(), augment=AugmentConfig(), consistency_weight=1.0))
    for bad in (replace(recipe, noise=()), replace(recipe, augment=AugmentConfig(babble_probability=0.5))):
        with pytest.raises(UserError, match="belong together"):
            run(bad)


def metrics_of(recipe: TokenizerConfig) -> list[dict[str, float]]:
    run(recipe)
    return list(read_metrics(recipe.out / "log"))


def test_two_processes_train_on_augmented_speech_as_one_does(speech: Path, tmp_path: Path) -> None:
    """And as one does in micro-batches, with the same losses, codes and restarts."""
    recipe = replace(
        config(speech, tmp_path / "one", steps=6),
        held_out=(),
        pseudo=(speech,),
        supervised_fraction=0.5,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1), noise_probability=0.5, babble_probability=0.5),
        consistency_weight=1.0,
        quantize_from_step=2,
    )
    alone = metrics_of(recipe)
    in_parts = metrics_of(replace(recipe, out=tmp_path / "parts", train=replace(recipe.train, grad_accum_steps=3)))
    together = in_ranks(metrics_of, tmp_path, replace(recipe, out=tmp_path / "two"))[0]
    assert len(alone) == len(in_parts) == len(together) == 6
    assert alone[-1]["restarts"] > 0
    for expected, *others in zip(alone, in_parts, together, strict=True):
        assert {"cross_entropy", "ctc"} <= expected.keys()
        for name in ("commitment", "consistency", "code_agreement"):
            assert (name in expected) == (expected["step"] >= 2)
        for found in others:
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("multilingual", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_a_whisper_is_a_base_and_its_weights_are_kept(
    speech: Path, tmp_path: Path, multilingual: bool, dtype: torch.dtype
) -> None:
    """Large Whispers are published in fp16."""
    base = save_whisper(tmp_path / "whisper", multilingual)
    whisper = WhisperForConditionalGeneration.from_pretrained(base, dtype=dtype)
    whisper.save_pretrained(base)
    recipe = replace(
        config(speech, tmp_path / "out", steps=1, lr=0.0, weight_decay=0.0), base=base, quantize_from_step=0
    )
    assert "wer" in run(recipe).counts
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "out")
    assert set(tokenizer.prompt.languages) == ({"en", "zh"} if multilingual else set())
    weights = tokenizer.model.whisper.state_dict()
    for name, weight in whisper.state_dict().items():
        assert torch.equal(weights[name], weight.float()), name
    with pytest.raises(UserError, match="not a Hugging Face Whisper"):
        run(replace(recipe, base=speech, out=tmp_path / "other"))


def test_parts_have_their_learning_rates_and_a_part_with_0_keeps_its_weights(speech: Path, tmp_path: Path) -> None:
    base = save_whisper(tmp_path / "whisper")
    ratios = PartLrRatios(before=0.1, after=1.0, decoder=0.0)
    settings = {"steps": 1, "warmup_steps": 0, "lr": 1e-3, "weight_decay": 0.0}
    recipe = replace(config(speech, tmp_path / "out", **settings), base=base, quantize_from_step=0, lr_ratio=ratios)
    run(replace(recipe, distillation_weight=1.0))
    trained = dict(SpeechTokenizer.from_pretrained(tmp_path / "out").model.named_parameters())
    model = from_whisper(base, recipe.model).model
    largest = {"before": 0.0, "after": 0.0, "decoder": 0.0}
    for name, p in model.named_parameters():
        part = model.part_of(name)
        largest[part] = max(largest[part], float((trained[name] - p).abs().max().detach()))
    assert largest["decoder"] == 0
    assert largest["after"] == pytest.approx(1e-3, rel=0.05)  # AdamW's first update is the learning rate
    assert largest["before"] == pytest.approx(1e-4, rel=0.05)


def test_training_continues_from_a_tokenizer_and_keeps_codes_whose_layers_are_fixed(
    trained: tuple[TokenizerConfig, Manifest], speech: Path, tmp_path: Path
) -> None:
    first = trained[0].out
    recipe = replace(config(speech, tmp_path / "out", steps=4), init=first, quantize_from_step=0)
    run(replace(recipe, lr_ratio=PartLrRatios(before=0.0)))
    before, after = (SpeechTokenizer.from_pretrained(folder) for folder in (first, tmp_path / "out"))
    samples = [load(u.audio) for u in read_manifest(speech)]
    assert all(map(np.array_equal, before.encode(samples), after.encode(samples)))
    changed = {n for n, p in after.model.named_parameters() if not torch.equal(p, before.model.get_parameter(n))}
    assert {after.model.part_of(name) for name in changed} == {"after", "decoder"}
    run(replace(recipe, out=tmp_path / "other"))
    other = SpeechTokenizer.from_pretrained(tmp_path / "other").model.quantizer
    assert not torch.equal(other.decode(torch.arange(16)), after.model.quantizer.decode(torch.arange(16)))
    with pytest.raises(UserError, match="init has a codebook: remove quantize_from_step"):
        run(replace(recipe, quantize_from_step=2))


def test_a_base_in_fp16_trains_as_its_copy_in_fp32(speech: Path, tmp_path: Path) -> None:
    whisper = WhisperForConditionalGeneration.from_pretrained(save_whisper(tmp_path / "fp16"), dtype=torch.float16)
    shutil.copytree(tmp_path / "fp16", tmp_path / "fp32")
    whisper.save_pretrained(tmp_path / "fp16")
    whisper.float().save_pretrained(tmp_path / "fp32")
    metrics = []
    for name in ("fp16", "fp32"):
        recipe = replace(config(speech, tmp_path / f"out-{name}", steps=4), base=tmp_path / name, quantize_from_step=2)
        metrics.append(metrics_of(replace(recipe, held_out=())))
    assert metrics[0] == metrics[1]
    assert metrics[0][-1]["loss"] != metrics[0][0]["loss"]


def test_only_rank_0_reads_the_weights_of_the_base(speech: Path, tmp_path: Path) -> None:
    """Both ranks start and end with the same weights, and the result is that of one process."""
    base = save_whisper(tmp_path / "whisper")
    empty = without_weights(base, tmp_path / "empty")
    recipe = config(speech, tmp_path / "alone", steps=3)
    recipe = replace(recipe, base=base, held_out=(), quantize_from_step=1)
    expected = train_from_rank_0(run, recipe, empty)
    for start, end in in_ranks(train_from_rank_0, tmp_path, run, replace(recipe, out=tmp_path / "both"), empty):
        assert start.keys() == expected[0].keys()
        assert all(torch.equal(start[name], weight) for name, weight in expected[0].items())
        torch.testing.assert_close(end, expected[1], rtol=0, atol=1e-4)


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


def test_contradicting_settings_are_rejected_before_anything_is_read(tmp_path: Path) -> None:
    recipe = config(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(UserError, match="quantize_from_step is 8: give less than 8 steps"):
        run(replace(recipe, quantize_from_step=8))
    with pytest.raises(UserError, match="encoder_only is true: set it to false"):
        run(replace(recipe, model=replace(recipe.model, encoder_only=True)))
    with pytest.raises(UserError, match="distillation_weight is set without base"):
        run(replace(recipe, distillation_weight=1.0))
    with pytest.raises(UserError, match="lr_ratio is 0 for all parts"):
        run(replace(recipe, lr_ratio=PartLrRatios(0.0, 0.0, 0.0)))


def test_a_collapsed_codebook_is_reported_with_the_settings_to_change(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CodebookMonitor, "MIN_STEPS", 2)
    monkeypatch.setattr(CodebookMonitor, "MIN_USES_PER_CODE", 1)
    healthy = replace(config(speech, tmp_path / "healthy"), held_out=())
    assert "warnings" not in run(healthy).notes
    quantizer = replace(healthy.model.quantizer, restart_every_steps=0, decay=0.0)
    monkeypatch.setattr(VectorQuantizer, "encode", lambda self, hidden: torch.zeros(hidden.shape[:-1]).long())
    collapsed = run(replace(healthy, out=tmp_path / "collapsed", model=replace(healthy.model, quantizer=quantizer)))
    assert "has collapsed: only 1 of 16 codes" in collapsed.notes["warnings"]
    assert re.search(r"weft: step \d: the codebook has collapsed.*restart_every_steps", capsys.readouterr().err)


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
