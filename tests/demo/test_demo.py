"""The whole road at a fraction of its size: every stage is real, and what it makes is of a piece."""

import json
from pathlib import Path

import pytest

from weft import artifacts, cli
from weft.data.shards import Rows
from weft.demo.demo import DemoConfig, run
from weft.demo.material import Sizes
from weft.demo.world import World

SIZES = Sizes(
    stories=14,
    turns=8,
    span_documents=2,
    held_out=4,
    woven_documents=6,
    spoken_documents=3,
    plain_documents=4,
    dialogues=24,
    pairs=6,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    run(DemoConfig(out=out, sizes=SIZES, steps_share=0.08, workers=1))
    return out


def test_results_hold_every_promised_key(bundle: Path) -> None:
    results = json.loads((bundle / "results.json").read_text())
    scores = [f"eval.topic_cloze.{d}.{k}" for d in ("T", "ST", "TS", "S") for k in ("accuracy", "low", "high", "n")]
    promised = [
        "total_sec", "tokenizer.wer", "tokenizer.codes_used_share", "tokenizer.warnings", "resynth.wer",
        "text_to_token.wer",
        "interleave.speech_ratio", "interleave.documents", "interleave.tokens_per_sec", "pretrain.loss.text",
        "pretrain.loss.speech", "pretrain.tokens_per_sec", "chat.first_audio_ms", "chat.question", "chat.answer_text",
        "chat.wav", "stages.tokenizer.sec", *scores,
    ]  # fmt: skip
    for key in promised:
        value = results
        for part in key.split("."):
            value = value[part]
        assert value is not None or key == "chat.first_audio_ms"
    assert results["total_sec"] == pytest.approx(sum(s["sec"] for s in results["stages"].values()), abs=0.1)
    assert results["eval"]["topic_cloze"]["S"]["n"] == SIZES.pairs


def test_the_page_stands_alone(bundle: Path) -> None:
    page = (bundle / "report.html").read_text()
    assert "<audio" in page
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('href="https://arxiv.org', "")


def test_taking_the_speech_out_gives_back_every_document(bundle: Path) -> None:
    rows = [json.loads(line) for line in (bundle / "material/woven.jsonl").read_text().splitlines()]
    documents = {d.id: d for d in Rows.of(bundle / "documents/woven").documents()}
    assert {r["id"]: r["text"] for r in rows} == {name: d.text for name, d in documents.items()}


def test_parts_know_their_parents(bundle: Path) -> None:
    tokenizer = artifacts.read(bundle / "tokenizer")
    for part in ("decoder", "text_to_token", "codes/voice", "lm-start", "documents/woven"):
        assert artifacts.read(bundle / part).parents["tokenizer"] == tokenizer.fingerprint


def test_a_rerun_makes_nothing_anew(bundle: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*.safetensors")}
    run(DemoConfig(out=bundle, sizes=SIZES, steps_share=0.08, workers=1))
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*.safetensors")} == before


def test_the_bundle_talks_says_and_is_measured(bundle: Path, tmp_path: Path) -> None:
    question, pairs = bundle / "sounds/question.wav", bundle / "material/pairs.jsonl"
    assert cli.run(["chat", "--model", str(bundle), "--wav", str(question), "--out", str(tmp_path / "a.wav")]) == 0
    assert (tmp_path / "a.wav").is_file()
    assert cli.run(["info", str(bundle / "lm")]) == 0
    out = tmp_path / "results.json"
    held_out = str(bundle / "material/held_out")
    arguments = ["--model", str(bundle), "--out", str(out), "--speech", held_out, "--pairs", str(pairs)]
    assert cli.run(["eval", "tokenizer", "topic-cloze", *arguments, "--voice", "espeak:en-us"]) == 0
    assert json.loads(out.read_text())["topic-cloze"]["T"]["n"] == SIZES.pairs


def test_own_text_and_speech_walk_the_same_road(bundle: Path, tmp_path: Path) -> None:
    world = World(3)
    (tmp_path / "book.txt").write_text("\n\n".join(world.document(i) for i in range(40)))
    out = tmp_path / "run"
    run(DemoConfig(out, (tmp_path / "book.txt",), (bundle / "material/voice",), 0, 1, 0.06, SIZES))
    results = json.loads((out / "results.json").read_text())
    cloze = results["eval"]["topic_cloze"]  # None where what was trained for seconds could not say a whole pair
    assert cloze is None or cloze["T"]["n"] == cloze["S"]["n"] >= 1
    assert (out / "report.html").is_file()
    assert results["interleave"]["documents"] >= 1
