"""The `weft` command. Each subcommand is imported only when it runs.

Training commands take a recipe, `RECIPE.toml [--key value ...]`. The others take flags, optionally after a recipe.
Every error is printed as one line. The exit status is 2 for an error that a user can fix, 1 for one in weft itself, and
130 for an interruption, by Ctrl-C or SIGTERM; WEFT_DEBUG=1 prints tracebacks too. Training commands can run in several
processes by torchrun: `torchrun --nproc-per-node 8 -m weft pretrain RECIPE.toml`.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Annotated, Any

from weft import __version__, launch, progress
from weft.errors import UserError, line_and_status, printable
from weft.eval.registry import METRICS
from weft.text.inputs import valid_text

EXIT_INTERRUPTED = 130
_EVAL, _USAGE_OF_EVAL = "eval", "weft eval METRIC --model FOLDER --data FILE --out results.json [--key value ...]"


@dataclass(frozen=True)
class Command:
    """A subcommand: the module of its `run(config)`, the class of the config, and its help."""

    module: str
    config: str
    help: str
    is_training: bool = False
    """Whether it needs a recipe and can run in several processes."""


COMMANDS = {
    "demo": Command("weft.demo.pipeline", "DemoConfig", "Run the whole pipeline with nano models."),
    "speak": Command("weft.voices.speak", "SpeakConfig", "Synthesize lines of text with TTS voices."),
    "train-tokenizer": Command("weft.tokenizer.train", "TokenizerConfig", "Train a speech tokenizer.", True),
    "pseudo-label": Command("weft.asr.pseudo_label", "PseudoLabelConfig", "Transcribe speech with a Whisper."),
    "import-glm": Command("weft.decoder.glm", "ImportConfig", "Convert a released GLM-4-Voice tokenizer or decoder."),
    "export-encoder": Command(
        "weft.tokenizer.export", "ExportConfig", "Keep the part of a tokenizer that computes codes."
    ),
    "tokenize": Command("weft.tokenizer.tokenize", "TokenizeConfig", "Encode speech as codes."),
    "train-decoder": Command("weft.decoder.train", "DecoderConfig", "Train a speech decoder.", True),
    "train-vocoder": Command("weft.decoder.train_vocoder", "VocoderConfig", "Train a vocoder.", True),
    "resynth": Command(
        "weft.eval.resynth", "ResynthConfig", "Resynthesize speech through tokenizer and decoder and report WER."
    ),
    "train-text-to-token": Command(
        "weft.text_to_token.train", "TextToTokenConfig", "Train a text-to-token model.", True
    ),
    "say": Command(
        "weft.text_to_token.say", "SayConfig", "Synthesize a text with a text-to-token model and a decoder."
    ),
    "interleave": Command(
        "weft.interleave.interleave",
        "InterleaveConfig",
        "Create interleaved documents from text or aligned recordings.",
    ),
    "documents": Command("weft.interleave.documents", "DocumentsConfig", "Create text, speech, ASR and TTS documents."),
    "dialogues": Command("weft.chat.dialogues", "DialoguesConfig", "Synthesize written dialogues."),
    "init-lm": Command("weft.lm.init", "InitLmConfig", "Add speech tokens to a language model, or create a new one."),
    "pack": Command("weft.interleave.pack", "PackConfig", "Convert documents to token shards of one vocabulary."),
    "pretrain": Command("weft.pretraining", "PretrainingConfig", "Pre-train a speech-text language model.", True),
    "export-checkpoint": Command(
        "weft.lm.export", "ExportConfig", "Convert a checkpoint of a running pre-training to a model."
    ),
    "sft": Command(
        "weft.pretraining", "PretrainingConfig", "Fine-tune a speech-text language model on dialogues.", True
    ),
    "chat": Command("weft.chat.terminal", "ChatConfig", "Chat with the models of a bundle."),
    "info": Command("weft.info", "InfoConfig", "Print the manifest of an artifact."),
    "view": Command("weft.pages.view", "ViewConfig", "Write an HTML page to read and hear documents."),
    **{f"eval {name}": Command(*metric) for name, metric in METRICS.items()},
    "eval compare": Command("weft.eval.compare", "CompareConfig", "Compare results of one metric item by item."),
    "eval prepare": Command(
        "weft.eval.prepare.prepare", "PrepareConfig", "Convert a published evaluation set to a directory for --data."
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    _open_standard_streams()
    _escape_messages_of_libraries()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # as torchrun sends it when another process has ended
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` and return the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        # PyTorch's threads spin for milliseconds by default when they wait for each other. Beside two busy processes on
        # two cores, steps then took 2.8 times as long as with a shorter spin, which costs nothing on idle cores.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # PyTorch on a CPU then has 2 MiB pages for large tensors: a tenth less time per training step, whose tensors are
    # allocated anew, and less fragmentation, because these tensors have their own pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        _dispatch(list(arguments))
        sys.stdout.flush()
        if launch.world_size() > 1:
            _distributed().shutdown()
        return 0
    except (Exception, KeyboardInterrupt) as e:  # noqa: BLE001 - the last place that can report it
        try:
            return _report(e)
        except BrokenPipeError:
            return _end_quietly()


def _report(error: BaseException) -> int:
    """Print an error as one line, after its traceback if WEFT_DEBUG is 1, and return the exit status."""
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:  # set by `main`; finish printing first
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
    if isinstance(error, BrokenPipeError) and _has_no_reader():
        return _end_quietly()
    line, status = "interrupted; run the same command again to resume", EXIT_INTERRUPTED
    if not isinstance(error, KeyboardInterrupt):
        line, status = line_and_status(error)
    if os.environ.get("WEFT_DEBUG") == "1":
        progress.write("".join(traceback.format_exception(error)).splitlines(), sys.stderr)
    if launch.world_size() == 1 or _distributed().claim_error_report():  # once for all processes of a run
        progress.write([f"weft: {line}"], sys.stderr)
    return status


def _open_standard_streams() -> None:
    """Open closed standard streams on /dev/null, so that no other file gets their descriptors and their output.

    Characters that the encoding of stdout lacks are printed as escapes, as stderr does.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            assert os.open(os.devnull, os.O_RDWR) == descriptor
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks


def _escape_messages_of_libraries() -> None:
    """Escape control characters in warnings and log messages, which can contain names and texts from data."""
    create = logging.getLogRecordFactory()

    def create_escaped(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = create(*arguments, **more)
        with suppress(TypeError, ValueError, KeyError):  # arguments that do not fit: reported when it is printed
            record.msg, record.args = "\n".join(map(printable, record.getMessage().splitlines())), ()
        return record

    def show_warning(message: Warning | str, category: type[Warning], path: str, line: int, *_: object) -> None:
        progress.note(f"{path}:{line}: {category.__name__}: {' '.join(str(message).split())}")

    logging.setLogRecordFactory(create_escaped)
    warnings.showwarning = show_warning  # type: ignore[assignment]


def _has_no_reader() -> bool:
    """Whether stdout or stderr is a pipe whose reader has ended, as in `weft ... | head`."""
    pipes = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # tests replace them by streams without a descriptor
            pipes.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _end_quietly() -> int:
    """Discard all further output, also what is flushed at exit, and return the status of a process ended by SIGPIPE."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    return 128 + signal.SIGPIPE


def _distributed() -> ModuleType:
    return importlib.import_module("weft.training.distributed")  # imports torch


def _dispatch(arguments: list[str]) -> None:
    if wrong := next((a for a in arguments if not a.isascii() and a != valid_text(a)), None):
        raise UserError(f"{printable(wrong)} is not UTF-8: convert the text, or rename the file")
    if not arguments or arguments[0] in ("-h", "--help"):
        progress.show(*_overview())
    elif arguments[0] in ("-V", "--version"):
        progress.show(__version__)
    elif arguments[0] == _EVAL and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        progress.show(f"Usage: {_USAGE_OF_EVAL}", "", *_listed(f"{_EVAL} "))
    else:
        words = 2 if arguments[0] == _EVAL else 1
        name, rest = " ".join(arguments[:words]), arguments[words:]
        if name not in COMMANDS:
            what = f"metric {arguments[1]!r}" if words == 2 else f"command {name!r}"
            raise UserError(f"there is no {what}{_suggestion(name)}: see weft {'eval ' * (words - 1)}--help")
        _run_command(name, COMMANDS[name], rest)


def _run_command(name: str, command: Command, tokens: list[str]) -> None:
    from cyclopts import App, CycloptsError
    from cyclopts.config import Dict

    from weft.config import FLAGS, check_flags, one_line, read_recipe, table_flags

    if launch.world_size() > 1:
        if not command.is_training:
            raise UserError(f"weft {name} cannot run in several processes: start it without torchrun")
        _distributed().init()
    asks_help = any(t in ("-h", "--help") for t in tokens)
    argument = "is the first argument" if command.is_training else "can be given as the first argument"
    app = App(
        name=f"weft {name}",
        help=command.help,
        usage=_usage(name, command),
        help_epilogue=f"All parameters can be set in a recipe, a TOML file that {argument}.",
        version_flags=(),
        default_parameter=FLAGS,
        suppress_keyboard_interrupt=False,  # handled in `run`
    )
    has_recipe = not asks_help and bool(tokens) and tokens[0].endswith(".toml")
    if not asks_help and (command.is_training or has_recipe):
        if not tokens or tokens[0].startswith("-"):
            raise UserError(f"weft {name} needs a recipe: weft {name} RECIPE.toml [--key value ...]")
        recipe = read_recipe(path := tokens.pop(0), _config_of(command))
        _check_command(path, recipe, name)
        app.config = (Dict(recipe, source=path, use_commands_as_keys=False),)
        tokens += table_flags(tokens, recipe, _config_of(command))
    check_flags(tokens, _config_of(command))
    app.default(_function(command))
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        raise UserError(f"{name}: {one_line(e)}") from e


def _check_command(path: str, recipe: Mapping[str, Any], name: str) -> None:
    """Raise UserError for a recipe with unknown keys if all of them are known to another command."""
    from weft.config import settings_names

    if not set(recipe).issubset(settings_names(_config_of(COMMANDS[name]))):
        others = [n for n, c in COMMANDS.items() if set(recipe).issubset(settings_names(_config_of(c)))]
        if others:
            given = " or ".join(f"weft {other}" for other in others)
            raise UserError(f"{path} is a recipe for {given}, not for weft {name}: use that command, or another recipe")


def _usage(name: str, command: Command) -> str:
    """Return how the command is called: its required flags, the first of them as a positional argument."""
    if command.is_training:
        return f"Usage: weft {name} RECIPE.toml [--key value ...]"
    from weft.config import setting_name

    kind = _config_of(command)
    required = [f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    names = [setting_name(kind, f.name) for f in required]
    tuples = [str(f.type).startswith("tuple") for f in required]
    values = [name.upper() + ("..." if many else "") for name, many in zip(names, tuples, strict=True)]
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in zip(names, values, strict=True)]
    return " ".join([f"Usage: weft {name} [RECIPE.toml]", *values[:1], *flags[1:], "[--key value ...]"])


def _function(command: Command) -> Callable[..., None]:
    """Return a function whose only parameter is the command's config, flattened into flags."""
    from cyclopts import Parameter

    from weft.config import check_local, missing_inputs
    from weft.hub import with_local_models

    kind = _config_of(command)

    def run(config: Any) -> None:
        is_dry = getattr(config, "dry_run", False)
        config = with_local_models(config, only_configurations=is_dry)
        check_local(config)
        missing = missing_inputs(config) if is_dry else []
        try:
            manifest = importlib.import_module(command.module).run(config)
        except UserError as e:
            if not missing:
                raise
            raise UserError(_missing(missing)) from e
        if missing:
            raise UserError(_missing(missing))
        if manifest is not None:
            progress.summary(manifest.counts)

    def run_recipe(*, config: Any) -> None:  # keyword-only, so that a second file is not taken as a setting
        run(config)

    function = run_recipe if command.is_training else run
    function.__annotations__["config"] = Annotated[kind, Parameter(name="*")]
    if all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind)):
        function.__defaults__ = (kind(),)
    return function


def _missing(paths: Sequence[str]) -> str:
    does, it = ("does", "it") if len(paths) == 1 else ("do", "them")
    return f"{', '.join(paths)} {does} not exist: create or change {it} before training"


def _config_of(command: Command) -> type:
    return getattr(importlib.import_module(command.module), command.config)


def _listed(prefix: str = "") -> list[str]:
    """Return the lines of the commands whose names begin with a prefix."""
    names = [name for name in COMMANDS if name.startswith(prefix) and (prefix or " " not in name)]
    width = max(map(len, names)) + 2
    return [f"  {name:<{width}}{COMMANDS[name].help}" for name in names]


def _overview() -> list[str]:
    return [
        "weft: speech-text pre-training with synthetic interleaved data.", "",
        "Usage: weft COMMAND ...", "", *_listed(), "", f"Metrics: {_USAGE_OF_EVAL}", "", *_listed(f"{_EVAL} "), "",
        "See weft COMMAND --help. Start with weft demo.",
        "Environment: WEFT_DEVICE=cpu or cuda chooses the device, WEFT_DEBUG=1 prints tracebacks of errors.",
    ]  # fmt: skip


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
