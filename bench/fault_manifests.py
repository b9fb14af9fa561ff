"""Bad manifests of speech, and bad word times, for bench/faults.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_cases import Case
from fault_runs import Check, any_of, ends, makes, refused
from fault_world import MARKS, World, write_jsonl


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad manifests and word times."""
    yield from _manifests(world)
    yield from _output_names(world)
    yield from _alignments(world)


def _manifests(world: World) -> Iterator[Case]:
    """Yield manifests of three utterances, of which the second may be bad, tokenized."""
    rows = _rows(world)
    for name, (content, check) in (_contents(rows) | _lines(rows) | _fields(rows)).items():

        def arguments(folder: Path, content: bytes = content) -> list[str | bytes]:
            (folder / "manifest.jsonl").write_bytes(content)
            return ["tokenize", "manifest.jsonl", "--tokenizer", world["train-tokenizer"], "--out", "out"]

        yield Case("manifest", name, arguments, check)


def _rows(world: World) -> list[dict[str, Any]]:
    audio = world["speak/audio/lines-1.flac"]
    return [{"id": f"u{i}", "audio": audio, "text": "a b"} for i in range(3)]


def _with_line(rows: list[dict[str, Any]], line: str | bytes) -> bytes:
    """Return a manifest with another second line."""
    first, _, last = (json.dumps(row).encode() for row in rows)
    return b"\n".join([first, line.encode() if isinstance(line, str) else line, last])


