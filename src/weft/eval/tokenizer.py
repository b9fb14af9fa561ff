"""Evaluation of a speech tokenizer on transcribed speech: error rates and codebook use.

    found = measure(tokenizer, utterances, base=Path("models/whisper-base"))
    found["wer"]["rate"], found["wer_unquantized"]["rate"], found["perplexity"], found["warnings"]
    found["wer_base"]["rate"]

Errors are counted twice with the same weights: of transcripts from codes, and of transcripts from the pooled hidden
states without quantization. The difference is the cost of quantization for this model. It is not the
difference to the base Whisper: pooling, blocks and fine-tuning are in both, and the later layers were trained on codes.
With `base`, the error rates of that Whisper are a reference.

The unit edit distance is that of StableToken (arXiv 2509.22220): edits between the codes of clean and of distorted
speech over the number of clean codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft import progress
from weft.artifacts import base_manifest
from weft.asr.transcribe import Transcriber
from weft.audio import load
from weft.errors import UserError
from weft.eval.distortions import Distort
from weft.records import Utterance
from weft.text.error_rate import character_error_rate, code_errors, pooled, split_by_words, word_error_rate
from weft.text.normalize import comparison_form
from weft.tokenizer.codebook import codebook_metrics, collapse_warning
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.transcripts import Transcripts, transcribe_utterances

_UTTERANCES_PER_CALL = 16  # between two updates of the progress bar


def measure(
    tokenizer: SpeechTokenizer,
    utterances: Sequence[Utterance],
    base: Path | None = None,
    distortions: Mapping[str, Distort] | None = None,
) -> dict[str, Any]:
    """Return error rates with and without quantization, and codebook use, as results.json has them.

    `wer` and `cer` are pooled, with 95 % bootstrap intervals over utterances; `empty_share` is the fraction of
    transcripts without a word. `bits_per_sec` is the entropy of the codes times their rate, `nominal_bits_per_sec` its
    maximum; `most_frequent_share` is the fraction of all tokens by the ten most frequent codes. Utterances whose
    transcripts have no words are left out, and listed in `left_out_ids`. `base` is the directory of the Whisper that
    the tokenizer was trained from, or of another. `distorted` has the figures of the same speech after each of
    `distortions`, by name, and `items` the transcripts of each utterance. Raises UserError if no utterance is left, for
    unreadable audio, and if the tokenizer cannot transcribe.
    """
    utterances, left_out = split_by_words(utterances, lambda u: u.text)
    if not utterances:
        raise UserError("there is no transcribed speech to measure on: give a manifest with `text`")
    found = transcribe_utterances(tokenizer, utterances, unquantized=True)
    warning = collapse_warning(found.counts)
    unquantized = _rates(utterances, found.texts_unquantized)
    texts = {"transcript": found.texts, "transcript_unquantized": found.texts_unquantized}
    reference = {}
    if base:
        texts["transcript_base"] = _transcripts(utterances, base)
        rates = _rates(utterances, texts["transcript_base"])
        reference = {"base": _name(tokenizer, base), **{f"{name}_base": value for name, value in rates.items()}}
    return {
        "utterances": len(utterances),
        "left_out": len(left_out),
        "left_out_ids": [u.id for u in left_out],
        "seconds": round(sum(found.seconds), 2),
        **_rates(utterances, found.texts),
        **{f"{name}_unquantized": value for name, value in unquantized.items()},
        **reference,
        **codebook_metrics(found.counts, tokenizer.frame_rate_hz),
        **({"distorted": _distorted(tokenizer, utterances, found, distortions)} if distortions else {}),
        "speakers": _speakers(utterances, found),
        "warnings": [warning] if warning else [],
        "items": [
            {"id": u.id, "text": u.text, **{name: of[i] for name, of in texts.items()}}
            for i, u in enumerate(utterances)
        ],
    }


def _distorted(
    tokenizer: SpeechTokenizer, utterances: Sequence[Utterance], clean: Transcripts, distortions: Mapping[str, Distort]
) -> dict[str, dict[str, Any]]:
    """Return unit edit distance and error rates of distorted speech, by the name of the distortion."""
    figures = {}
    for name, distort in distortions.items():
        found = transcribe_utterances(tokenizer, utterances, distort=distort)
        edits = [code_errors(a.tolist(), b.tolist()) for a, b in zip(clean.codes, found.codes, strict=True)]
        figures[name] = {"unit_edit_distance": asdict(pooled(edits)), **_rates(utterances, found.texts)}
    return figures


def _transcripts(utterances: Sequence[Utterance], base: Path) -> list[str]:
    """Return the transcripts of a Whisper."""
    whisper, texts = Transcriber(base), list[str]()
    with progress.bar("base", len(utterances)) as advance:
        for first in range(0, len(utterances), _UTTERANCES_PER_CALL):
            chunk = utterances[first : first + _UTTERANCES_PER_CALL]
            texts += whisper.long([load(u.audio) for u in chunk], [u.language for u in chunk])
            advance(len(chunk))
    return texts


def _name(tokenizer: SpeechTokenizer, base: Path) -> str:
    """Return the name of a Whisper, with a remark if the tokenizer was not trained from it."""
    is_own = tokenizer.manifest.parents.get("base") == base_manifest(base).fingerprint
    return f"{base.resolve().name}{'' if is_own else ', from which the tokenizer was not trained'}"


def _error_rates(utterances: Sequence[Utterance], transcripts: Sequence[str]) -> dict[str, Any]:
    pairs = [u.text or "" for u in utterances], transcripts
    return {"wer": asdict(word_error_rate(*pairs)), "cer": asdict(character_error_rate(*pairs))}


def _rates(utterances: Sequence[Utterance], transcripts: Sequence[str]) -> dict[str, Any]:
    """Return error rates and the fraction of empty transcripts."""
    num_empty = sum(not comparison_form(text) for text in transcripts)
    return {**_error_rates(utterances, transcripts), "empty_share": num_empty / len(transcripts)}


def _speakers(utterances: Sequence[Utterance], found: Transcripts) -> dict[str, dict[str, Any]]:
    """Return the metrics of each known speaker, with quantization, the highest error rate first."""
    rows: dict[str, list[int]] = {}
    for i, u in enumerate(utterances):
        if u.speaker:
            rows.setdefault(u.speaker, []).append(i)
    metrics = {
        name: {
            "utterances": len(indices),
            "seconds": round(sum(found.seconds[i] for i in indices), 2),
            **_error_rates([utterances[i] for i in indices], [found.texts[i] for i in indices]),
        }
        for name, indices in rows.items()
    }
    return dict(sorted(metrics.items(), key=lambda item: -item[1]["cer"]["rate"]))
