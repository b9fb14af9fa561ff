"""Bad models, speech, settings and output files for `weft eval`, `chat`, `say` and `view` in bench/faults.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fault_cases import Case
from fault_runs import Check, Ended, any_of, refused
from fault_world import World, write_jsonl
from safetensors import safe_open
from safetensors.torch import save_file

PARTS = ("tokenizer", "decoder", "text_to_token", "lm")
_NUM_UTTERANCES = 4


def cases(world: World) -> Iterator[Case]:
    """Yield all cases of commands that evaluate or run finished models."""
    yield from _bundles(world)
    yield from _damaged_parts(world)
    yield from _other_models(world)
    yield from _speech(world)
    yield from _settings(world)
    yield from _outputs(world)


def refuses(*words: str) -> Check:
    """Expect status 2 with one line that contains `words`, and no output file."""

    def check(ended: Ended, folder: Path) -> str | None:
        left = [path.name for path in folder.glob("out.*")]
        return refused(*words)(ended, folder) or (f"left {', '.join(left)}" if left else None)

    return check


def writes(*words: str, **counts: int) -> Check:
    """Expect status 0, an output file and, in the details of results, `counts`; and printed `words`."""

    def check(ended: Ended, folder: Path) -> str | None:
        if ended.status != 0:
            return f"status {ended.status}, expected 0: {(ended.messages or [''])[0]}"
        found = [path for path in folder.glob("out.*") if path.stat().st_size and path.name != "out.items.jsonl"]
        if [path.name for path in found] not in (["out.json"], ["out.wav"], ["out.html"]):
            return f"wrote {', '.join(path.name for path in found) or 'nothing'}"
        results = json.loads(found[0].read_text())["details"] if counts else {}
        for name, count in counts.items():
            if results.get(name) != count:
                return f"{name} is {results.get(name)}, expected {count}"
        return next((f"{word!r} is not printed" for word in words if word not in ended.output), None)

    return check


_SAYS = any_of(writes(), refuses("does not end"))  # by a model that was hardly trained


def _commands(world: World) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Return commands that read `bundle`, with the parts that they need."""
    speech = ["--data", world["speak/audio/lines-1.flac"]]
    transcribed = ["--data", "manifest.jsonl", "--out", "out.json"]
    pairs = ["--data", world["pairs.jsonl"], "--out", "out.json"]
    text_to_token = ["eval", "text-to-token", "--model", "bundle", *transcribed]
    chat = ["chat", "bundle", "--wav", speech[1], "--max-sec", "0.5", "--out", "out.wav"]
    return {
        "chat": (chat, ("tokenizer", "decoder", "lm")),
        "eval tokenizer": (["eval", "tokenizer", "--model", "bundle", *transcribed], ("tokenizer",)),
        "eval resynth": (["eval", "resynth", "--model", "bundle", *transcribed], ("tokenizer", "decoder")),
        "eval text-to-token": (text_to_token, ("tokenizer", "text_to_token")),
        "eval text-to-token --judge": (
            [*text_to_token, "--judge", world["whisper"]],
            ("tokenizer", "text_to_token", "decoder"),
        ),
        "eval likelihood": (
            ["eval", "likelihood", "--model", "bundle", *pairs],
            ("tokenizer", "text_to_token", "lm"),
        ),
    }


def _write_speech(world: World, folder: Path) -> list[dict[str, Any]]:
    """Write `manifest.jsonl` with a few transcribed utterances of the world, and return its rows."""
    lines = (world.folder / "speak/manifest.jsonl").read_text().splitlines()[:_NUM_UTTERANCES]
    rows = [json.loads(line) for line in lines]
    rows = [{**row, "audio": world[f"speak/{row['audio']}"]} for row in rows]
    write_jsonl(folder / "manifest.jsonl", rows)
    return rows


def _write_bundle(world: World, folder: Path, part: str = "", other: str | None = None) -> Path:
    """Write a bundle of links to the parts of the world, with `other` (None: nothing) in place of `part`."""
    (folder / "bundle").mkdir()
    for name in PARTS:
        target = other if name == part else os.path.realpath(world[f"bundle/{name}"])
        if target:
            (folder / "bundle" / name).symlink_to(target)
    return folder / "bundle" / part


