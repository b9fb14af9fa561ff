"""Documents without synthesis contain everything of their sources, whatever the number of tasks."""

from dataclasses import replace

import pytest

from weft.artifacts import Manifest
from weft.data.corpus import read_texts
from weft.data.datasets import Rows
from weft.errors import UserError
from weft.interleave.documents import DocumentsConfig, run
from weft.records import CodedUtterance, Segment


def utterances(sources, texts=True, first=0):
    return [
        CodedUtterance(f"u{i}", [i, i + 1], f"Text {i}." if texts else None, 0.16, f"s{i % 2}", "en", source)
        for i, source in enumerate(sources, first)
    ]


@pytest.fixture
def create(tmp_path):
    """create(kind, *sources, **settings) -> (documents, manifest)."""
    count = iter(range(99))

    def create(kind, *sources, **settings):
        out = tmp_path / f"out{next(count)}"
        manifest = run(DocumentsConfig(kind, sources, out, **settings))
        return list(Rows.of(out).documents()), manifest

    return create


def test_text_documents_have_the_texts_of_the_corpus(create, corpus):
    documents, manifest = create("text", corpus, tasks=5)
    assert [(d.id, d.kind, d.segments) for d in documents] == [
        (t.id, "text", (Segment.of_text(t.text),)) for t in read_texts(corpus)
    ]
    assert manifest.counts["words"] == sum(len(d.text.split()) for d in documents)
    assert manifest.parents == {}


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 12])
def test_consecutive_utterances_of_a_recording_join_across_tasks_and_parts(create, make_codes, tasks):
    sources = ["a", "a", "a", None, None, "b", "c", "c", "a", "a"]
    codes = make_codes(
        "codes", [utterances(sources[:2]), utterances(sources[2:7], first=2), utterances(sources[7:], first=7)]
    )
    documents, manifest = create("speech", codes, tasks=tasks)
    assert [[s.codes[0] for s in d.segments] for d in documents] == [[0, 1, 2], [3], [4], [5], [6, 7], [8, 9]]
    assert [d.meta.source for d in documents] == ["a", None, None, "b", "c", "a"]
    assert documents[0].text == "Text 0. Text 1. Text 2."
    assert documents[0].meta.seconds == pytest.approx(0.48)
    assert (documents[0].meta.speaker, documents[1].meta.speaker) == (None, "s1")
    assert manifest.counts["speech_codes"] == 20


@pytest.mark.parametrize("kind", ["asr", "tts"])
def test_pairs_train_on_the_target_only(create, make_codes, kind):
    rows = [*utterances([None] * 4), *utterances([None], texts=False, first=4)]
    documents, manifest = create(kind, make_codes("codes", [rows]), tasks=2)
    assert [d.id for d in documents] == ["u0", "u1", "u2", "u3"]
    source, target = documents[2].segments
    assert (source.type, target.type) == (("speech", "text") if kind == "asr" else ("text", "speech"))
    assert (source.loss, target.loss) == (False, True)
    assert documents[2].text == "Text 2."
    assert manifest.counts["without_text"] == 1
    assert manifest.parents["tokenizer"] == "aaaa"


@pytest.mark.parametrize(("kind", "found"), [("speech", [["u0", "u2"], ["u3"]]), ("asr", None), ("tts", None)])
def test_utterances_without_codes_are_left_out_and_counted(create, make_codes, kind, found):
    rows = [
        replace(u, codes=[] if i in (1, 4) else u.codes) for i, u in enumerate(utterances(["a", "a", "a", "b", "c"]))
    ]
    documents, manifest = create(kind, make_codes("codes", [rows]), tasks=2)
    spoken = [[f"u{s.codes[0]}" for s in d.segments if s.type == "speech"] for d in documents]
    assert spoken == (found or [["u0"], ["u2"], ["u3"]])
    assert manifest.counts["without_codes"] == 2


def test_sources_without_content_for_the_documents_are_errors(create, make_codes, tmp_path):
    without_texts = make_codes("without_texts", [utterances([None], texts=False)])
    with pytest.raises(UserError, match="without_texts has no transcripts for asr documents"):
        create("asr", without_texts)
    without_codes = make_codes("without_codes", [[replace(u, codes=[]) for u in utterances([None])]])
    with pytest.raises(UserError, match="without_codes has no codes for tts documents"):
        create("tts", without_codes)
    other = make_codes("other", [utterances([None])], Manifest("tokenizer", "bbbb"))
    with pytest.raises(UserError, match="different tokenizers"):
        create("speech", without_texts, other)
    with pytest.raises(UserError, match="does not exist"):
        create("tts", tmp_path / "nowhere")


def test_a_dataset_that_is_given_twice_is_an_error(create, make_codes, tmp_path):
    codes = make_codes("codes", [utterances([None])])
    with pytest.raises(UserError, match="contain a dataset twice: give each once"):
        create("asr", codes, tmp_path / "." / "codes")
