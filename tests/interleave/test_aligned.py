"""Recordings with word times become documents whose speech segments have the codes of exactly their words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.conftest import make_tokenizer
from weft import artifacts, cli
from weft.audio import load, save
from weft.config import settings_of
from weft.data.datasets import Rows
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.interleave.config import InterleaveConfig
from weft.interleave.interleave import run
from weft.plan import Plan, open_draft
from weft.records import Document
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer

SOURCES = ["a", "a", "a", None, "b", "b"]
RATE_HZ = 12.5
WORDS_PER_UTTERANCE = 30


def words_of(number: int) -> list[dict[str, Any]]:
    """Return thirty words of 0.1 to 0.5 s with pauses between them, after a mark of silence."""
    rng = np.random.default_rng(number)
    rows, now = [{"word": "", "start": 0.0, "end": 0.1}], 0.1
    for i in range(WORDS_PER_UTTERANCE):
        length = float(rng.uniform(0.1, 0.5))
        rows.append({"word": f"u{number}w{i}", "start": now, "end": now + length})
        now += length + float(rng.choice([0.0, 0.07]))
    return rows


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six files of noise, one per utterance."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(len(SOURCES)):
        num_samples = round(16_000 * (words_of(number)[-1]["end"] + 0.2))
        samples = np.random.default_rng(number).normal(scale=0.1, size=num_samples).astype(np.float32)
        save(folder / f"{number}.wav", samples, 16_000)
    return [folder / f"{number}.wav" for number in range(len(SOURCES))]


@pytest.fixture
def corpus(tmp_path: Path, audio: list[Path]) -> Path:
    """A manifest of six utterances of thirty words, whose transcripts have capitals and full stops."""
    lines = []
    for number, source in enumerate(SOURCES):
        words = [w["word"] for w in words_of(number)]
        text = " ".join(w.upper() + ("." if i % 7 == 0 else "") for i, w in enumerate(words) if w)
        row = {"id": f"u{number}", "audio": str(audio[number]), "text": text, "speaker": f"s{number}", "source": source}
        lines.append(json.dumps(row))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "manifest.jsonl"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, made = tmp_path_factory.mktemp("tokenizer") / "tokenizer", make_tokenizer()
    with open_draft(folder, Plan(KIND, {"model": settings_of(made.model.config)})) as draft:
        made.write_files(draft.folder)
    return folder


def write(path: Path, words: dict[str, list[dict[str, Any]]]) -> Path:
    path.write_text("\n".join(json.dumps({"id": name, "words": rows}) for name, rows in words.items()))
    return path


@pytest.fixture
def times(tmp_path: Path) -> Path:
    return write(tmp_path / "alignments.jsonl", {f"u{i}": words_of(i) for i in range(len(SOURCES))})


def create(corpus: Path, times: Path, tokenizer: Path, name: str = "out", **settings: Any) -> list[Document]:
    out = corpus.parent / name
    run(InterleaveConfig((corpus,), out, aligned=times, tokenizer=tokenizer, **settings))
    return list(Rows.of(out).documents())


def spoken(documents: list[Document]) -> list[tuple[str, list[int]]]:
    return [(s.text or "", list(s.codes or ())) for d in documents for s in d.segments if s.type == "speech"]


def numbered(tokenizer: SpeechTokenizer, audio: list[np.ndarray]) -> list[np.ndarray]:
    """Return codes that identify the recording and their position in it."""
    return [np.arange(-(-len(x) // tokenizer.samples_per_code)) + len(x) % 60_000 for x in audio]


@pytest.mark.parametrize("policy", ["poisson", "sentences", "alternate"])
def test_speech_has_the_codes_of_its_own_words(
    corpus: Path, audio: list[Path], times: Path, tokenizer: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechTokenizer, "encode", numbered)
    found = spoken(create(corpus, times, tokenizer, policy=policy, mean_span_words=4))
    firsts = [len(load(path)) % 60_000 for path in audio]
    seconds = {w["word"]: (w["start"], w["end"]) for i in range(len(SOURCES)) for w in words_of(i) if w["word"]}
    assert len(found) >= 6
    for text, span in found:
        words = text.lower().replace(".", "").split()
        [number] = {int(word[1 : word.index("w")]) for word in words}  # no span crosses the end of an utterance
        begin, end = seconds[words[0]][0] * RATE_HZ, seconds[words[-1]][1] * RATE_HZ
        first = span[0] - firsts[number]
        assert span == list(range(span[0], span[0] + len(span)))
        assert max(abs(first - begin), abs(first + len(span) - end)) <= 0.5


def test_codes_are_cut_from_those_of_the_whole_utterance(
    corpus: Path, audio: list[Path], times: Path, tokenizer: Path
) -> None:
    codes = SpeechTokenizer.from_pretrained(tokenizer).encode([load(path) for path in audio])
    assert all(len(set(c.tolist())) > 3 for c in codes)
    for text, span in spoken(create(corpus, times, tokenizer)):
        word = text.lower().split()[0].strip(".")
        number, place = (int(n) for n in word[1:].split("w"))
        first = round(words_of(number)[place + 1]["start"] * RATE_HZ)
        assert span == codes[number][first : first + len(span)].tolist()


def test_removing_the_speech_restores_the_transcripts_joined_by_recording(
    corpus: Path, times: Path, tokenizer: Path
) -> None:
    documents = create(corpus, times, tokenizer)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert [d.text for d in documents] == [" ".join(texts[:3]), texts[3], " ".join(texts[4:])]
    assert [(d.id, d.kind, d.meta.source) for d in documents] == [
        ("u0", "interleaved", "a"), ("u3", "interleaved", None), ("u4", "interleaved", "b")
    ]  # fmt: skip
    assert [d.meta.speaker for d in documents] == [None, "s3", None]
    assert [d.meta.words for d in documents] == [90, 30, 60]
    for d in documents:
        assert d.meta.speech_ratio == pytest.approx(0.3, abs=1.01 / (d.meta.words or 1))
        assert d.meta.seconds == pytest.approx(sum(len(codes) for _, codes in spoken([d])) / RATE_HZ)
    counts = artifacts.read(corpus.parent / "out").counts
    assert counts["words"] == 180
    assert counts["speech_codes"] == sum(len(codes) for _, codes in spoken(documents))
    assert artifacts.read(corpus.parent / "out").parents == {"tokenizer": artifacts.read(tokenizer).fingerprint}


def test_the_number_of_tasks_does_not_change_the_documents_and_the_seed_does(
    corpus: Path, times: Path, tokenizer: Path
) -> None:
    documents = create(corpus, times, tokenizer)
    assert create(corpus, times, tokenizer, "tasks", tasks=3) == documents
    assert create(corpus, times, tokenizer, "seed", seed=1) != documents


def test_words_without_times_stay_text(corpus: Path, tokenizer: Path) -> None:
    words = {f"u{i}": words_of(i) for i in range(len(SOURCES))}
    for rows in words.values():
        del rows[10]["start"]
        rows[20]["end"] = None
    documents = create(corpus, write(corpus.parent / "some.jsonl", words), tokenizer, speech_ratio=1.0)
    written = [s.text for d in documents for s in d.segments if s.type == "text"]
    assert [" ".join((t or "").lower().split()) for t in written] == [
        f"u{i}w{j}" for i in range(len(SOURCES)) for j in (9, 19)
    ]


def test_a_span_shorter_than_a_code_stays_text(corpus: Path, tokenizer: Path) -> None:
    words = {f"u{i}": words_of(i) for i in range(len(SOURCES))}
    for rows in words.values():
        for row in rows[1:]:
            row.pop("start")
        rows[5] |= {"start": 1.0, "end": 1.01}
        rows[9] |= {"start": 2.0}
    documents = create(corpus, write(corpus.parent / "short.jsonl", words), tokenizer, speech_ratio=1.0)
    assert [text.strip().lower() for text, _ in spoken(documents)] == [f"u{i}w8" for i in range(len(SOURCES))]
    assert all(a.type != b.type for d in documents for a, b in zip(d.segments, d.segments[1:], strict=False))
    assert artifacts.read(corpus.parent / "out").counts["rejected_spans"] == len(SOURCES)


def test_unusable_utterances_are_left_out_and_listed(corpus: Path, tokenizer: Path) -> None:
    words = {f"u{i}": words_of(i) for i in range(1, len(SOURCES))}
    words["u1"][3]["word"] = "other"
    words["u2"][-1]["end"] += 9
    words["u3"][2]["start"] = 99
    words["u4"][2]["start"] = "soon"
    times = write(corpus.parent / "bad.jsonl", words)
    with pytest.raises(UserError, match="4 of 5 items are bad"):
        create(corpus, times, tokenizer, "no")
    documents = create(corpus, times, tokenizer, job=JobConfig(max_bad_fraction=0.9))
    assert [d.id for d in documents] == ["u5"]
    counts = artifacts.read(corpus.parent / "out").counts
    assert (counts["without_words"], counts["skipped_utterances"]) == (1, 4)
    skipped = [json.loads(line) for line in (corpus.parent / "out/log/skipped.jsonl").read_text().splitlines()]
    for row, why in zip(skipped, ["transcript", "after its audio", "out of order", "'soon'"], strict=True):
        assert why in row["why"]


def test_without_transcripts_the_words_are_the_text(corpus: Path, times: Path, tokenizer: Path) -> None:
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    corpus.write_text("\n".join(json.dumps({"id": r["id"], "audio": r["audio"]}) for r in rows))
    documents = create(corpus, times, tokenizer)
    assert [d.text for d in documents] == [
        " ".join(w["word"] for w in words_of(i) if w["word"]) for i in range(len(SOURCES))
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no word times: give a file"),
        ("", "has no words of a readable utterance"),
        ('{"id": "other", "words": []}', "has no words of a readable utterance"),
        ('{"id": "u0"', "line 1: not JSON"),
        ('{"id": "u0", "words": null}', "line 1: it is not"),
        ('{"id": [7], "words": []}', "line 1: it is not"),
        ('{"id": "u0", "words": []}\n{"id": "u0", "words": []}', "line 2: id 'u0' occurs twice"),
    ],
)
def test_alignments_in_another_format_are_errors(
    corpus: Path, tokenizer: Path, content: str | None, message: str
) -> None:
    times = corpus.parent / "times.jsonl"
    if content is not None:
        times.write_text(content)
    with pytest.raises(UserError, match=message):
        create(corpus, times, tokenizer)


def test_another_transcript_is_another_plan(corpus: Path, times: Path, tokenizer: Path) -> None:
    create(corpus, times, tokenizer)
    before = artifacts.read(corpus.parent / "out")
    create(corpus, times, tokenizer)
    assert artifacts.read(corpus.parent / "out") == before
    corpus.write_text(corpus.read_text().replace("U0W3", "U0W3,"))
    with pytest.raises(UserError, match="was created with other contents of corpus"):
        create(corpus, times, tokenizer)


def test_alignments_that_fit_no_audio_are_an_error(corpus: Path, tokenizer: Path) -> None:
    words = {f"u{i}": words_of(i) for i in range(len(SOURCES))}
    for rows in words.values():
        rows[-1]["end"] += 9
    times = write(corpus.parent / "long.jsonl", words)
    with pytest.raises(UserError, match="has no words of a readable utterance"):
        create(corpus, times, tokenizer, job=JobConfig(max_bad_fraction=1.0))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["--text-to-token or --aligned"]),
        (["--aligned", "a.jsonl", "--text-to-token", "t2t"], ["--text-to-token or --aligned"]),
        (["--aligned", "a.jsonl"], ["give --tokenizer"]),
        (["--aligned", "a.jsonl", "--tokenizer", "t", "--max-wer", "0.3"], ["max_wer", "--aligned", "remove it"]),
        (["--aligned", "a.jsonl", "--tokenizer", "t", "--url", "http://x"], ["url", "remove it"]),
        (["--aligned", "a.jsonl", "--tokenizer", "t", "--tries", "3"], ["tries", "remove it"]),
        (["--text-to-token", "t2t", "--max-wer", "0.3"], ["give --tokenizer"]),
        (["--text-to-token", "t2t", "--recase"], ["recase", "--aligned", "remove it"]),
        (["--text-to-token", "t2t", "--speech-ratio", "0"], ["speech_ratio is 0.0"]),
        (["--text-to-token", "t2t", "--mean-span-words", "0.5"], ["mean_span_words is 0.5"]),
        (["--aligned", "a.jsonl", "--tokenizer", "nowhere"], ["nowhere", "does not exist"]),
    ],
)
def test_incompatible_flags_end_with_one_line(
    tmp_path: Path, flags: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").touch()
    assert cli.run(["interleave", str(tmp_path / "speech"), "--out", str(tmp_path / "out"), *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_transcripts", [True, False])
def test_upper_case_transcripts_and_words_are_recased_on_request(
    corpus: Path, times: Path, tokenizer: Path, with_transcripts: bool
) -> None:
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    texts = [row.pop("text").upper() for row in rows]
    times.write_text(times.read_text().replace('"u0w', '"U0W'))
    rows = [{**row, "text": text} if with_transcripts else row for row, text in zip(rows, texts, strict=True)]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    before, after = create(corpus, times, tokenizer), create(corpus, times, tokenizer, "recased", recase=True)
    assert len(before) == len(after)
    assert spoken(before) != spoken(after)
    assert [codes for _, codes in spoken(before)] == [codes for _, codes in spoken(after)]
    assert [d.text.lower() for d in before] == [d.text.lower() for d in after]
    assert after[0].text.startswith("U0w0")


def test_speech_at_a_url_is_named(times: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--aligned", str(times), "--tokenizer", str(tokenizer), "--out", str(times.parent / "out")]
    assert cli.run(["interleave", "s3://me:key@bucket/speech", *flags]) == 2
    assert capsys.readouterr().err == "weft: s3://bucket/speech is a URL: copy it to a disk\n"


def test_the_command_line_creates_the_same_documents(corpus: Path, times: Path, tokenizer: Path) -> None:
    out = corpus.parent / "command"
    flags = ["--aligned", str(times), "--tokenizer", str(tokenizer), "--out", str(out)]
    assert cli.run(["interleave", str(corpus), *flags]) == 0
    assert list(Rows.of(out).documents()) == create(corpus, times, tokenizer)
