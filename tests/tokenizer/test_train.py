import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ranks import in_ranks
from tests.tokenizer.conftest import save_whisper, tiny_whisper
from weft import artifacts
from weft.audio import load, save
from weft.data.corpus import read_manifest
from weft.errors import UserError
from weft.tokenizer import train
from weft.tokenizer.augment import AugmentConfig
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.quantizer import CodebookWatch, QuantizerConfig, VectorQuantizer
from weft.tokenizer.recipe import TokenizerConfig, WhisperShape
from weft.tokenizer.tokenize import TokenizeConfig
from weft.tokenizer.tokenize import run as tokenize
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.train import run
from weft.training.loop import TrainConfig
from weft.training.metrics import read_metrics
from weft.voices import Line, speak_corpus

SENTENCES = ["the cat sat", "a dog ran off", "birds sing", "one red boat", "the old house", "rain and wind"]


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    speak_corpus([Line(f"u{i}", text, "espeak:en-us") for i, text in enumerate(SENTENCES)], folder)
    return folder


def config(speech: Path, out: Path) -> TokenizerConfig:
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
        train=TrainConfig(
            steps=8, lr=2e-3, warmup_steps=2, checkpoint_every_steps=2, log_every_steps=1, precision="fp32"
        ),
        batch_sec=4.0,
        quantize_from_step=3,
        ctc_outputs=3,
    )


def test_killed_at_any_step_and_run_again_gives_the_same_weights(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config(speech, tmp_path / "whole"))
    real = train.AsrObjective.losses
    calls = iter(range(1000))

    def dies(self: train.AsrObjective, *arguments: object) -> object:
        if next(calls) in (1, 5, 9):
            raise KeyboardInterrupt
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train.AsrObjective, "losses", dies)
    deaths = 0
    while True:
        try:
            resumed = run(config(speech, tmp_path / "resumed"))
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths == 3
    assert resumed.fingerprint == whole.fingerprint
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed/log/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(8))


def test_what_is_saved_is_what_was_trained(speech: Path, tmp_path: Path) -> None:
    made = run(config(speech, tmp_path / "tokenizer"))
    assert {"wer", "cer", "codes_used_share", "parameters"} <= made.counts.keys()
    tokenizer = SpeechTokenizer.load(tmp_path / "tokenizer")
    codes = tokenizer.encode([load(u.audio) for u in read_manifest(speech)])
    assert all(c.max() < 16 for c in codes)
    assert len(tokenizer.transcribe(codes)) == len(SENTENCES)
    with pytest.raises(UserError, match="code 16"):
        tokenizer.transcribe([[3, 16]])
    assert not (tmp_path / "tokenizer.partial").exists()
    assert not (tmp_path / "tokenizer/checkpoints").exists()


def test_a_run_on_two_kinds_of_augmented_speech_read_on_the_fly_continues_exactly(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = config(speech, tmp_path / "whole")
    recipe = replace(
        plain,
        pseudo=(speech,),
        supervised_share=0.5,
        cache_gb=0.0,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1)),
        train=replace(plain.train, accumulate=2),
    )
    whole = run(recipe)
    assert whole.fingerprint != run(replace(recipe, augment=AugmentConfig(), out=tmp_path / "as_is")).fingerprint
    real, calls = train.AsrObjective.losses, iter(range(1000))

    def dies(self: train.AsrObjective, *arguments: object) -> object:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train.AsrObjective, "losses", dies)
    with pytest.raises(KeyboardInterrupt):
        run(replace(recipe, out=tmp_path / "resumed"))
    assert run(replace(recipe, out=tmp_path / "resumed", cache_gb=1.0)).fingerprint == whole.fingerprint


def logged(recipe: TokenizerConfig) -> list[dict[str, float]]:
    run(recipe)
    return list(read_metrics(recipe.out / "log"))