def _bundles(world: World) -> Iterator[Case]:
    """Yield bundles with missing and exchanged parts, and complete ones."""
    for command, (arguments, needed) in _commands(world).items():
        for part in ("", *needed):
            for other in (None, world["import-glm"], world["sft"], world["whisper"]):
                if (part, other) == ("lm", world["sft"]) or (not part and other):
                    continue

                def make(
                    folder: Path, part: str = part, other: str | None = other, arguments: list[str] = arguments
                ) -> list[str | bytes]:
                    _write_speech(world, folder)
                    _write_bundle(world, folder, part, other)
                    return list(arguments)

                what = "complete" if not part else f"{Path(other).name} as {part}" if other else f"no {part}"
                check = refuses(part if other is None else "bundle/") if part else writes()
                yield Case(f"bundle, {command}", what, make, check)


def _damaged_parts(world: World) -> Iterator[Case]:
    """Yield bundles of which one part is damaged."""
    for command, (arguments, needed) in _commands(world).items():
        for part in needed:
            for name, change in _DAMAGES.items():
                if (command, part) == ("eval topic-cloze", "tokenizer"):
                    continue  # its weights are not read

                def make(
                    folder: Path,
                    part: str = part,
                    change: Callable[[Path], Any] = change,
                    arguments: list[str] = arguments,
                ) -> list[str | bytes]:
                    _write_speech(world, folder)
                    link = _write_bundle(world, folder, part, "part")
                    link.unlink()
                    shutil.copytree(os.path.realpath(world[f"bundle/{part}"]), link)
                    change(link)
                    return list(arguments)

                yield Case(f"damaged part, {command}", f"{part}: {name}", make, refuses(part))