def _contents(rows: list[dict[str, Any]]) -> dict[str, tuple[bytes, Check]]:
    """Return manifests in other encodings, and cut ones."""
    text, three = "\n".join(json.dumps(row) for row in rows), makes(utterances=3)
    latin = json.dumps({**rows[1], "text": "\xe9"}, ensure_ascii=False).encode("latin-1")
    return {
        "with a BOM": (b"\xef\xbb\xbf" + text.encode(), three),
        "with CRLF": (text.replace("\n", "\r\n").encode(), three),
        "with CR": (text.replace("\n", "\r").encode(), any_of(three, refused("line 1"))),
        "with blank lines": (text.replace("\n", "\n \n\n").encode(), three),
        "in UTF-16": (text.encode("utf-16"), any_of(three, refused("manifest.jsonl"))),
        "in Latin-1": (_with_line(rows, latin), any_of(refused("line 2"), three)),
        "empty": (b"", refused("manifest.jsonl")),
        "of spaces": (b" \n\n \t\n", refused("manifest.jsonl")),
        "binary": (bytes(range(256)) * 50, refused("manifest.jsonl")),
        "one JSON list": (json.dumps(rows).encode(), refused("line 1")),
        "without its last half": (text[: len(text) * 5 // 6].encode(), refused("line")),
    }


def _lines(rows: list[dict[str, Any]]) -> dict[str, tuple[bytes, Check]]:
    """Return manifests whose second line is not an object, or has unusual numbers."""
    three, line, good = makes(utterances=3), refused("line 2"), json.dumps(rows[1])[:-1]
    lines: dict[str, tuple[str | bytes, Check]] = {
        "row is a list": ("[1]", line),
        "row is null": ("null", line),
        "row with a comma after it": (good + "},", line),
        "row in single quotes": (str(rows[1]), line),
        "row of 100,000 brackets": ("[" * 100_000, line),
        "row of 100,000 objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, any_of(line, three)),
        "row of 200 MB": (b'{"id": "' + b"a" * 200_000_000, line),
        "NaN": (good + ', "snr": NaN}', any_of(three, line)),
        "seconds NaN": (good + ', "seconds": NaN}', any_of(three, line)),
        "seconds Infinity": (good + ', "seconds": Infinity}', any_of(three, line)),
        "seconds 1e999": (good + ', "seconds": 1e999}', any_of(three, line)),
        "id of 5,000 digits": (good.replace('"u1"', "9" * 5000) + "}", any_of(three, line)),
    }
    return {name: (_with_line(rows, text), check) for name, (text, check) in lines.items()}


def _fields(rows: list[dict[str, Any]]) -> dict[str, tuple[bytes, Check]]:
    """Return manifests whose second row has missing and unusual fields."""
    three, line = makes(utterances=3), refused("line 2")
    values: list[tuple[str, Any, Check]] = [
        ("id", 17, three),
        ("id", 1.5, any_of(three, line)),
        ("id", True, any_of(three, line)),
        ("id", None, line),
        ("id", "", line),
        ("id", "u0", refused("u0", "line")),
        ("id", "../../x", any_of(three, line)),
        ("id", "\x1b[2J\n\x00", any_of(three, line)),
        ("id", "\ud800", any_of(three, line)),
        ("id", "x" * 10_000, any_of(three, line)),
        ("audio", None, line),
        ("audio", ["a.wav"], line),
        ("audio", 3, line),
        ("audio", "", line),
        ("text", None, three),
        ("text", 5, any_of(line, three)),
        ("text", ["a"], line),
        ("text", " ".join(MARKS), three),
        ("text", "a\x00b", three),
        ("text", "\udfff", any_of(three, line)),
        ("speaker", 7, any_of(line, three)),
        ("language", "klingon", three),
        ("language", 0, line),
        ("seconds", -1, line),
        ("seconds", "2.0", line),
        ("seconds", True, line),
    ]
    found = {
        f"{name} {ascii(value)[:24]}": (_with_line(rows, json.dumps({**rows[1], name: value})), check)
        for name, value, check in values
    }
    for name in ("id", "audio"):
        found[f"no {name}"] = (_with_line(rows, json.dumps({k: v for k, v in rows[1].items() if k != name})), line)
    repeated = "\n".join(json.dumps({**rows[0], "id": name}) for name in (1, "1")).encode()
    return {**found, "id 1 and id '1'": (repeated, refused("line 2"))}


def _output_names(world: World) -> Iterator[Case]:
    """Yield ids that `weft resynth` uses as names of files."""
    rows = _rows(world)
    resynth = ["--tokenizer", world["train-tokenizer"], "--decoder", world["train-decoder"], "--out", "out"]
    for name in ("../../x", "/tmp/x", "a/b", "..", "a\x00b", "x" * 300, "CON:*?", "\x1b[2J"):

        def resynthesize(folder: Path, name: str = name) -> list[str | bytes]:
            write_jsonl(folder / "manifest.jsonl", [{**rows[0], "id": name}])
            return ["resynth", "manifest.jsonl", *resynth]

        yield Case("manifest, resynth", f"id {name[:20]!r}", resynthesize, ends)


def _alignments(world: World) -> Iterator[Case]:
    """Yield word times of eight utterances, of which one is bad."""
    lines = (world.folder / "words.jsonl").read_text().splitlines()[:8]
    row = json.loads(lines[3])
    words = row["words"]
    count = makes(skipped=1)

    def with_words(*changed: Any) -> str:
        return json.dumps({**row, "words": [*changed, *words[len(changed) :]]})

    line = refused("line 4")
    either = any_of(count, line)
    bad: dict[str, tuple[str, Check]] = {
        "invalid JSON": ("{", line),
        "a list": ("[]", line),
        "no words": (json.dumps({"id": row["id"]}), line),
        "empty words": (json.dumps({**row, "words": []}), either),
        "words a string": (json.dumps({**row, "words": "the cat"}), line),
        "words of numbers": (json.dumps({**row, "words": [1, 2]}), count),
        "id null": (json.dumps({**row, "id": None}), line),
        "repeated id": (lines[2], refused("line 4")),
        "id without audio": (json.dumps({**row, "id": "unknown"}), any_of(makes(), refused("unknown"))),
        "other words": (with_words({**words[0], "word": "zebra"}), count),
        "word null": (with_words({**words[0], "word": None}), either),
        "end before start": (with_words({**words[0], "start": 5.0, "end": 1.0}), either),
        "times out of order": (with_words({**words[0], "start": 1.0, "end": 1.1}), either),
        "negative start": (with_words({**words[0], "start": -1.0}), either),
        "times as strings": (with_words({**words[0], "start": "0.0"}), either),
        "times null": (with_words({**words[0], "start": None, "end": None}), any_of(makes(), either)),
        "NaN": (with_words(words[0]).replace("0.0", "NaN", 1), any_of(makes(), either)),
        "after the end of the audio": (_late(row), either),
        "infinite": (with_words({**words[0], "end": 1e400}).replace("Infinity", "1e999"), any_of(makes(), either)),
    }
    for name, (text, check) in bad.items():

        def arguments(folder: Path, text: str = text) -> list[str | bytes]:
            (folder / "words.jsonl").write_text("\n".join([*lines[:3], text, *lines[4:]]))
            tokenizer = ["--tokenizer", world["train-tokenizer"], "--max-bad-fraction", "0.5"]
            return ["interleave", world["speak"], "--aligned", "words.jsonl", *tokenizer, "--out", "out"]

        yield Case("word times", name, arguments, check)
    for name, content in {"empty": b"", "binary": bytes(range(256)), "UTF-16": lines[0].encode("utf-16")}.items():

        def write(folder: Path, content: bytes = content) -> list[str | bytes]:
            (folder / "words.jsonl").write_bytes(content)
            tokenizer = ["--tokenizer", world["train-tokenizer"]]
            return ["interleave", world["speak"], "--aligned", "words.jsonl", *tokenizer, "--out", "out"]

        yield Case("word times", f"{name} file", write, refused("words.jsonl"))


def _late(row: dict[str, Any]) -> str:
    """Return word times an hour after the start."""
    later = [{**word, "start": word["start"] + 3600, "end": word["end"] + 3600} for word in row["words"]]
    return json.dumps({**row, "words": later})
