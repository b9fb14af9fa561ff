"""Model cards: every kind of model has one, which is a function of its manifest, and in which values remain data."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.eval.conftest import TEXTS, write_bundle
from tests.tokenizer.conftest import make_tokenizer, save_whisper
from weft import info
from weft.artifacts import Manifest, read, read_parent
from weft.chat.bundle import Bundle
from weft.listing import CARD, differences_of
from weft.lm import init
from weft.lm.model import LmConfig
from weft.model_card import card_of
from weft.plan import Plan, create

LIBRARY_OF = {"tokenizer": "weft", "decoder": "weft", "text_to_token": "transformers", "lm": "transformers"}
LM = Manifest("language_model", "f" * 16, parents={"tokenizer": "a" * 16, "tokens 0": "b" * 16})
HOSTILE = [
    'a"\nlicense: mit\n---\n# Not a heading',
    "---\ntags: [x]\n---",
    "`<script>alert(1)</script>` ``` | [a](b)",
    "!!python/object/apply:os.system [id] & *anchor # {}: '",
    "\x00\x1b[2J\u2028\u202e\ud800\U000e0001",
    "许可证",
    "; ; ",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all kinds of models, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, make_tokenizer(), save_whisper(folder / "whisper", multilingual=False))
    (folder / "texts.txt").write_text("\n\n".join(TEXTS))
    shape = LmConfig(hidden=32, layers=1, heads=2, ffn=32, max_position_tokens=256)
    settings = {"texts": (folder / "texts.txt",), "vocab_size": 300, "model": shape, "licence": "CC BY 4.0"}
    init.run(init.InitLmConfig(out=folder / "lm", tokenizer=folder / "tokenizer", **settings))
    return folder


def metadata_of(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def snippet_of(text: str) -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found


def lines_with(start: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


@pytest.mark.parametrize("name", LIBRARY_OF)
def test_the_card_of_every_kind_of_model_parses_and_names_its_parents(models: Path, name: str) -> None:
    text, manifest = (models / name / CARD).read_text("utf-8"), read(models / name)
    assert text == card_of(manifest)
    found = metadata_of(text)
    assert found["library_name"] == LIBRARY_OF[name]
    assert {"weft", "speech"} < set(found["tags"])
    for fingerprint in (manifest.fingerprint, *manifest.parents.values()):
        assert f"`{fingerprint}`" in text
    assert str(models) not in text
    assert not re.search(r"""[\s"'`=]/\w""", text)


@pytest.mark.parametrize("name", LIBRARY_OF)
def test_the_example_of_a_card_runs_in_the_directory_of_the_model(
    models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models / name)
    exec(compile(snippet_of(Path(CARD).read_text("utf-8")), CARD, "exec"), {})


def test_data_have_no_card(models: Path) -> None:
    assert not (models / "codes" / CARD).exists()


def test_an_interrupted_command_writes_the_same_card(tmp_path: Path) -> None:
    plan = Plan("decoder", {"train": {"steps": 5}}, {"tokenizer": Manifest("tokenizer", "aaaa")})

    def write(draft: Any) -> None:
        (draft.folder / "weights").write_text("x")
        draft.counts.update(parameters=5, tokens_per_sec=float(os.stat(draft.folder).st_mtime_ns))

    def stop(draft: Any) -> None:
        write(draft)
        (draft.folder / CARD).write_text("half a ca")
        raise KeyboardInterrupt

    made = create(tmp_path / "whole", plan, write, "CC0")
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "resumed", plan, stop, "CC0")
    assert create(tmp_path / "resumed", plan, write, "CC0").fingerprint == made.fingerprint
    assert (tmp_path / "resumed" / CARD).read_bytes() == (tmp_path / "whole" / CARD).read_bytes()


@pytest.mark.parametrize("card", [None, "# Edited\n"])
def test_an_artifact_is_unchanged_with_an_edited_card_or_none(
    models: Path, tmp_path: Path, card: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "copy")
    for name in LIBRARY_OF:
        folder = tmp_path / "copy" / name
        (folder / CARD).write_text(card) if card else (folder / CARD).unlink()
        assert read_parent(folder).fingerprint == read(models / name).fingerprint
        info.run(info.InfoConfig(folder, verify=True))
    info.run(info.InfoConfig(tmp_path / "copy", verify=True))
    assert "CHANGED" not in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(tmp_path / "copy/lm")
    AutoTokenizer.from_pretrained(tmp_path / "copy/lm")
    Bundle.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "saved")
    for name in ("tokenizer", "decoder", "lm"):
        assert (tmp_path / "saved" / name / CARD).read_text("utf-8") == card_of(read(tmp_path / "saved" / name))