def _with_nan(folder: Path, value: float = torch.nan) -> None:
    """Fill half of the largest tensor of a model with a value that is not finite; names and sizes stay the same."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as f:
        tensors, about = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118
    largest = max(tensors.values(), key=torch.numel).view(-1)
    largest[: len(largest) // 2] = value
    save_file(tensors, path, about)


def _zeros(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))


_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "NaN weights": _with_nan,
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 3000),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of zeros": _zeros,
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest of another format": lambda folder: (folder / "manifest.json").write_bytes(bytes(range(256))),
}


def _other_models(world: World) -> Iterator[Case]:
    """Yield every kind of artifact, and paths without one, in place of the models of flags."""
    say = ["say", "The cat sat.", "--out", "out.wav"]
    model, decoder = ["--text-to-token", world["train-text-to-token"]], ["--decoder", world["train-decoder"]]
    evaluate = ["eval", "text-to-token", "--model", world["bundle"], "--data", "manifest.jsonl", "--out", "out.json"]
    flags: dict[str, tuple[list[str], str]] = {
        "say --text-to-token": ([*say, *decoder, "--text-to-token"], "text_to_token"),
        "say --decoder": ([*say, *model, "--decoder"], "decoder"),
        "view --decoder": (["view", world["interleave"], "--num", "1", "--out", "out.html", "--decoder"], "decoder"),
        "eval --judge": ([*evaluate, "--judge"], "whisper"),
        "eval --codes": ([*evaluate, "--codes"], "codes"),
        "eval --model": ([*evaluate, "--model"], "bundle"),
        "eval tokenizer --base": (["eval", "tokenizer", *evaluate[2:], "--base"], "whisper"),
        "chat": (["chat", "--wav", world["speak/audio/lines-1.flac"], "--out", "out.wav", "--model"], "bundle"),
    }
    others = {
        "tokenizer": world["train-tokenizer"],
        "decoder": world["train-decoder"],
        "text_to_token": world["train-text-to-token"],
        "codes": world["tokenize"],
        "audio": world["speak"],
        "language_model": world["sft"],
        "whisper": world["whisper"],
        "bundle": world["bundle"],
        "a file": world["corpus.jsonl"],
        "nothing": "nowhere",
        "an empty directory": "empty",
        "a URL": "s3://me:secret@bucket/x?key=secret",
    }
    for name, (arguments, needed) in flags.items():
        for kind, path in others.items():

            def make(folder: Path, arguments: list[str] = arguments, path: str = path) -> list[str | bytes]:
                _write_speech(world, folder)
                (folder / "empty").mkdir()
                return [*_without(arguments, arguments[-1]), arguments[-1], path]

            check = (
                (_SAYS if name.startswith("say") else writes())
                if kind == needed
                else refuses(Path(path).name.split("?")[0])
            )
            yield Case(f"other model, {name}", kind, make, check)


def _without(arguments: list[str], flag: str) -> list[str]:
    """Return arguments without a flag and its value."""
    at = arguments.index(flag)
    return arguments[:-1] if at == len(arguments) - 1 else [*arguments[:at], *arguments[at + 2 : -1]]


def _speech(world: World) -> Iterator[Case]:
    """Yield manifests of speech for each suite that reads one."""
    audio = world["speak/audio/lines-1.flac"]
    spoken = {"audio": audio, "text": "the cat"}
    manifests: dict[str, tuple[list[dict[str, Any]], Check]] = {
        "no lines": ([], refuses("manifest.jsonl")),
        "no transcripts": ([{"id": "a", "audio": audio}], refuses("transcri")),
        "transcripts without words": ([{**spoken, "id": "a", "text": "...!"}], refuses("transcri")),
        "one of two without a transcript": (
            [{**spoken, "id": "a"}, {"id": "b", "audio": audio}],
            writes(left_out=1),
        ),
        "one of two missing": ([{**spoken, "id": "a"}, {**spoken, "id": "b", "audio": "no.wav"}], writes(skipped=1)),
        "all files missing": ([{**spoken, "id": "a", "audio": "no.wav"}], refuses("no.wav")),
        "two with one id": ([{**spoken, "id": "a"}] * 2, any_of(writes(), refuses("manifest.jsonl"))),
        "control tokens": ([{**spoken, "id": "a", "text": "<|endoftext|> <|audio_3|>"}], any_of(writes(), refuses())),
        "names that control the terminal": (
            [{**spoken, "id": "\x1b]0;t\x07", "speaker": "\x1b[2J\u202e"}, {"id": "\x9b2J", "audio": audio}],
            writes(left_out=1),
        ),
        "a language that is unknown": ([{**spoken, "id": "a", "language": "xx"}], any_of(writes(), refuses("xx"))),
        "a million characters": ([{**spoken, "id": "a", "text": "the cat " * 125_000}], any_of(writes(), refuses())),
    }
    for suite in ("tokenizer", "resynth", "text-to-token"):
        for name, (rows, check) in manifests.items():

            def make(folder: Path, suite: str = suite, rows: list[dict[str, Any]] = rows) -> list[str | bytes]:
                write_jsonl(folder / "manifest.jsonl", rows)
                model = ["--model", world["bundle"], "--out", "out.json"]
                return ["eval", suite, *model, "--data", "manifest.jsonl"]

            yield Case(f"speech, eval {suite}", name, make, check)


def _metric_settings(world: World, evaluate: list[str]) -> dict[str, tuple[list[str], Check]]:
    """Return settings of metrics, comparisons and published sets that are invalid or do not fit together."""
    return {
        "qa without questions": (["eval", "qa", *evaluate], refuses("--data")),
        "qa of an audio manifest": (["eval", "qa", *evaluate, "--data", "manifest.jsonl"], refuses("question")),
        "spoken answers without a judge": (
            ["eval", "qa", *evaluate, "--data", "questions.jsonl", "--directions", "SS"],
            refuses("--judge"),
        ),
        "more shots than examples": (
            ["eval", "qa", *evaluate, "--data", "questions.jsonl", "--shots", "9", "--examples", world["pairs.jsonl"]],
            refuses("question"),
        ),
        "a direction that does not exist": (
            ["eval", "qa", *evaluate, "--data", "questions.jsonl", "--directions", "TX"],
            refuses("TX"),
        ),
        "chat without a judge": (["eval", "chat", *evaluate, "--data", "questions.jsonl"], refuses("--judge-url")),
        "chat with a judge that is down": (
            ["eval", "chat", *evaluate, "--data", "questions.jsonl", "--judge-url", "http://127.0.0.1:9/v1"],
            refuses("127.0.0.1"),
        ),
        "retention without texts": (["eval", "retention", *evaluate], refuses("--data")),
        "training data of another kind": (
            ["eval", "likelihood", *evaluate, "--data", world["pairs.jsonl"], "--training", world["bundle"]],
            refuses("bundle"),
        ),
        "comparison of one file": (["eval", "compare", "nowhere.json"], refuses("two")),
        "comparison of other files": (["eval", "compare", "manifest.jsonl", "manifest.jsonl"], refuses("manifest")),
        "an unknown set": (
            ["eval", "prepare", "storyclose", "--from", world["pairs.jsonl"], "--out", "out"],
            refuses("storycloze"),
        ),
        "a set of another layout": (
            ["eval", "prepare", "swuggy", "--from", world["pairs.jsonl"], "--out", "out"],
            refuses("pairs.jsonl"),
        ),
    }


def _text_to_token_settings(world: World, evaluate: list[str]) -> dict[str, tuple[list[str], Check]]:
    """Return sentences, voices and codes that `weft eval text-to-token` rejects."""
    text = ["eval", "text-to-token", *evaluate]
    return {
        "text-to-token without sentences": (text, refuses("--texts")),
        "text-to-token, texts and speech": (
            [*text, "--texts", world["corpus.jsonl"], "--data", "manifest.jsonl"],
            refuses("--texts"),
        ),
        "text-to-token, texts without words": ([*text, "--texts", "marks.txt"], refuses("no words")),
        "text-to-token, empty texts": ([*text, "--texts", "empty.txt"], refuses("empty.txt")),
        "text-to-token, no texts": ([*text, "--texts", "nowhere.txt"], refuses("nowhere.txt")),
        "text-to-token, unknown voice": (
            [*text, "--texts", world["lines.txt"], "--voice", "espeak:martian"],
            refuses("martian"),
        ),
        "text-to-token, other codes": (
            [*text, "--data", "manifest.jsonl", "--codes", "nowhere"],
            refuses("nowhere"),
        ),
        "text-to-token, unknown speaker": (
            [*text, "--data", "manifest.jsonl", "--speaker", "nobody"],
            refuses("nobody"),
        ),
        "text-to-token, limit 0": ([*text, "--texts", world["lines.txt"], "--limit", "0"], refuses("limit")),
    }


def _settings(world: World) -> Iterator[Case]:
    """Yield flags that are invalid or do not fit together."""
    evaluate, model = ["--model", world["bundle"], "--out", "out.json"], world["train-text-to-token"]
    pairs = ["eval", "likelihood", *evaluate, "--data", world["pairs.jsonl"]]
    speech = ["eval", "tokenizer", *evaluate, "--data", "manifest.jsonl"]
    say = ["say", "The cat sat.", "--text-to-token", model, "--decoder", world["train-decoder"], "--out", "out.wav"]
    chat = ["chat", world["bundle"], "--wav", world["speak/audio/lines-1.flac"], "--out", "out.wav"]
    cases: dict[str, tuple[list[str], Check]] = {
        **_metric_settings(world, evaluate),
        "no metric": (["eval", *evaluate], refuses("metric")),
        "likelihood without pairs": (["eval", "likelihood", *evaluate], refuses("--data")),
        "resynth without speech": (["eval", "resynth", *evaluate], refuses("--data")),
        **_text_to_token_settings(world, evaluate),
        "likelihood, unknown voice": ([*pairs, "--voice", "espeak:martian"], refuses("martian")),
        "likelihood, unknown speaker": ([*pairs, "--speaker", "nobody"], refuses("nobody")),
        "likelihood of a voice": ([*pairs, "--voice", "espeak:en-us"], writes("value")),
        "limit 0": ([*speech, "--limit", "0"], refuses("limit")),
        "limit above the number": ([*speech, "--limit", "99"], writes(utterances=_NUM_UTTERANCES)),
        "limit 2": ([*speech, "--limit", "2"], writes(utterances=2)),
        "negative seed": ([*speech, "--seed", "-1"], refuses("seed")),
        "unknown language": ([*speech, "--language", "xx"], any_of(writes(), refuses("xx"))),
        "two metrics": (["eval", "tokenizer", *speech[1:]], refuses("tokenizer")),
        "say, unknown speaker": ([*say, "--speaker", "nobody"], refuses("nobody")),
        "say, negative seed": ([*say, "--seed", "-1"], refuses("seed")),
        "chat, max-sec 0": ([*chat, "--max-sec", "0"], refuses("sec")),
        "chat, max-sec 1e300": ([*chat, "--max-sec", "1e300"], any_of(writes(), refuses("sec"))),
        "view, a decoder of another tokenizer": (
            ["view", world["interleave"], "--out", "out.html", "--decoder", world["import-glm"]],
            refuses("import-glm"),
        ),
    }
    for name, (arguments, check) in cases.items():

        def make(folder: Path, arguments: list[str] = arguments) -> list[str | bytes]:
            _write_speech(world, folder)
            rows = [{"id": str(i), "question": f"What is {i}?", "answers": ["it"]} for i in range(3)]
            write_jsonl(folder / "questions.jsonl", rows)
            (folder / "empty.txt").write_text("")
            (folder / "marks.txt").write_text("...\n!?\n")
            return list(arguments)

        yield Case("flags of eval, chat, say", name, make, check)


def output_files(world: World) -> dict[str, tuple[list[str], str]]:
    """Return commands that write a file, without `--out`, and the suffix of the file."""
    evaluate = ["eval", "tokenizer", "--model", world["bundle"], "--data", world["speak"], "--limit", "4"]
    return {
        "eval": (evaluate, ".json"),
        "chat": (["chat", world["bundle"], "--wav", world["speak/audio/lines-1.flac"], "--max-sec", "0.5"], ".wav"),
        "view": (["view", world["interleave"], "--decoder", world["train-decoder"], "--num", "1"], ".html"),
    }


def _outputs(world: World) -> Iterator[Case]:
    """Yield output files that cannot be written, and two in directories that do not exist."""
    model = world["train-text-to-token"]
    say = (["say", "The cat.", "--text-to-token", model, "--decoder", world["train-decoder"]], ".wav")
    outs: dict[str, Check] = {
        "dir{}": refused("dir"),
        "file/x{}": refused("file"),
        "/proc/x{}": refused("/proc"),
        "/dev/null/x{}": refused("/dev/null"),
        "": refused("directory"),
        "n" * 300 + "{}": refused("name too long"),
        "s3://me:secret@bucket/x{}": refused("s3://bucket/x"),
        "dangling{}": _written("dangling"),
        "new/x{}": _written("new/x"),
    }
    for command, (arguments, suffix) in {**output_files(world), "say": say}.items():
        for name, outcome in outs.items():
            is_new = name in ("dangling{}", "new/x{}")
            check = any_of(outcome, refused("does not end")) if command == "say" and is_new else outcome

            def make(
                folder: Path, arguments: list[str] = arguments, name: str = name, suffix: str = suffix
            ) -> list[str | bytes]:
                (folder / f"dir{suffix}").mkdir()
                (folder / "file").touch()
                (folder / f"dangling{suffix}").symlink_to("nowhere/x")
                return [*arguments, "--out", name.format(suffix)]

            yield Case(f"output file, {command}", name.format(suffix)[:40] or "empty", make, check)


def _written(name: str) -> Check:
    """Expect status 0 and a file that begins with `name`."""

    def check(ended: Ended, folder: Path) -> str | None:
        if ended.status:
            return f"status {ended.status}, expected 0: {ended.messages[0]}"
        return None if any(path.is_file() for path in folder.glob(f"{name}*")) else f"{name} was not written"

    return check
