"""Recipes: TOML files read into typed dataclasses, with command-line flags over them.

    recipe = load_recipe(TokenizerConfig, recipe_path("nano/tokenizer"), ["--train.steps", "200"])

The docstrings of the fields are the help texts. Unknown keys are rejected with the nearest known one, and keys of
earlier versions with their new name. A recipe may name programs to run (voices by `command:`, `env_command`), so it is
code: run only recipes that you trust.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.config import Dict

from weft.errors import UserError

T = TypeVar("T")

_SIMILAR = 0.75  # of the letters of a name, for a suggestion

# Defaults of every flag: `--text a.txt b.txt` takes both values, and there are no `--no-...` or `--empty-...` variants.
FLAGS = Parameter(consume_multiple=True, negative=())
# Annotation of a field whose own fields are flags and recipe keys of the enclosing dataclass.
FLAT = Parameter(name="*")
# Annotation of a setting that cannot change the result: it may differ when a command is resumed (see `weft.plan`).
NOT_IN_PLAN = "not in the plan"
# Annotation of a directory of a Hugging Face model, which may also be the name of one on the Hub (see `weft.hub`).
MODEL = "a model of the Hub"

_MAX_RECIPE_BYTES = 1 << 20

# Settings and values of earlier versions.
RENAMED = {
    "row_tokens": "max_seq_len",
    "tokens_per_step": "batch_tokens",
    "accumulate": "grad_accum_steps",
    "clip_norm": "max_grad_norm",
    "recompute": "activation_checkpointing",
    "supervised_share": "supervised_fraction",
    "max_bad_share": "max_bad_fraction",
    "restart_share": "restart_fraction",
    "steps_share": "steps_fraction",
    "woven_documents": "interleaved_documents",
    "spoken_documents": "synthetic_speech_documents",
    "plain_documents": "text_documents",
}
_RENAMED_VALUES = {("parallel", "replicate"): "ddp", ("parallel", "shard"): "fsdp", ("attention", "row"): "sequence"}


def _within(low: float, high: float = inf, exclusive: bool = False) -> Parameter:
    """Return a check for a finite number from `low` (`exclusive`: above it) to `high`."""
    wanted = f"{low:g} to {high:g}" if high < inf else f"{'a finite number above' if exclusive else 'at least'} {low:g}"

    def check(_: Any, value: float | None) -> None:
        if value is not None and not (low <= value <= high and value < inf and not (exclusive and value == low)):
            raise ValueError(f"Give {wanted}.")

    return Parameter(validator=check)


def _to_int(_: Any, tokens: Sequence[Token]) -> int:
    """Convert to a whole number of at most 64 bits. Fractions are rejected, not rounded."""
    try:
        number = int(tokens[0].value)
    except ValueError as e:
        raise ValueError("Give a whole number.") from e
    if abs(number) >= 1 << 63:
        raise ValueError("Give a smaller number.")
    return number


# Types of settings, checked when a recipe or flags are read.
PositiveInt = Annotated[int, _within(1), Parameter(converter=_to_int)]
NonNegativeInt = Annotated[int, _within(0), Parameter(converter=_to_int)]
PositiveFloat = Annotated[float, _within(0, exclusive=True)]
NonNegativeFloat = Annotated[float, _within(0)]
Fraction = Annotated[float, _within(0, 1)]
Decibels = Annotated[float, _within(-100, 100)]
Decay = Annotated[float, _within(0, 0.999999)]  # a moving average with a decay of 1 would never move


def load_recipe(kind: type[T], path: str | Path, flags: Sequence[str] = ()) -> T:
    """Read the recipe at `path` into the dataclass `kind`, with command-line `flags` over it.

    Raises UserError for a missing or invalid file and for unknown, missing or invalid settings.
    """
    app = App(name=Path(path).name, default_parameter=FLAGS)

    def give(*, recipe: Any) -> Any:
        return recipe

    give.__annotations__["recipe"] = Annotated[kind, FLAT]
    app.default(give)
    recipe = read_recipe(path, kind)
    app.config = (Dict(recipe, source=str(path), use_commands_as_keys=False),)
    check_flags(flags, kind)
    try:
        return app(
            [*flags, *table_flags(flags, recipe, kind)],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as e:
        raise UserError(f"{path}: {one_line(e)}") from e


def read_recipe(path: str | Path, kind: type) -> dict[str, Any]:
    """Return the keys and values of a recipe for the dataclass `kind`.

    Raises UserError for a missing or invalid file, a setting of an earlier version, and a value in place of a table.
    """
    if not Path(path).exists():
        reject_url(path)
        raise UserError(f"{path} does not exist: give a recipe, such as one of {recipes_folder()}")
    if not Path(path).is_file() or Path(path).stat().st_size > _MAX_RECIPE_BYTES:  # a pipe could wait for ever
        raise UserError(f"{path} is {'too long' if Path(path).is_file() else 'not a file'}: give a recipe, a TOML file")
    try:
        recipe = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{path} is not valid TOML ({e}): fix it, or start from one of {recipes_folder()}") from e
    if renamed := list(_renamed(recipe)):
        raise UserError(f"{path}: {'; '.join(renamed)}")
    _require_tables(recipe, kind, str(path))
    return recipe


def table_flags(flags: Sequence[str], recipe: Mapping[str, Any], kind: type) -> list[str]:
    """Return the entries of the recipe's tables of which `flags` change others, such as `[weights]`, as flags.

    Without them, a flag for one entry of a mapping would replace the whole mapping.
    """
    given = {flag[2:].replace("-", "_").partition("=")[0] for flag in flags if flag.startswith("--")}
    kept = []
    for name in settings_names(kind, dict):
        if isinstance(recipe.get(name), Mapping) and any(key.startswith(f"{name}.") for key in given):
            entries = _entries(recipe[name], f"{name}.")
            kept += [f"--{key}={value}" for key, value in entries if key.replace("-", "_") not in given]
    return kept


def _entries(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested table by their dotted names."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def settings_names(kind: type, of: type | None = None) -> list[str]:
    """Return the names of the top-level settings of a dataclass, or of those that are mappings (`of` is dict)."""
    names = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if FLAT in getattr(hint, "__metadata__", ()):
            names += settings_names(plain, of)
        elif of is None or of in (plain, get_origin(plain)):
            names.append(_setting_name(name, hint))
    return names


def setting_name(kind: type, field: str) -> str:
    """Return the name of a field of a dataclass as a flag and a recipe key: its own, or that of `named`."""
    return _setting_name(field, get_type_hints(kind, include_extras=True)[field])


def _setting_name(field: str, hint: Any) -> str:
    given = (a.name for a in getattr(hint, "__metadata__", ()) if isinstance(a, Parameter) and a != FLAT)
    return next((name for names in given for name in names or ()), field)


def named(name: str) -> Parameter:
    """Return the annotation of a field whose flag and recipe key have another name, such as a keyword of Python."""
    return Parameter(name=name)


def missing_inputs(config: Any) -> list[str]:
    """Return the paths of a training's inputs that do not exist. URLs are not checked."""
    paths = [(name, path) for name, path in _paths(config) if name != "out"]
    return [str(path) for _, path in paths if not Path(path).exists() and not _is_url(path)]


