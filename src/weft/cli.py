"""The `weft` command: one flat verb a stage, each loaded only when it runs.

A verb whose argument is a recipe takes `RECIPE.toml [--key value ...]`; the others take flags, and a recipe before them
where there is one. Mistakes of the user end with one line and exit status 2, an interruption with 130. The verbs that
train may run in many processes at once, as torchrun starts them: `torchrun --nproc-per-node 8 -m weft pretrain
RECIPE.toml`.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Annotated, Any

from weft import __version__, launch
from weft.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Verb:
    """A verb: where its configuration and its `run(config)` are, and what it says of itself."""

    module: str
    config: str
    help: str
    recipe: bool = False
    run: str = "run"


VERBS = {
    "demo": Verb("weft.demo.demo", "DemoConfig", "The whole road, small, in one command."),
    "speak": Verb("weft.speak", "SpeakConfig", "Lines of text to sound and a manifest."),
    "train-tokenizer": Verb(
        "weft.tokenizer.train", "TokenizerConfig", "Train a speech tokenizer.", recipe=True, run="command"
    ),
    "pseudo-label": Verb(
        "weft.tokenizer.pseudo_label", "PseudoLabelConfig", "Transcripts for speech that has none, by a Whisper."
    ),
    "import-glm": Verb("weft.tokenizer.glm", "ImportConfig", "A released GLM-4-Voice tokenizer as one of ours."),
    "tokenize": Verb("weft.tokenizer.tokenize", "TokenizeConfig", "Speech to codes."),
    "train-decoder": Verb("weft.decoder.train", "DecoderConfig", "Train a speech decoder.", recipe=True),
    "resynth": Verb("weft.eval.resynth", "ResynthConfig", "Hear and measure the ceiling."),
    "train-text-to-token": Verb("weft.text_to_token.train", "TextToTokenConfig", "Train text to codes.", recipe=True),
    "say": Verb("weft.text_to_token.say", "SayConfig", "Say a text."),
    "interleave": Verb("weft.interleave.interleave", "InterleaveConfig", "Weave speech into text."),
    "documents": Verb("weft.interleave.documents", "DocumentsConfig", "Text, speech, ASR and TTS documents."),
    "dialogues": Verb("weft.chat.dialogues", "DialoguesConfig", "Spoken dialogues from written ones."),
    "init-lm": Verb("weft.lm.start", "StartConfig", "Give a language model speech tokens, or begin one.", recipe=True),
    "pack": Verb("weft.interleave.pack", "PackConfig", "Documents to token shards of one vocabulary."),
    "pretrain": Verb(
        "weft.lm.pretrain", "PretrainConfig", "Pre-train a speech-text language model.", recipe=True, run="command"
    ),
    "sft": Verb("weft.lm.pretrain", "PretrainConfig", "Fine-tune it on dialogues.", recipe=True, run="command"),
    "eval": Verb("weft.eval.suite", "EvalConfig", "Measure a bundle."),
    "chat": Verb("weft.chat.session", "ChatConfig", "One spoken turn, or a conversation.", run="chat"),
    "info": Verb("weft.info", "InfoConfig", "What an artifact is, and where it came from."),
    "view": Verb("weft.eval.view", "ViewConfig", "Documents as a page to read and hear."),
}  # fmt: skip
TRAINING = {"train-tokenizer", "train-decoder", "train-text-to-token", "pretrain", "sft"}  # may run in many processes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if launch.world_size() > 1:  # when one process is gone, torchrun ends the others so: as an interruption, it is told
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` and return the exit status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is a local folder
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours are enough
    try:
        status = _dispatch(list(arguments))
        if launch.world_size() > 1:
            _processes().end()
        return status
    except UserError as e:
        return _complain(str(e))
    except OSError as e:
        if e.errno is None:
            raise
        where = f"{e.filename}: " if e.filename else ""
        return _complain(f"{where}{e.strerror}; {_DISK_TROUBLE.get(e.errno, 'check this path, and the disk it is on')}")
    except KeyboardInterrupt:
        _tell("\nweft: interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED


_DISK_TROUBLE = {
    errno.ENOSPC: "free some space and run the same command again, it goes on from here",
    errno.EDQUOT: "free some space and run the same command again, it goes on from here",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EEXIST: "a part of this path is a file; choose another",
    errno.ENOTDIR: "a part of this path is a file; choose another",
    errno.EISDIR: "this is a folder, and a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _complain(message: str) -> int:
    _tell(f"weft: {' '.join(message.split())}")
    return EXIT_USER_ERROR


def _tell(line: str) -> None:
    """Print a line to stderr, once where many processes have something to say."""
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:  # of `main`; the line comes first
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if launch.world_size() == 1 or _processes().first_to_tell():
        print(line, file=sys.stderr, flush=True)


def _processes() -> ModuleType:
    return importlib.import_module("weft.training.distributed")  # and with it torch, which one process may not need


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in VERBS:
        raise UserError(f"there is no verb {name!r}{_did_you_mean(name)}; see weft --help")
    return _run_verb(name, VERBS[name], rest)


def _run_verb(name: str, verb: Verb, tokens: list[str]) -> int:
    from cyclopts import App, CycloptsError

    from weft.config import FLAGS, one_line, recipe_source

    if launch.world_size() > 1:
        if name not in TRAINING:
            raise UserError(f"weft {name} does not work in many processes together: start it without torchrun")
        _processes().begin()
    asks_help = any(t in ("-h", "--help") for t in tokens)
    app = App(
        name=f"weft {name}",
        help=verb.help,
        usage=_usage(name, verb),
        help_epilogue=_epilogue(verb),
        version_flags=(),
        default_parameter=FLAGS,
        suppress_keyboard_interrupt=False,  # which would end in silence
    )
    has_recipe = not asks_help and bool(tokens) and tokens[0].endswith(".toml")
    if not asks_help and (verb.recipe or has_recipe):
        if not tokens or tokens[0].startswith("-"):
            raise UserError(f"weft {name} needs a recipe: weft {name} RECIPE.toml [--key value ...]")
        app.config = (recipe_source(tokens.pop(0), _config_of(verb)),)
    app.default(_command(verb))
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        raise UserError(f"{name}: {one_line(e)}") from e
    return 0


def _usage(name: str, verb: Verb) -> str:
    """How the verb is called: what has to be given, the first of it without its name."""
    if verb.recipe:
        return f"Usage: weft {name} RECIPE.toml [--key value ...]"
    needed = [f for f in fields(_config_of(verb)) if f.default is MISSING and f.default_factory is MISSING]
    several = [f.name.upper() + ("..." if str(f.type).startswith("tuple") else "") for f in needed]
    flags = [f"--{f.name.replace('_', '-')} {shown}" for f, shown in zip(needed, several, strict=True)]
    return " ".join([f"Usage: weft {name} [RECIPE.toml]", *several[:1], *flags[1:], "[--key value ...]"])


def _epilogue(verb: Verb) -> str:
    can = "is" if verb.recipe else "can be"
    return f"Every parameter can stand in a recipe, a TOML file, which {can} the first argument."


def _command(verb: Verb) -> Callable[..., None]:
    """A function whose one parameter is the verb's configuration, flattened into flags."""
    from cyclopts import Parameter

    kind = _config_of(verb)

    def run(config: Any) -> None:
        done = getattr(importlib.import_module(verb.module), verb.run)(config)
        if done is not None and launch.rank() == 0:
            _show(done)

    def run_recipe(*, config: Any) -> None:  # by keyword alone: a second file is no setting
        run(config)

    command = run_recipe if verb.recipe else run
    command.__annotations__["config"] = Annotated[kind, Parameter(name="*")]
    if all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind)):
        command.__defaults__ = (kind(),)
    return command


def _config_of(verb: Verb) -> type:
    return getattr(importlib.import_module(verb.module), verb.config)


def _show(manifest: Any) -> None:
    for key, value in getattr(manifest, "counts", {}).items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{key:<23} {shown}")


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["weft weaves speech into text: from plain text and a voice to a model that talks.", "",
         "usage: weft VERB ...        weft VERB --help tells more", "", *lines, "", "Begin with: weft demo"]
    )  # fmt: skip


def _did_you_mean(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, VERBS, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
