import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer.conftest import save_whisper
from weft.audio import load, save
from weft.data.corpus import read_manifest
from weft.data.job import Report
from weft.errors import UserError
from weft.tokenizer import pseudo_label
from weft.tokenizer.pseudo_label import PseudoLabelConfig, run
from weft.tokenizer.transcriber import Heard

LENGTHS = {"a": 20_000, "b": 100_000, "c": 38_400, "d": 9_000}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PseudoLabelConfig:
    """A folder of noise, one of them of over two windows, and a Whisper."""
    folder = tmp_path_factory.mktemp("pseudo")
    rng = np.random.default_rng(0)
    for name, num_samples in LENGTHS.items():
        save(folder / f"sound/{name}.wav", 0.1 * rng.standard_normal(num_samples, np.float32), 16_000)
    return PseudoLabelConfig(
        (folder / "sound",), save_whisper(folder / "whisper"), folder / "out", language="en", min_log_prob=-100.0,
        max_repetition=100.0, batch_size=2,
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_speech_gets_a_transcript_or_is_listed_and_stays_where_it_is(made: PseudoLabelConfig) -> None:
    manifest = run(made)
    found, listed = read_manifest(made.out), rows(made.out / "log/left_out.jsonl")
    assert manifest.counts["utterances"] == len(found) >= 4
    assert manifest.counts["left_out"] == len(listed)
    assert all(row["left_out"] == "nothing was heard" for row in listed)
    assert manifest.counts["seconds"] == pytest.approx(sum(u.seconds or 0 for u in found), abs=0.01)
    assert not list(made.out.rglob("*.wav"))
    assert all(u.text and u.language == "en" for u in found)
    for u in found:
        assert len(load(u.audio)) <= 38_400
        assert len(load(u.audio)) == pytest.approx(16_000 * (u.seconds or 0), abs=8)  # of seconds to three decimals
    for name in LENGTHS:
        audio = {u.id: u.audio for u in found} | {str(row["id"]): str(row["audio"]) for row in listed}
        pieces = [load(audio[id]) for id in sorted(audio) if id.split("-")[0] == name]
        assert np.array_equal(np.concatenate(pieces), load(made.audio[0] / f"{name}.wav"))
    log_probs = [float(str(row["log_prob"])) for row in rows(made.out / "manifest.jsonl")]
    assert manifest.counts["mean_log_prob"] == pytest.approx(np.mean(log_probs), abs=1e-3)
    assert run(made) == manifest


def test_poor_transcripts_are_left_out_counted_and_listed(made: PseudoLabelConfig, tmp_path: Path) -> None:
    run(made)
    silent = {row["id"] for row in rows(made.out / "log/left_out.jsonl")}
    all_of_them = {str(row["id"]): float(str(row["log_prob"])) for row in rows(made.out / "manifest.jsonl")}
    threshold = float(np.mean(sorted(all_of_them.values())[1:3]))  # between two, as they are rounded
    manifest = run(replace(made, out=tmp_path / "out", min_log_prob=threshold))
    kept = {u.id for u in read_manifest(tmp_path / "out")}
    left_out = {row["id"]: row["left_out"] for row in rows(tmp_path / "out/log/left_out.jsonl")}
    assert kept | left_out.keys() == all_of_them.keys() | silent
    assert (len(kept), len(left_out)) == (manifest.counts["utterances"], manifest.counts["left_out"])
    assert all((name in kept) == (p >= threshold) for name, p in all_of_them.items())
    with pytest.raises(UserError, match="no transcript was good enough, of"):
        run(replace(made, out=tmp_path / "none", min_log_prob=0.0))


@pytest.mark.parametrize(
    ("heard", "why"),
    [
        (Heard("", 0.0, None), "nothing was heard"),
        (Heard("a", -1.01, None), "log-probability is -1.01"),
        (Heard("a", float("nan"), None), "log-probability is nan"),
        (Heard("and so on, " * 20, -0.1, None), "repeats itself"),
        (Heard("We sailed at dawn and saw no land for nine days, then gulls came.", -0.9, None), None),
    ],
)
def test_what_is_poor(heard: Heard, why: str | None) -> None:
    config = PseudoLabelConfig((), Path("whisper"), Path("out"))
    found = pseudo_label._PseudoLabel(config, [], Path("out"), 1)._poor(heard)
    assert found == why if why is None else why in (found or "")


def test_killed_and_run_again_gives_the_same(
    made: PseudoLabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_label, "_TASK_SEC", 3.0)
    config = replace(made, out=tmp_path / "out")
    real, done = pseudo_label._PseudoLabel.__call__, []

    def dies(self: pseudo_label._PseudoLabel, task: int) -> Report:
        if task == 2 and task not in done:
            done.append(task)
            raise KeyboardInterrupt
        done.append(task)
        return real(self, task)

    monkeypatch.setattr(pseudo_label._PseudoLabel, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert run(config).fingerprint == run(replace(config, out=tmp_path / "whole")).fingerprint
    assert sorted(done[:5]) == [0, 1, 2, 2, 3]


def test_bad_sound_and_languages_are_told(made: PseudoLabelConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'xx' is none that this Whisper knows"):
        run(replace(made, out=tmp_path / "out", language="xx"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/noise.wav").write_bytes(b"this is no sound")
    with pytest.raises(UserError, match="1 of 5 items are bad"):
        run(replace(made, out=tmp_path / "out", audio=(*made.audio, tmp_path / "bad")))
    manifest = run(replace(made, out=tmp_path / "out", audio=(*made.audio, tmp_path / "bad"), max_bad_share=0.5))
    assert manifest.counts["skipped_utterances"] == 1
