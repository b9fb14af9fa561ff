"""Recipes: TOML files read into typed dataclasses, any key overridden by a flag.

    recipe = load_recipe(TokenizerRecipe, recipe_path("nano/tokenizer"), ["--train.steps", "200"])

Each dataclass stands beside what it configures, and the docstrings of its fields are the help text. Keys that no
field has are refused, with the nearest one that exists.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from cyclopts import App, CycloptsError, Parameter, Token, UnusedCliTokensError
from cyclopts.config import Toml

from weft.errors import UserError

T = TypeVar("T")

# Of every flag: `--text a.txt b.txt` takes both, and there are no `--no-...` or `--empty-...` beside it.
FLAGS = Parameter(consume_multiple=True, negative=())


def _within(least: float, most: float = inf, above: bool = False) -> Parameter:
    """A finite number from `least` (with `above`: more than it) to `most`."""
    wanted = f"{'more than' if above else 'at least'} {least:g}" if most == inf else f"{least:g} to {most:g}"

    def check(_: Any, value: float | None) -> None:
        if value is not None and not (least <= value <= most and value < inf and not (above and value == least)):
            raise ValueError(f"Give {wanted}.")

    return Parameter(validator=check)


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """A number without a fraction, which would be rounded in silence, and that fits 64 bits."""
    try:
        number = int(tokens[0].value)
    except ValueError as e:
        raise ValueError("Give a whole number.") from e
    if abs(number) >= 1 << 63:
        raise ValueError("Give a smaller number.")
    return number


# Types of settings, whose values are checked when a recipe or flags are read.
Count = Annotated[int, _within(1), Parameter(converter=_whole)]
Natural = Annotated[int, _within(0), Parameter(converter=_whole)]
Positive = Annotated[float, _within(0, above=True)]
NonNegative = Annotated[float, _within(0)]
Share = Annotated[float, _within(0, 1)]
Decay = Annotated[float, _within(0, 0.999999)]  # of a moving average, which at 1 would never move


def load_recipe(kind: type[T], path: str | Path, flags: Sequence[str] = ()) -> T:
    """Read the recipe at `path` into `kind`, with command-line `flags` over it.

    Raises UserError for a file that is missing or not TOML, and for unknown, missing or ill-typed keys.
    """
    app = App(name=Path(path).name, default_parameter=FLAGS)

    def give(*, recipe: Any) -> Any:
        return recipe

    give.__annotations__["recipe"] = Annotated[kind, Parameter(name="*")]
    app.default(give)
    app.config = (recipe_source(path, kind),)
    try:
        return app(list(flags), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        raise UserError(f"{path}: {one_line(e)}") from e


def recipe_source(path: str | Path, kind: type) -> Toml:
    """A recipe file as a source of arguments of a dataclass `kind` for a cyclopts app.

    Raises UserError for a file that is missing or not TOML, and for a value where a table should be.
    """
    try:
        recipe = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: give a recipe, or take one of {recipes_folder()}") from e
    except IsADirectoryError as e:
        raise UserError(f"{path} is a folder: give a recipe, a TOML file") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not a TOML file ({e}): mend it, or start from one of {recipes_folder()}") from e
    _require_tables(recipe, kind, str(path))
    return Toml(path, use_commands_as_keys=False)


def _require_tables(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Raise UserError for a plain value under the name of a dataclass, which cyclopts would pass over in silence."""
    for name, hint in get_type_hints(kind).items():
        if name in values and is_dataclass(hint):
            if not isinstance(values[name], Mapping):
                raise UserError(f"{where}: {name} is {values[name]!r}, and is to be a table, [{name}], of settings")
            _require_tables(values[name], hint if isinstance(hint, type) else type(hint), where)


def one_line(error: CycloptsError) -> str:
    """A parsing error as one line."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        left = " ".join(error.unused_tokens)
        return f"{left} belongs to no flag: put it behind one; a switch stands alone, as --compile, or takes =false"
    return " ".join(str(error).split())


def recipes_folder() -> Path:
    """The folder of the recipes that come with weft, in an installed package or a source tree."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def recipe_path(name: str) -> Path:
    """The path of a shipped recipe, such as "nano/tokenizer"."""
    return recipes_folder() / f"{name}.toml"


def settings_of(recipe: Any, leave_out: Sequence[str] = ("out",)) -> dict[str, Any]:
    """A recipe as plain values for a manifest: all that decides the result, without where it is put."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {name: value for name, value in plain(recipe).items() if name not in leave_out}
