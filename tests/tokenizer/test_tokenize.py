from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.conftest import make_tokenizer
from tests.tokenizer.test_packed import noise
from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import load, save
from weft.config import settings_of
from weft.data.shards import Rows
from weft.errors import UserError
from weft.tokenizer import tokenize
from weft.tokenizer.tokenize import TokenizeConfig, run
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    for i, num_samples in enumerate([30_000, 900, 60_000, 12_345, 20_000]):
        save(tmp_path / f"speech/{i}.wav", noise(num_samples, i), 16_000)
    (tmp_path / "speech/bad.wav").write_bytes(b"no sound")
    return tmp_path / "speech"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer()
    with artifacts.build(tmp_path / "tokenizer", KIND, {"model": settings_of(tokenizer.model.config)}) as draft:
        tokenizer.save(draft.folder)
    return tmp_path / "tokenizer"


def codes_of(folder: Path) -> dict[str, list[int]]:
    return {u.id: list(u.codes) for u in Rows.of(folder).utterances()}


def test_other_sound_of_the_same_name_and_size_is_another_plan(speech: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / f"{name}/same.wav", noise(20_000, len(name)), 16_000)
    run(TokenizeConfig((tmp_path / "one",), folder, tmp_path / "codes"))
    with pytest.raises(UserError, match="another audio"):
        run(TokenizeConfig((tmp_path / "other",), folder, tmp_path / "codes"))


def test_codes_do_not_depend_on_how_much_is_held_in_memory(
    speech: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(TokenizeConfig((speech,), folder, tmp_path / "all", max_bad_share=0.5))
    monkeypatch.setattr(tokenize, "_SEC_PER_CALL", 1.0)
    run(TokenizeConfig((speech,), folder, tmp_path / "bit_by_bit", max_bad_share=0.5))
    found = codes_of(tmp_path / "all")
    assert codes_of(tmp_path / "bit_by_bit") == found
    tokenizer = SpeechTokenizer.load(folder)
    assert found == {str(i): tokenizer.encode([load(speech / f"{i}.wav")])[0].tolist() for i in range(5)}
    assert made.counts["utterances"] == 5
    assert made.counts["skipped_utterances"] == 1
    assert made.counts["codes"] == sum(map(len, found.values()))
    assert made.counts["codes_used_share"] == len({c for codes in found.values() for c in codes}) / 32


def test_the_precision_is_part_of_the_plan(speech: Path, folder: Path, tmp_path: Path) -> None:
    def made(name: str, **given: Any) -> Manifest:
        return run(TokenizeConfig((speech,), folder, tmp_path / name, max_bad_share=0.5, **given))

    assert made("fp32").settings["precision"] == "fp32"
    assert made("bf16", precision="bf16").settings["precision"] == "bf16"
    taken = made("auto", precision="auto").settings["precision"]
    assert codes_of(tmp_path / "auto") == codes_of(tmp_path / taken)
    with pytest.raises(UserError, match="was made with another precision"):
        made("fp32", precision="bf16")
    exact, rounded = codes_of(tmp_path / "fp32"), codes_of(tmp_path / "bf16")
    changed = [a != b for i in exact for a, b in zip(exact[i], rounded[i], strict=True)]
    assert np.mean(changed) < 0.2
