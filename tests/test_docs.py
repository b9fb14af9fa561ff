"""The docs are executed: commands and examples of pages run, and tables equal the output of commands."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GlmConfig

from tests.eval.conftest import TEXTS, write_bundle
from tests.tokenizer.conftest import make_tokenizer, save_whisper
from weft import artifacts, cli
from weft.config import missing_inputs, recipes_folder
from weft.lm import init
from weft.lm.model import LanguageModel, LmConfig
from weft.records import Document, Segment

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def test_the_commands_for_a_new_language_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(recipes_folder())
    commands = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", (DOCS / "new-language.md").read_text("utf-8"), re.DOTALL):
        if language == "python":
            exec(block, {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "weft"
            assert cli.run(arguments) == 0, line
            commands.append(arguments[0])
    assert commands == ["speak", "speak", "train-tokenizer", "train-tokenizer", "eval", "tokenize", "info"]
    found = json.loads((tmp_path / "runs/german/results.json").read_text())["details"]
    assert found["utterances"] == artifacts.read(tmp_path / "runs/german/codes").counts["utterances"] == 8
    assert found["frame_rate_hz"] == 12.5


def test_the_estimate_of_the_papers_9b_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GlmConfig(vocab_size=167744).save_pretrained(tmp_path / "plan-9b")
    recipe = recipes_folder() / "paper/pretrain-9b.toml"
    assert cli.run(["pretrain", str(recipe), "--dry-run", "--base", str(tmp_path / "plan-9b")]) == 2  # without data
    table = capsys.readouterr().out.split("\n\n")[1]
    assert table.startswith("gpus ")
    assert table in (DOCS / "scaling-out.md").read_text("utf-8")


def test_the_rehearsal_reads_what_its_commands_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are parsed with the recipes and not executed: each finds its inputs, and writes an empty output."""
    for name in ("librispeech/train-clean-100.jsonl", "librispeech/test-clean.jsonl", "dialogues.jsonl", "text/a.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("a line\n")
    for name in ("whisper-base", "SmolLM2-135M"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "recipes").symlink_to(recipes_folder())
    _, preparation, commands = blocks("your-own-models.md", "sh")
    subprocess.run(["bash", "-ec", preparation], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path / "rehearsal")
    ran: list[str] = []

    def run(config: Any) -> None:
        assert missing_inputs(config) == []
        ran.append(type(config).__name__)
        if not getattr(config, "dry_run", False):
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.touch(exist_ok=False)

    for module in {command.module for command in cli.COMMANDS.values()}:
        monkeypatch.setattr(importlib.import_module(module), "run", run)
    for line in commands.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "weft"
        expanded = [path for a in arguments for path in (sorted(glob(a)) if "*" in a else [a])]
        assert cli.run(expanded) == 0, line
    assert ran[:2] == ["TokenizerConfig"] * 2
    assert ran[-3:] == ["SayConfig", "ChatConfig", "TokenizerEval"]
    assert ran.count("PretrainingConfig") == 2


def test_generation_samples_allowed_tokens_after_the_prompts_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/mini"
    write_bundle(folder, make_tokenizer(), save_whisper(tmp_path / "whisper", multilingual=False))
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    shape = LmConfig(hidden=32, layers=1, heads=2, ffn=32, max_position_tokens=512)
    settings = {"texts": (tmp_path / "texts.txt",), "vocab_size": 300, "model": shape}
    init.run(init.InitLmConfig(out=folder / "pretrained", tokenizer=folder / "tokenizer", **settings))
    monkeypatch.chdir(tmp_path)
    transformers_example, vllm_example = blocks("your-own-models.md", "python")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(transformers_example, names)
    vocab = LanguageModel.from_pretrained(folder / "pretrained").vocab
    assert names["audio_ids"] == vocab.codes_to_ids(range(vocab.num_codes)).tolist()
    assert {*names["codes"]} <= {*range(vocab.num_codes)}
    assert {*names["longer"]} <= {*names["audio_ids"]}
    assert not {*names["transcript"]} & {*names["audio_ids"], *names["special"]}
    text, speech = Segment.of_text("The cat sat."), Segment.of_speech([3, 1])
    for kind, task, given, target, content in (
        ("tts", "Speak", text, speech, "The cat sat."),
        ("asr", "Transcribe", speech, text, names["spoken"]([3, 1]) + "<|end_of_audio|>"),
    ):
        ids, mask = vocab.document_ids(Document("0", kind, (replace(given, loss=False), target)))
        assert names["prompt"](("system", task), ("user", content)) == ids[~mask].tolist()
    assert names["tokenizer"](names["spoken"]([3, 1])).input_ids == vocab.speech_ids([3, 1])[:-1].tolist()

    calls = []

    class LLM:
        def __init__(self, model: str) -> None:
            assert Path(model).is_dir()

        def generate(self, prompts: list[Any], settings: Any) -> list[Any]:
            calls.append((prompts, settings))
            ids = [*settings.allowed_token_ids[:2], *settings.stop_token_ids]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    exec(vllm_example, names)
    (([prompt], settings),) = calls
    assert {*settings.allowed_token_ids} == {*names["audio_ids"], vocab.end_of_audio_id}
    assert settings.stop_token_ids == [vocab.end_of_audio_id]
    assert prompt["prompt_token_ids"][0] == vocab.begin_of_audio_id
    assert names["longer"] == names["audio_ids"][:2]


def test_links_of_the_docs_lead_to_files_and_headings() -> None:
    def headings(page: Path) -> set[str]:
        titles = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}  # as GitHub names them

    pages = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *DOCS.glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))]
    local = [(page, *link.partition("#")[::2]) for page, link in links if "://" not in link]
    assert len(local) > 30
    for page, path, heading in local:
        target = page.parent / path if path else page
        assert target.exists(), (page.name, path)
        assert not heading or heading in headings(target), (page.name, path, heading)
    readme = {path for page, path, _ in local if page.name == "README.md"}
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= readme
