import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.decoder.conftest import make_decoder
from tests.pages.conftest import HOSTILE, Page, assert_self_contained
from weft import cli
from weft.artifacts import Manifest
from weft.data.datasets import write_document_part
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.pages.view import ViewConfig, run
from weft.plan import Plan, open_draft
from weft.records import Document, Meta, Segment

TOKENIZER = Manifest("tokenizer", "aaaa")
INTERLEAVED = Document(
    "mixed",
    "interleaved",
    (
        Segment.of_text("It rained & "),
        Segment.of_speech([1, 2, 3], f"  {HOSTILE}\n"),
        Segment.of_speech([4], " she ran"),
        Segment.of_text(" home."),
    ),
    Meta(0.5, 12, 0.32, None, f"Ann {HOSTILE}", "book"),
)
ASR = Document("asr", "asr", (Segment.of_speech([5, 6], None, loss=False), Segment.of_text("What was said.")))
DIALOGUE = Document(
    "dialogue", "dialogue", (Segment.of_text("Hi?", "user", loss=False), Segment.of_text("Hello.", "assistant"))
)


def write_dataset(folder: Path, documents: list[Document], tokenizer: Manifest | None = TOKENIZER) -> Path:
    parents = {"tokenizer": tokenizer} if tokenizer else {}
    with open_draft(folder, Plan("documents", {"name": folder.name}, parents)) as draft:
        draft.counts |= {"documents": len(documents), "speech_ratio": 0.2991, "left_as_text": {"code": 1200}}
        write_document_part(draft.folder, 0, documents)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", [INTERLEAVED, ASR, DIALOGUE])


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    with open_draft(tmp_path / "decoder", Plan("decoder", {}, {"tokenizer": TOKENIZER})) as draft:
        make_decoder().write_files(draft.folder)
    return tmp_path / "decoder"


def view(tmp_path: Path, *dataset: Path, decoder: Path | None = None, num: int = 50, seed: int = 0) -> str:
    run(ViewConfig(dataset, tmp_path / "page.html", decoder, num, seed))
    return (tmp_path / "page.html").read_text()


def bodies(html: str) -> list[str]:
    return [Page(body).text for body in re.findall(r'<div class="document">(.*?)</div>', html, re.S)]


def test_every_document_has_its_text_and_no_text_is_interpreted_as_markup(tmp_path: Path, dataset: Path) -> None:
    html = view(tmp_path, dataset)
    assert bodies(html) == [INTERLEAVED.text, ASR.text, DIALOGUE.text]
    page = Page(html)
    assert not page.all("img")
    assert len(page.all("script")) == 1
    assert page.text.count(HOSTILE) == 2  # a text and a speaker


def test_no_name_or_note_is_interpreted_as_markup(tmp_path: Path) -> None:
    document = replace(INTERLEAVED, id=HOSTILE, meta=replace(INTERLEAVED.meta, speaker=HOSTILE, source=HOSTILE))
    folder, parents = tmp_path / HOSTILE.replace("/", "|"), {"tokenizer": TOKENIZER}
    with open_draft(folder, Plan("documents", {HOSTILE: HOSTILE}, parents), licence=HOSTILE) as draft:
        draft.counts |= {"documents": 1, HOSTILE: 3, "left_as_text": {HOSTILE: HOSTILE}}
        write_document_part(draft.folder, 0, [document])
    hostile = Page(view(tmp_path, folder))
    plain = Page(view(tmp_path, write_dataset(tmp_path / "plain", [replace(INTERLEAVED, segments=document.segments)])))
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in plain.elements}
    assert len(hostile.all("script")) == 1
    assert hostile.text.count("onerror=alert") == 9  # a name, id, speaker, source, text, 2 counts, a value and a note
    assert not any("onerror" in name for _, attributes in hostile.elements for name in attributes)


def test_the_page_is_one_file(tmp_path: Path, dataset: Path, decoder: Path) -> None:
    assert_self_contained(view(tmp_path, dataset, decoder=decoder))


def test_every_speech_segment_plays_the_audio_of_its_codes(tmp_path: Path, dataset: Path, decoder: Path) -> None:
    html = view(tmp_path, dataset, decoder=decoder)
    speech_decoder = SpeechDecoder.from_pretrained(decoder)
    assert len(re.findall(r"data-play[^>]*>[^<]*</span><audio", html)) == 3
    sec_per_code = speech_decoder.samples_per_code / speech_decoder.sample_rate_hz
    for (samples, rate_hz), codes in zip(Page(html).audio, ([1, 2, 3], [4], [5, 6]), strict=True):
        assert len(samples) / rate_hz == pytest.approx(len(codes) * sec_per_code, abs=1e-3)
    assert view(tmp_path, dataset, decoder=decoder) != view(tmp_path, dataset, decoder=decoder, seed=1)


