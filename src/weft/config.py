"""Recipes: TOML files read into typed dataclasses, any key overridden by a flag.

    recipe = load_recipe(TokenizerRecipe, recipe_path("nano/tokenizer"), ["--train.steps", "200"])

Each dataclass stands beside what it configures, and the docstrings of its fields are the help text. Keys that no
field has are refused, with the nearest one that exists.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from weft.errors import UserError

T = TypeVar("T")

# Of every flag: `--text a.txt b.txt` takes both, and there are no `--no-...` or `--empty-...` beside it.
FLAGS = Parameter(consume_multiple=True, negative=())


def load_recipe(kind: type[T], path: str | Path, flags: Sequence[str] = ()) -> T:
    """Read the recipe at `path` into `kind`, with command-line `flags` over it.

    Raises UserError for a file that is missing or not TOML, and for unknown, missing or ill-typed keys.
    """
    app = App(name=Path(path).name, default_parameter=FLAGS)

    def give(recipe: Any) -> Any:
        return recipe

    give.__annotations__["recipe"] = Annotated[kind, Parameter(name="*")]
    app.default(give)
    app.config = (recipe_source(path),)
    try:
        return app(list(flags), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        raise UserError(f"{path}: {one_line(e)}") from e


def recipe_source(path: str | Path) -> Toml:
    """A recipe file as a source of arguments for a cyclopts app."""
    try:
        tomllib.loads(Path(path).read_text())
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist: give a recipe, or take one of {recipes_folder()}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as e:
        raise UserError(f"{path} is not a TOML file ({e})") from e
    return Toml(path, use_commands_as_keys=False)


def one_line(error: CycloptsError) -> str:
    """A parsing error as one line."""
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