def check_local(config: Any) -> None:
    """Raise UserError for a URL where only a path is possible."""
    for name, path in _paths(config):
        if isinstance(path, Path) and not path.exists():
            reject_url(path, is_output=name == "out")


def reject_url(path: str | Path, is_output: bool = False) -> None:
    """Raise UserError for a URL that was given as a path."""
    if _is_url(path):
        url = re.sub(":/+", "://", str(path), count=1)  # a Path has only one of the slashes
        what = "create it in a local or shared directory, then copy it" if is_output else "copy it to a disk"
        raise UserError(f"{url} is a URL: {what}")


def _is_url(path: str | Path) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None


def _paths(config: Any) -> Iterator[tuple[str, str | Path]]:
    """Yield the paths in a config, of settings that may be paths, with the name of the setting."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass(value):
            yield from _paths(value)
        elif Path in _parts(hint):
            paths = value if isinstance(value, tuple) else (value,)
            yield from ((name, path) for path in paths if isinstance(path, str | Path))


def annotated(config: Any, annotation: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the settings of a config that have an annotation."""
    hints = get_type_hints(type(config), include_extras=True)
    yield from ((name, getattr(config, name)) for name, hint in hints.items() if annotation in _parts(hint))


def check_flags(flags: Sequence[str], kind: type) -> None:
    """Raise UserError for flags and values of earlier versions, and for a value of a whole section."""
    for flag, value in zip(flags, [*flags[1:], ""], strict=False):
        if flag.startswith("--"):
            name, _, given = flag[2:].replace("-", "_").partition("=")
            nested: Any = given or value
            for key in reversed(name.split(".")):
                nested = {key: nested}
            for message in _renamed(nested):
                raise UserError(f"{flag}: {message}")
            _require_tables(nested, kind, flag)


