"""Recipes: what a file and flags say is what comes out, and what they cannot mean is refused with its name."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weft.config import Count, Natural, NonNegative, Positive, Share, load_recipe, settings_of
from weft.errors import UserError


@dataclass(frozen=True)
class Train:
    """Inner settings."""

    steps: Count
    """Steps."""
    lr: Positive = 0.1
    """Rate."""


@dataclass(frozen=True)
class Recipe:
    """Settings of every checked type."""

    out: Path
    """Where to."""
    text: tuple[Path, ...] = ()
    """What of."""
    seed: Natural = 0
    """Seed."""
    weight: NonNegative = 1.0
    """Weight."""
    share: Share = 0.5
    """Share."""
    tasks: Count | None = None
    """Parts."""
    train: Train = field(default_factory=lambda: Train(10))


@pytest.fixture
def recipe(tmp_path):
    def read(content, *flags):
        (tmp_path / "r.toml").write_text(content)
        return load_recipe(Recipe, tmp_path / "r.toml", flags)

    return read


def test_a_recipe_is_read_and_flags_stand_over_it(recipe):
    content = 'out = "x"\ntext = ["a.txt", "b.txt"]\nseed = 3\n[train]\nsteps = 5\nlr = 0.2\n'
    expected = Recipe(Path("x"), (Path("a.txt"), Path("b.txt")), 3, train=Train(5, 0.2))
    assert recipe(content) == expected
    flags = ("--train.steps", "7", "--text", "c.txt", "d.txt", "--tasks", "2")
    assert recipe(content, *flags) == Recipe(Path("x"), (Path("c.txt"), Path("d.txt")), 3, tasks=2, train=Train(7, 0.2))


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("seed", 0, -1),
        ("tasks", 1, 0),
        ("train.steps", 1, 0),
        ("weight", 0.0, -1e-9),
        ("train.lr", 1e-9, 0.0),
        ("share", 0.0, -0.1),
        ("share", 1.0, 1.1),
    ],
)
def test_a_setting_takes_its_bound_and_nothing_beyond(recipe, name, least, below):
    content = 'out = "x"\ntrain.steps = 5\n'
    found = recipe(content, f"--{name}", str(least))
    for part in name.split("."):
        found = getattr(found, part)
    assert found == least
    with pytest.raises(UserError, match=rf"r.toml: .*{name}.*[Gg]ive (at least|more than|0 to 1)"):
        recipe(content, f"--{name}", str(below))


@pytest.mark.parametrize("name", ["weight", "train.lr", "share"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_are_finite(recipe, name, value):
    with pytest.raises(UserError, match=f"{name.split('.')[-1]}.*Give"):
        recipe(f'out = "x"\ntrain.steps = 5\n{name} = {value}\n')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("out = ", "is not a TOML file"),
        ("out = '\udcff'", "is not a TOML file"),
        ("", "out"),
        ('out = "x"\n[train]\nlr = 1.0\n', r"train\.steps"),
        ('out = "x"\nsede = 1\n', "sede"),
        ('out = "x"\n[train]\nsteps = 5\nlearning = 1.0\n', "learning"),
        ('out = "x"\nseed = "often"\n', "seed"),
        ('out = "x"\nseed = 1.5\n', "seed.*Give a whole number"),
        ('out = "x"\nseed = true\n', "seed.*Give a whole number"),
        ('out = "x"\nseed = 99999999999999999999\n', "seed.*Give a smaller number"),
        ('out = "x"\ntrain = 5\n', r"train is 5, and is to be a table, \[train\]"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused_in_one_line(recipe, tmp_path, content, message):
    (tmp_path / "r.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"r.toml.*{message}") as refusal:
        load_recipe(Recipe, tmp_path / "r.toml")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("place", "message"), [("none.toml", "does not exist"), (".", "is a folder")])
def test_a_recipe_that_is_no_file_is_named(tmp_path, place, message):
    with pytest.raises(UserError, match=message):
        load_recipe(Recipe, tmp_path / place)


def test_settings_are_plain_and_leave_out_where_the_result_is_put():
    assert settings_of(Recipe(Path("x"), (Path("a"),))) == {
        "text": ["a"],
        "seed": 0,
        "weight": 1.0,
        "share": 0.5,
        "tasks": None,
        "train": {"steps": 10, "lr": 0.1},
    }