def test_without_a_decoder_speech_is_shown_without_audio(tmp_path: Path, dataset: Path) -> None:
    page = Page(view(tmp_path, dataset))
    assert not page.all("audio")
    spoken = [a for a in page.all("span") if "spoken" in str(a.get("class"))]
    assert [a["data-about"] for a in spoken] == ["3 codes", "1 codes", "2 codes"]
    assert not [a for a in spoken if "data-play" in a]


def test_measured_error_rates_are_shown(tmp_path: Path) -> None:
    scores = replace(INTERLEAVED.meta, wer=0.3, span_wer=[0.25, None])
    measured = write_dataset(tmp_path / "measured", [replace(INTERLEAVED, meta=scores), ASR])
    html = view(tmp_path, measured)
    page = Page(html)
    assert [a.get("data-wer") for a in page.all("span") if "spoken" in str(a.get("class"))] == ["25", None, None]
    articles = page.all("article")
    assert [(a.get("data-spoken"), a.get("data-wer")) for a in articles] == [("50.0", "30.0"), (None, None)]
    assert "WER30.0" in page.text
    assert bodies(html)[0] == INTERLEAVED.text
    filters = {a.get("name") for a in page.all("input")}
    assert filters == {f"{what}-{end}" for what in ("spoken", "wer", "span") for end in ("min", "max")} | {"words"}


def test_without_error_rates_there_are_no_filters_for_them(tmp_path: Path) -> None:
    page = Page(view(tmp_path, write_dataset(tmp_path / "unmeasured", [ASR, DIALOGUE])))
    assert "WER" not in page.text
    assert [a.get("name") for a in page.all("input")] == ["words"]


def test_every_text_has_its_own_direction(tmp_path: Path) -> None:
    hebrew = Document("he", "interleaved", (Segment.of_text("ירד "), Segment.of_speech([1, 2], "גשם חזק")))
    page = Page(view(tmp_path, write_dataset(tmp_path / "hebrew", [hebrew])))
    assert [a["dir"] for a in page.all("span") if a.get("class") == "turn"] == ["auto"]


def test_the_manifest_is_shown_and_kinds_can_be_selected(tmp_path: Path, dataset: Path) -> None:
    page = Page(view(tmp_path, dataset))
    text = " ".join(page.text.split())
    for fact in ("3 of 3 documents", "documents3", "speech ratio0.2991", "left as text: code1,200", str(dataset)):
        assert fact in text
    assert [a["data-kind"] for a in page.all("article")] == ["interleaved", "asr", "dialogue"]
    assert len(page.all("option")) == 4
    assert [a["data-role"] for a in page.all("span") if "data-role" in a] == ["user", "assistant"]


def test_documents_are_sampled_by_the_seed_once_each_and_in_order(tmp_path: Path) -> None:
    documents = [replace(DIALOGUE, id=f"d{i:02}") for i in range(40)]
    dataset = write_dataset(tmp_path / "many", documents, None)
    drawn = [re.findall(r"<h3>(d\d\d)</h3>", view(tmp_path, dataset, num=15, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 15


def test_documents_without_speech_may_have_a_decoder(tmp_path: Path, decoder: Path) -> None:
    assert not Page(view(tmp_path, write_dataset(tmp_path / "text", [DIALOGUE], None), decoder=decoder)).audio


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("decoder", [], ["is a decoder", "documents dataset"]),
        ("nowhere", [], ["nowhere", "does not exist"]),
        ("dataset", ["--decoder", "other"], ["other", "bbbb", "aaaa", "give another decoder, or none"]),
        ("dataset", ["--decoder", "dataset"], ["is a documents dataset", "a decoder"]),
        ("dataset", ["--out", "dataset"], ["is a directory"]),
        ("dataset", ["--out", "file/page.html"], ["file"]),
        ("dataset", ["--out", "page.pdf"], [".html"]),
        ("dataset", ["--num", "0"], ["at least 1"]),
    ],
)
def test_user_errors_are_one_line_with_status_2(
    tmp_path: Path, decoder: Path, name: str, arguments: list[str], words: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_dataset(tmp_path / "dataset", [INTERLEAVED])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with open_draft(tmp_path / "other", Plan("decoder", {}, {"tokenizer": Manifest("tokenizer", "bbbb")})):
        pass
    before = sorted(tmp_path.iterdir())
    out = [] if "--out" in arguments else ["--out", "page.html"]
    assert cli.run(["view", name, *out, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words), message
    assert sorted(tmp_path.iterdir()) == before


def test_a_dataset_without_documents_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no documents"):
        view(tmp_path, write_dataset(tmp_path / "empty", []))