def _renamed(recipe: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Yield a message for each setting and value that has another name now."""
    for name, value in recipe.items():
        if name in RENAMED:
            yield f"{section}{name} is now {section}{RENAMED[name]}"
        elif isinstance(value, Mapping):
            yield from _renamed(value, f"{section}{name}.")
        elif isinstance(value, str) and (name, value) in _RENAMED_VALUES:
            yield f'{section}{name} = "{value}" is now "{_RENAMED_VALUES[name, value]}"'


def _require_tables(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Raise UserError for a plain value under the name of a dataclass, which cyclopts would misread."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        annotations = getattr(hint, "__metadata__", ())
        nested: Any = get_args(hint)[0] if annotations else hint
        if FLAT in annotations:
            _require_tables(values, nested, where)
        elif name in values and isinstance(nested, type) and is_dataclass(nested):
            if not isinstance(values[name], Mapping):
                raise UserError(f"{where}: {name} is {values[name]!r}: give a table [{name}], or flags --{name}.KEY")
            _require_tables(values[name], nested, where)


def one_line(error: CycloptsError) -> str:
    """Return a parsing error as one line."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{' '.join(error.unused_tokens)} belongs to no flag: remove it. A switch is --NAME or --NAME=false"
    if isinstance(error, MissingArgumentError) and error.argument and not (error.keyword or error.unused_tokens):
        return f"{error.argument.name} is missing, see --help"
    if isinstance(error, UnknownOptionError):
        name = error.token.keyword or error.token.value
        known = [n for argument in error.argument_collection if argument.parse for n in argument.names]
        near = get_close_matches(name.partition("=")[0].replace("_", "-"), known, n=1, cutoff=_SIMILAR)
        where = "" if error.token.source == "cli" else f" in {error.token.source}"
        return f"Unknown option {name}{where}{f', did you mean {near[0]}?' if near else ', see --help'}"
    return " ".join(str(error).split())


def recipes_folder() -> Path:
    """Return the directory of the recipes that come with weft."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def recipe_path(name: str) -> Path:
    """Return the path of a recipe that comes with weft, such as "nano/tokenizer"."""
    return recipes_folder() / f"{name}.toml"


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings that determine the result, as plain values for a plan.

    Paths are left out, because inputs are identified by content, and so are settings annotated as NOT_IN_PLAN.
    """
    return {name: _plain(getattr(config, name)) for name in _planned(type(config))}


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the default values of `settings_of` for a dataclass, without those that have none."""
    planned = [f for f in fields(kind) if f.name in _planned(kind)]
    found = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in planned}
    return {name: _plain(value) for name, value in found.items() if value is not MISSING}


def _planned(kind: type) -> list[str]:
    """Return the names of the settings that determine the result."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if {Path, NOT_IN_PLAN}.isdisjoint(_parts(hint))]


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type, the types that it is composed of, and their annotations."""
    if isinstance(hint, type | str):
        yield hint
    for part in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        yield from _parts(part)


def _plain(value: Any) -> Any:
    """Return a setting's value as plain numbers, strings, lists and dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        return settings_of(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
