import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import write_bundle
from tests.tokenizer.conftest import make_tokenizer, save_whisper
from weft import cli
from weft.artifacts import Manifest
from weft.errors import UserError
from weft.eval.config import EvalConfig, check
from weft.plan import Plan, open_draft


def test_models_of_another_tokenizer_are_rejected(tmp_path: Path) -> None:
    for name, parents in (("tokenizer", {}), ("text_to_token", {"tokenizer": Manifest("tokenizer", "another")})):
        with open_draft(tmp_path / name, Plan(name, {}, parents)):
            pass
    with pytest.raises(UserError, match="text_to_token was made with tokenizer another"):
        check(EvalConfig(tmp_path, tmp_path / "results.json"))


def evaluate(metric: str, model: Path, out: Path, *arguments: str | Path) -> dict:
    """Return the details of the results."""
    return results(metric, model, out, *arguments)["details"]


def results(metric: str, model: Path, out: Path, *arguments: str | Path) -> dict:
    command = ["eval", metric, "--model", model, "--out", out, *arguments]
    assert cli.run([str(a) for a in command]) == 0
    found = json.loads(out.read_text())
    assert found["metric"] == metric
    for result in found["results"].values():
        assert result.keys() == {"value", "low", "high", "n", "unjudged", "protocol"}
        assert {"data", "seed", "language", "fingerprints", "version"} <= result["protocol"].keys()
    return found


