"""Bad recipes, flags, paths and typed text for bench/faults.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_cases import Case
from fault_runs import Check, Ended, any_of, makes, refused
from fault_world import World


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad settings."""
    yield from _recipes(world)
    yield from _training_values(world)
    yield from _flags(world)
    yield from _interleaving(world)
    yield from _environments(world)
    yield from _outputs(world)
    yield from _voices()
    yield from _typed(world)


def succeeds(ended: Ended, folder: Path) -> str | None:
    """Expect status 0."""
    return None if ended.status == 0 else f"status {ended.status}, expected 0: {ended.output.strip()[-300:]}"


def _recipes(world: World) -> Iterator[Case]:
    """Yield recipes of `weft pretrain` that are not valid."""
    good = (world.folder / "pretrain.toml").read_text()
    named = refused("recipe.toml")
    recipes: dict[str, tuple[str | bytes, Check]] = {
        "invalid TOML": ("base = ", named),
        "JSON": ("{}", named),
        "empty": ("", refused()),
        "not UTF-8": (b'base = "caf\xe9"', named),
        "UTF-16": (good.encode("utf-16"), named),
        "binary": (bytes(range(256)), named),
        "with a BOM": (b"\xef\xbb\xbf" + good.encode(), succeeds),
        "with NUL": (good + "\0", named),
        "unknown key": (good + "\nstep = 3\n", refused("step")),
        "unknown table": (good + "\n[trian]\nsteps = 3\n", refused("trian")),
        "key given twice": (good + "\nsteps = 3\n", named),
        "key of another command": ("batch_sec = 5\n" + good, refused("batch_sec")),
        "value for a table": (good.replace("[train]", "[other]") + "\n[other2]\n", refused("other")),
        "table for a value": (good + "\n[max_epochs]\na = 1\n", refused("max_epochs")),
        "list for a number": (good.replace("batch_tokens = 600", "batch_tokens = [1, 2]"), refused("batch_tokens")),
        "string for a number": (good.replace("batch_tokens = 600", 'batch_tokens = "many"'), refused("batch_tokens")),
        "boolean for a number": (good.replace("batch_tokens = 600", "batch_tokens = true"), refused("batch_tokens")),
        "date for a number": (good.replace("batch_tokens = 600", "batch_tokens = 2024-01-01"), refused("batch_tokens")),
        "control characters": (good.replace("base = ", 'base = "\\u001b[31m"\nother = '), refused()),
        "weights that are not 1": (good + "\n[weights]\ninterleave = 0.5\n", refused()),
        "weights of an unknown dataset": (good + "\n[weights]\nnothing = 1.0\n", refused("nothing")),
        "weights NaN": (good + "\n[weights]\ninterleave = nan\n", refused()),
        "negative weights": (good + "\n[weights]\ninterleave = -1.0\n", refused()),
        "weights of words": (good + '\n[weights]\ninterleave = "much"\n', refused()),
        "deep nesting": ("a = " + "[" * 100_000, named),
    }
    for name, (content, check) in recipes.items():

        def arguments(folder: Path, content: str | bytes = content) -> list[str | bytes]:
            (folder / "recipe.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
            return ["pretrain", "recipe.toml", "--out", "out", "--train.steps", "2"]

        yield Case("recipe", name, arguments, check)
    paths: dict[str, tuple[Callable[[Path], object], Check]] = {
        "missing": (lambda path: None, named),
        "directory": (lambda path: path.mkdir(), named),
        "FIFO": (os.mkfifo, named),
        "symlink to itself": (lambda path: path.symlink_to(path), named),
        "device": (lambda path: path.symlink_to("/dev/zero"), named),
    }
    for name, (make, check) in paths.items():

        def from_path(folder: Path, make: Callable[[Path], object] = make) -> list[str | bytes]:
            make(folder / "recipe.toml")
            return ["pretrain", "recipe.toml", "--out", "out"]

        yield Case("recipe", name, from_path, check)
    for other in ("tokenizer", "decoder", "text_to_token"):
        yield _command("recipe", f"of {other}", ["pretrain", world[f"{other}.toml"], "--out", "out"], refused())


def _training_values(world: World) -> Iterator[Case]:
    """Yield values outside of their range for the settings of training."""
    values = {
        "--train.steps": ("0", "-1", "1.5", "ten", "1" + "0" * 30, "nan", ""),
        "--train.lr": ("0", "-1", "nan", "inf", "1e400", "fast"),
        "--train.beta2": ("1", "-0.1", "nan"),
        "--train.warmup-steps": ("-1", "0.5"),
        "--train.max-grad-norm": ("0", "nan"),
        "--train.precision": ("fp8", ""),
        "--train.optimizer": ("sgd",),
        "--train.schedule": ("constant",),
        "--train.seed": ("-1", "1" + "0" * 30),
        "--train.grad-accum-steps": ("0",),
        "--batch-tokens": ("0", "-5"),
        "--max-seq-len": ("0", "1"),
        "--max-epochs": ("0", "nan", "-1"),
        "--base": ("nowhere",),
        "--tokens": ("nowhere",),
        "--held-out": ("nowhere",),
        "--train": ("5",),
        "--unknown": ("1",),
    }
    for flag, given in values.items():
        for value in given:
            arguments = ["pretrain", world["pretrain.toml"], "--out", "out", flag, value]
            words = () if flag == "--train" or not value else (value if value == "nowhere" else flag.split("-")[-1],)
            yield _command("training settings", f"{flag} {value[:20]!r}", arguments, refused(*words))


def _flags(world: World) -> Iterator[Case]:
    """Yield flags of data commands."""
    interleave = ["interleave", world["corpus.jsonl"], "--out", "out"]
    model = ["--text-to-token", world["train-text-to-token"]]
    texts = ["documents", "text", "--source", world["corpus.jsonl"], "--out", "out"]
    cases: dict[str, tuple[list[str], Check]] = {
        "no command": (["nothing"], refused("nothing")),
        "a similar command": (["tokenise"], refused("tokenize")),
        "command with an escape": (["\x1b[31mred"], refused("red")),
        "no arguments": (["tokenize"], refused()),
        "unknown flag": ([*texts, "--unknown"], refused("unknown")),
        "flag without a value": ([*texts, "--tasks"], refused("tasks")),
        "more positional arguments": ([*texts, "--tasks", "2", "a", "b"], refused()),
        "unknown kind": (["documents", "video", "--source", world["corpus.jsonl"], "--out", "out"], refused("video")),
        "--workers 0": ([*texts, "--workers", "0"], refused("workers")),
        "--workers -1": ([*texts, "--workers", "-1"], refused("workers")),
        "--tasks 0": ([*texts, "--tasks", "0"], refused("tasks")),
        "--tasks of 40 digits": ([*texts, "--tasks", "9" * 40], refused("tasks")),
        "--max-bad-fraction 2": ([*texts, "--max-bad-fraction", "2"], refused("fraction")),
        "--max-bad-fraction nan": ([*texts, "--max-bad-fraction", "nan"], refused("fraction")),
        "unknown executor": ([*texts, "--executor.kind", "cloud"], refused("cloud")),
        "slurm without sbatch": ([*texts, "--executor.kind", "slurm"], refused()),
        "ray without ray": ([*texts, "--executor.kind", "ray"], refused("ray")),
        "no source of speech": (interleave, refused("text-to-token")),
        "two sources of speech": ([*interleave, *model, "--aligned", world["words.jsonl"]], refused("aligned")),
        "--max-wer without a tokenizer": ([*interleave, *model, "--max-wer", "0.3"], refused("tokenizer")),
        "--url without a server": ([*interleave, *model, "--url", "http://127.0.0.1:9/v1"], refused("127.0.0.1")),
        "--url not a URL": ([*interleave, *model, "--url", "not a url"], refused("url")),
        "--url with a password": (
            [*interleave, *model, "--url", "http://u:secret@127.0.0.1:9/v1?k=secret"],
            refused("127.0.0.1"),
        ),
        "--url of a file": ([*interleave, *model, "--url", "file:///etc/passwd"], refused("url")),
        "--aligned for text": ([*interleave, *model, "--tokenizer", "nowhere"], refused("nowhere")),
        "info of nothing": (["info", "nowhere"], refused("nowhere")),
        **_urls(world),
        "info of a file": (["info", world["corpus.jsonl"]], refused("corpus.jsonl")),
        "info of a directory": (["info", "."], refused("manifest.json")),
        "view of text": (["view", world["corpus.jsonl"], "--out", "out.html"], refused("corpus.jsonl")),
        "view --num 0": (["view", world["interleave"], "--out", "out.html", "--num", "0"], refused("num")),
        "eval of an unknown metric": (["eval", "bleu", "--model", world["bundle"], "--out", "o.json"], refused("bleu")),
        "eval without speech": (
            ["eval", "tokenizer", "--model", world["bundle"], "--out", "o.json"],
            refused("--data"),
        ),
        "chat with a missing file": (["chat", world["bundle"], "--wav", "nowhere.wav"], refused("nowhere.wav")),
        "chat --max-sec nan": (["chat", world["bundle"], "--max-sec", "nan"], refused("sec")),
        "demo in a directory that is not empty": (["demo", "--out", world.folder.as_posix()], refused()),
    }
    for name, (arguments, check) in cases.items():
        yield _command("flags", name, arguments, check)


def _urls(world: World) -> dict[str, tuple[list[str], Check]]:
    """Return inputs and outputs at URLs; a password in a URL is never printed."""
    texts = ["documents", "text", "--source", world["corpus.jsonl"], "--out"]
    return {
        "info of a URL without an artifact": (
            ["info", "file://me:secret@/nowhere?key=secret", "--verify"],
            refused("nowhere"),
        ),
        "info of an artifact at a URL": (["info", f"file://{world['tokenize']}", "--verify"], succeeds),
        "info of an unknown URL": (["info", "gopher://me:secret@host/x"], refused("gopher")),
        "pack of a URL": (
            ["pack", "s3://me:secret@b/x?key=secret", "--lm", "lm", "--out", "out"],
            refused("s3://b/x is a URL"),
        ),
        "pack for a model at a URL": (
            ["pack", world["interleave"], "--lm", "s3://me:secret@b/x", "--out", "out"],
            refused("s3://b/x is a URL"),
        ),
        "tokenize of a URL": (
            ["tokenize", "s3://me:secret@b/x", "--tokenizer", world["train-tokenizer"], "--out", "out"],
            refused("s3://b/x is a URL"),
        ),
        "a recipe at a URL": (["pretrain", "s3://me:secret@b/x.toml"], refused("s3://b/x.toml is a URL")),
        "tokens at a URL": (
            ["pretrain", world["pretrain.toml"], "--tokens", "file://me:secret@/nowhere", "--out", "out"],
            refused("nowhere"),
        ),
        "output at a URL": ([*texts, "s3://me:secret@b/out"], refused("s3://b/out is a URL")),
    }


def _interleaving(world: World) -> Iterator[Case]:
    """Yield values outside of their range for `weft interleave`."""
    interleave = ["interleave", world["corpus.jsonl"], "--out", "out", "--text-to-token", world["train-text-to-token"]]
    for flag, given in {
        "--speech-ratio": ("0", "2", "-1", "nan", "half"),
        "--mean-span-words": ("0", "1e9", "nan", "inf", "-3"),
        "--policy": ("random",),
        "--seed": ("-1", "1" + "0" * 30, "one"),
        "--tries": ("0",),
        "--max-wer": ("-1", "nan"),
    }.items():
        for value in given:
            words = flag.strip("-").split("-")[0]
            yield _command("flags", f"interleave {flag} {value[:20]}", [*interleave, flag, value], refused(words))


def _environments(world: World) -> Iterator[Case]:
    """Yield devices that do not exist, and standard outputs that nobody reads."""
    tokenize = ["tokenize", world["speak"], "--tokenizer", world["train-tokenizer"], "--out", "out"]
    for device in ("tpu", "cuda:99", "\x1b[31m", "-1"):
        how = {"WEFT_DEVICE": device}
        yield Case(
            "environment", f"WEFT_DEVICE {device!r}", lambda folder: [*tokenize], refused("device"), environment=how
        )
    for arguments in (["info", world["tokenize"]], ["--help"], ["pack", "--help"], tokenize):
        yield Case("environment", f"{arguments[0]} | head", lambda _, a=arguments: [*a], _quiet, has_reader=False)  # type: ignore[misc]


def _quiet(ended: Ended, folder: Path) -> str | None:
    if ended.status not in (0, 1, 128 + signal.SIGPIPE):
        return f"status {ended.status}"
    return f"printed {ended.output.strip()[-200:]}" if "rror" in ended.output else None


def _outputs(world: World) -> Iterator[Case]:
    """Yield output directories that are special."""

    def case(name: str, out: str | bytes, check: Check, make: Callable[[Path], object] = lambda folder: None) -> Case:
        def arguments(folder: Path) -> list[str | bytes]:
            make(folder)
            return ["documents", "text", "--source", world["corpus.jsonl"], "--out", out]

        return Case("output", name, arguments, check)

    yield case("name in Unicode", "résumé 🎉/ü", succeeds)
    yield case("name with spaces and quotes", "a 'b' \"c\"", succeeds)
    yield case("name with an escape", "a\x1b[31mb", any_of(succeeds, refused()))
    yield case("name not UTF-8", b"caf\xe9", any_of(succeeds, refused()))
    yield case("name with a NUL", "a\\0b", any_of(succeeds, refused()))
    yield case("name of 300 characters", "x" * 300, refused("xxx"))
    yield case("name of 250 characters", "x" * 250, any_of(succeeds, refused("xxx")))
    yield case("name of a flag", "--out", refused())
    yield case("this directory", ".", refused())
    yield case("parent directory", "..", refused())
    yield case("root", "/", refused())
    yield case("empty", "", refused())
    yield case("an existing file", "file", refused("file"), lambda f: (f / "file").write_text("x"))
    yield case("below a file", "file/out", refused("file"), lambda f: (f / "file").write_text("x"))
    yield case("an existing directory", "dir", refused("dir"), lambda f: (f / "dir").mkdir())
    yield case(
        "a file in place of the partial", "out", refused("out.partial"), lambda f: (f / "out.partial").write_text("")
    )
    yield case("a partial of someone", "out", refused("out.partial"), _strange_partial)
    yield case("symlink to itself", "link", refused("link"), lambda f: (f / "link").symlink_to("link"))
    yield case("symlink to nothing", "link", any_of(refused("link"), succeeds), lambda f: (f / "link").symlink_to("no"))
    yield case("in /proc", "/proc/weft", refused("/proc"))
    yield case("in /dev/null", "/dev/null/out", refused("/dev/null"))
    yield case("URL", "s3://bucket/out", refused("URL"))
    yield case("another kind of artifact", world["tokenize"], refused("tokenize"))


def _strange_partial(folder: Path) -> None:
    (folder / "out.partial").mkdir()
    (folder / "out.partial/thesis.doc").write_text("my only copy")


def _voices() -> Iterator[Case]:
    """Yield texts and voices of `weft speak`."""
    voices = {
        "espeak:xx": "xx",
        "espeak:": "espeak",
        "nothing": "nothing",
        "espeak:en-us?speed=fast": "speed",
        "espeak:en-us?speed=-1": "speed",
        "espeak:en-us?colour=red": "colour",
        "espeak:../../etc/passwd": "espeak",
        "command:cat": "not a file",
        "command:cat {text_file}": "{out}",
        "kokoro:nobody?folder=.": "kokoro",
        "piper:no-model": "piper",
        "command:nowhere-at-all {text_file} {out}": "nowhere-at-all",
        "command:false {text_file} {out}": "false",
        "command:true {text_file} {out}": "out",
        "command:cp {text_file} {out}": "out",
        "command:'unbalanced {text_file} {out}": "command",
    }
    for voice, word in voices.items():

        def spoken(folder: Path, voice: str = voice) -> list[str | bytes]:
            (folder / "lines.txt").write_text("Good morning.\n")
            return ["speak", "lines.txt", "--voice", voice, "--out", "out"]

        yield Case("speak", f"voice {voice}", spoken, refused(word))
    texts: dict[str, tuple[bytes, Check]] = {
        "empty": (b"", refused("lines.txt")),
        "spaces": (b" \n\n\t\n", refused("lines.txt")),
        "not UTF-8": (b"caf\xe9\n", refused("lines.txt")),
        "UTF-16": ("Good morning.\n".encode("utf-16"), refused("lines.txt")),
        "binary": (bytes(range(256)), refused("lines.txt")),
        "NUL": (b"Good\0 morning.\n", any_of(succeeds, refused("lines"))),
        "BOM": (b"\xef\xbb\xbfGood morning.\n", makes(num_utterances=1)),
        "CRLF": (b"Good morning.\r\nGood night.\r\n", makes(num_utterances=2)),
        "punctuation": (b"...\n!!!\n", any_of(succeeds, refused())),
        "form feeds": (b"Good\x0cmorning.\x0b\x1c\n", any_of(succeeds, refused())),
        "markup": (b'<speak><break time="9999s"/></speak> [[h@]] hello\n', succeeds),
        "long line": (b"word " * 4000 + b"\n", any_of(succeeds, refused("lines"))),
    }
    for name, (content, check) in texts.items():

        def written(folder: Path, content: bytes = content) -> list[str | bytes]:
            (folder / "lines.txt").write_bytes(content)
            return ["speak", "lines.txt", "--out", "out"]

        yield Case("speak", name, written, check)


def _typed(world: World) -> Iterator[Case]:
    """Yield texts typed to `weft say` and `weft chat`."""
    say = ["--text-to-token", world["train-text-to-token"], "--decoder", world["train-decoder"], "--out", "out.wav"]
    outcome = any_of(succeeds, refused())
    texts: dict[str, tuple[str | bytes, Check]] = {
        "empty": ("", refused()),
        "punctuation": ("...!", refused("pronounce")),
        "control tokens": ("<|audio_3|><|endoftext|><|user|>", outcome),
        "not UTF-8": (b"caf\xe9", outcome),
        "escape": ("\x1b[31m\x07", outcome),
        "100,000 characters": ("the cat sat " * 8000, outcome),
        "emoji": ("🎉🎉", outcome),
    }
    for name, (text, check) in texts.items():
        arguments: list[str | bytes] = ["say", text, *say]
        yield Case("say", name, lambda folder, arguments=arguments: arguments, check)  # type: ignore[misc]
    chat: list[str | bytes] = ["chat", world["bundle"], "--max-sec", "0.5"]
    typed = {
        "nothing": b"",
        "an empty line": b"\n",
        "not UTF-8": b"caf\xe9\n\n",
        "control tokens": b"<|audio_3|><|endoftext|><|user|>\n\n",
        "NUL and escapes": b"\0\x1b[31m\x07\n\n",
        "long line": b"the cat sat " * 4000 + b"\n\n",
    }
    for name, stdin in typed.items():
        yield Case("chat", name, lambda folder: chat, outcome, stdin)


def _command(group: str, name: str, arguments: list[str], check: Check) -> Case:
    return Case(group, name, lambda folder: list(arguments), check)
