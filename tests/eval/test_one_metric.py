"""All commands that report a word error rate report the same one for the same speech."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weft import cli
from weft.records import Utterance
from weft.text_to_token.synthesize import Synthesizer
from weft.text_to_token.wer_filter import synthesize, transcribed_error_rate
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.transcripts import measure

# (transcript of the manifest, what every ASR model hears, errors, words)
CASES = [
    ("The cat sat.", "the cat sat", 0, 3),
    ("...", "and then some", 0, 0),
    (None, "nothing", 0, 0),
    ("(Don't!) [laugh] <um>", "don't laugh", 1, 4),
    ("%&", "per cent", 0, 0),
    ("Où est-il\u2009?", "où est il there", 1, 3),
    ("\u200b \u202e", "noise", 0, 0),
    ("On the mat", "", 3, 3),
]
LEFT_OUT = [f"u{i}" for i, case in enumerate(CASES) if not case[3]]
WER, NUM_WORDS = sum(c[2] for c in CASES) / sum(c[3] for c in CASES), sum(c[3] for c in CASES)


@pytest.fixture
def manifest(speech: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    rows = []
    for i, (text, *_) in enumerate(CASES):
        shutil.copy(speech / f"{i % 4}.wav", folder / f"{i}.wav")
        rows.append({"id": f"u{i}", "audio": f"{i}.wav", "language": ["fr", None][i % 2], "text": text})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def languages(monkeypatch: pytest.MonkeyPatch, manifest: Path) -> list[Any]:
    """Replace all ASR models by one that hears the texts of CASES in their order; return the languages it was given."""
    with_words = [c[1] for c in CASES if c[3]]
    everything = [c[1] for c in CASES]
    given: list[Any] = []

    def transcribe(_: Any, rows: Sequence[Any], languages: Sequence[str | None] = ()) -> list[str]:
        given.extend(languages)
        return {len(with_words): with_words, len(everything): everything}[len(rows)]

    monkeypatch.setattr(SpeechTokenizer, "transcribe", transcribe)
    monkeypatch.setattr(SpeechTokenizer, "transcribe_unquantized", transcribe)
    return given


def run(*arguments: object) -> None:
    assert cli.run([str(a) for a in arguments]) == 0


def test_every_metric_and_resynth_report_the_same_rate(
    bundle: Path, manifest: Path, tmp_path: Path, languages: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    metrics, found = ("tokenizer", "resynth", "text-to-token"), {}
    for name in metrics:
        run("eval", name, "--model", bundle, "--data", manifest, "--out", out, "--language", "nl")
        found[name] = json.loads(out.read_text())["details"]
        found[name] |= {k: v for k, v in json.loads(out.read_text())["results"].items() if name == "resynth"}
    assert set(languages) == {"fr", "nl"}
    models = {name: bundle / name for name in ("tokenizer", "decoder")}
    flags = [word for name, path in models.items() for word in (f"--{name}", path)]
    run("resynth", manifest, *flags, "--language", "nl", "--out", tmp_path / "resynth")
    assert languages.count(None) == 0
    speech = found["text-to-token"]["gate"]["wer"]["all"]["speech"]
    artifact = json.loads((tmp_path / "resynth/results.json").read_text())
    rates = [found["tokenizer"]["wer"], speech, artifact["wer"], artifact["wer_original"]]
    rates += [
        {**found["resynth"][n], "rate": found["resynth"][n]["value"], "num_units": NUM_WORDS}
        for n in ("wer", "wer_original")
    ]
    assert {(rate["rate"], rate["num_units"]) for rate in rates} == {(WER, NUM_WORDS)}
    assert len({(rate["low"], rate["high"]) for rate in rates}) == 1
    for name in metrics:
        assert (found[name]["left_out"], found[name]["left_out_ids"]) == (len(LEFT_OUT), LEFT_OUT)
    assert json.loads((tmp_path / "resynth/manifest.json").read_text())["counts"]["left_out"] == LEFT_OUT


def test_training_and_the_filter_count_the_same_errors(
    tokenizer: SpeechTokenizer, bundle: Path, manifest: Path, languages: list[Any]
) -> None:
    texts = [c[0] for c in CASES]
    utterances = [Utterance(f"u{i}", str(manifest / f"{i}.wav"), text, language="fr") for i, text in enumerate(texts)]
    trained = measure(tokenizer, utterances)
    assert (trained["wer"], trained["wer_words"]) == (WER, NUM_WORDS)
    codes = [[1]] * len(CASES)
    rate = transcribed_error_rate(tokenizer, codes, [t or "" for t in texts], ["fr"] * len(CASES))
    assert (rate.rate, rate.num_units) == (WER, NUM_WORDS)
    assert set(languages) == {"fr"}

    class Known(Synthesizer):
        def __init__(self) -> None:
            self.normalize, self.language = str, "nl"

        def synthesize(self, texts: Any, seeds: Any, speakers: Any = None) -> list[Any]:
            return codes

    languages.clear()
    outcomes = synthesize(Known(), [t or "" for t in texts], [[0] * len(texts)], tokenizer)
    errors = [outcome.kept.errors for outcome in outcomes if outcome.kept]
    assert [(e.errors, e.units) if e else (0, 0) for e in errors] == [c[2:] for c in CASES]
    assert languages == ["nl"] * len(CASES)
