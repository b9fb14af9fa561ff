"""`weft eval tokenizer`: error rates through the codes, and use of the codebook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from weft.config import MODEL, Decibels
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.distortions import DISTORTIONS, at_snr_db
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
    distortions: tuple[Literal["reverberation", "telephone", "opus", "slower", "faster"], ...] = ()
    """Other distortions for which they are reported: rooms, telephones, Opus at 6 kbit/s, and speeds of 0.9 and 1.1."""


def run(config: TokenizerEval) -> None:
    """Measure, and write the results."""
    check(config)
    speech, tokenizer = load_speech(config), load_tokenizer(config)
    distortions = {f"noise at {snr_db:g} dB": at_snr_db(snr_db) for snr_db in config.noise_snr_db}
    distortions |= {name: DISTORTIONS[name] for name in config.distortions}
    found = measure(tokenizer, speech.utterances, config.base, distortions)
    items, num = found.pop("items"), found["utterances"]
    shared = protocol(config, fingerprints={**fingerprints(config, "tokenizer"), "data": speech.id}, match="basic")
    own, base = {**shared, "judge": "the tokenizer's own ASR model"}, {**shared, "judge": found.get("base")}
    results: dict[str, Result] = {
        name: Result.of_rate(found[name], num, base if name.endswith("_base") else own)
        for name in ("wer", "cer", "wer_unquantized", "cer_unquantized", "wer_base", "cer_base")
        if name in found
    }
    for distortion, rates in found.get("distorted", {}).items():
        for name in ("wer", "cer", "unit_edit_distance"):
            results[f"{name}, {distortion}"] = Result.of_rate(rates[name], num, {**own, "distortion": distortion})
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
