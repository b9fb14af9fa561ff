"""Statistics of interleaved data, and their summary in the manifest.

counts: Counter[str] = Counter()                    # of a task; the job adds up those of all tasks
count_span(outcome, num_words, counts)
count_document(num_words, spoken_words, num_codes, counts)
manifest.counts.update(summary(report, size_bytes, has_error_rates=True))
report_text(manifest.counts, requested_ratio=0.3)   # prints why words stayed text
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

from weft import progress
from weft.data.job import Report
from weft.errors import UserError
from weft.interleave.speakable import KINDS
from weft.text_to_token.wer_filter import Outcome, Rejection

_PAPER_TOKENS = 600e9
_REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)
_MIN_ACHIEVED = 0.5  # of the requested ratio, below which there is a warning
_TOKENS_PER_WORD = 4 / 3  # of English, with a vocabulary of 100,000 or more
_BUCKETS = {10: "0-9", 50: "10-49", 200: "50-199", 1000: "200-999", math.inf: "1000 or more"}  # words per document
_WER_BUCKETS = {0.0: "0", 0.1: "to 0.1", 0.2: "to 0.2", 0.3: "to 0.3", 0.5: "to 0.5", 1.0: "to 1", math.inf: "over 1"}


def count_span(outcome: Outcome, num_words: int, counts: Counter[str]) -> None:
    """Count the outcome of a span of `num_words`, and the errors of its first and its kept synthesis."""
    counts["spans"] += 1
    if outcome.rejection:
        counts.update({f"rejected {outcome.rejection}": 1, f"rejected {outcome.rejection} words": num_words})
    counts["retried_spans"] += outcome.num_attempts > 1
    counts["rejected_spans"] += outcome.kept is None
    counts["misread_spans"] += outcome.kept is None and outcome.first is not None
    for when, synthesis in (("before", outcome.first), ("after", outcome.kept)):
        if synthesis is not None and (errors := synthesis.errors) is not None:
            rate = "cer" if errors.in_characters else "wer"
            counts.update({f"{rate} {when} errors": errors.errors, f"{rate} {when} units": errors.units})
            if when == "before":
                counts[f"span_wer {next(b for limit, b in _WER_BUCKETS.items() if errors.rate <= limit)}"] += 1


def count_document(num_words: int, spoken_words: int, num_codes: int, counts: Counter[str]) -> None:
    """Count a document whose `spoken_words` have become `num_codes` codes."""
    bucket = next(name for limit, name in _BUCKETS.items() if num_words < limit)
    counts.update({"documents": 1, "speech_codes": num_codes})
    counts.update({"words": num_words, "spoken_words": spoken_words})
    counts.update({f"words {bucket}": num_words, f"spoken_words {bucket}": spoken_words})


def summary(report: Report, size_bytes: int, has_error_rates: bool) -> dict[str, Any]:
    """Return the counts of the manifest.

    Ratios are relative to all words, including those that cannot be spoken, which `left_as_text` counts by kind.
    `tokens_per_sec` is the speed of a worker in speech codes, and `size_bytes` the size of the documents.
    """
    counts = report.counts
    if not counts["words"]:
        raise UserError("the corpus contains no words: give other text")
    if counts["spans"] and counts["spans"] == counts["rejected_spans"]:
        raise UserError(
            f"none of the {counts['spans']} spans was accepted ({_described(_rejections(counts))}): listen to the "
            "text-to-token model (weft say), check that the server serves its directory, or raise max_wer"
        )
    names = ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")
    buckets = [bucket for bucket in _BUCKETS.values() if f"words {bucket}" in counts]
    return {
        **{name: counts[name] for name in names},
        "text_words": counts["words"] - counts["spoken_words"],
        "speech_ratio": round(counts["spoken_words"] / counts["words"], 4),
        "speech_ratio_by_words": {
            b: round(counts[f"spoken_words {b}"] / max(1, counts[f"words {b}"]), 4) for b in buckets
        },
        "retried_share": round(counts["retried_spans"] / max(1, counts["spans"]), 4),
        "codes_per_spoken_word": round(counts["speech_codes"] / max(1, counts["spoken_words"]), 3),
        "left_as_text": {kind: n for kind in KINDS if (n := counts[f"unspeakable {kind}"])},
        "documents_left_whole": counts["documents_left_whole"],
        "rejections": _rejections(counts),
        "rejected_words": _rejections(counts, " words"),
        **({"read_back": _error_rates(counts)} if has_error_rates else {}),
        "skipped_documents": report.skipped.num_bad,
        "tokens_per_sec": round(counts["speech_codes"] / report.busy_sec, 1),
        "cost_of_600b_tokens": _cost(counts, report.busy_sec, size_bytes),
    }


def report_text(counts: Mapping[str, Any], requested_ratio: float) -> None:
    """Print to stderr how many spans and words stayed text and why, and a warning if few of the words are spoken."""
    words = {**counts.get("left_as_text", {}), **counts.get("rejected_words", {})}
    spans = counts.get("rejections", {})
    rows = [[name.replace("_", " "), f"{spans.get(name, 0):,}", f"{n:,}"] for name, n in words.items()]
    if rows:
        progress.table(["left as text", "spans", "words"], rows)
    if counts["speech_ratio"] < _MIN_ACHIEVED * requested_ratio:
        causes = [f"{counts['rejected_spans']} of {counts['spans']} spans were rejected"]
        if spans:
            causes[0] += f" ({_described(spans)})"
        if unspeakable := sum(counts.get("left_as_text", {}).values()):
            causes.append(f"{unspeakable:,} of {counts['words']:,} words cannot be spoken")
        if whole := counts.get("documents_left_whole"):
            causes.append(f"{whole} of {counts['documents']} documents stayed whole")
        progress.note(
            f"warning: the speech ratio is {counts['speech_ratio']:.3f}, less than half of the requested "
            f"{requested_ratio:g}: {', '.join(causes)}"
        )


def _rejections(counts: Counter[str], unit: str = "") -> dict[str, int]:
    """Return the number of rejected spans (or of their words) by reason."""
    return {reason: n for reason in _REJECTIONS if (n := counts[f"rejected {reason}{unit}"])}


def _described(rejections: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in rejections.items())


def _cost(counts: Counter[str], busy_sec: float, size_bytes: int) -> dict[str, float]:
    """Return the cost of the paper's number of tokens, at the rates and the speech ratio of this corpus."""
    tokens = counts["speech_codes"] + _TOKENS_PER_WORD * (counts["words"] - counts["spoken_words"])
    factor = _PAPER_TOKENS / tokens
    return {
        "worker_hours": round(busy_sec * factor / 3600),
        "storage_gb": round(size_bytes * factor / 1e9),
        "corpus_words": round(counts["words"] * factor),
    }


def _error_rates(counts: Counter[str]) -> dict[str, Any]:
    """Return the error rates before the filter (of the first synthesis of each span) and after it."""
    rates = {
        f"{rate}_{when}": round(counts[f"{rate} {when} errors"] / units, 4)
        for rate in ("wer", "cer")
        for when in ("before", "after")
        if (units := counts[f"{rate} {when} units"])
    }
    return {
        **rates,
        "span_wer": {bucket: counts[f"span_wer {bucket}"] for bucket in _WER_BUCKETS.values()},
        "dropped_share": round(counts["misread_spans"] / max(1, counts["spans"]), 4),
    }
