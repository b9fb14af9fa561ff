"""Comparison of results of one metric, item by item: `weft eval compare A.json B.json ...`.

run(CompareConfig(results=(Path("before.json"), Path("after.json")), page=Path("compare.html")))

The difference of a later file to the first is that of the same items, so its interval is narrower than those of the two
results suggest. Results of other data are shown without a difference. Values that the paper prints for a set stand
beside them; they are of other models, and partly of an unknown protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft import progress
from weft.errors import UserError, reason_of
from weft.eval.results import Score, items_path
from weft.files import check_writable, read_json_object, write_bytes
from weft.pages.comparison import render
from weft.text.error_rate import ErrorRate, pooled

# Accuracies that the paper prints for its 9B model, by set and direction.
PRINTED = {
    ("topic-storycloze", "SS"): 0.829,
    ("topic-storycloze", "ST"): 0.936,
    ("storycloze", "SS"): 0.624,
    ("storycloze", "ST"): 0.763,
    ("web-questions", "SS"): 0.159,
    ("web-questions", "ST"): 0.322,
    ("llama-questions", "SS"): 0.507,
    ("llama-questions", "ST"): 0.647,
    ("trivia-qa", "SS"): 0.265,
    ("trivia-qa", "ST"): 0.391,
}


@dataclass(frozen=True)
class CompareConfig:
    """Results to compare."""

    results: tuple[Path, ...]
    """JSON files of `weft eval`, of one metric. Differences are to the first."""
    names: tuple[str, ...] = ()
    """Names of the files in the table; not set: those of the files."""
    page: Path | None = None
    """HTML file with the table and plots."""


@dataclass(frozen=True)
class Run:
    """The results in a file, and the scores of its items by name and id."""

    name: str
    results: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True)
class Row:
    """A result in all runs: its values (None if missing), and the differences of the later ones to the first."""

    name: str
    values: Sequence[Mapping[str, Any] | None]
    differences: Sequence[ErrorRate | None] = field(default_factory=tuple)
    printed: float | None = None


def run(config: CompareConfig) -> None:
    """Print a Markdown table, and write the page. Raises UserError for files that are not results of one metric."""
    if config.page:
        check_writable(config.page)
    runs, metric = load(config)
    rows = compare(runs)
    progress.show(*markdown(runs, rows))
    if config.page:
        write_bytes(config.page, render(metric, [r.name for r in runs], rows).encode())


def load(config: CompareConfig) -> tuple[list[Run], str]:
    """Read the files; return them, and the metric."""
    if len(config.results) < 2:
        raise UserError("a comparison needs two results or more: give --results A.json B.json")
    if config.names and len(config.names) != len(config.results):
        raise UserError(f"there are {len(config.results)} results and {len(config.names)} names: give one for each")
    found = [_read(path) for path in config.results]
    metrics = [content["metric"] for content in found]
    if len(set(metrics)) > 1:
        raise UserError(f"the results are of several metrics ({', '.join(metrics)}): give results of one")
    names = config.names or _names(config.results)
    rows = zip(names, found, config.results, strict=True)
    return [Run(name, content["results"], _scores(path)) for name, content, path in rows], metrics[0]


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file. Raises UserError if it has no results."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of weft eval")
    try:
        content = read_json_object(path)
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({reason_of(e)}): give a file of weft eval") from e
    if not isinstance(content.get("results"), dict) or "metric" not in content:
        raise UserError(f"{path} has no results: give a file of weft eval")
    return content


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of files, with those of their directories if some are equal."""
    short = [path.stem for path in paths]
    return short if len(set(short)) == len(short) else [f"{path.parent.name}/{path.stem}" for path in paths]


def _scores(path: Path) -> dict[str, dict[str, Score]]:
    """Return the scores of items by name of the result and id, empty without a file of items."""
    found: dict[str, dict[str, Score]] = {}
    items = items_path(path)
    lines = items.read_bytes().splitlines() if items.is_file() else ()
    for number, line in enumerate(lines, 1):
        try:
            item = dict(json.loads(line))
        except (ValueError, TypeError) as e:
            raise UserError(f"{items} line {number} is not an item ({reason_of(e)}): evaluate again") from e
        for name, score in item.get("scores", {}).items():
            found.setdefault(name, {})[str(item.get("id"))] = score
    return found


def compare(runs: Sequence[Run]) -> list[Row]:
    """Return a row for each result of any run."""
    names = list(dict.fromkeys(name for one in runs for name in one.results))
    return [
        Row(
            name,
            [one.results.get(name) for one in runs],
            [_difference(name, runs[0], other) for other in runs[1:]],
            _printed(next(one.results[name] for one in runs if name in one.results)),
        )
        for name in names
    ]


def _difference(name: str, first: Run, other: Run) -> ErrorRate | None:
    """Return the difference over the items of both runs; None if they are of other data."""
    pair = [one.results.get(name) for one in (first, other)]
    ids = [found and found["protocol"].get("fingerprints", {}).get("data") for found in pair]
    scores = [one.scores.get(name, {}) for one in (first, other)]
    if None in pair or ids[0] != ids[1] or scores[0].keys() != scores[1].keys() or not scores[0]:
        return None
    counts = [(_counts(a), _counts(b)) for a, b in ((score, scores[1][i]) for i, score in scores[0].items())]
    differences = [(b[0] - a[0], a[1]) for a, b in counts if a and b and a[1]]
    return pooled(differences) if differences else None  # type: ignore[arg-type]


def _counts(score: Score) -> tuple[float, float] | None:
    """Return a score as (errors, units)."""
    if score is None:
        return None
    return (score, 1.0) if isinstance(score, int | float) else (score[0], score[1])


def _printed(result: Mapping[str, Any]) -> float | None:
    protocol = result["protocol"]
    return PRINTED.get((str(protocol.get("set")), str(protocol.get("direction"))))


def markdown(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    columns = ["result", *(r.name for r in runs), *(f"{r.name} - {runs[0].name}" for r in runs[1:]), "n"]
    has_printed = any(row.printed is not None for row in rows)
    columns += ["paper's 9B (printed)"] if has_printed else []
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [row.name, *(_cell(None if value is None else _rate(value)) for value in row.values)]
        cells += [_cell(difference, signed=True) for difference in row.differences]
        cells.append(str(next(value["n"] for value in row.values if value)))
        cells += ["" if row.printed is None else f"{row.printed:.3f}"] if has_printed else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rate(value: Mapping[str, Any]) -> ErrorRate | None:
    return None if value["value"] is None else ErrorRate(value["value"], value["low"], value["high"], value["n"])


def _cell(rate: ErrorRate | None, signed: bool = False) -> str:
    if rate is None:
        return "–"  # noqa: RUF001
    sign = "+" if signed else ""
    return f"{rate.rate:{sign}.3f} ({rate.low:{sign}.3f} to {rate.high:{sign}.3f})"
