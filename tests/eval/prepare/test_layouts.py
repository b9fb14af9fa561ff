"""Every published layout is read, with the recordings that its rule pairs, and metrics can read the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.eval.prepare import published
from tests.eval.prepare.conftest import Prepared
from tests.eval.prepare.published import number_of
from weft.eval.cloze import read_pairs
from weft.eval.questions import read_questions

Prepare = Callable[..., Prepared]


def numbers(found: Prepared) -> list[tuple[int, int]]:
    """The sounds of pairs, as they are read by metrics: right and wrong."""
    pairs = read_pairs(found.folder / "items.jsonl")
    return [(number_of(Path(p.right_audio or "")), number_of(Path(p.wrong_audio or ""))) for p in pairs]


@pytest.mark.parametrize(
    ("name", "is_zipped", "first"), [("storycloze", False, 0), ("storycloze", True, 0), ("topic-storycloze", False, 1)]
)
def test_numbered_files_are_pairs_by_their_numbers(
    tmp_path: Path, prepare: Prepare, name: str, is_zipped: bool, first: int
) -> None:
    source = published.storycloze(tmp_path / "stories", range(first, first + 24))
    found = prepare(name, published.zipped(source) if is_zipped else source)
    assert numbers(found) == [(first + 2 * i, first + 2 * i + 1) for i in range(12)]
    assert found.counts == {"items": 12, "skipped": 0, "missing_audio": 0, "voices": ["recordings"]}
    assert found.manifest.settings["name"] == name
    assert found.manifest.settings["split"] is None


@pytest.mark.parametrize("lost", [6, 7, 23])
def test_a_missing_file_costs_one_pair_and_shifts_no_other(tmp_path: Path, prepare: Prepare, lost: int) -> None:
    source = published.storycloze(tmp_path / "stories")
    next(source.glob(f"{lost}_*")).unlink()
    found = prepare("storycloze", source)
    assert numbers(found) == [(2 * i, 2 * i + 1) for i in range(12) if i != lost // 2]
    assert (found.counts["items"], found.counts["skipped"]) == (11, 1)
    assert found.counts["skipped_reasons"] == {"the other file of its pair is missing": 1}


def test_numbers_with_gaps_are_paired_in_their_order(tmp_path: Path, prepare: Prepare) -> None:
    found = prepare("storycloze", published.storycloze(tmp_path / "stories", [3, 20, 100, 111]))
    assert numbers(found) == [(3, 20), (100, 111)]


def test_a_parquet_file_of_the_hub_has_the_right_story_in_positive(tmp_path: Path, prepare: Prepare) -> None:
    published.parquet(tmp_path / "hub/data/train-00000-of-00002.parquet", positive=[0, 2, 4], negative=[1, 3, 5])
    published.parquet(tmp_path / "hub/data/train-00001-of-00002.parquet", positive=[6], negative=[7])
    found = prepare("topic-storycloze", tmp_path / "hub")
    assert numbers(found) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert found.manifest.settings["split"] == "train"


@pytest.mark.parametrize("is_zipped", [False, True])
def test_cross_modal_pairs_have_texts_and_recordings(tmp_path: Path, prepare: Prepare, is_zipped: bool) -> None:
    source = published.cross_modal(tmp_path / "stories")
    found = prepare("cross-modal", published.zipped(source) if is_zipped else source)
    one, other = read_pairs(found.folder / "items.jsonl")
    assert (one.beginning, one.right, one.wrong) == ("a mutual.", "a correct.", "a incorrect.")
    assert [number_of(Path(path)) for path in (one.recordings | other.recordings).values()] == list(range(6))
    assert "joins the recordings" in found.manifest.notes["speech_to_speech"]


@pytest.mark.parametrize("is_zipped", [False, True])
def test_words_are_paired_by_id_and_voice_of_gold_csv(tmp_path: Path, prepare: Prepare, is_zipped: bool) -> None:
    source = published.swuggy(tmp_path / "sLM21")
    found = prepare("swuggy", published.zipped(source) if is_zipped else source)
    assert numbers(found) == [(1, 0), (3, 2)]
    assert [(i["id"], i["right"], i["wrong"], i["voice"]) for i in found.items] == [
        ("0-A", "cat", "cet", "A"), ("1-B", "cat", "cet", "B"),
    ]  # fmt: skip
    assert found.counts["voices"] == ["A", "B"]
    assert found.manifest.settings["split"] == "dev"


def test_sentences_are_paired_within_their_type(tmp_path: Path, prepare: Prepare) -> None:
    published.swuggy(tmp_path / "sLM21")
    for out, source in (("whole", "sLM21"), ("part", "sLM21/syntactic"), ("split", "sLM21/syntactic/dev")):
        found = prepare("sblimp", tmp_path / source, out=out)
        assert numbers(found) == [(10, 11), (12, 13)]
        assert [(i["part"], i["right"]) for i in found.items] == [
            ("agreement", "They sing."), ("anaphor", "They sing."),
        ]  # fmt: skip


def test_sentences_without_gold_csv_are_sorted_by_the_number_before_plus(tmp_path: Path, prepare: Prepare) -> None:
    for n in range(12):
        published.wav(tmp_path / f"flat/{n}+{'ba'[n % 2]}.wav", n)
    assert numbers(prepare("sblimp", tmp_path / "flat")) == [(2 * i, 2 * i + 1) for i in range(6)]


def test_salmon_has_the_pairs_of_all_parts_or_of_one(tmp_path: Path, prepare: Prepare) -> None:
    source = published.salmon(tmp_path / "salmon")
    found = prepare("salmon", source)
    assert numbers(found) == [(100 * p + 2 * i, 100 * p + 2 * i + 1) for p in (0, 1) for i in range(11)]
    assert {i["part"] for i in found.items} == {"rir_consistency", "speaker_consistency"}
    assert found.items[10]["id"] == "rir_consistency/10"
    for out, path, flags in (
        ("a", source, ["--subset", "speaker_consistency"]),
        ("b", source / "speaker_consistency", []),
    ):
        part = prepare("salmon", path, *flags, out=out)
        assert numbers(part) == numbers(found)[11:]
        assert {pair.part for pair in read_pairs(part.folder / "items.jsonl")} == {"speaker_consistency"}


def questions(found: Prepared) -> list[tuple[str, tuple[str, ...], int | None]]:
    """Questions as metrics read them: text, answers, and the number of the sound."""
    return [
        (q.question, q.answers, None if q.audio is None else number_of(Path(q.audio)))
        for q in read_questions(found.folder / "items.jsonl")
    ]


ASKED = ["Who?", "What?"]
OPEN_AUDIO_BENCH: dict[str, tuple[list[str], list[list[Any]], list[tuple[str, ...]]]] = {
    "llama-questions": (["Questions", "Answer"], [["Who, then?", "Ann; or Bob"]], [("Ann; or Bob",)]),
    "web-questions": (["url", "question", "answers"], [["u", "Who?", "Ann A.;Bob, 2nd"]], [("Ann A.", "Bob, 2nd")]),
    "trivia-qa": (
        ["question", "answer_normalized_value", "answer_normalized_aliases"],
        [["Who?", "ann", "ann, bob b"], ["What?", "1984", "['1984', \"it's mcmlxxxiv\"]"]],
        [("ann", "bob b"), ("1984", "it's mcmlxxxiv")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN_AUDIO_BENCH)
def test_open_audio_bench_has_a_csv_file_and_sounds(tmp_path: Path, prepare: Prepare, name: str) -> None:
    columns, rows, answers = OPEN_AUDIO_BENCH[name]
    folder = name.replace("-", "_")
    source = published.open_audio_bench(tmp_path / "bench", folder, columns, rows)
    expected = [(row[columns.index("Questions" if "Questions" in columns else "question")], a, i)
                for i, (row, a) in enumerate(zip(rows, answers, strict=True))]  # fmt: skip
    below = source / "eval_datas" / folder
    for out, path in (("a", source), ("b", below.parent), ("c", below), ("d", below / f"{folder}.csv")):
        found = prepare(name, path, out=out)
        assert questions(found) == expected
        assert found.items[0].keys() == {"id", "question", "answers", "audio"}


@pytest.mark.parametrize(
    ("name", "columns", "answers"),
    [
        ("llama-questions", {"Questions": ASKED, "Answer": ["Ann", "a cat"]}, [("Ann",), ("a cat",)]),
        ("web-questions", {"question": ASKED, "answers": [["Ann", "Bo"], ["cat"]]}, [("Ann", "Bo"), ("cat",)]),
        ("trivia-qa", {"question": ASKED, "answer": [["Ann", "Bo"], ["cat"]]}, [("Ann", "Bo"), ("cat",)]),
    ],
)
def test_ultraeval_audio_has_parquet_files(
    tmp_path: Path, prepare: Prepare, name: str, columns: dict[str, Any], answers: list[tuple[str, ...]]
) -> None:
    published.parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", audio=[5, 6], **columns)
    found = prepare(name, tmp_path / "hub")
    assert questions(found) == [("Who?", answers[0], 5), ("What?", answers[1], 6)]
    assert found.manifest.settings["split"] == "test"


def test_natural_questions_are_json_lines_or_parquet_without_ids(tmp_path: Path, prepare: Prepare) -> None:
    rows = [{"question": "who", "answer": ["Ann", "Bo"]}, {"question": "what", "answer": ["a cat"]}]
    published.json_lines(tmp_path / "nq/NQ-open.dev.jsonl", rows)
    published.json_lines(tmp_path / "nq/NQ-open.train.jsonl", rows[:1])
    found = prepare("natural-questions", tmp_path / "nq", "--split", "dev")
    assert questions(found) == [("who", ("Ann", "Bo"), None), ("what", ("a cat",), None)]
    assert [i["id"] for i in found.items] == ["1", "2"]
    columns = {key: [row[key] for row in rows] for key in ("question", "answer")}
    published.parquet(tmp_path / "hub/nq_open/validation-00000-of-00001.parquet", **columns)
    assert questions(prepare("natural-questions", tmp_path / "hub", out="hub_out")) == questions(found)


def test_voicebench_has_a_directory_for_a_subset_and_a_file_for_a_split(tmp_path: Path, prepare: Prepare) -> None:
    for i, region in enumerate(("aus", "usa")):
        path = tmp_path / f"voicebench/sd-qa/{region}-00000-of-00001.parquet"
        published.parquet(path, prompt=["Who?", "What?"], reference=["Ann", "cat"], audio=[2 * i, 2 * i + 1])
    published.parquet(tmp_path / "voicebench/alpacaeval/test-00000-of-00001.parquet", prompt=["Sing."], audio=[9])
    source = tmp_path / "voicebench"
    found = prepare("voicebench", source, "--subset", "sd-qa", "--split", "usa")
    assert questions(found) == [("Who?", ("Ann",), 2), ("What?", ("cat",), 3)]
    assert (found.manifest.settings["subset"], found.manifest.settings["split"]) == ("sd-qa", "usa")
    whole = prepare("voicebench", source / "sd-qa", "--split", "all", out="all")
    assert [(i["id"], i["split"]) for i in whole.items] == [
        ("aus-1", "aus"), ("aus-2", "aus"), ("usa-1", "usa"), ("usa-2", "usa"),
    ]  # fmt: skip
    assert [audio for _, _, audio in questions(whole)] == [0, 1, 2, 3]
    without = prepare("voicebench", source, "--subset", "alpacaeval", out="open")
    assert without.items == [{"id": "1", "question": "Sing.", "audio": "audio/00000.flac"}]
    assert "none are published" in without.manifest.notes["answers"]


def test_web_questions_and_open_trivia_are_json_lines(tmp_path: Path, prepare: Prepare) -> None:
    rows = [
        {"id": "wqr1", "question": "who?", "answers": ["Ann"]},
        {"id": "wqr2", "question": "what?", "answers": ["x"]},
    ]
    published.json_lines(tmp_path / "web/val.jsonl", rows)
    published.json_lines(tmp_path / "web/test.jsonl", rows[:1])
    found = prepare("webquestions", tmp_path / "web", "--split", "val")
    assert found.items == rows
    assert found.manifest.settings["split"] == "val"
    assert prepare("webquestions", tmp_path / "web/test.jsonl", out="file").items == rows[:1]
    trivia = [{"category": "animals", "question": "Who barks?", "answer": "A dog", "choices": ["A cat", "A dog"]}]
    published.json_lines(tmp_path / "trivia/questions.jsonl.gz", trivia)
    found = prepare("open-trivia-qa", tmp_path / "trivia", out="trivia_out")
    assert found.items == [{"id": "1", "question": "Who barks?", "answers": ["A dog"], "category": "animals",
                            "choices": ["A cat", "A dog"]}]  # fmt: skip
    assert found.manifest.settings["split"] is None


def test_files_of_questions_keep_their_other_columns(tmp_path: Path, prepare: Prepare) -> None:
    published.wav(tmp_path / "mine/sounds/a.wav", 7)
    rows = [{"id": "a", "question": "Who?", "answers": ["Ann"], "audio": "sounds/a.wav", "voice": "joe", "level": 3}]
    published.json_lines(tmp_path / "mine/mine.jsonl", rows)
    found = prepare("jsonl", tmp_path / "mine/mine.jsonl")
    assert found.items == [{**rows[0], "audio": "audio/00000.flac"}]
    assert number_of(found.folder / "audio/00000.flac") == 7
    assert found.counts["voices"] == ["joe"]
    columns = ["id", "question", "answers", "audio", "topic"]
    values = [["a", 'Who, "then"?', '["Ann", "Bo"]', "sounds/a.wav", "names"], ["b", "What?", "cat", "", "animals"]]
    found = prepare("csv", published.table(tmp_path / "mine/mine.csv", columns, values), out="csv_out")
    assert questions(found) == [('Who, "then"?', ("Ann", "Bo"), 7), ("What?", ("cat",), None)]
    assert [i["topic"] for i in found.items] == ["names", "animals"]
