"""The demo's page: complete, self-contained, safe for any text, and unimpressed by what is missing."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from weft.demo.report import SETTINGS, ChatExhibit, ClozeExample, Exhibits, Span, TokenizerExhibit, render, summary
from weft.eval.report import Clip, Series, chart, differences, duration, number, percent
from weft.wer import normalize

HOSTILE = "</script></q><img src=http://x/y onerror=alert(1)> \"'& {{ 7*7 }} é"
VOID = {"meta", "br", "img", "input", "link"}

ABOVE_CHANCE = {"accuracy": 0.71, "low": 0.663, "high": 0.752, "n": 400}
RESULTS: dict[str, Any] = {
    "total_sec": 492.3,
    "machine": f"two cores {HOSTILE}",
    "seed": 0,
    "stages": {"tokenizer": {"sec": 171.0, "done": True}, "pretrain": {"sec": 122.0, "done": True}},
    "tokenizer": {"wer": 0.1423, "wer_low": 0.118, "wer_high": 0.169, "wer_words": 1204, "codes_used_share": 0.873,
                  "perplexity": 231.2, "bits_per_sec": 98.1, "warnings": [f"it has collapsed {HOSTILE}"]},
    "resynth": {"wer": 0.211},
    "text_to_token": {"wer": 0.173},
    "interleave": {"speech_ratio": 0.3012, "documents": 1200, "tokens_per_sec": 2312.4},
    "pretrain": {"loss": {"text": 1.034, "speech": 3.402}, "tokens_per_sec": 5403.2},
    "eval": {"topic_cloze": {key: dict(ABOVE_CHANCE) for key in SETTINGS}},
    "chat": {"first_audio_ms": 243.2, "question": HOSTILE, "answer_text": "It is green.", "wav": "chat.wav"},
}  # fmt: skip


def clip(sec: float, text: str | None = None, seed: int = 0) -> Clip:
    return Clip(np.random.default_rng(seed).uniform(-0.9, 0.9, int(sec * 8000)).astype(np.float32), 8000, text)


def exhibits(text: str = "The river is wide.") -> Exhibits:
    lines = [{"step": s, "loss": 3 - s / 100, "loss_text": 2 - s / 100, "loss_speech": 3.0} for s in range(0, 100, 20)]
    return Exhibits(
        tokenizer=TokenizerExhibit(clip(0.4, text), clip(0.32, seed=1), [3, 1, 511, 3], text),
        said=clip(0.2, text, seed=2),
        document=(Span(text), Span(f"\n{text}", clip(0.16, seed=3), [5, 6]), Span(" and on.")),
        curves={"pretrain": lines, "decoder": lines},
        cloze=(ClozeExample(text, text, text, {"T": True, "ST": False}),),
        chat=ChatExhibit(clip(0.2, text, seed=4), clip(0.3, text, seed=5), text),
        skipped=(text,),
        notes={"tokenizer.wer": text, "eval.topic_cloze": text, "chat": text},
    )


class Page(HTMLParser):
    """The elements and the visible text of a page; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sounds(self) -> list[np.ndarray]:
        sources = [str(a["src"]).removeprefix("data:audio/flac;base64,") for a in self.all("audio")]
        return [soundfile.read(io.BytesIO(base64.b64decode(s)))[0] for s in sources]


def test_every_text_arrives_as_text_and_none_as_markup() -> None:
    plain, hostile = Page(render(RESULTS, exhibits())), Page(render(RESULTS, exhibits(HOSTILE)))
    assert not hostile.all("img")
    assert len(hostile.all("script")) == 1
    assert [tag for tag, _ in hostile.elements if tag not in ("mark", "del")] == [tag for tag, _ in plain.elements]
    assert hostile.text.count(HOSTILE) >= 14


def test_the_page_asks_for_nothing_outside_itself() -> None:
    html = render(RESULTS, exhibits())
    for _, attributes in Page(html).elements:
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert not re.search(r"url\(|@import|https?://(?!x/y)", html)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_every_sound_can_be_played_and_is_the_one_shown() -> None:
    shown = exhibits()
    assert shown.tokenizer is not None
    assert shown.said is not None
    assert shown.chat is not None
    clips = [shown.tokenizer.original, shown.tokenizer.resynthesised, shown.said, shown.document[1].sound]
    clips += [shown.chat.question, shown.chat.answer]
    sounds = Page(render(RESULTS, shown)).sounds
    assert len(sounds) == len(clips)
    for heard, made in zip(sounds, clips, strict=True):
        assert made
        np.testing.assert_allclose(heard, made.samples, atol=1 / 30000)


def test_loud_and_silent_sounds_are_shown_too() -> None:
    loud = Clip(np.array([3.0, -3.0, 0.5] * 100, np.float32), 8000)
    nothing = Clip(np.zeros(0, np.float32), 8000)
    page = Page(render(RESULTS, Exhibits(said=Clip(np.zeros(800, np.float32), 8000), chat=ChatExhibit(loud, nothing))))
    assert [len(s) for s in page.sounds] == [800, 300]
    assert np.abs(page.sounds[1]).max() <= 1
    assert "no sound" in page.text


def test_codes_are_drawn_one_cell_each_and_told_as_numbers() -> None:
    page = Page(render({}, Exhibits(tokenizer=exhibits().tokenizer)))
    cells = page.all("rect")
    assert len(cells) == 4
    assert cells[0]["fill"] == cells[3]["fill"] != cells[1]["fill"]
    assert "3 1 511 3" in page.text


