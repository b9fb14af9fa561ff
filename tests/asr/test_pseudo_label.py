import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.conftest import save_whisper
from weft.artifacts import Manifest
from weft.asr import pseudo_label
from weft.asr.pseudo_label import PseudoLabelConfig, run
from weft.asr.transcribe import Transcriber, Transcript
from weft.audio import load, save
from weft.data.job import JobConfig, Report
from weft.data.speech import read_manifest
from weft.errors import UserError

LENGTHS = {"a": 20_000, "b": 100_000, "c": 38_400, "d": 9_000}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PseudoLabelConfig:
    """Noise, one recording longer than two windows, and a Whisper."""
    folder = tmp_path_factory.mktemp("pseudo")
    rng = np.random.default_rng(0)
    for name, num_samples in LENGTHS.items():
        save(folder / f"noise/{name}.wav", 0.1 * rng.standard_normal(num_samples, np.float32), 16_000)
    return PseudoLabelConfig(
        (folder / "noise",), save_whisper(folder / "whisper"), folder / "out", language="en", min_log_prob=-100.0,
        max_repetition=100.0, batch_size=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def created(config: PseudoLabelConfig) -> Manifest:
    return run(config)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_speech_has_a_transcript_or_is_listed_and_no_audio_is_copied(
    config: PseudoLabelConfig, created: Manifest
) -> None:
    found, listed = read_manifest(config.out), rows(config.out / "log/left_out.jsonl")
    assert created.counts["utterances"] == len(found) >= 4
    assert created.counts["left_out"] == len(listed)
    assert all(row["left_out"] == "empty transcript" for row in listed)
    assert created.counts["seconds"] == pytest.approx(sum(u.seconds or 0 for u in found), abs=0.01)
    assert not list(config.out.rglob("*.wav"))
    assert all(u.text and u.language == "en" for u in found)
    for u in found:
        assert len(load(u.audio)) <= 38_400
        assert len(load(u.audio)) == pytest.approx(16_000 * (u.seconds or 0), abs=8)  # of seconds to three decimals
    audio = {u.id: u.audio for u in found} | {str(row["id"]): str(row["audio"]) for row in listed}
    for name in LENGTHS:
        pieces = [load(audio[id]) for id in sorted(audio) if id.split("-")[0] == name]
        assert np.array_equal(np.concatenate(pieces), load(config.audio[0] / f"{name}.wav"))
    log_probs = [float(str(row["log_prob"])) for row in rows(config.out / "manifest.jsonl")]
    assert created.counts["mean_log_prob"] == pytest.approx(np.mean(log_probs), abs=1e-3)
    assert run(config) == created


def test_poor_transcripts_are_left_out_counted_and_listed(
    config: PseudoLabelConfig, created: Manifest, tmp_path: Path
) -> None:
    empty = {row["id"] for row in rows(config.out / "log/left_out.jsonl")}
    log_probs = {str(row["id"]): float(str(row["log_prob"])) for row in rows(config.out / "manifest.jsonl")}
    threshold = float(np.mean(sorted(log_probs.values())[1:3]))  # between two, because they are rounded
    manifest = run(replace(config, out=tmp_path / "out", min_log_prob=threshold))
    kept = {u.id for u in read_manifest(tmp_path / "out")}
    left_out = {row["id"]: row["left_out"] for row in rows(tmp_path / "out/log/left_out.jsonl")}
    assert kept | left_out.keys() == log_probs.keys() | empty
    assert (len(kept), len(left_out)) == (manifest.counts["utterances"], manifest.counts["left_out"])
    assert all((name in kept) == (p >= threshold) for name, p in log_probs.items())
    with pytest.raises(UserError, match=r"\d transcripts, none of them usable: lower min_log_prob"):
        run(replace(config, out=tmp_path / "none", min_log_prob=0.0))


@pytest.mark.parametrize(
    ("transcript", "reason"),
    [
        (Transcript("", 0.0, None), "empty transcript"),
        (Transcript("a", -1.01, None), "log-probability -1.01"),
        (Transcript("a", float("nan"), None), "log-probability nan"),
        (Transcript("and so on, " * 20, -0.1, None), "repetitive"),
        (Transcript("We sailed at dawn and saw no land for nine days, then gulls came.", -0.9, None), None),
    ],
)
def test_empty_improbable_and_repetitive_transcripts_are_left_out(transcript: Transcript, reason: str | None) -> None:
    config = PseudoLabelConfig((), Path("whisper"), Path("out"))
    found = pseudo_label._PseudoLabel(config, [], Path("out"), 1)._reason_to_leave_out(transcript)
    assert found is None if reason is None else reason in (found or "")


def test_an_interrupted_run_resumes_to_the_same_result(
    config: PseudoLabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_label, "_SEC_PER_TASK", 3.0)
    config = replace(config, out=tmp_path / "out")
    real, done = pseudo_label._PseudoLabel.__call__, []

    def interrupted(self: pseudo_label._PseudoLabel, task: int) -> Report:
        done.append(task)
        if done.count(2) == 1 and task == 2:
            raise KeyboardInterrupt
        return real(self, task)

    monkeypatch.setattr(pseudo_label._PseudoLabel, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert run(config).fingerprint == run(replace(config, out=tmp_path / "whole")).fingerprint
    assert sorted(done[:5]) == [0, 1, 2, 2, 3]


def test_a_recording_that_cannot_be_transcribed_loses_no_other(
    config: PseudoLabelConfig, created: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcribe = Transcriber.__call__

    def limited(self: Transcriber, windows: list[np.ndarray], *arguments: Any) -> list[Transcript]:
        if any(len(window) == LENGTHS["d"] for window in windows):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return transcribe(self, windows, *arguments)

    monkeypatch.setattr(Transcriber, "__call__", limited)
    manifest = run(replace(config, out=tmp_path / "out", job=JobConfig(max_bad_fraction=0.5)))
    assert manifest.counts["skipped_utterances"] == 1
    assert "CUDA out of memory" in (tmp_path / "out/log/skipped.jsonl").read_text()
    assert {u.id for u in read_manifest(tmp_path / "out")} == {u.id for u in read_manifest(config.out)} - {"d"}


def test_unreadable_audio_and_unsupported_languages_are_reported(config: PseudoLabelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no language 'xx'"):
        run(replace(config, out=tmp_path / "out", language="xx"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/text.wav").write_bytes(b"this is no audio")
    config = replace(config, out=tmp_path / "out", audio=(*config.audio, tmp_path / "bad"))
    with pytest.raises(UserError, match="1 of 5 items"):
        run(config)
    assert run(replace(config, job=JobConfig(max_bad_fraction=0.5))).counts["skipped_utterances"] == 1