def test_two_processes_train_on_augmented_speech_as_one_does(speech: Path, tmp_path: Path) -> None:
    """Until the codebook begins, for which each process draws from hidden states of its own."""
    plain = config(speech, tmp_path / "one")
    recipe = replace(
        plain,
        held_out=(),
        pseudo=(speech,),
        supervised_share=0.5,
        augment=AugmentConfig(1, 10, 1, 10, speeds=(0.9, 1.1)),
        quantize_from_step=7,
        ctc_outputs=0,  # CTC is a mean over letters, and parts of a step are weighed by text tokens
    )
    found, alone = in_ranks(logged, tmp_path, replace(recipe, out=tmp_path / "two"))[0], logged(recipe)
    assert len(found) == len(alone) == 8
    for a, b in zip(found[:7], alone[:7], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("multilingual", [True, False])
def test_a_real_whisper_is_prompted_as_it_was_trained(speech: Path, tmp_path: Path, multilingual: bool) -> None:
    base = save_whisper(tmp_path / "whisper", multilingual, window_frames=1500)
    plain = config(speech, tmp_path / "out")
    recipe = replace(plain, base=base, train=replace(plain.train, steps=4), quantize_from_step=0)
    assert "wer" in run(recipe).counts
    made = SpeechTokenizer.load(tmp_path / "out")
    codes = made.encode([load(u.audio) for u in read_manifest(speech)][:2])
    prompts = {}
    for given in (None, "en", "zh"):
        heard, valid = made._hear(codes)
        rows = made._prompted(heard, valid, [given, given]).tolist()
        prompts[given] = [made.text_tokenizer.convert_ids_to_tokens(row) for row in rows]
        assert [row[: len(rows[0])] for row in made._read(heard, valid, [given, given])] == rows
    if not multilingual:
        assert all(rows == [["<|startoftranscript|>", "<|notimestamps|>"]] * 2 for rows in prompts.values())
        return
    for language, rows in prompts.items():
        for row in rows:
            assert [row[0], *row[2:]] == ["<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"]
            assert row[1] == f"<|{language}|>" if language else row[1] in ("<|en|>", "<|zh|>")
    with pytest.raises(UserError, match="'fr' is none that this Whisper knows"):
        made.transcribe(codes, ["fr", "en"])


def test_held_out_speech_is_in_the_recipes_language_where_it_names_none(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": u.id, "audio": u.audio, "text": u.text} for u in read_manifest(speech)]
    rows[0]["language"], rows[1]["text"] = "en", "..."
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = replace(
        config(speech, tmp_path / "out"), base=save_whisper(tmp_path / "whisper", True, 1500), language="zh"
    )
    heard = []
    monkeypatch.setattr(train, "measure", lambda _, utterances: heard.extend(utterances) or {})
    run(replace(plain, held_out=(tmp_path / "manifest.jsonl",), train=replace(plain.train, steps=4)))
    assert [u.language for u in heard] == ["en", *["zh"] * 4]
    assert rows[1]["id"] not in {u.id for u in heard}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # large Whispers are published in fp16
def test_a_whisper_folder_is_a_base_and_its_weights_are_kept(speech: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    from weft.tokenizer.text import text_tokenizer

    words = text_tokenizer(SENTENCES, 60)
    whisper = tiny_whisper(len(words)).to(dtype)
    whisper.save_pretrained(tmp_path / "whisper")
    words.save_pretrained(tmp_path / "whisper")
    recipe = replace(config(speech, tmp_path / "out"), base=tmp_path / "whisper", quantize_from_step=0)
    run(replace(recipe, train=replace(recipe.train, steps=1, lr=0.0, weight_decay=0.0)))
    kept = SpeechTokenizer.load(tmp_path / "out").model.whisper.state_dict()
    for name, weight in whisper.state_dict().items():
        assert torch.equal(kept[name], weight.float()), name
    with pytest.raises(UserError, match="not a Hugging Face Whisper"):
        run(replace(recipe, base=speech, out=tmp_path / "other"))


def test_bad_utterances_are_skipped_counted_and_too_many_stop(speech: Path, tmp_path: Path) -> None:
    rows = [{"id": u.id, "audio": u.audio, "text": u.text} for u in read_manifest(speech)]
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    save(tmp_path / "short.wav", np.zeros(1600, np.float32), 16_000)
    bad = [
        {"id": "missing", "audio": "gone.wav", "text": "a"},
        {"id": "noise", "audio": "noise.wav", "text": "a"},
        {"id": "silent", "audio": rows[0]["audio"]},
        {"id": "long", "audio": "short.wav", "text": "far too many words for a tenth of a second"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows + bad))
    with pytest.raises(UserError, match="4 of 10 items are bad"):
        run(replace(config(tmp_path / "manifest.jsonl", tmp_path / "out"), held_out=()))
    made = run(replace(config(tmp_path / "manifest.jsonl", tmp_path / "kept"), held_out=(), max_bad_share=0.5))
    assert made.counts["utterances"] == len(SENTENCES)
    listed = [json.loads(line)["where"] for line in (tmp_path / "kept/log/skipped.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["long", "missing", "noise", "silent"]


def test_a_tokenizer_tokenizes_a_folder_once(speech: Path, tmp_path: Path) -> None:
    run(config(speech, tmp_path / "tokenizer"))
    recipe = TokenizeConfig((speech,), tmp_path / "tokenizer", tmp_path / "codes")
    made = tokenize(recipe)
    assert made.parents["tokenizer"] == artifacts.read(tmp_path / "tokenizer").fingerprint
    assert made.counts["utterances"] == len(SENTENCES)
    assert tokenize(recipe) == made


def test_a_collapsed_codebook_is_told_with_the_remedy(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CodebookWatch, "LEAST_STEPS", 2)
    monkeypatch.setattr(CodebookWatch, "USES_PER_CODE", 1)
    healthy = config(speech, tmp_path / "healthy")
    assert "warnings" not in run(healthy).notes
    quantizer = replace(healthy.model.quantizer, restart_every_steps=0, decay=0.0)
    monkeypatch.setattr(VectorQuantizer, "nearest", lambda self, hidden: torch.zeros(hidden.shape[:-1]).long())
    made = run(replace(healthy, out=tmp_path / "dead", model=replace(healthy.model, quantizer=quantizer)))
    assert "has collapsed: only 1 of 16 codes" in made.notes["warnings"]
    assert re.search(r"weft: step \d: the codebook has collapsed.*restart_every_steps", capsys.readouterr().err)