def test_a_document_reads_as_its_source() -> None:
    spans = (Span("It rained. "), Span("  She\nran", clip(0.1), [1]), Span(" home & slept."))
    html = render({}, Exhibits(document=spans))
    document = re.search(r'<div class="document">(.*?)</div>', html, re.S)
    assert document
    assert Page(document[1]).text == "".join(s.text for s in spans)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))


@pytest.mark.parametrize("path", list(_leaves(RESULTS)), ids=".".join)
def test_whatever_is_missing_is_left_out_without_harm(path: tuple[str, ...]) -> None:
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
        said = Page(render(results, Exhibits())).text + "\n".join(summary(results, Path("x")))
        assert not re.search(r"\bnan\b|None|Undefined", said)


def test_nothing_at_all_still_makes_a_page() -> None:
    page = Page(render({}, Exhibits()))
    assert not page.sounds
    assert not re.search(r"None|nan|Undefined", page.text)


def test_rendering_is_pure() -> None:
    results, shown = copy.deepcopy(RESULTS), exhibits()
    assert render(results, shown) == render(results, shown)
    assert results == RESULTS


def test_figures_intervals_and_verdicts_are_shown() -> None:
    results = copy.deepcopy(RESULTS)
    results["eval"]["topic_cloze"]["S"] = {"accuracy": 0.51, "low": 0.46, "high": 0.56, "n": 400}
    html = render(results, Exhibits())
    text = " ".join(Page(html).text.split())
    for figure in ("14.2 %", "11.8 % to 16.9 %, 1,204 words", "87.3 %", "98.1", "1.03", "3.40", "243 ms", "8 min 12 s"):
        assert figure in text
    assert f"it has collapsed {HOSTILE}" in text
    assert text.count("above chance") == 3
    assert "51.0 % of 400 not told from chance" in text
    assert "left:46.00%;width:10.00%" in html


def test_stages_stand_one_after_the_other() -> None:
    bars = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%"', render(RESULTS, Exhibits()).split("</ol>")[0])
    (first, first_width), (second, second_width) = [(float(a), float(b)) for a, b in bars]
    assert first == 0
    assert second == first_width == pytest.approx(100 * 171 / 492.3, abs=1e-3)
    assert second + second_width < 100  # the rest of the total is no stage's


def test_an_answer_is_right_when_it_contains_the_expected_words_whole() -> None:
    def is_right(answer: str, expected: str | None) -> bool | None:
        return ChatExhibit(clip(0.1), clip(0.1, answer), expected).is_right

    assert is_right("It is GREEN, I think.", "green")
    assert not is_right("It is evergreen.", "green")
    assert is_right("Anything.", None) is None


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dog", "<b>", "d'or"]), max_size=8).map(" ".join)


@given(WORDS, WORDS)
def test_differences_keep_every_word_heard_and_mark_only_wrong_ones(reference: str, heard: str) -> None:
    shown = str(differences(reference, heard))
    kept = re.sub(r"<del>.*?</del>", "", shown)
    assert Markup(kept).striptags().split() == normalize(heard).split()
    right = Markup(re.sub(r"<mark>.*?</mark>", "", kept)).striptags().split()
    said = iter(normalize(reference).split())
    assert all(word in said for word in right)  # in order
    assert ("<" in shown) == (normalize(reference) != normalize(heard))


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), min_size=1, max_size=5))
def test_a_chart_keeps_every_point_inside(points: list[tuple[float, float]]) -> None:
    html = str(chart([Series("text", points)]))
    path = re.search(r'd="M([^"]*)"', html)
    assert path
    drawn = [tuple(map(float, pair.split())) for pair in path[1].split("L")]
    assert len(drawn) == len(points)
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in drawn)
    assert all(0 <= float(at) <= 100.01 for at in re.findall(r"(?:left|bottom):([\d.]+)%", html))


def test_metrics_that_are_no_numbers_are_no_points() -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "loss": 2.0},
        {"step": 1, "loss": math.nan},
        {"step": 2},
        {"step": 3, "loss": 1.0},
    ]
    path = re.search(r'<path class="decoder" d="([^"]*)"', render({}, Exhibits(curves={"decoder": lines})))
    assert path
    assert path[1].count("L") == 1


def test_numbers_are_written_for_people() -> None:
    assert [percent(0.1234), percent(1), percent(None)] == ["12.3\u00a0%", "100.0\u00a0%", "–"]  # noqa: RUF001
    assert [number(v) for v in (1.234, 98.14, 231.2, 12345.6, 7)] == ["1.23", "98.1", "231", "12,346", "7"]
    spoken = [duration(v).replace("\u00a0", " ") for v in (3.21, 9.96, 59.7, 492.3)]
    assert spoken == ["3.2 s", "10 s", "1 min 0 s", "8 min 12 s"]


def test_the_summary_tells_what_was_learnt_and_what_to_try_next() -> None:
    lines = summary(RESULTS, Path("runs/demo"))
    assert len(lines) == 10
    said = "\n".join(lines)
    for part in ("14.2", "8\u00a0min", "It is green.", "runs/demo/report.html", "weft chat --model runs/demo --wav"):
        assert part in said
