import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages.conftest import HOSTILE, Page, assert_self_contained, random_clip
from weft.pages.components import Clip
from weft.pages.demo_report import (
    DIRECTIONS,
    ChatExample,
    ClozeExample,
    ReportData,
    Span,
    TokenizerExample,
    render,
    summary,
)

ABOVE_CHANCE = {"accuracy": 0.71, "low": 0.663, "high": 0.752, "n": 400}
RESULTS: dict[str, Any] = {
    "total_sec": 492.3,
    "machine": f"two cores {HOSTILE}",
    "seed": 0,
    "stages": {"tokenizer": {"sec": 171.0}, "pretrain": {"sec": 122.0}},
    "tokenizer": {"wer": 0.1423, "wer_low": 0.118, "wer_high": 0.169, "wer_words": 1204, "codes_used_share": 0.873,
                  "perplexity": 231.2, "bits_per_sec": 98.1, "warnings": [f"it has collapsed {HOSTILE}"]},
    "resynth": {"wer": 0.211},
    "text_to_token": {"wer": 0.173},
    "interleave": {"speech_ratio": 0.3012, "documents": 1200, "tokens_per_sec": 2312.4},
    "pretrain": {"loss": {"text": 1.034, "speech": 3.402}, "tokens_per_sec": 5403.2},
    "eval": {"topic_cloze": {key: dict(ABOVE_CHANCE) for key in DIRECTIONS}},
    "chat": {"first_audio_ms": 243.2, "question": HOSTILE, "answer_text": "It is green.", "wav": "chat.wav"},
}  # fmt: skip


def report_data(text: str = "The river is wide.") -> ReportData:
    lines = [{"step": s, "loss": 3 - s / 100, "loss_text": 2 - s / 100, "loss_speech": 3.0} for s in range(0, 100, 20)]
    return ReportData(
        tokenizer=TokenizerExample(random_clip(0.4, text), random_clip(0.32, seed=1), [3, 1, 511, 3], text),
        spoken=random_clip(0.2, text, seed=2),
        document=(Span(text), Span(f"\n{text}", random_clip(0.16, seed=3), [5, 6]), Span(" and on.")),
        curves={"pretrain": lines, "decoder": lines},
        cloze=(ClozeExample(text, text, text, {"TT": True, "ST": False}),),
        chat=ChatExample(random_clip(0.2, text, seed=4), random_clip(0.3, text, seed=5), text),
        skipped=(text,),
        notes={"tokenizer.wer": text, "eval.topic_cloze": text, "chat": text},
    )


def test_no_text_is_interpreted_as_markup() -> None:
    plain, hostile = Page(render(RESULTS, report_data())), Page(render(RESULTS, report_data(HOSTILE)))
    assert not hostile.all("img")
    assert len(hostile.all("script")) == 1
    assert [tag for tag, _ in hostile.elements if tag not in ("mark", "del")] == [tag for tag, _ in plain.elements]
    assert hostile.text.count(HOSTILE) >= 14


def test_the_page_is_one_file() -> None:
    assert_self_contained(render(RESULTS, report_data()))


def test_every_clip_can_be_played() -> None:
    e = report_data()
    assert e.tokenizer is not None
    assert e.spoken is not None
    assert e.chat is not None
    clips = [e.tokenizer.original, e.tokenizer.resynthesized, e.spoken, e.document[1].clip]
    clips += [e.chat.question, e.chat.answer]
    for (samples, rate_hz), clip in zip(Page(render(RESULTS, e)).audio, clips, strict=True):
        assert clip is not None
        assert rate_hz == clip.sample_rate_hz
        np.testing.assert_allclose(samples, clip.samples, atol=1 / 30000)


def test_clips_may_be_too_loud_silent_or_empty() -> None:
    loud = Clip(np.array([3.0, -3.0, 0.5] * 100, np.float32), 8000)
    silent, empty = (Clip(np.zeros(size, np.float32), 8000) for size in (800, 0))
    page = Page(render(RESULTS, ReportData(spoken=silent, chat=ChatExample(loud, empty))))
    assert [len(samples) for samples, _ in page.audio] == [800, 300]
    assert np.abs(page.audio[1][0]).max() <= 1
    assert "no audio" in page.text


