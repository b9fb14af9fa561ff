"""Questions of VoiceBench: a directory for each subset, with a Parquet file for each split.

    found = read(Request("voicebench", Path("voicebench"), subset="sd-qa", split="usa"))

The splits of sd-qa are regions, those of mmsu are domains, others have `test`. Subsets without a column `reference`,
such as alpacaeval, have no answers.

Source: https://huggingface.co/datasets/hlt-lab/voicebench.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weft.errors import UserError
from weft.eval.prepare.items import ALL, Found, Request, chosen
from weft.eval.prepare.questions import Columns, of_splits
from weft.eval.prepare.rows import PARQUET
from weft.eval.prepare.splits import tables_by_split

_COLUMNS = Columns(("prompt",), ("reference",), kept=("question_id", "domain", "category"), needs_answers=False)


def read(request: Request) -> Found:
    """Return the questions of a subset, or of a file or directory of one. Raises UserError if none is chosen."""
    source = request.source
    subsets = {p.name: p for p in source.iterdir() if _has_tables(p)} if source.is_dir() else {}
    if subsets:
        if request.subset == ALL:
            raise UserError(
                f"the subsets of {request.name} are scored in different ways: give --subset with one of "
                f"{', '.join(sorted(subsets))}"
            )
        [subset] = chosen("subset", subsets, request.subset, source)
        request = replace(request, source=subsets[subset])
    else:
        subset = (source if source.is_dir() else source.absolute().parent).name
        if request.subset not in (None, subset):
            raise UserError(f"{source} is the subset {subset}: leave out --subset, or give another directory")
    tables = tables_by_split(request, PARQUET)
    if tables is None:
        raise UserError(f"{source} has no Parquet files: give the directory of {request.name}")
    found = of_splits(*tables, _COLUMNS, request)
    has_answers = all("answers" in item.row for item in found.items)
    notes = {} if has_answers else {"answers": "none are published: only metrics that need none can use this set"}
    return replace(found, subset=subset, notes=notes)


def _has_tables(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.parquet"))
