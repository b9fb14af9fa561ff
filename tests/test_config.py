"""Recipes and flags: their values, the messages about invalid ones, and the settings that enter a plan."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from weft.config import (
    FLAT,
    NOT_IN_PLAN,
    RENAMED,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_flags,
    check_local,
    defaults_of,
    load_recipe,
    missing_inputs,
    named,
    setting_name,
    settings_names,
    settings_of,
)
from weft.data.cluster import Executor
from weft.data.job import JobConfig
from weft.errors import UserError


@dataclass(frozen=True)
class Train:
    """Inner settings."""

    steps: PositiveInt
    """Steps."""
    lr: PositiveFloat = 0.1
    """Rate."""
    log_every_steps: Annotated[PositiveInt, NOT_IN_PLAN] = 20
    """Steps between lines."""


@dataclass(frozen=True)
class Recipe:
    """Settings of every checked type."""

    out: Path
    """Output."""
    text: tuple[Path, ...] = ()
    """Input."""
    judge: Path | None = None
    """Another input."""
    seed: NonNegativeInt = 0
    """Seed."""
    weight: NonNegativeFloat = 1.0
    """Weight."""
    fraction: Fraction = 0.5
    """Fraction."""
    tasks: PositiveInt | None = None
    """Tasks."""
    voices: tuple[str, ...] = ("a", "b")
    """Voices."""
    train: Train = field(default_factory=lambda: Train(10))
    weights: dict[str, float | str] = field(default_factory=dict)
    """Weights by name."""
    weights_from: dict[str, dict[str, float]] = field(default_factory=dict)
    """Weights by step and name."""
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)


@pytest.fixture
def recipe(tmp_path):
    def read(content, *flags):
        (tmp_path / "r.toml").write_text(content)
        return load_recipe(Recipe, tmp_path / "r.toml", flags)

    return read


def test_flags_override_the_recipe(recipe):
    content = 'out = "x"\ntext = ["a.txt", "b.txt"]\nseed = 3\n[train]\nsteps = 5\nlr = 0.2\n'
    expected = Recipe(Path("x"), (Path("a.txt"), Path("b.txt")), seed=3, train=Train(5, 0.2))
    assert recipe(content) == expected
    flags = ("--train.steps", "7", "--text", "c.txt", "d.txt", "--tasks", "2")
    expected = Recipe(Path("x"), (Path("c.txt"), Path("d.txt")), seed=3, tasks=2, train=Train(7, 0.2))
    assert recipe(content, *flags) == expected


def test_a_flag_changes_one_entry_of_a_table(recipe):
    content = (
        'out = "x"\ntrain.steps = 5\n[weights]\ntext = 0.3\nasr-2 = "2 epochs"\nspeech = "rest"\n'
        "[weights_from.10]\ntext = 0.5\nspeech = 0.4\n[weights_from.20]\ntext = 0.6\n"
    )
    assert recipe(content).weights == {"text": 0.3, "asr-2": "2 epochs", "speech": "rest"}
    for flags in (["--weights.text", "0.2", "--weights.new=0.1"], ["--weights.new", "0.1", "--weights.text=0.2"]):
        expected = {"text": 0.2, "asr-2": "2 epochs", "speech": "rest", "new": 0.1}
        assert recipe(content, *flags).weights == expected
    changed = recipe(content, "--weights-from.10.speech", "0.1")
    assert changed.weights_from == {"10": {"text": 0.5, "speech": 0.1}, "20": {"text": 0.6}}
    assert changed.weights == recipe(content).weights


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--nonsense", ", see --help"),
        ("--voces", ", did you mean --voices?"),
        ("--train.stepps", ", did you mean --train.steps?"),
        ("--tex", ", did you mean --text?"),
        ("--zzz", ", see --help"),
    ],
)
def test_only_near_names_are_suggested(recipe, flag, suggestion):
    with pytest.raises(UserError) as error:
        recipe('out = "x"\ntrain.steps = 5\n', flag, "1")
    assert str(error.value).endswith(f"Unknown option {flag}{suggestion}")


def test_missing_inputs_are_those_of_all_sections_but_the_output(tmp_path):
    (tmp_path / "here").mkdir()
    paths = (tmp_path / "here", tmp_path / "none", Path("s3://bucket/x"))
    config = Recipe(tmp_path / "out", paths, judge=Path("no/judge"))
    assert missing_inputs(config) == [str(tmp_path / "none"), "no/judge"]


def test_a_url_in_place_of_a_path_is_named_without_its_credentials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local:").mkdir()
    check_local(Recipe(Path("out"), (Path("local:/"),)))
    check_local(WithUrls(("s3://bucket/x",)))
    for config in (Recipe(Path("out"), (Path("https://me:key@host/x?sig=1"),)), WithUrls((Path("https://host/x"),))):
        with pytest.raises(UserError, match=r"^https://host/x is a URL: copy it to a disk$"):
            check_local(config)
    with pytest.raises(
        UserError, match=r"^s3://b/out is a URL: create it in a local or shared directory, then copy it"
    ):
        check_local(Recipe(Path("s3://b/out"), ()))


@dataclass(frozen=True)
class WithUrls:
    inputs: tuple[str | Path, ...]
    name: str = "no/path"


def test_missing_inputs_may_be_given_as_text(tmp_path):
    inputs = (str(tmp_path), str(tmp_path / "none"), "s3://bucket/x", tmp_path / "neither")
    assert missing_inputs(WithUrls(inputs)) == [str(tmp_path / "none"), str(tmp_path / "neither")]


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("seed", 0, -1),
        ("tasks", 1, 0),
        ("train.steps", 1, 0),
        ("weight", 0.0, -1e-9),
        ("train.lr", 1e-9, 0.0),
        ("fraction", 0.0, -0.1),
        ("fraction", 1.0, 1.1),
    ],
)
def test_a_setting_accepts_its_bound_and_nothing_beyond(recipe, name, least, below):
    content = 'out = "x"\ntrain.steps = 5\n'
    found = recipe(content, f"--{name}", str(least))
    for part in name.split("."):
        found = getattr(found, part)
    assert found == least
    with pytest.raises(UserError, match=rf"r.toml: .*{name}.*[Gg]ive (at least|a finite number above|0 to 1)"):
        recipe(content, f"--{name}", str(below))


@pytest.mark.parametrize("name", ["weight", "train.lr", "fraction"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_must_be_finite(recipe, name, value):
    with pytest.raises(UserError, match=f"{name.split('.')[-1]}.*Give"):
        recipe(f'out = "x"\ntrain.steps = 5\n{name} = {value}\n')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("out = ", "is not valid TOML"),
        ("out = '\udcff'", "is not valid TOML"),
        ("", "out"),
        ('out = "x"\n[train]\nlr = 1.0\n', r"train\.steps"),
        ('out = "x"\nsede = 1\n', "sede"),
        ('out = "x"\n[train]\nsteps = 5\nlearning = 1.0\n', "learning"),
        ('out = "x"\nseed = "often"\n', "seed"),
        ('out = "x"\nseed = 1.5\n', "seed.*Give a whole number"),
        ('out = "x"\nseed = true\n', "seed.*Give a whole number"),
        ('out = "x"\nseed = 99999999999999999999\n', "seed.*Give a smaller number"),
        ('out = "x"\ntrain = 5\n', r"train is 5: give a table \[train\]"),
        ('out = "x"\nexecutor = "ray"\n', r"executor is 'ray': give a table \[executor\]"),
        ('out = "x"\n[job]\nworkers = 3\n', "job.*workers"),
    ],
)
def test_an_invalid_recipe_is_rejected_with_one_line(tmp_path, content, message):
    (tmp_path / "r.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"r.toml.*{message}") as error:
        load_recipe(Recipe, tmp_path / "r.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("none.toml", "does not exist"), (".", "is not a file"), ("/dev/zero", "is not a file")]
)
def test_a_path_that_is_not_a_file_is_rejected(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_recipe(Recipe, tmp_path / name)


def test_job_settings_are_top_level_keys_and_flags(recipe):
    content = (
        'out = "x"\nworkers = 2\nmax_bad_fraction = 0.2\n[executor]\nkind = "ray"\nsbatch = { account = "speech" }\n'
    )
    executor = Executor("ray", sbatch={"account": "speech"})
    assert recipe(content).job == JobConfig(2, executor, 0.2)
    flags = ("--workers", "3", "--max-bad-fraction", "0.3", "--executor.kind", "slurm", "--executor.partition", "gpu")
    expected = JobConfig(3, Executor("slurm", partition="gpu", sbatch={"account": "speech"}), 0.3)
    assert recipe(content, *flags).job == expected
    assert recipe('out = "x"\n', *flags).job == JobConfig(3, Executor("slurm", partition="gpu"), 0.3)
    with pytest.raises(UserError, match=r"workers.*Give at least 1"):
        recipe('out = "x"\n', "--workers", "0")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_setting_is_rejected_with_its_new_name(recipe, old, new):
    with pytest.raises(UserError, match=f"r.toml: {old} is now {new}$"):
        recipe(f'out = "x"\n{old} = 1\n')
    with pytest.raises(UserError, match=rf"r.toml: train\.{old} is now train\.{new}$"):
        recipe(f'out = "x"\n[train]\nsteps = 5\n{old} = 1\n')
    for flag in (old, old.replace("_", "-"), f"train.{old}"):
        section = "train." if flag.startswith("train.") else ""
        for flags in ((f"--{flag}", "1"), (f"--{flag}=1",)):
            with pytest.raises(UserError, match=rf"--{flag}.*: {section}{old} is now {section}{new}$"):
                recipe('out = "x"\n', *flags)


@pytest.mark.parametrize(("old", "new"), [("replicate", "ddp"), ("shard", "fsdp")])
def test_a_renamed_value_is_rejected_with_its_new_name(recipe, old, new):
    message = f'parallel = "{old}" is now "{new}"'
    with pytest.raises(UserError, match=f"r.toml: {message}$"):
        recipe(f'out = "x"\nparallel = "{old}"\n')
    for flags in (["--parallel", old], [f"--parallel={old}"]):
        with pytest.raises(UserError, match=f"{flags[0]}: {message}$"):
            check_flags(flags, Recipe)
    check_flags(["--parallel", new, "--out", old], Recipe)


@pytest.mark.parametrize("flags", [["--train", "5"], ["--train=5"], ["--executor", "slurm"]])
def test_a_flag_for_a_whole_section_is_rejected(recipe, flags):
    section = flags[0].split("=")[0][2:]
    with pytest.raises(UserError, match=rf"{section} is '\w+': give a table \[{section}\], or flags --{section}.KEY$"):
        recipe('out = "x"\n', *flags)


def test_renamed_settings_are_listed_together(recipe):
    with pytest.raises(
        UserError, match=r"row_tokens is now max_seq_len; train.accumulate is now train.grad_accum_steps$"
    ):
        recipe('out = "x"\nrow_tokens = 8\n[train]\naccumulate = 2\n')


def test_a_new_name_is_not_itself_an_old_one():
    assert RENAMED.keys().isdisjoint(RENAMED.values())


def test_settings_of_a_plan_leave_out_paths_and_settings_that_cannot_change_the_result():
    expected = {
        "seed": 0,
        "weight": 1.0,
        "fraction": 0.5,
        "tasks": None,
        "voices": ["a", "b"],
        "train": {"steps": 10, "lr": 0.1},
        "weights": {},
        "weights_from": {},
    }
    assert settings_of(Recipe(Path("x"), (Path("a"),), licence="CC0", job=JobConfig(3))) == expected
    assert defaults_of(Recipe) == expected
    assert defaults_of(Train) == {"lr": 0.1}


@dataclass(frozen=True)
class Renamed:
    """A setting whose name is a keyword of Python."""

    source: Annotated[Path, named("from")]
    """Source."""
    out: Path
    """Output."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)


def test_a_field_can_have_another_name_as_a_flag_and_recipe_key(tmp_path):
    assert [setting_name(Renamed, name) for name in ("source", "out", "job")] == ["from", "out", "job"]
    assert settings_names(Renamed) == ["from", "out", "workers", "executor", "max_bad_fraction"]
    (tmp_path / "r.toml").write_text('from = "a"\nout = "b"\n')
    assert load_recipe(Renamed, tmp_path / "r.toml") == Renamed(Path("a"), Path("b"))
    assert load_recipe(Renamed, tmp_path / "r.toml", ["--from", "c"]).source == Path("c")
    (tmp_path / "r.toml").write_text('source = "a"\nout = "b"\n')
    with pytest.raises(UserError, match="source"):
        load_recipe(Renamed, tmp_path / "r.toml")
    assert missing_inputs(Renamed(Path("no/a"), tmp_path)) == ["no/a"]