def test_every_code_has_a_cell_and_a_number() -> None:
    page = Page(render({}, ReportData(tokenizer=report_data().tokenizer)))
    cells = page.all("rect")
    assert len(cells) == 4
    assert cells[0]["fill"] == cells[3]["fill"] != cells[1]["fill"]
    assert "3 1 511 3" in page.text


def test_a_document_has_the_text_of_its_source() -> None:
    spans = (Span("It rained. "), Span("  She\nran", random_clip(0.1), [1]), Span(" home & slept."))
    html = render({}, ReportData(document=spans))
    document = re.search(r'<div class="document">(.*?)</div>', html, re.S)
    assert document
    assert Page(document[1]).text == "".join(s.text for s in spans)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))


@pytest.mark.parametrize("path", list(_leaves(RESULTS)), ids=".".join)
def test_missing_results_are_left_out(path: tuple[str, ...]) -> None:
    for missing in ("absent", None, math.nan):
        results = json.loads(json.dumps(RESULTS))
        *above, last = path
        inner: Any = results
        for key in above:
            inner = inner[key]
        if missing == "absent":
            del inner[last]
        elif isinstance(inner[last], int | float):
            inner[last] = missing
        shown = Page(render(results, ReportData())).text + "\n".join(summary(results, Path("x")))
        assert not re.search(r"\bnan\b|None|Undefined", shown)


def test_a_page_may_have_no_results() -> None:
    page = Page(render({}, ReportData()))
    assert not page.audio
    assert not re.search(r"None|nan|Undefined", page.text)


def test_rendering_does_not_change_its_inputs() -> None:
    results, shown = copy.deepcopy(RESULTS), report_data()
    assert render(results, shown) == render(results, shown)
    assert results == RESULTS


def test_figures_intervals_and_verdicts_are_shown() -> None:
    results = copy.deepcopy(RESULTS)
    results["eval"]["topic_cloze"]["SS"] = {"accuracy": 0.51, "low": 0.46, "high": 0.56, "n": 400}
    html = render(results, ReportData())
    text = " ".join(Page(html).text.split())
    for figure in ("14.2 %", "11.8 % to 16.9 %, 1,204 words", "87.3 %", "98.1", "1.03", "3.40", "243 ms", "8 min 12 s"):
        assert figure in text
    assert f"it has collapsed {HOSTILE}" in text
    assert text.count("above chance") == 3
    assert "51.0 % of 400 not different from chance" in text
    assert "left:46.00%;width:10.00%" in html


def test_stages_are_drawn_one_after_another() -> None:
    bars = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%"', render(RESULTS, ReportData()).split("</ol>")[0])
    (first, first_width), (second, second_width) = [(float(a), float(b)) for a, b in bars]
    assert first == 0
    assert second == first_width == pytest.approx(100 * 171 / 492.3, abs=1e-3)
    assert second + second_width < 100  # the total includes more than the stages


def test_an_answer_is_right_if_it_contains_the_expected_words() -> None:
    def is_right(answer: str, expected: str | None) -> bool | None:
        return ChatExample(random_clip(0.1), random_clip(0.1, answer), expected).is_right

    assert is_right("It is GREEN, I think.", "green")
    assert not is_right("It is evergreen.", "green")
    assert is_right("Anything.", None) is None


def test_curves_have_only_finite_metrics() -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": math.nan}, {"step": 3, "loss": 1.0}]
    path = re.search(r'<path class="decoder" d="([^"]*)"', render({}, ReportData(curves={"decoder": lines})))
    assert path
    assert path[1].count("L") == 1


def test_the_summary_has_the_results_and_the_next_commands() -> None:
    lines = summary(RESULTS, Path("runs/demo"))
    assert len(lines) == 10
    text = "\n".join(lines)
    for part in ("14.2", "8\u00a0min", "It is green.", "runs/demo/report.html", "weft chat --model runs/demo --wav"):
        assert part in text
