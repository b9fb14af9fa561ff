"""Results of an evaluation, with the protocol that produced them.

    result = Result.of_scores([1.0, 0.0, None], protocol={"direction": "ST", ...})     # None: not judged
    write(config.out, "qa", {"ST": result}, items=[{"id": "a", "score": 1.0}, ...])

The file has "metric", "results" by name, and "details" of the metric. Items are lines of a JSONL file beside it.
Intervals are 95 % bootstrap intervals over items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft import __version__, progress
from weft.eval.sets import described
from weft.files import write_bytes, write_json
from weft.text.error_rate import ErrorRate, pooled


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
    def of_rate(cls, rate: ErrorRate | Mapping[str, Any], n: int, protocol: Mapping[str, Any]) -> Result:
        """Return the error rate of `n` items, as results have it."""
        found = rate if isinstance(rate, ErrorRate) else ErrorRate(**rate)
        return cls(found.rate, found.low, found.high, n, 0, {**protocol, "units": found.num_units})


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
    items: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Print results, and write them with their items."""
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    if lines:
        write_bytes(items_path(out), lines.encode())
    found = {name: asdict(result) for name, result in results.items()}
    write_json(out, {"metric": metric, "results": found, "details": dict(details or {})})
    rows = {name: {k: v for k, v in row.items() if k != "protocol"} for name, row in found.items()}
    progress.summary({"results": rows, **(details or {})})
