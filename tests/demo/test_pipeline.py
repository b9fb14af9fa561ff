import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from weft import artifacts, cli
from weft.data.datasets import Rows
from weft.demo import pipeline
from weft.demo.run import DemoConfig, DemoRun
from weft.tokenizer.encoder import BottleneckWhisper

pytestmark = pytest.mark.xdist_group("demo")


def test_results_have_every_key(finished: DemoConfig) -> None:
    results = json.loads((finished.out / "results.json").read_text())
    directions = [f"eval.topic_cloze.{direction}" for direction in ("TT", "ST", "TS", "SS")]
    accuracies = [f"{direction}.{key}" for direction in directions for key in ("accuracy", "low", "high", "n")]
    keys = [
        "total_sec", "tokenizer.wer", "tokenizer.codes_used_share", "tokenizer.warnings", "resynth.wer",
        "text_to_token.wer",
        "interleave.speech_ratio", "interleave.documents", "interleave.tokens_per_sec", "pretrain.loss.text",
        "pretrain.loss.speech", "pretrain.tokens_per_sec", "chat.first_audio_ms", "chat.question", "chat.answer_text",
        "chat.wav", "stages.tokenizer.sec", *accuracies,
    ]  # fmt: skip
    for key in keys:
        value = results
        for part in key.split("."):
            value = value[part]
        assert value is not None or key == "chat.first_audio_ms"
    assert results["total_sec"] == pytest.approx(sum(s["sec"] for s in results["stages"].values()), abs=0.1)
    assert results["eval"]["topic_cloze"]["SS"]["n"] == finished.sizes.pairs


def test_the_report_is_one_file(bundle: Path) -> None:
    page = (bundle / "report.html").read_text()
    assert "<audio" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_interleaved_documents_have_the_text_of_their_sources(bundle: Path) -> None:
    rows = [json.loads(line) for line in (bundle / "data/interleaved.jsonl").read_text().splitlines()]
    documents = {d.id: d for d in Rows.of(bundle / "documents/interleaved").documents()}
    assert {r["id"]: r["text"] for r in rows} == {name: d.text for name, d in documents.items()}


def test_artifacts_name_the_tokenizer_as_parent(bundle: Path) -> None:
    tokenizer = artifacts.read(bundle / "tokenizer")
    for part in ("decoder", "text_to_token", "codes/voice", "lm_init", "documents/interleaved"):
        assert artifacts.read(bundle / part).parents["tokenizer"] == tokenizer.fingerprint


def test_every_model_and_nothing_else_has_a_card(bundle: Path) -> None:
    kinds = {path.parent: artifacts.read_manifest(path.parent).kind for path in bundle.rglob("manifest.json")}
    models = {folder for folder, kind in kinds.items() if kind in artifacts._PARTS.values()}
    assert len(models) >= 5
    cards = {path.parent: ModelCard(path.read_text("utf-8")) for path in bundle.rglob("README.md")}
    assert cards.keys() == models
    assert all("weft" in (card.data.tags or ()) and str(bundle) not in card.content for card in cards.values())


def test_the_bundle_works_with_the_other_commands(bundle: Path, tmp_path: Path) -> None:
    question, held_out, pairs = bundle / "sounds/question.wav", bundle / "data/held_out", bundle / "data/pairs.jsonl"
    assert cli.run(["chat", "--model", str(bundle), "--wav", str(question), "--out", str(tmp_path / "a.wav")]) == 0
    assert (tmp_path / "a.wav").is_file()
    assert cli.run(["info", str(bundle / "lm")]) == 0
    out = tmp_path / "results.json"
    arguments = ["--model", str(bundle), "--out", str(out)]
    assert cli.run(["eval", "tokenizer", *arguments, "--data", str(held_out)]) == 0
    assert cli.run(["eval", "likelihood", *arguments, "--data", str(pairs), "--voice", "espeak:en-us"]) == 0
    num_pairs = len(pairs.read_text().splitlines())
    assert json.loads(out.read_text())["results"]["TT"]["n"] == num_pairs


def contents_of(folder: Path) -> dict[Path, int]:
    """Return the time stamps of the files of all artifacts."""
    return {
        p: p.stat().st_mtime_ns
        for manifest in folder.glob("*/**/manifest.json")
        for p in manifest.parent.rglob("*")
        if p.is_file()
    }


def test_a_finished_run_is_not_created_again(finished: DemoConfig) -> None:
    before, results = contents_of(finished.out), json.loads((finished.out / "results.json").read_text())
    assert before
    pipeline.run(finished)
    assert contents_of(finished.out) == before
    again = json.loads((finished.out / "results.json").read_text())
    for found in (results, again):
        found["chat"].pop("first_audio_ms")
    assert again == results


def run_stages(config: DemoConfig) -> None:
    """Run the first stages."""
    demo = DemoRun(config)
    for name in ("speak", "tokenizer", "tokenize"):
        demo.run_stage(name, pipeline.STAGES[name])


def test_an_interrupted_run_resumes_to_the_same_artifacts(
    finished: DemoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(finished, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        calls: list[Any] = []
        to_bottleneck = BottleneckWhisper.to_bottleneck

        def interrupted(self: BottleneckWhisper, *arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return to_bottleneck(self, *arguments)

        patch.setattr(BottleneckWhisper, "to_bottleneck", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stages(config)
    assert (config.out / "tokenizer.partial").is_dir()
    run_stages(config)
    for part in ("data/voice", "tokenizer", "codes/voice", "codes/held_out_spans"):
        assert artifacts.read(config.out / part).fingerprint == artifacts.read(finished.out / part).fingerprint


def test_the_users_text_and_speech_pass_through_all_stages(finished: DemoConfig, tmp_path: Path) -> None:
    story = "Anna was a baker. She put a cake in the oven. It was hot there. The cake burned and it was black. "
    (tmp_path / "book.txt").write_text("\n\n".join(f"In year {i} it began. {2 * story}" for i in range(12)))
    speech = [json.loads(line) for line in (finished.out / "data/voice/manifest.jsonl").read_text().splitlines()]
    rows = [
        {**row, "id": f"{row['id']}-{i}", "audio": str(finished.out / "data/voice" / row["audio"])}
        for i in range(3)
        for row in speech
    ]
    (tmp_path / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    config = replace(finished, out=tmp_path / "run", text=(tmp_path / "book.txt",), audio=(tmp_path / "speech.jsonl",))
    pipeline.run(config)
    results = json.loads((config.out / "results.json").read_text())
    cloze = results["eval"]["topic_cloze"]  # None if the text-to-token model failed on a piece of every pair
    assert cloze is None or cloze["TT"]["n"] == cloze["SS"]["n"] >= 1
    assert (config.out / "report.html").is_file()
    assert results["interleave"]["documents"] >= 1
