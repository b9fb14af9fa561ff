from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.conftest import noise, shared_tokenizer
from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import load, save
from weft.data.datasets import Rows
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.tokenizer import tokenize
from weft.tokenizer.tokenize import TokenizeConfig, run
from weft.tokenizer.tokenizer import SpeechTokenizer

HALF_BAD = JobConfig(max_bad_fraction=0.5)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings, and a file that is not audio."""
    folder = tmp_path_factory.mktemp("speech")
    for i, num_samples in enumerate([30_000, 900, 60_000, 12_345, 20_000]):
        save(folder / f"{i}.wav", noise(num_samples, i), 16_000)
    (folder / "bad.wav").write_bytes(b"this is no audio")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    shared_tokenizer(0).save_pretrained(folder)
    return folder


def codes_of(folder: Path) -> dict[str, list[int]]:
    return {u.id: list(u.codes) for u in Rows.of(folder).utterances()}


def test_a_directory_is_tokenized_once(speech: Path, folder: Path, tmp_path: Path) -> None:
    config = TokenizeConfig((speech,), folder, tmp_path / "codes", job=HALF_BAD)
    manifest = run(config)
    assert manifest.parents["tokenizer"] == artifacts.read(folder).fingerprint
    assert manifest.counts["utterances"] == 5
    assert run(config) == manifest


def test_other_audio_of_the_same_name_and_size_changes_the_plan(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / f"{name}/same.wav", noise(20_000, len(name)), 16_000)
    run(TokenizeConfig((tmp_path / "one",), folder, tmp_path / "codes"))
    with pytest.raises(UserError, match="was created with other contents of audio"):
        run(TokenizeConfig((tmp_path / "other",), folder, tmp_path / "codes"))


def test_codes_do_not_depend_on_the_amount_of_speech_in_memory(
    speech: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run(TokenizeConfig((speech,), folder, tmp_path / "all", job=HALF_BAD))
    monkeypatch.setattr(tokenize, "_SEC_PER_CALL", 1.0)
    run(TokenizeConfig((speech,), folder, tmp_path / "parts", job=HALF_BAD))
    found = codes_of(tmp_path / "all")
    assert codes_of(tmp_path / "parts") == found
    tokenizer = SpeechTokenizer.from_pretrained(folder)
    assert found == {str(i): tokenizer.encode([load(speech / f"{i}.wav")])[0].tolist() for i in range(5)}
    assert manifest.counts["utterances"] == 5
    assert manifest.counts["skipped_utterances"] == 1
    assert manifest.counts["codes"] == sum(map(len, found.values()))
    assert manifest.counts["codes_used_share"] == len({c for codes in found.values() for c in codes}) / 32


def test_a_recording_that_cannot_be_encoded_loses_no_other(
    speech: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TokenizeConfig((speech,), folder, tmp_path / "all", job=HALF_BAD))
    encode = SpeechTokenizer.encode

    def limited(self: SpeechTokenizer, audio: list[np.ndarray]) -> list[np.ndarray]:
        if max(map(len, audio)) > 50_000:
            raise MemoryError
        return encode(self, audio)

    monkeypatch.setattr(SpeechTokenizer, "encode", limited)
    manifest = run(TokenizeConfig((speech,), folder, tmp_path / "some", job=HALF_BAD))
    assert codes_of(tmp_path / "some") == {id: c for id, c in codes_of(tmp_path / "all").items() if id != "2"}
    assert (manifest.counts["utterances"], manifest.counts["skipped_utterances"]) == (4, 2)
    assert "not enough memory" in (tmp_path / "some/log/skipped.jsonl").read_text()
    with pytest.raises(UserError, match="2 of 6 items are bad"):
        run(TokenizeConfig((speech,), folder, tmp_path / "none", job=JobConfig(max_bad_fraction=0.3)))


def test_upper_case_transcripts_are_recased_on_request(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.wav", noise(20_000, 0), 16_000)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "audio": "a.wav", "text": "I SAID SO"}')
    run(TokenizeConfig((tmp_path,), folder, tmp_path / "codes"))
    run(TokenizeConfig((tmp_path,), folder, tmp_path / "recased", recase=True))
    (before,), (after,) = (list(Rows.of(tmp_path / name).utterances()) for name in ("codes", "recased"))
    assert (before.text, after.text, before.codes) == ("I SAID SO", "I said so", after.codes)
    with pytest.raises(UserError, match=r"was created with .*recase = False \(now True\)"):
        run(TokenizeConfig((tmp_path,), folder, tmp_path / "codes", recase=True))


def test_the_precision_is_part_of_the_plan(speech: Path, folder: Path, tmp_path: Path) -> None:
    def created(name: str, **settings: Any) -> Manifest:
        return run(TokenizeConfig((speech,), folder, tmp_path / name, job=HALF_BAD, **settings))

    assert created("fp32").settings["precision"] == "fp32"
    assert created("bf16", precision="bf16").settings["precision"] == "bf16"
    chosen = created("auto", precision="auto").settings["precision"]
    assert codes_of(tmp_path / "auto") == codes_of(tmp_path / chosen)
    with pytest.raises(UserError, match=r"was created with precision = fp32 \(now bf16\)"):
        created("fp32", precision="bf16")
    exact, rounded = codes_of(tmp_path / "fp32"), codes_of(tmp_path / "bf16")
    changed = [a != b for i in exact for a, b in zip(exact[i], rounded[i], strict=True)]
    assert np.mean(changed) < 0.2
