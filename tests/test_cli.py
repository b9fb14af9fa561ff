import errno
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from weft import cli, info
from weft.artifacts import with_article
from weft.config import recipe_path
from weft.errors import UserError, line_and_status


def test_help_is_fast_and_loads_no_large_library() -> None:
    code = (
        "import sys; from weft.cli import run; run(['--help']);"
        "print('LOADED', {'torch', 'transformers', 'cyclopts'} & set(sys.modules))"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = os.times()
    cpu_sec = after.children_user - before.children_user + after.children_system - before.children_system
    assert "LOADED set()" in done.stdout
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert cpu_sec < 0.3


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(cli, "_dispatch", lambda arguments: None)
    assert cli.run([]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize("given", [{}, {"THP_MEM_ALLOC_ENABLE": "0"}])
def test_pytorch_has_large_pages_unless_the_environment_says_otherwise(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(cli, "_dispatch", lambda arguments: None)
    assert cli.run([]) == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == given.get("THP_MEM_ALLOC_ENABLE", "1")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenise"], ["tokenise", "did you mean", "tokenize"]),
        (["info", "no/such/directory"], ["no/such/directory", "does not exist"]),
        (["train-tokenizer"], ["RECIPE.toml"]),
        (["train-tokenizer", "missing.toml"], ["missing.toml", "does not exist"]),
        (["tokenize", "a.wav", "--tokenizr", "x"], ["tokenizr"]),
        (["info", "a", "--verify", "true"], ["true belongs to no flag", "A switch is --NAME"]),
        (["info"], ["info: --path is missing, see --help"]),
        (["speak", "missing.txt", "--out", "x"], ["missing.txt", "does not exist"]),
        (["say", "caf\udce9", "--out", "x.wav"], ["caf\\udce9 is not UTF-8"]),
    ],
)
def test_user_errors_are_one_line_with_status_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("weft: ")
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_a_recipe_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text('out = "x"\nspeech = ["y"]\n[train]\nsteps = 3\nlearning_rte = 1\n')
    assert cli.run(["train-tokenizer", str(tmp_path / "r.toml")]) == 2
    assert "learning_rte" in capsys.readouterr().err


def test_a_recipe_of_another_command_is_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, wrong, right in (
        ("nano/tokenizer", "pretrain", "weft train-tokenizer"),
        ("nano/pretrain", "train-tokenizer", "weft pretrain or weft sft"),
        ("nano/pretrain", "tokenize", "weft pretrain or weft sft"),
    ):
        assert cli.run([wrong, str(recipe_path(name))]) == 2
        assert f"{name}.toml is a recipe for {right}, not for weft {wrong}: use" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "URL", "--lm", "lm", "--out", "out"],
        ["pack", "documents", "--lm", "URL", "--out", "out"],
        ["documents", "speech", "--source", "URL", "--out", "out"],
        ["tokenize", "URL", "--tokenizer", "tokenizer", "--out", "out"],
        ["interleave", "memory://text", "--text-to-token", "URL", "--out", "out"],
        ["eval", "resynth", "--model", "URL", "--data", "speech", "--out", "out.json"],
        ["chat", "bundle", "--wav", "URL"],
        ["view", "URL", "--out", "page.html"],
        ["pretrain", "URL.toml"],
    ],
)
def test_a_url_where_only_a_path_is_possible_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [a.replace("URL", "https://me:key@host/x") for a in arguments]
    assert cli.run(given) == 2
    assert re.fullmatch(r"weft: https://host/x(\.toml)? is a URL: copy it to a disk\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_lists_all_missing_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text('out = "x"\nbase = "no/base"\ntokens = ["no/a", "no/b"]\nheld_out = ["no/c"]\n')
    assert cli.run(["pretrain", str(tmp_path / "r.toml"), "--dry-run"]) == 2
    message = "weft: no/base, no/a, no/b, no/c do not exist: create or change them before training\n"
    assert sorted(capsys.readouterr().err) == sorted(message)


def failing(error: BaseException) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "runs/x: No space left on device; free some space, and run the same command again to resume",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            2,
            "Input/output error; check the disk or the network file system, and run the same command again to resume",
        ),
        (OSError(errno.ENOENT, "No such file or directory", "a\n\x1b[2Jb"), 2, r"a\\n\\x1b\[2Jb: No such file.*"),
        (UserError("a\n\x1b[2J\u202e.txt is empty: fix it"), 2, r"a\\n\\x1b\[2J\\u202e.txt is empty: fix it"),
        (MemoryError(), 2, r"not enough memory \(not enough memory\): reduce .*"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore."), 2, r"not enough memory \(CUDA out .*"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, r"not enough memory \(Default.*"),
        (TypeError("bad\nline"), 1, r"internal error: TypeError: bad \(\S+\.py:\d+\); run with WEFT_DEBUG=1 .*"),
        (OSError("no number"), 1, r"internal error: OSError: no number \(\S+\.py:\d+\); .*"),
        (OSError(errno.ENOTCONN, "not connected"), 1, r"internal error: OSError: .*not connected .*"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, r"internal error: BrokenPipeError: .*"),
        (RecursionError("too deep"), 1, r"internal error: RecursionError: too deep .*"),
        (AssertionError(), 1, r"internal error: AssertionError: AssertionError .*"),
    ],
)
def test_every_error_is_one_printable_line_that_keeps_its_cause(
    error: Exception, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "run", failing(error))
    assert cli.run(["info", "anything"]) == status
    assert re.fullmatch(rf"weft: {line}\n", capsys.readouterr().err)


def test_warnings_and_log_messages_of_libraries_are_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warnings, "showwarning", None)
    factory = logging.getLogRecordFactory()
    try:
        cli._escape_messages_of_libraries()
        logging.getLogger("library").error("cannot read %s\n100 %%", "a\x1b[2J\u202e")
        bad = logging.getLogRecordFactory()("library", logging.ERROR, "path", 1, "100 %% of %d", ("x",), None)
        warnings.showwarning("b\x9b\r\nc", UserWarning, "d\x07.py", 3)
    finally:
        logging.setLogRecordFactory(factory)
    assert bad.args == ("x",)  # `logging` reports it
    assert caplog.messages[0] == "cannot read a\\x1b[2J\\u202e\n100 %"
    assert capsys.readouterr().err.endswith("d\\x07.py:3: UserWarning: b\\x9b c\n")


