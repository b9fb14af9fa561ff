"""`weft eval tokenizer`: error rates through the codes, and use of the codebook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from weft.config import MODEL, Decibels
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.results import Result, error_counts, protocol, write
from weft.eval.tokenizer import measure


@dataclass(frozen=True)
class TokenizerEval(EvalConfig):
    """Settings of the metric `tokenizer`; the model may be a tokenizer."""

    base: Annotated[Path | None, MODEL] = None
    """Whisper that the tokenizer was trained from, a directory or a name on the Hub: its error rates are reported as
    well."""
    noise_snr_db: tuple[Decibels, ...] = ()
    """Ratios of speech to noise in dB, such as 10: unit edit distance and error rates of the same speech with synthetic
    noise are reported."""


def run(config: TokenizerEval) -> None:
    """Measure, and write the results."""
    check(config)
    speech, tokenizer = load_speech(config), load_tokenizer(config)
    found = measure(tokenizer, speech.utterances, config.base, config.noise_snr_db)
    items, num = found.pop("items"), found["utterances"]
    shared = protocol(config, fingerprints={**fingerprints(config, "tokenizer"), "data": speech.id}, match="basic")
    own, base = {**shared, "judge": "the tokenizer's own ASR model"}, {**shared, "judge": found.get("base")}
    results: dict[str, Result] = {
        name: Result.of_rate(found[name], num, base if name.endswith("_base") else own)
        for name in ("wer", "cer", "wer_unquantized", "cer_unquantized", "wer_base", "cer_base")
        if name in found
    }
    for noise, rates in found.get("noise", {}).items():
        for name in ("wer", "cer", "unit_edit_distance"):
            results[f"{name}, noise at {noise}"] = Result.of_rate(rates[name], num, {**own, "noise": noise})
    scores = error_counts(
        {
            name: [item[f"transcript{name and '_'}{name}"] for item in items]
            for name in ("", "unquantized", "base")
            if f"transcript{name and '_'}{name}" in items[0]
        },
        [item["text"] for item in items],
    )
    named = {name.replace(", ", "_"): counts for name, counts in scores.items()}
    write(config.out, "tokenizer", results, found | speech.skipped, items, named)
