"""What the bottleneck takes is measured against the same model without it; a collapsed codebook is told."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import make_tokenizer
from weft import artifacts, cli
from weft.audio import save
from weft.errors import UserError
from weft.eval.tokenizer import codebook, measure
from weft.records import Utterance
from weft.tokenizer.tokenizer import SpeechTokenizer

TEXTS = ["the cat sat", "on the mat", "the mat", "a cat on the cat"]


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    """Seven codes each: all of them fit the codebook of 32."""
    rng = np.random.default_rng(3)
    return [(rng.normal(size=8_900) * 0.02 * 4**i).astype(np.float32) for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def utterances(sounds: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("sounds")
    for i, samples in enumerate(sounds):
        save(folder / f"{i}.wav", samples, 16_000)
    return [Utterance(f"u{i}", str(folder / f"{i}.wav"), text, f"speaker-{i % 2}") for i, text in enumerate(TEXTS)]


def knowing(tokenizer: SpeechTokenizer, sounds: list[np.ndarray]) -> SpeechTokenizer:
    """The tokenizer with a codebook of exactly the hidden states of `sounds`: nothing is lost."""
    with torch.no_grad():
        batch, frames = tokenizer.collate([tokenizer.features(x) for x in sounds], [len(x) for x in sounds])
        states = tokenizer.model.first_half(batch, frames)[tokenizer.real_codes(frames)]
        tokenizer.model.quantizer.codebook.fill_(1e3)
        tokenizer.model.quantizer.codebook[: len(states)] = states
    return tokenizer


def test_a_bottleneck_that_loses_nothing_reads_as_an_open_one(sounds: list[np.ndarray]) -> None:
    tokenizer = make_tokenizer()
    before = tokenizer.transcribe_open(sounds)
    assert len(set(before)) > 1
    assert tokenizer.transcribe(tokenizer.encode(sounds)) != before
    knowing(tokenizer, sounds)
    assert tokenizer.transcribe_open(sounds) == before
    assert tokenizer.transcribe(tokenizer.encode(sounds)) == before


def test_long_recordings_are_read_window_by_window(sounds: list[np.ndarray]) -> None:
    tokenizer = make_tokenizer()
    window = tokenizer.codes_per_window * tokenizer.samples_per_code
    long = np.tile(sounds[2], 5)[: window + 3_000]
    parts = tokenizer.transcribe_open([long[:window], long[window:]])
    assert tokenizer.transcribe_open([sounds[0], long, sounds[0][:0]])[1:] == [" ".join(parts), ""]


def test_figures_are_those_of_known_transcripts(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(
        tokenizer, "transcribe", lambda codes, languages: ["the cat sat", "", "the hat", "a cat on the cat"]
    )
    monkeypatch.setattr(tokenizer, "transcribe_open", lambda audio, languages: TEXTS)
    silent = Utterance("silent", utterances[0].audio, "...", "speaker-9")
    found = measure(tokenizer, [*utterances, silent])
    assert found["utterances"] == 4
    assert found["wer"]["rate"] == pytest.approx(4 / 13)  # "on the mat" and "mat"
    assert found["cer"]["rate"] == pytest.approx(9 / 35)  # 8 letters and "m"
    assert found["empty_share"] == 0.25
    assert found["open"] == {
        "wer": {"rate": 0.0, "low": 0.0, "high": 0.0, "num_units": 13},
        "cer": {"rate": 0.0, "low": 0.0, "high": 0.0, "num_units": 35},
        "empty_share": 0.0,
    }
    assert list(found["speakers"]) == ["speaker-1", "speaker-0"]  # most errors first
    for rate in ("wer", "cer"):
        parts = [s[rate] for s in found["speakers"].values()]
        assert sum(p["num_units"] for p in parts) == found[rate]["num_units"]
        errors = sum(p["rate"] * p["num_units"] for p in parts)
        assert errors / found[rate]["num_units"] == pytest.approx(found[rate]["rate"])
    assert sum(s["seconds"] for s in found["speakers"].values()) == pytest.approx(found["seconds"], abs=0.02)
    assert found["tokens"] == sum(map(len, tokenizer.encode([np.zeros(8_900, np.float32)] * 4)))
    with pytest.raises(UserError, match="no speech with transcripts"):
        measure(tokenizer, [silent])


def test_languages_are_told_both_ways(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, told = make_tokenizer(), []
    for name in ("transcribe", "transcribe_open"):
        monkeypatch.setattr(tokenizer, name, lambda sounds, languages: told.append(languages) or [""] * len(sounds))
    spoken = ["en", None, "zh", "en"]
    measure(tokenizer, [replace(u, language=name) for u, name in zip(utterances, spoken, strict=True)])
    assert told == [spoken, spoken]


def test_the_chunks_it_works_in_do_not_matter(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    whole = measure(tokenizer, utterances)
    monkeypatch.setattr("weft.tokenizer.hearing._CHUNK_UTTERANCES", 3)
    assert measure(tokenizer, utterances) == whole


def test_health_of_known_counts() -> None:
    even = codebook(torch.full((64,), 5), 12.5)
    assert even["codes_used"] == even["num_codes"] == 64
    assert even["perplexity"] == pytest.approx(64)
    assert even["bits_per_sec"] == pytest.approx(75)
    assert even["nominal_bits_per_sec"] == 75
    assert even["most_frequent_share"] == pytest.approx(10 / 64)
    half = codebook(torch.tensor([7, 7, 0, 0]), 25.0)
    assert (half["codes_used_share"], half["bits_per_sec"], half["nominal_bits_per_sec"]) == (0.5, 25.0, 50.0)


def test_the_verb_writes_and_prints_it(
    utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model.quantizer.codebook[1:] = 1e3
    with artifacts.build(tmp_path / "bundle/tokenizer", "tokenizer", {"model": asdict(tokenizer.model.config)}) as d:
        tokenizer.save(d.folder)
    rows = [{"id": u.id, "audio": u.audio, "text": u.text, "speaker": u.speaker} for u in utterances]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(tmp_path / "bundle"), "--speech", str(tmp_path / "manifest.jsonl")]
    assert cli.run(["eval", "tokenizer", *arguments, "--out", str(tmp_path / "results.json")]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["tokenizer"]
    assert found["codes_used"] == 1
    assert "has collapsed: only 1 of 32 codes" in found["warnings"][0]
    printed = capsys.readouterr().out
    assert "has collapsed: only 1 of 32 codes" in printed
    assert "speaker-0" in printed
    assert cli.run(["eval", "tokenizer", *arguments[:2], "--out", str(tmp_path / "other.json")]) == 2
