"""Whatever is missing or damaged is counted or refused in one line, and a set is complete or absent."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.eval.prepare import published
from tests.eval.prepare.conftest import Prepared
from tests.eval.prepare.published import number_of
from weft import cli
from weft.data.skipped import Skipped
from weft.errors import UserError
from weft.eval.prepare import convert
from weft.eval.prepare.answer_lists import answers_of
from weft.eval.prepare.prepare import PrepareConfig
from weft.eval.prepare.registry import EVAL_SETS, eval_set

Prepare = Callable[..., Prepared]
Refused = Callable[..., str]
ROWS: list[dict[str, Any]] = [
    {"id": str(i), "question": f"Who is number {i}?", "answers": [f"Ann {i}"]} for i in range(6)
]


def test_the_help_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", "prepare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "weft eval prepare [RECIPE.toml] NAME --from FROM --out OUT" in shown
    assert all(name in shown.replace("\n", " ") for name in EVAL_SETS)
    assert PrepareConfig("a", Path("b"), Path("c")).source == Path("b")


def test_a_recipe_has_the_names_of_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, recipe = published.json_lines(tmp_path / "mine.jsonl", ROWS), tmp_path / "r.toml"
    recipe.write_text(f'name = "jsonl"\nfrom = "{source}"\nout = "{tmp_path}/out"\n')
    assert cli.run(["eval", "prepare", str(recipe)]) == 0
    recipe.write_text(f'name = "jsonl"\nsource = "{source}"\nout = "{tmp_path}/out"\n')
    assert cli.run(["eval", "prepare", str(recipe)]) == 2
    assert cli.run(["train-tokenizer", str(recipe)]) == 2
    recipe.write_text('name = "jsonl"\nfrom = "x"\nout = "y"\n')
    assert cli.run(["tokenize", str(recipe)]) == 2
    assert "is a recipe for weft eval prepare, not for weft tokenize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("storyclose", "did you mean 'storycloze'?"),
        ("web_questions", "did you mean 'web-questions'?"),
        ("zzz", "give one of storycloze, topic-storycloze"),
    ],
)
def test_an_unknown_set_suggests_the_nearest(tmp_path: Path, refused: Refused, name: str, words: str) -> None:
    assert words in refused(name, tmp_path)
    with pytest.raises(UserError, match="there is no evaluation set"):
        eval_set(name)


@pytest.mark.parametrize("name", EVAL_SETS)
def test_a_source_of_something_else_is_refused_in_one_line(tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"\0\1\2")
    for source in ("missing", "empty", "file.bin"):
        assert str(tmp_path / source) in refused(name, tmp_path / source)
    assert "is a URL: copy it to a disk" in refused(name, Path("https://host/set"))


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("webquestions", ["--split", "tset"], "has no split 'tset': give one of test, val, or all"),
        ("webquestions", [], "has several splits: give --split with one of test, val, or all"),
        ("webquestions", ["--subset", "x"], "webquestions has no subset 'x', as it has no subsets: leave out --subset"),
        ("voicebench", [], "has several subsets: give --subset with one of sd-qa, wildvoice"),
        ("voicebench", ["--subset", "all"], "scored in different ways: give --subset with one of sd-qa, wildvoice"),
        ("voicebench", ["--subset", "sdqa"], "has no subset 'sdqa': give one of sd-qa, wildvoice"),
        ("voicebench", ["--subset", "sd-qa", "--split", "uk"], "has no split 'uk': give one of aus, usa, or all"),
        ("salmon", ["--subset", "speaker"], "has no subset 'speaker': give one of rir_consistency, speaker_"),
        ("salmon", ["--split", "x"], "salmon has no split 'x', as it has no splits: leave out --split"),
        ("storycloze", ["--voice", "espeak:en-us"], "storycloze has pairs of recordings, which voices cannot replace"),
        ("webquestions", ["--split", "val", "--voice", "espeak:xx"], "espeak has no voice 'xx'"),
        ("swuggy", ["--split", "test"], "has no split 'test': give one of dev, or all"),
    ],
)
def test_unknown_parts_list_those_that_are_there(
    tmp_path: Path, refused: Refused, name: str, flags: list[str], words: str
) -> None:
    for split in ("test", "val"):
        published.json_lines(tmp_path / f"webquestions/{split}.jsonl", ROWS)
    for path in ("sd-qa/usa", "sd-qa/aus", "wildvoice/test"):
        published.parquet(tmp_path / f"voicebench/{path}-00000-of-00001.parquet", prompt=["Who?"], reference=["Ann"])
    published.salmon(tmp_path / "salmon")
    published.storycloze(tmp_path / "storycloze")
    published.swuggy(tmp_path / "swuggy")
    assert words in refused(name, tmp_path / name, *flags)


@pytest.mark.parametrize(
    ("name", "file", "header", "row", "words"),
    [
        ("csv", "mine.csv", ["q", "answers"], ["Who?", "Ann"], "has no column question, it has q, answers"),
        ("csv", "mine.csv", ["question", "a"], ["Who?", "Ann"], "has no column answers or answer, it has question, a"),
        ("web-questions", "web_questions.csv", ["query"], ["Who?"], "has no column question, it has query"),
        ("swuggy", "gold.csv", ["id", "filename"], ["1", "a"], "has no correct, voice, word, it has id, filename"),
        ("sblimp", "gold.csv", ["id", "word"], ["1", "a"], "give the syntactic directory"),
    ],
)
def test_other_columns_are_listed(
    tmp_path: Path, refused: Refused, name: str, file: str, header: list[str], row: list[str], words: str
) -> None:
    published.table(tmp_path / "set" / file, header, [row])
    assert words in refused(name, tmp_path / "set")


def test_other_columns_of_json_lines_and_parquet_are_listed(tmp_path: Path, refused: Refused) -> None:
    path = published.json_lines(tmp_path / "a.jsonl", [{"q": "Who?"}])
    assert f"{path} has no column question, it has q" in refused("jsonl", path)
    path = published.parquet(tmp_path / "a/test-00000-of-00001.parquet", question=["Who?"])
    assert "has no column prompt, it has question" in refused("voicebench", path)
    assert "has no columns of audio positive, negative, it has question" in refused("storycloze", path.parent)


def test_bad_rows_are_skipped_with_their_reasons(tmp_path: Path, prepare: Prepare) -> None:
    lines = [
        *map(json.dumps, ROWS[:2]),
        "{oops",
        "[1]",
        json.dumps({"id": "2", "question": " ", "answers": ["x"]}),
        json.dumps({"id": "3", "question": "Who?", "answers": ["", " "]}),
        json.dumps({"id": "0", "question": "Who else?", "answers": "x"}),
        json.dumps({"question": "How many?", "answers": 42}),
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    found = prepare("jsonl", tmp_path / "mine.jsonl")
    assert [i["id"] for i in found.items] == ["0", "1", "6"]
    assert found.items[-1]["answers"] == ["42"]
    assert (found.counts["items"], found.counts["skipped"]) == (3, 5)
    reasons = found.counts["skipped_reasons"]
    assert sum(reasons.values()) == 5
    listed = [json.loads(line) for line in (found.folder / "log/skipped.jsonl").read_text().splitlines()]
    assert [row["why"] for row in listed] == list(reasons)
    assert listed[0]["where"] == f"{tmp_path}/mine.jsonl line 3"
    text = " | ".join(reasons)
    for reason in ("not JSON", "not a JSON object", "`question` is empty", "`answers` is empty", "'0' occurs before"):
        assert reason in text
    assert str(tmp_path) not in (found.folder / "manifest.json").read_text()


def test_rows_of_csv_with_another_number_of_values_are_skipped(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "mine.csv").write_text('question,answers\nWho?,Ann\nWho,then?,Ann\n\n"What\nis it?",cat\n')
    found = prepare("csv", tmp_path / "mine.csv")
    assert [(i["id"], i["question"]) for i in found.items] == [("1", "Who?"), ("2", "What\nis it?")]
    assert found.counts["skipped_reasons"] == {"it has 3 values, and the header 2": 1}


def test_missing_and_damaged_recordings_are_counted_and_listed(tmp_path: Path, prepare: Prepare) -> None:
    rows = [["Who?", f"Ann {i}"] for i in range(4)]
    source = published.open_audio_bench(tmp_path / "bench", "llama_questions", ["Questions", "Answer"], rows)
    audios = source / "eval_datas/llama_questions/audios"
    (audios / "llama_questions_1.wav").unlink()
    (audios / "llama_questions_2.wav").write_text("no audio")
    found = prepare("llama-questions", source)
    assert [i.get("audio") for i in found.items] == ["audio/00000.flac", None, None, "audio/00003.flac"]
    assert (found.counts["items"], found.counts["missing_audio"]) == (4, 2)
    assert found.counts["missing_audio_ids"] == ["2", "3"]
    reasons = (found.folder / "log/missing_audio.jsonl").read_text().splitlines()
    assert ["does not exist" in reasons[0], "cannot be read as audio" in reasons[1]] == [True, True]


def test_a_pair_keeps_its_texts_without_any_recording_if_one_is_missing(tmp_path: Path, prepare: Prepare) -> None:
    source = published.swuggy(tmp_path / "sLM21")
    (source / "lexical/dev/file0.wav").unlink()
    found = prepare("swuggy", source)
    assert found.items[0] == {"id": "0-A", "right": "cat", "wrong": "cet"}
    assert found.items[1]["right_audio"] == "audio/00001-right.flac"
    assert (found.counts["missing_audio"], found.counts["skipped"]) == (1, 0)


def test_a_pair_without_texts_is_left_out_if_a_recording_is_damaged(
    tmp_path: Path, prepare: Prepare, refused: Refused
) -> None:
    source = published.storycloze(tmp_path / "stories", range(4))
    next(source.glob("1_*")).write_bytes(b"RIFF")
    found = prepare("storycloze", source)
    assert [i["id"] for i in found.items] == ["2"]
    assert (found.counts["items"], found.counts["skipped"], found.counts["missing_audio"]) == (1, 1, 1)
    shutil.rmtree(found.folder)
    for path in source.iterdir():
        path.write_bytes(b"RIFF")
    assert "has no recording that can be read: the first is" in refused("storycloze", source)


@pytest.mark.parametrize("numbers", [range(1, 24), [3, 20, 100]])
def test_an_odd_number_of_files_whose_pairs_are_unknown_is_refused(
    tmp_path: Path, refused: Refused, numbers: list[int]
) -> None:
    source = published.storycloze(tmp_path / "stories", numbers)
    assert "has an odd number of files" in refused("storycloze", source)


def test_files_that_cannot_be_paired_are_skipped_and_several_directories_refused(
    tmp_path: Path, prepare: Prepare, refused: Refused
) -> None:
    source = published.storycloze(tmp_path / "stories", range(4))
    for name in ("readme.wav", "5_a.wav", "5_b.wav"):
        published.wav(source / name, 0)
    reasons = prepare("storycloze", source).counts["skipped_reasons"]
    assert reasons == {
        "its number 5 occurs twice, so that the right one is unknown": 2,
        "its name does not begin with a number and _": 1,
    }
    shutil.rmtree(tmp_path / "out")
    published.storycloze(source / "more")
    assert "has recordings in several directories (, more): give one" in refused("storycloze", source)


def test_groups_without_one_right_and_one_wrong_recording_are_skipped(tmp_path: Path, prepare: Prepare) -> None:
    source = published.swuggy(tmp_path / "sLM21")
    with (source / "lexical/dev/gold.csv").open("a") as f:
        f.write("0,file3,A,3,cat,K,3,1\n")
    found = prepare("swuggy", source)
    assert [i["id"] for i in found.items] == ["1-B"]
    assert "0-A has 2 right and 1 wrong recordings" in next(iter(found.counts["skipped_reasons"]))


def test_links_that_leave_the_directory_are_not_followed(tmp_path: Path, prepare: Prepare, refused: Refused) -> None:
    source = published.storycloze(tmp_path / "stories", range(6))
    elsewhere = next(source.glob("3_*")).rename(tmp_path / "elsewhere.wav")
    (source / "3_a.wav").symlink_to(elsewhere)
    found = prepare("storycloze", source)
    assert [i["id"] for i in found.items] == ["0", "4"]
    assert any("is a link that leaves" in reason for reason in found.counts["skipped_reasons"])
    shutil.rmtree(found.folder)
    table = published.json_lines(tmp_path / "table.jsonl", ROWS)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/a.jsonl").symlink_to(table)
    assert "is a link that leaves the directory" in refused("jsonl", tmp_path / "linked")


@pytest.mark.parametrize("name", ["bench", "stories"])
def test_damaged_tables_and_archives_are_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    if name == "bench":
        path = published.parquet(tmp_path / "test-00000-of-00001.parquet", prompt=["Who?"] * 9, reference=["Ann"] * 9)
        path.write_bytes(path.read_bytes()[:-20])
        assert "cannot be read" in refused("voicebench", path)
        path = published.json_lines(tmp_path / "questions.jsonl.gz", ROWS * 50)
        path.write_bytes(path.read_bytes()[:-20])
        assert "cannot be read to its end" in refused("jsonl", path)
        (tmp_path / "mine.csv").write_bytes(b"question,answers\n\xff,x\n")
        assert "cannot be read (not UTF-8" in refused("csv", tmp_path / "mine.csv")
    else:
        path = published.zipped(published.storycloze(tmp_path / "stories"))
        path.write_bytes(path.read_bytes()[:-100])
        assert "is not a directory or a complete zip file" in refused("storycloze", path)


def test_a_damaged_recording_in_a_zip_file_costs_one_pair(tmp_path: Path, prepare: Prepare) -> None:
    path = published.zipped(published.storycloze(tmp_path / "stories", range(6)))
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if "/3_" in i.filename)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 20] ^= 0xFF
    path.write_bytes(content)
    found = prepare("storycloze", path)
    assert [i["id"] for i in found.items] == ["0", "4"]
    assert found.counts["missing_audio"] == 1


def test_voices_read_questions_without_a_recording_in_turn(tmp_path: Path, prepare: Prepare) -> None:
    published.wav(tmp_path / "a.wav", 7)
    rows = [{**row, **({"audio": "a.wav"} if row["id"] == "2" else {})} for row in ROWS]
    rows.append({"id": "silent", "question": "...", "answers": ["x"]})
    source = published.json_lines(tmp_path / "mine.jsonl", rows)
    found = prepare("jsonl", source, "--voice", "espeak:en-us", "ann=espeak:en-gb")
    voices = [i.get("voice") for i in found.items]
    assert voices == ["espeak:en-us", "ann", None, "espeak:en-us", "ann", "espeak:en-us", None]
    assert found.counts["voices"] == ["ann", "espeak:en-us", "recordings"]
    assert (found.counts["spoken"], found.counts["missing_audio"]) == (5, 1)
    assert number_of(found.folder / found.items[2]["audio"]) == 7
    assert "audio" not in found.items[6]
    lengths = [(found.folder / i["audio"]).stat().st_size for i in found.items if i["id"] in "01"]
    assert min(lengths) > 2000
    assert len(set(lengths)) == 2


def test_an_interrupted_set_is_absent_and_resumed_to_the_same_result(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "audio": f"{row['id']}.wav"} for row in ROWS]
    for i in range(4):
        published.wav(tmp_path / f"{i}.wav", i)
    source = published.json_lines(tmp_path / "mine.jsonl", rows)
    whole = prepare("jsonl", source, "--voice", "espeak:en-us", out="whole")
    saved, save = [], convert.save

    def stop_after(num: int) -> None:
        def interrupt(path: Path, *arguments: Any) -> None:
            if len(saved) == num:
                raise KeyboardInterrupt
            saved.append(path.name)
            save(path, *arguments)

        monkeypatch.setattr(convert, "save", interrupt)

    command = ["eval", "prepare", "jsonl", "--from", source, "--out", tmp_path / "out", "--voice", "espeak:en-us"]
    for num in (2, 5):
        stop_after(num)
        assert cli.run([str(argument) for argument in command]) == 130
        assert not (tmp_path / "out").exists()
    stop_after(100)
    found = prepare("jsonl", source, "--voice", "espeak:en-us")
    assert saved == [*(f"{i:05d}.flac" for i in range(4)), "00004-spoken.flac", "00005-spoken.flac"]
    assert found.manifest.fingerprint == whole.manifest.fingerprint
    assert found.manifest.counts == whole.manifest.counts


def test_a_set_is_returned_until_its_source_voices_or_name_change(
    tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    published.wav(tmp_path / "a.wav", 1)
    source = published.json_lines(tmp_path / "mine.jsonl", [{**ROWS[0], "audio": "a.wav"}])
    first = prepare("jsonl", source)
    assert prepare("jsonl", source).manifest == first.manifest
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"), ignore=shutil.ignore_patterns("out"))
    assert prepare("jsonl", Path(moved) / "mine.jsonl").manifest == first.manifest
    command = ["eval", "prepare", "jsonl", "--from", str(source), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert cli.run([*command, "--voice", "espeak:en-us"]) == 2
    assert "the speech of --voice" in capsys.readouterr().err
    published.wav(tmp_path / "a.wav", 2)
    assert cli.run(command) == 2
    assert "was created with other contents of --from" in capsys.readouterr().err


def test_the_licence_is_noted_and_a_voice_that_is_a_program_is_not(tmp_path: Path, prepare: Prepare) -> None:
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ncp {published.wav(tmp_path / 'a.wav', 3)} $2\n")
    program.chmod(0o755)
    source = published.json_lines(tmp_path / "mine.jsonl", ROWS[:1])
    voice = f"command:{program} --key=secret123 {{out}} {{text_file}}"
    found = prepare("jsonl", source, "--licence", "CC-BY-4.0", "--voice", f"joe={voice}")
    assert found.manifest.notes["licences"] == "CC-BY-4.0"
    assert found.items[0]["voice"] == "joe"
    written = b"".join(path.read_bytes() for path in found.folder.rglob("*.json*"))
    assert b"secret123" not in written
    assert os.fsencode(program.name) not in written


@pytest.mark.parametrize(
    ("value", "separator", "answers"),
    [
        ("Ann; Bob", None, ["Ann; Bob"]),
        ("Ann;Bob ; ", ";", ["Ann", "Bob"]),
        ('["a", "b, c"]', ",", ["a", "b, c"]),
        ("['it''s', \"it's\"]", None, ["it", "s", "it's"]),
        (r"['it\'s']", None, ["it's"]),
        ("[sic]", None, ["sic"]),
        (["a", None, 3, ["b"]], None, ["a", "3", "b"]),
        (True, None, []),
        (None, None, []),
        ("[" * 9999 + "]" * 9999, None, []),
        ("__import__('os').system('true')", None, ["__import__('os').system('true')"]),
    ],
)
def test_answers_are_lists_however_a_table_writes_them(value: Any, separator: str | None, answers: list[str]) -> None:
    assert answers_of(value, separator) == answers


def test_nothing_is_skipped_silently(tmp_path: Path) -> None:
    """Items, skipped items and repeated ones add up to the lines."""
    path = published.json_lines(tmp_path / "mine.jsonl", [*ROWS, *ROWS])
    from weft.eval.prepare.items import Request, usable

    skipped = Skipped()
    found = eval_set("jsonl").read(Request("jsonl", path, skipped=skipped))
    assert len(usable(found.items, skipped)) + skipped.num_bad == 2 * len(ROWS)