def test_a_file_of_that_name_in_another_directory_is_part_of_an_artifact(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "lm", tmp_path / "lm")
    (tmp_path / "lm/inner").mkdir()
    (tmp_path / "lm/inner" / CARD).write_text("x")
    with pytest.raises(Exception, match=r"inner/README.md is not part of it"):
        read(tmp_path / "lm")


def test_a_store_may_have_a_card_and_hidden_files() -> None:
    files = {"part": {"bytes": 1, "sha256": ""}}
    sizes = {"part": 1, CARD: 9, ".gitattributes": 9, ".cache/x": 1, "log/plan.json": 1, "manifest.json": 1}
    assert differences_of(files, sizes) == []
    assert differences_of(files, {**sizes, "a/README.md": 1}) == ["a/README.md is not part of it"]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("CC0; CC0-1.0", {"license": "cc0-1.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY 4.0; CC0", {"license": "other", "license_name": "cc-by-4.0-and-cc0-1.0"}),
        ("The Licence of Ann", {"license": "other", "license_name": "the-licence-of-ann"}),
        ("许可证", {"license": "other"}),
        (None, {}),
    ],
)
def test_the_metadata_have_the_licence_of_the_inputs(licences: str | None, expected: dict[str, str]) -> None:
    found = metadata_of(card_of(replace(LM, notes={"licences": licences} if licences else {})))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_values_of_data_remain_data(text: str) -> None:
    settings = {"language": text, "weights": {text: {text: text}}, "targets": [text]}
    parents = {**LM.parents, text: text}
    hostile = replace(
        LM, settings=settings, parents=parents, notes={"licences": text, "warnings": text}, counts={text: 1}
    )
    card = card_of(hostile)
    card.encode("utf-8")
    assert all(line.isprintable() for line in card.split("\n"))
    found, name = metadata_of(card), metadata_of(card).get("license_name", "none")
    assert found.keys() - {"license_name"} == {"library_name", "tags", "license"}
    assert (found["license"], found["library_name"]) == ("other", "transformers")
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
    harmless = card_of(replace(LM, settings={"seed": 0}, counts={"documents": 1}))
    assert snippet_of(card) == snippet_of(harmless)
    assert lines_with("#", card) == lines_with("#", harmless)
    assert lines_with("---", card) == ["---", "---"]
    outside = re.sub(r"(`+).+?(?<!`)\1(?!`)", "", re.sub(r"^```\w+\n.*?^```$", "", card, flags=re.S | re.M))
    assert "<script>" not in outside
    assert "](" not in outside


def test_measurements_are_metrics_but_not_the_speed_of_training() -> None:
    counts = {"wer": 0.25, "cer": 0.1, "tokens_per_sec": 1234.5, "speakers": {"Ann": 3}, "parameters": 1234}
    card = card_of(Manifest("tokenizer", "f", counts=counts, settings={"language": "en"}))
    assert metadata_of(card)["metrics"] == ["wer", "cer"]
    assert metadata_of(card)["language"] == "en"
    assert "- `wer`: 0.25" in card
    assert "- `parameters`: 1,234" in card
    assert "Ann" not in card
    assert "tokens_per_sec" not in card


def test_paths_in_settings_of_format_1_are_left_out() -> None:
    settings = json.loads('{"speech": ["/home/ann/speech"], "base": "/home/ann/base", "seed": 0}')
    card = card_of(replace(LM, settings=settings))
    assert "/home" not in card
    assert "seed = 0" in card


def test_the_card_of_a_language_model_says_how_it_was_trained() -> None:
    assert "(LoRA), which are merged" in card_of(replace(LM, settings={"lora": {"rank": 8}}))
    assert "LoRA" not in card_of(replace(LM, settings={"lora": {"rank": 0}}))
    assert "It is the starting point of pre-training" in card_of(replace(LM, parents={"tokenizer": "a"}))
