"""Results of an evaluation, with the protocol that produced them.

    scores = {"ST": [1.0, 0.0, None]}                               # None: not judged
    results = {"ST": Result.of_scores(scores["ST"], protocol={"direction": "ST", ...}, unjudged_is=0.0)}
    write(config.out, "qa", results, items=[{"id": "a", "answer": "Paris"}, ...], scores=scores)

The file has "metric", "results" by name, and "details" of the metric. Items are lines of a JSONL file beside it, with
the scores of each result: a number, or [errors, units], so that results can be compared item by item.
Intervals are 95 % bootstrap intervals over items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft import __version__, progress
from weft.eval.sets import described
from weft.files import write_bytes, write_json
from weft.text.error_rate import ErrorRate, character_errors, pooled, word_errors

Score = float | Sequence[float] | None


@dataclass(frozen=True)
class Result:
    """A figure with its interval, the number of items, and how it was measured."""

    value: float | None
    """Mean over items, or a rate over their units; None if no item was judged."""
    low: float | None
    high: float | None
    n: int
    """Items, with those that were not judged."""
    unjudged: int
    """Items without a judgement, which count as wrong in fractions of right items."""
    protocol: Mapping[str, Any]

    @classmethod
    def of_scores(
        cls, scores: Sequence[float | None], protocol: Mapping[str, Any], unjudged_is: float | None
    ) -> Result:
        """Return the mean of the scores of items. One that was not judged (None) has the score `unjudged_is`.

        If that is None, it is left out of the mean, as a rating on a scale must be.
        """
        known = [unjudged_is if score is None else score for score in scores]
        found = [score for score in known if score is not None]
        unjudged = sum(score is None for score in scores)
        if not found:
            return cls(None, None, None, len(scores), unjudged, protocol)
        mean = pooled([(score, 1) for score in found])  # type: ignore[misc]
        return cls(mean.rate, mean.low, mean.high, len(scores), unjudged, protocol)

    @classmethod
    def of_counts(cls, counts: Sequence[tuple[float, int]], protocol: Mapping[str, Any]) -> Result:
        """Return the rate of (errors, units) of all items."""
        return cls.of_rate(pooled(counts), len(counts), protocol)  # type: ignore[arg-type]

    @classmethod
    def of_rate(cls, rate: ErrorRate | Mapping[str, Any], n: int, protocol: Mapping[str, Any]) -> Result:
        """Return the error rate of `n` items, as results have it."""
        found = rate if isinstance(rate, ErrorRate) else ErrorRate(**rate)
        return cls(found.rate, found.low, found.high, n, 0, {**protocol, "units": found.num_units})


def error_counts(
    transcripts: Mapping[str, Sequence[str]], references: Sequence[str]
) -> dict[str, list[tuple[int, int]]]:
    """Return (errors, units) of each item in words and characters, named "wer, SYSTEM", or "wer" for the system ""."""
    return {
        f"{rate}, {system}" if system else rate: [count(r, t) for r, t in zip(references, texts, strict=True)]
        for system, texts in transcripts.items()
        for rate, count in (("wer", word_errors), ("cer", character_errors))
    }


def protocol(config: Any, **settings: Any) -> dict[str, Any]:
    """Return what every protocol has, what is known of a published set, and `settings` of the metric."""
    limit = {} if config.limit is None else {"limit": config.limit}
    data = {"data": [path.name for path in config.data], **(described(config.data[0]) if len(config.data) == 1 else {})}
    return {**data, "language": config.language, "seed": config.seed, **limit, **settings, "version": __version__}


def items_path(out: Path) -> Path:
    """Return the path of the items of the results in `out`."""
    return out.with_name(f"{out.stem}.items.jsonl")


def write(
    out: Path,
    metric: str,
    results: Mapping[str, Result],
    details: Mapping[str, Any] | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    scores: Mapping[str, Sequence[Score]] | None = None,
) -> None:
    """Print results, and write them with their items, whose order is that of `scores`."""
    assert all(len(of_items) == len(items) for of_items in (scores or {}).values()), "scores of other items"
    rows = [{**item, "scores": {name: of[i] for name, of in (scores or {}).items()}} for i, item in enumerate(items)]
    write_bytes(items_path(out), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    found = {name: asdict(result) for name, result in results.items()}
    write_json(out, {"metric": metric, "results": found, "details": dict(details or {})})
    shown = {name: {k: v for k, v in row.items() if k != "protocol"} for name, row in found.items()}
    progress.summary({"results": shown, **(details or {})})