def test_the_tokenizer_metric_writes_and_prints_its_figures(
    whisper: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model.quantizer.codebook[1:] = 1e3
    bundle = write_bundle(tmp_path / "bundle", tokenizer, whisper)
    found = evaluate("tokenizer", bundle, tmp_path / "results.json", "--data", speech)
    assert found["codes_used"] == 1
    assert "has collapsed: only 1 of 32 codes" in found["warnings"][0]
    printed = capsys.readouterr().out
    assert "has collapsed: only 1 of 32 codes" in printed
    assert "speaker-0" in printed
    assert cli.run(["eval", "tokenizer", "--model", str(bundle), "--out", str(tmp_path / "other.json")]) == 2
    assert "give --data MANIFEST" in capsys.readouterr().err


def test_the_tokenizer_metric_measures_a_tokenizer_and_its_base(
    bundle: Path, whisper: Path, speech: Path, tmp_path: Path
) -> None:
    from_bundle = evaluate("tokenizer", bundle, tmp_path / "a.json", "--data", speech)
    found = evaluate("tokenizer", bundle / "tokenizer", tmp_path / "b.json", "--data", speech, "--base", whisper)
    assert found.items() >= from_bundle.items()
    assert found.keys() - from_bundle.keys() == {"base", "wer_base", "cer_base", "empty_share_base"}
    assert found["base"] == "whisper"
    assert found["wer_base"]["num_units"] == found["wer"]["num_units"]
    assert cli.run(["eval", "resynth", "--model", str(bundle / "tokenizer"), "--out", str(tmp_path / "c.json")]) == 2


def test_another_whisper_than_the_base_is_a_reference_with_a_remark(bundle: Path, speech: Path, tmp_path: Path) -> None:
    other = save_whisper(tmp_path / "other")
    found = evaluate("tokenizer", bundle, tmp_path / "out.json", "--data", speech, "--base", other)
    assert found["base"] == "other, from which the tokenizer was not trained"


def test_a_limit_samples_utterances_by_the_seed(bundle: Path, speech: Path, tmp_path: Path) -> None:
    def units(*arguments: str) -> tuple[int, int]:
        found = evaluate("tokenizer", bundle, tmp_path / "out.json", "--data", speech, *arguments)
        return found["utterances"], found["wer"]["num_units"]

    assert units("--limit", "9") == (3, 11)
    assert units("--limit", "2") == units("--limit", "2") < (3, 11)


def test_the_resynth_metric_writes_error_rates(bundle: Path, speech: Path, tmp_path: Path) -> None:
    whole = results("resynth", bundle, tmp_path / "results.json", "--data", speech)
    found = whole["details"]
    assert (found["utterances"], found["left_out"], found["left_out_ids"]) == (3, 1, ["3"])
    assert all(whole["results"][name]["protocol"]["units"] == 11 for name in ("wer", "wer_original"))


def test_the_text_to_token_metric_writes_and_prints_its_figures(
    bundle: Path, whisper: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--judge", whisper, "--seed", "3", "--data", speech, "--codes", bundle / "codes"]
    found = [evaluate("text-to-token", bundle, tmp_path / name, *arguments) for name in ("a.json", "b.json")]
    for one in found:
        for metrics in one["spoken"].values():
            assert metrics.pop("tokens_per_sec") > 0
    assert found[0] == found[1]
    assert found[0]["notes"]["judge"].startswith("whisper, a Whisper, and not independent")
    assert found[0]["gate"]["wrong_words"]["rare"]["words"] == 11
    printed = capsys.readouterr().out
    assert "1 to 5 words" in printed
    assert "difference" in printed


def test_sentences_are_sampled_by_the_seed(bundle: Path, speech: Path, tmp_path: Path) -> None:
    arguments = ["--data", speech, "--limit", "2"]
    found = evaluate("text-to-token", bundle, tmp_path / "results.json", *arguments)
    assert found["sentences"] + found["left_out"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs sentences: give --texts CORPUS or --data MANIFEST"),
        (["--texts", "{}/none.txt"], "none.txt does not exist"),
        (["--texts", "{}/symbols.txt"], "the texts contain no words (2 sentences)"),
        (["--texts", "{}/words.txt", "--data", "{}"], "give --texts or --data, not both"),
        (["--texts", "{}/words.txt", "--voice", "espeak:xx"], "espeak has no voice 'xx'"),
        (["--texts", "{}/words.txt", "--judge", "{}"], "is not a Hugging Face Whisper"),
        (["--texts", "{}/words.txt", "--judge", "{bundle}/tokenizer"], "is not a Hugging Face Whisper"),
        (["--texts", "{}/words.txt", "--codes", "{bundle}/other_codes"], "give all datasets that it was trained on"),
        (["--texts", "{}/words.txt", "--speaker", "ann"], "has no speaker 'ann'"),
    ],
)
def test_what_cannot_be_measured_is_rejected(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "symbols.txt").write_text("...\n(!)\n")
    (tmp_path / "words.txt").write_text("The cat sat.\n")
    given = [a.format(tmp_path, bundle=bundle) for a in arguments]
    out = tmp_path / "results.json"
    assert cli.run(["eval", "text-to-token", "--model", str(bundle), "--out", str(out), *given]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(("given", "message"), [(True, "manifest.jsonl has no transcripts"), (False, "give --data")])
def test_speech_with_transcripts_is_required(
    bundle: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool, message: str
) -> None:
    rows = map(json.loads, (speech / "manifest.jsonl").read_text().splitlines())
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps({**row, "text": None}) for row in rows))
    arguments = ["eval", "tokenizer", "--model", str(bundle), "--out", str(tmp_path / "results.json")]
    assert cli.run([*arguments, *(["--data", str(tmp_path / "manifest.jsonl")] if given else [])]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_decoder_metric_needs_a_judge(
    bundle: Path, speech: Path, whisper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", speech, "--judge", whisper, "--page", tmp_path / "page.html"]
    found = evaluate("decoder", bundle, tmp_path / "a.json", *arguments)
    assert "Griffin-Lim" in (tmp_path / "page.html").read_text()
    assert found["systems"].keys() == {"recording", "griffin_lim", "decoder"}
    assert found["judge"] == "whisper"
    command = ["eval", "decoder", "--model", str(bundle), "--out", str(tmp_path / "b.json"), "--data", str(speech)]
    assert cli.run(command) == 2
    assert "give --judge WHISPER" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["tokenizer", "resynth", "text-to-token"])
def test_unreadable_speech_is_skipped_and_listed(
    bundle: Path, speech: Path, tmp_path: Path, suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(speech, tmp_path / "speech"))
    (damaged / "text.wav").write_text("this is no audio")
    rows = (damaged / "manifest.jsonl").read_text().splitlines()
    bad = [{"id": name, "audio": f"{name}.wav", "text": "The cat sat."} for name in ("text", "missing")]
    (damaged / "manifest.jsonl").write_text("\n".join([*map(json.dumps, bad), "{", *rows]))
    found = evaluate(suite, bundle, tmp_path / "damaged.json", "--data", damaged)
    assert (found.pop("skipped"), list(found["skipped_reasons"])[:2]) == (3, ["text", "missing"])
    assert len(found.pop("skipped_reasons")) == 3
    assert "cannot be read as audio" in capsys.readouterr().out
    clean = evaluate(suite, bundle, tmp_path / "clean.json", "--data", speech)
    for results in (found, clean):
        for metrics in results.get("spoken", {}).values():
            metrics.pop("tokens_per_sec")
    assert found == clean
    (damaged / "manifest.jsonl").write_text(json.dumps(bad[0]))
    arguments = ["eval", suite, "--model", str(bundle), "--out", str(tmp_path / "none.json"), "--data", str(damaged)]
    assert cli.run(arguments) == 2
    assert "no transcribed speech can be read" in capsys.readouterr().err.splitlines()[-1]


def test_every_item_has_its_transcripts(bundle: Path, speech: Path, whisper: Path, tmp_path: Path) -> None:
    flags = ["--data", speech, "--noise-snr-db", "10", "--distortions", "opus", "slower", "--base", whisper]
    wanted = {"noise at 10 dB", "opus", "slower"}
    found = results("tokenizer", bundle / "tokenizer", tmp_path / "a.json", *flags)
    items = [json.loads(line) for line in (tmp_path / "a.items.jsonl").read_text().splitlines()]
    assert [item["id"] for item in items] == ["0", "1", "2"]
    assert items[0].keys() == {"id", "text", "transcript", "transcript_unquantized", "transcript_base", "scores"}
    assert items[0]["scores"].keys() == {f"{r}{s}" for r in ("wer", "cer") for s in ("", "_unquantized", "_base")}
    assert sum(item["scores"]["wer"][1] for item in items) == 11
    rates = found["results"]
    assert rates["wer"]["value"] == found["details"]["wer"]["rate"]
    assert (rates["wer"]["n"], rates["wer"]["protocol"]["units"]) == (3, 11)
    assert rates["wer"]["protocol"]["judge"] == "the tokenizer's own ASR model"
    assert rates["wer_base"]["protocol"]["judge"] == "whisper"
    assert rates["unit_edit_distance, noise at 10 dB"]["value"] == pytest.approx(
        found["details"]["distorted"]["noise at 10 dB"]["unit_edit_distance"]["rate"]
    )
    assert rates["wer"]["protocol"]["fingerprints"].keys() == {"model", "data"}
    assert {name.partition(", ")[2] for name in rates} == {"", *wanted}


def test_the_results_of_all_metrics_of_speech_are_named(
    bundle: Path, speech: Path, whisper: Path, tmp_path: Path
) -> None:
    flags = ["--data", speech, "--judge", whisper]
    decoder = results("decoder", bundle, tmp_path / "d.json", *flags)["results"]
    assert {"recording.wer", "griffin_lim.wer_difference", "decoder.wer"} <= decoder.keys()
    model = results("text-to-token", bundle, tmp_path / "t.json", *flags)["results"]
    assert {
        "text_to_token.wer.gate",
        "speech.wer.gate",
        "text_to_token.wer.judge",
        "difference.wer.gate",
    } <= model.keys()
    assert set(model["speech.wer.gate"]["protocol"]["fingerprints"]) == {
        "tokenizer",
        "text_to_token",
        "decoder",
        "data",
    }
    assert results("resynth", bundle, tmp_path / "r.json", *flags[:2])["results"].keys() == {"wer", "wer_original"}
    assert len((tmp_path / "r.items.jsonl").read_text().splitlines()) == 3


def test_a_metric_can_be_added_as_the_docs_say(bundle: Path, speech: Path, tmp_path: Path) -> None:
    """The example in the documentation is executed."""
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text("utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 30
    names: dict[str, Any] = {"__name__": "length"}
    exec(code, names)
    names["run"](names["LengthEval"](bundle, tmp_path / "out.json", data=(speech,), min_words=3))
    [result] = json.loads((tmp_path / "out.json").read_text())["results"].values()
    assert (result["value"], result["n"], result["unjudged"]) == (pytest.approx(11 / 3), 4, 1)
