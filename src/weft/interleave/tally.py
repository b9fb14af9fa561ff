"""What is counted while interleaved data is made, and what its manifest says of it.

counts: Counter[str] = Counter()                    # of a task; those of all tasks add up
count_span(outcome, counts)
count_document(num_words, spoken_words, num_codes, counts)
manifest.counts.update(summary(report, size_bytes, read_back=True))
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from weft.data.job import Report
from weft.errors import UserError
from weft.interleave.speakable import KINDS
from weft.text_to_token.gate import Outcome

_PAPER_TOKENS = 600e9
_TOKENS_PER_WORD = 4 / 3  # of English, in a vocabulary of 100,000 and more
_BUCKETS = (10, 50, 200, 1000)  # words of a document, for the achieved ratios in the manifest
_WER_BUCKETS = {0.0: "0", 0.1: "to 0.1", 0.2: "to 0.2", 0.3: "to 0.3", 0.5: "to 0.5", 1.0: "to 1", math.inf: "over 1"}


def count_span(outcome: Outcome, counts: Counter[str]) -> None:
    """Count what came of a span, and how it read back as first said and as taken."""
    counts["spans"] += 1
    counts["retried_spans"] += outcome.num_tries > 1
    counts["rejected_spans"] += outcome.kept is None
    counts["misread_spans"] += outcome.kept is None and outcome.first is not None
    for when, said in (("before", outcome.first), ("after", outcome.kept)):
        if said is not None and said.errors is not None:
            rate = "cer" if said.errors.in_characters else "wer"
            counts.update({f"{rate} {when} errors": said.errors.errors, f"{rate} {when} units": said.errors.units})
            if when == "before":
                counts[f"span_wer {next(b for edge, b in _WER_BUCKETS.items() if said.errors.rate <= edge)}"] += 1


def count_document(num_words: int, spoken_words: int, num_codes: int, counts: Counter[str]) -> None:
    """Count a document of which `spoken_words` became `num_codes` codes."""
    bucket = _bucket(num_words)
    counts.update(
        {
            "documents": 1,
            "words": num_words,
            "spoken_words": spoken_words,
            "speech_codes": num_codes,
            f"words {bucket}": num_words,
            f"spoken_words {bucket}": spoken_words,
        }
    )


def _bucket(num_words: int) -> str:
    low = max((edge for edge in _BUCKETS if edge <= num_words), default=0)
    high = next((f"-{edge - 1}" for edge in _BUCKETS if edge > num_words), " or more")
    return f"{low}{high}"


def summary(report: Report, size_bytes: int, read_back: bool) -> dict[str, Any]:
    """The counts of the manifest. Ratios are of all words, also of those that cannot be spoken, which `left_as_text`
    counts by kind; `tokens_per_sec` is a worker's speed in speech codes, and `size_bytes` what the documents take."""
    counts = report.counts
    if not counts["words"]:
        raise UserError("the corpus holds no words to interleave: give other text")
    if counts["spans"] and counts["spans"] == counts["rejected_spans"]:
        raise UserError(
            f"none of the {counts['spans']} spans could be spoken: hear what the text-to-token model says (weft say), "
            "see that a server serves its folder, or raise max_wer"
        )
    names = ("documents", "words", "spoken_words", "speech_codes", "spans", "rejected_spans")
    buckets = sorted((name.removeprefix("words ") for name in counts if name.startswith("words ")), key=_leading_number)
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
        **({"read_back": _read_back(counts)} if read_back else {}),
        "skipped_documents": report.skipped.num_bad,
        "tokens_per_sec": round(counts["speech_codes"] / report.busy_sec, 1),
        "cost_of_600b_tokens": _cost(counts, report.busy_sec, size_bytes),
    }


def _cost(counts: Counter[str], busy_sec: float, size_bytes: int) -> dict[str, float]:
    """What as many tokens as the paper's take, text and speech in this corpus's shares and at its measured rates."""
    tokens = counts["speech_codes"] + _TOKENS_PER_WORD * (counts["words"] - counts["spoken_words"])
    times = _PAPER_TOKENS / tokens
    return {
        "worker_hours": round(busy_sec * times / 3600),
        "storage_gb": round(size_bytes * times / 1e9),
        "corpus_words": round(counts["words"] * times),
    }


def _read_back(counts: Counter[str]) -> dict[str, Any]:
    """What the gate found and did; the rates before it are those of the first codes that each span got."""
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


def _leading_number(bucket: str) -> int:
    return int(bucket.split("-")[0].split()[0])
