import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft import cli
from weft.eval.compare import CompareConfig, compare, load
from weft.eval.results import Result, write

NUM = 200


def save(path: Path, scores: list[Any], metric: str = "qa", data: str = "d", **protocol: Any) -> Path:
    used = {"fingerprints": {"data": data}, "direction": "SS", **protocol}
    items = [{"id": str(i)} for i in range(len(scores))]
    write(path, metric, {"SS": Result.of_scores(scores, used, 0.0)}, {}, items, {"SS": scores})
    return path


def test_differences_are_paired(tmp_path: Path) -> None:
    """One item in ten became right: the interval of the difference is narrower than those of the values."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, NUM).astype(float)
    after = np.maximum(before, np.arange(NUM) % 10 == 0)
    paths = save(tmp_path / "a.json", before.tolist()), save(tmp_path / "b.json", after.tolist())
    runs, metric = load(CompareConfig(paths))
    [row] = compare(runs)
    [difference] = row.differences
    assert metric == "qa"
    assert difference is not None
    assert difference.rate == pytest.approx((after - before).mean())
    assert 0 <= difference.low <= difference.rate <= difference.high
    value = row.values[0]
    assert value is not None
    assert difference.high - difference.low < 0.6 * (value["high"] - value["low"])
    assert compare(runs[::-1])[0].differences[0].rate == pytest.approx(-difference.rate)  # type: ignore[union-attr]


def test_rates_are_compared_by_their_units(tmp_path: Path) -> None:
    counts = {"a": [(1, 10), (0, 5), (3, 3)], "b": [(0, 10), (0, 5), (3, 3)]}
    paths = []
    for name, errors in counts.items():
        result = Result.of_counts(errors, {"fingerprints": {"data": "d"}})
        items = [{"id": str(i)} for i in range(3)]
        write(tmp_path / f"{name}.json", "asr", {"wer": result}, {}, items, {"wer": errors})
        paths.append(tmp_path / f"{name}.json")
    [row] = compare(load(CompareConfig(tuple(paths)))[0])
    assert row.differences[0].rate == pytest.approx(-1 / 18)  # type: ignore[union-attr]


def test_other_data_have_no_difference_and_unjudged_items_do_not_count(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.json", [1.0, 0.0, None]), save(tmp_path / "b.json", [1.0, 1.0, 1.0])
    c = save(tmp_path / "c.json", [1.0, 1.0, 1.0], data="other")
    [row] = compare(load(CompareConfig((a, b, c)))[0])
    assert row.differences[0].rate == pytest.approx(0.5)  # type: ignore[union-attr]
    assert row.differences[1] is None


def test_the_table_and_the_page_have_the_values_and_those_of_the_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = save(tmp_path / "a.json", [1.0, 0.0], set="storycloze")
    b = save(tmp_path / "b.json", [1.0, 1.0], set="storycloze")
    capsys.readouterr()
    command = ["eval", "compare", str(a), str(b), "--page", str(tmp_path / "page.html"), "--names", "<old>", "new"]
    assert cli.run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| result | <old> | new | new - <old> | n | paper's 9B (printed) |"
    assert lines[2].startswith(
        "| SS | 0.500 (0.000 to 1.000) | 1.000 (1.000 to 1.000) | +0.500 (+0.000 to +1.000) | 2 |"
    )
    assert lines[2].endswith("| 0.624 |")
    html = (tmp_path / "page.html").read_text()
    assert "0.624" in html
    assert "+0.500" in html
    assert "&lt;old&gt;" in html


def test_files_that_cannot_be_compared_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save(tmp_path / "a.json", [1.0]), save(tmp_path / "b.json", [1.0], metric="likelihood")
    (tmp_path / "c.json").write_text(json.dumps({"x": 1}))
    (tmp_path / "d.json").write_text('{"x": 1}\n{')
    for paths, message in (
        ([a], "needs two results or more"),
        ([a, b], "several metrics (qa, likelihood)"),
        ([a, tmp_path / "c.json"], "c.json has no results"),
        ([a, tmp_path / "none.json"], "none.json does not exist"),
        ([a, tmp_path / "d.json"], "d.json is not JSON"),
        ([a, a, "--names", "x"], "2 results and 1 names"),
    ):
        assert cli.run(["eval", "compare", *map(str, paths)]) == 2
        assert message in capsys.readouterr().err
