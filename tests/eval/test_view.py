"""The page of documents: it reads as they do, plays what they say, and refuses what does not fit."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.decoder.conftest import make_decoder
from tests.demo.test_report import HOSTILE, Page
from weft import artifacts, cli
from weft.artifacts import Manifest
from weft.data.shards import write_documents
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval.report import Clip, sound
from weft.eval.view import ViewConfig, run
from weft.records import Document, Meta, Segment

TOKENIZER = Manifest("tokenizer", "aaaa")
WOVEN = Document(
    "woven",
    "interleaved",
    (
        Segment.of_text("It rained & "),
        Segment.of_speech([1, 2, 3], f"  {HOSTILE}\n"),
        Segment.of_speech([4], " she ran"),
        Segment.of_text(" home."),
    ),
    Meta(0.5, 12, 0.32, None, f"Ann {HOSTILE}", "book"),
)
HEARD = Document("heard", "asr", (Segment.of_speech([5, 6], None, loss=False), Segment.of_text("What was said.")))
TALK = Document(
    "talk", "dialogue", (Segment.of_text("Hi?", "user", loss=False), Segment.of_text("Hello.", "assistant"))
)


def make_dataset(folder: Path, documents: list[Document], tokenizer: Manifest | None = TOKENIZER) -> Path:
    parents = {"tokenizer": tokenizer} if tokenizer else {}
    with artifacts.build(folder, "documents", {"name": folder.name}, parents) as draft:
        draft.counts |= {"documents": len(documents), "speech_ratio": 0.2991, "left_as_text": {"code": 1200}}
        write_documents(draft.folder, 0, documents)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "dataset", [WOVEN, HEARD, TALK])


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    with artifacts.build(tmp_path / "decoder", "decoder", {}, {"tokenizer": TOKENIZER}) as draft:
        make_decoder().save(draft.folder)
    return tmp_path / "decoder"


def viewed(tmp_path: Path, *dataset: Path, decoder: Path | None = None, num: int = 50, seed: int = 0) -> str:
    run(ViewConfig(dataset, tmp_path / "page.html", decoder, num, seed))
    return (tmp_path / "page.html").read_text()


def bodies(html: str) -> list[str]:
    return [Page(body).text for body in re.findall(r'<div class="document">(.*?)</div>', html, re.S)]


def sounds(html: str) -> list[tuple[np.ndarray, int]]:
    sources = [str(a["src"]).removeprefix("data:audio/ogg;base64,") for a in Page(html).all("audio")]
    return [soundfile.read(io.BytesIO(base64.b64decode(s))) for s in sources]


def test_every_document_reads_as_its_text_and_none_of_it_is_markup(tmp_path: Path, dataset: Path) -> None:
    html = viewed(tmp_path, dataset)
    assert bodies(html) == [WOVEN.text, HEARD.text, TALK.text]
    page = Page(html)
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert page.text.count(HOSTILE) == 2  # what is said, and who says it


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path, dataset: Path, decoder: Path) -> None:
    html = viewed(tmp_path, dataset, decoder=decoder)
    for _, attributes in Page(html).elements:
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert not re.search(r"url\(|@import|https?://(?!x/y)", html)
    assert "default-src 'none'" in html


def test_every_spoken_segment_plays_the_sound_of_its_codes(tmp_path: Path, dataset: Path, decoder: Path) -> None:
    html = viewed(tmp_path, dataset, decoder=decoder)
    made = SpeechDecoder.load(decoder)
    assert len(re.findall(r"data-play[^>]*>[^<]*</span><audio", html)) == 3
    for (heard, rate_hz), codes in zip(sounds(html), ([1, 2, 3], [4], [5, 6]), strict=True):
        assert len(heard) / rate_hz == pytest.approx(len(codes) * made.samples_per_code / made.sample_rate_hz, abs=1e-3)
    assert viewed(tmp_path, dataset, decoder=decoder) != viewed(tmp_path, dataset, decoder=decoder, seed=1)


def test_without_a_decoder_speech_is_seen_and_not_heard(tmp_path: Path, dataset: Path) -> None:
    page = Page(viewed(tmp_path, dataset))
    assert not page.all("audio")
    spoken = [a for a in page.all("span") if "spoken" in str(a.get("class"))]
    assert [a["data-about"] for a in spoken] == ["3 codes", "1 codes", "2 codes"]
    assert not [a for a in spoken if "data-play" in a]


def test_small_sounds_are_the_same_sounds() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050).astype(np.float32) * 0.5
    [(heard, rate_hz)] = sounds(str(sound(Clip(tone, 22_050), small=True)))
    assert (rate_hz, len(heard)) == (24_000, 24_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    middle = slice(4_000, 20_000)
    assert np.corrcoef(heard[middle], expected[middle])[0, 1] > 0.99
    assert len(str(sound(Clip(tone, 22_050), small=True))) < len(str(sound(Clip(tone, 22_050))))


def test_error_rates_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    scores = replace(WOVEN.meta, wer=0.3, span_wer=[0.25, None])
    measured = make_dataset(tmp_path / "measured", [replace(WOVEN, meta=scores), HEARD])
    html = viewed(tmp_path, measured)
    page = Page(html)
    assert [a.get("data-wer") for a in page.all("span") if "spoken" in str(a.get("class"))] == ["25", None, None]
    articles = page.all("article")
    assert [(a.get("data-spoken"), a.get("data-wer")) for a in articles] == [("50.0", "30.0"), (None, None)]
    assert "WER30.0" in page.text
    assert bodies(html)[0] == WOVEN.text
    asked = {a.get("name") for a in page.all("input")}
    assert asked == {f"{what}-{end}" for what in ("spoken", "wer", "span") for end in ("least", "most")} | {"words"}


def test_without_measures_nothing_asks_for_them(tmp_path: Path) -> None:
    page = Page(viewed(tmp_path, make_dataset(tmp_path / "unmeasured", [HEARD, TALK])))
    assert "WER" not in page.text
    assert [a.get("name") for a in page.all("input")] == ["words"]


def test_texts_are_laid_out_in_their_own_direction(tmp_path: Path) -> None:
    hebrew = Document("he", "interleaved", (Segment.of_text("ירד "), Segment.of_speech([1, 2], "גשם חזק")))
    page = Page(viewed(tmp_path, make_dataset(tmp_path / "hebrew", [hebrew])))
    assert [a["dir"] for a in page.all("span") if a.get("class") == "turn"] == ["auto"]


def test_the_manifest_is_told_and_the_kinds_can_be_chosen(tmp_path: Path, dataset: Path) -> None:
    page = Page(viewed(tmp_path, dataset))
    told = " ".join(page.text.split())
    for fact in ("3 of 3 documents", "documents3", "speech ratio0.2991", "left as text: code1,200", str(dataset)):
        assert fact in told
    assert [a["data-kind"] for a in page.all("article")] == ["interleaved", "asr", "dialogue"]
    assert len(page.all("option")) == 4
    assert [a["data-role"] for a in page.all("span") if "data-role" in a] == ["user", "assistant"]


def test_a_seed_draws_documents_once_each_and_in_their_order(tmp_path: Path) -> None:
    documents = [replace(TALK, id=f"d{i:02}") for i in range(40)]
    dataset = make_dataset(tmp_path / "many", documents, None)
    drawn = [re.findall(r"<h3>(d\d\d)</h3>", viewed(tmp_path, dataset, num=15, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 15


def test_a_decoder_is_no_harm_to_documents_without_speech(tmp_path: Path, decoder: Path) -> None:
    assert not sounds(viewed(tmp_path, make_dataset(tmp_path / "text", [TALK], None), decoder=decoder))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("decoder", [], ["is a decoder", "documents dataset"]),
        ("nowhere", [], ["nowhere", "does not exist"]),
        ("dataset", ["--decoder", "other"], ["other", "bbbb", "aaaa", "give the decoder of their tokenizer"]),
        ("dataset", ["--decoder", "dataset"], ["a decoder is needed"]),
        ("dataset", ["--out", "dataset"], ["is a folder"]),
        ("dataset", ["--out", "file/page.html"], ["file"]),
        ("dataset", ["--out", "page.pdf"], [".html"]),
        ("dataset", ["--num", "0"], ["at least 1"]),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    tmp_path: Path, decoder: Path, name: str, arguments: list[str], words: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_dataset(tmp_path / "dataset", [WOVEN])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with artifacts.build(tmp_path / "other", "decoder", {}, {"tokenizer": Manifest("tokenizer", "bbbb")}):
        pass
    before = sorted(tmp_path.iterdir())
    out = [] if "--out" in arguments else ["--out", "page.html"]
    assert cli.run(["view", name, *out, *arguments]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert all(word in complaint for word in words), complaint
    assert sorted(tmp_path.iterdir()) == before


def test_a_dataset_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no documents to show"):
        viewed(tmp_path, make_dataset(tmp_path / "empty", []))
