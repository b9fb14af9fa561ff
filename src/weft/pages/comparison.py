"""A page that compares the results of one metric: values with their intervals, and paired differences.

html = render("qa", ["before", "after"], rows)             # rows of weft.eval.compare
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.pages.components import environment


def render(metric: str, names: Sequence[str], rows: Sequence[Any]) -> str:
    """Return the page."""
    shown = [{"name": row.name, "runs": _runs(names, row), "printed": row.printed, "axis": _axis(row)} for row in rows]
    return environment().get_template("comparison.html").render(metric=metric, names=names, rows=shown)


def _runs(names: Sequence[str], row: Any) -> list[dict[str, Any]]:
    differences = [None, *row.differences]
    return [
        {"name": name, **(value or {}), "difference": difference}
        for name, value, difference in zip(names, row.values, differences, strict=True)
    ]


def _axis(row: Any) -> tuple[float, float]:
    """Return the ends of the axis of a result: 0 to 1 for fractions, otherwise 0 to the highest end."""
    ends = [end for value in row.values if value for end in (value["low"], value["high"]) if end is not None]
    ends += [row.printed] if row.printed is not None else []
    return min([0.0, *ends]), max([1.0 if max(ends, default=0) <= 1 else 0.0, *ends])