def test_tracebacks_are_printed_on_request_with_the_cause_of_a_user_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = UserError("x is damaged: copy it again")
    error.__cause__ = ValueError("the cause\x1b[2J")
    monkeypatch.setattr(info, "run", failing(error))
    monkeypatch.setenv("WEFT_DEBUG", "1")
    assert cli.run(["info", "anything"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "ValueError: the cause\\x1b[2J\n" in printed
    assert printed.endswith("\nweft: x is damaged: copy it again\n")


def test_the_location_of_an_error_in_a_worker_process_is_that_in_the_worker() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        error = pool.submit(recipe_path, 1, 2).exception()
        assert error is not None
        assert re.search(r"process.py:\d+", line_and_status(error)[0])  # called there, with wrong arguments
        error = pool.submit(with_article, 1).exception()
        assert error is not None
        assert re.search(r"artifacts.py:\d+", line_and_status(error)[0])


def start(body: str, **streams: Any) -> subprocess.Popen[str]:
    """Start a process in which `weft info x` is a function with this body."""
    program = (
        f"import os, signal, sys, atexit\nfrom weft import cli, info\ndef run(_):\n    {body}\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "info.run = run\ncli.main(['info', 'x'])"
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([sys.executable, "-c", program], text=True, **streams)


@pytest.mark.parametrize("body", ["print('x' * 10**6)", "print('x')", "print('x' * 10**6, file=sys.stderr)"])
def test_a_reader_that_ends_first_ends_the_command_quietly(body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    to_stdout = "stderr" not in body
    process = start(body, **{"stdout" if to_stdout else "stderr": writer})
    os.close(writer)
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == ((None, "") if to_stdout else ("", None))
    assert process.returncode == 128 + signal.SIGPIPE


def test_what_the_encoding_of_stdout_lacks_is_escaped() -> None:
    process = start("print('h\\u00e9 \\udcff')", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=60) == ("h\\xe9 \\udcff\n", "")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interruption(sign: signal.Signals) -> None:
    process = start("print('ready', flush=True); signal.pause()")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sign)
    assert process.communicate(timeout=60)[1] == "weft: interrupted; run the same command again to resume\n"
    assert process.returncode == cli.EXIT_INTERRUPTED


def test_a_second_interruption_prints_no_traceback() -> None:
    interrupt = "os.kill(os.getpid(), signal.SIGINT)"
    process = start(f"atexit.register(lambda: {interrupt}); {interrupt}; signal.pause()")
    assert process.communicate(timeout=60)[1] == "weft: interrupted; run the same command again to resume\n"
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("descriptors", [(0,), (1,), (2,), (0, 1, 2)])
def test_no_file_takes_the_place_of_a_closed_stream(descriptors: tuple[int, ...], tmp_path: Path) -> None:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    body = f"f = open({str(tmp_path / 'f')!r}, 'w'); print('x'); print('x', file=sys.stderr); f.write(str(f.fileno()))"
    process = start(body, preexec_fn=close)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert int((tmp_path / "f").read_text()) > 2


def test_an_interruption_has_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(info, "run", failing(KeyboardInterrupt()))
    assert cli.run(["info", "anything"]) == 130
    assert "weft: interrupted; run the same command again to resume" in capsys.readouterr().err
