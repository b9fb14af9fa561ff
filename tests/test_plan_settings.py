"""The settings of a plan: which differences are accepted, which are rejected, and what the messages say."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pytest

from tests.plans import PARENTS, PLAN, stop, write
from weft.config import FLAT, NOT_IN_PLAN
from weft.data.job import JobConfig
from weft.data.speech import read_manifest, speech_id
from weft.errors import UserError
from weft.files import content_id
from weft.plan import Plan, create


@dataclass(frozen=True)
class Train:
    steps: int
    spike_factor: float | None = None
    grad_accum_steps: Annotated[int, NOT_IN_PLAN] = 1


@dataclass(frozen=True)
class Config:
    out: Path
    audio: tuple[Path, ...] = ()
    judge: Path | None = None
    seed: int = 0
    train: Train = field(default_factory=lambda: Train(5))
    parallel: Annotated[str, NOT_IN_PLAN] = "ddp"
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)


CONFIG = Config(Path("out"))


def plan_of(config, **inputs):
    return Plan.of("codes", config, PARENTS, **inputs)


@pytest.fixture(params=["artifact", "draft"])
def accepts(request, tmp_path):
    """Return a function that says whether an artifact (or a draft) of one plan is accepted under another."""

    def is_accepted(before, now, name="codes"):
        out = tmp_path / name
        if request.param == "artifact":
            create(out, before, write)
        else:
            with pytest.raises(KeyboardInterrupt):
                stop(out, KeyboardInterrupt(), ["part"], before)
        create(out, now, write)
        return True

    return is_accepted


@pytest.mark.parametrize(
    "changed",
    [
        replace(CONFIG, out=Path("elsewhere"), audio=(Path("moved"),), judge=Path("judge")),
        replace(CONFIG, licence="CC0", parallel="fsdp", job=JobConfig(workers=8, max_bad_fraction=0.5)),
        replace(CONFIG, train=Train(5, grad_accum_steps=4)),
    ],
    ids=["paths", "not in plan", "nested"],
)
def test_paths_and_settings_outside_the_plan_never_differ(accepts, changed):
    assert accepts(plan_of(CONFIG), plan_of(changed), "one")
    assert accepts(plan_of(changed), plan_of(CONFIG), "two")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(CONFIG, seed=1), r"seed = 0 \(now 1\)"),
        (replace(CONFIG, train=Train(6)), r"train.steps = 5 \(now 6\)"),
        (replace(CONFIG, train=Train(5, 9.0)), r"train.spike_factor = None \(now 9.0\)"),
    ],
)
def test_a_setting_that_changes_the_result_differs(accepts, changed, message):
    with pytest.raises(UserError, match=rf"(created|started) with {message}: "):
        accepts(plan_of(CONFIG), plan_of(changed))


def without(plan, *names):
    """Return the plan as a version of the package without some of the settings has recorded it."""
    settings = json.loads(json.dumps(plan.settings))
    for name in names:
        *tables, key = name.split(".")
        values = settings
        for table in tables:
            values = values[table]
        del values[key]
    return replace(plan, settings=settings)


def test_a_setting_that_an_older_version_lacked_counts_as_its_default(accepts):
    older = without(plan_of(CONFIG), "seed", "train.spike_factor")
    assert accepts(older, plan_of(CONFIG), "default")
    for changed, message in (
        (replace(CONFIG, seed=1), r"seed = 0 \(now 1\)"),
        (replace(CONFIG, train=Train(5, 2.0)), r"train.spike_factor = None \(now 2.0\)"),
    ):
        with pytest.raises(UserError, match=rf"with {message}: "):
            accepts(older, plan_of(changed), message[:4])


def test_moved_input_is_the_same_and_edited_input_differs(accepts, tmp_path):
    def input_plan(folder):
        return plan_of(replace(CONFIG, audio=(folder,)), audio=speech_id(read_manifest(folder)))

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a.wav").write_bytes(b"sound")
    before = input_plan(here)
    shutil.copytree(here, there)
    assert accepts(before, input_plan(there), "moved")
    (there / "a.wav").write_bytes(b"SOUND")
    with pytest.raises(UserError, match=r"(created|started) with other contents of audio: "):
        accepts(before, input_plan(there), "edited")


def test_the_message_about_new_input_has_both_values(accepts):
    with pytest.raises(UserError, match=r"with text = None \(now sha256:\w{16}\): "):
        accepts(plan_of(CONFIG), plan_of(CONFIG, text=content_id("a")))


def test_a_setting_of_a_draft_may_change_if_allowed(tmp_path):
    out, calls = tmp_path / "codes", []

    def plan(seed, steps=5, allowed=True):
        def may_change(folder, old):
            calls.append((folder, old))
            return allowed

        return replace(PLAN, settings={"seed": seed, "train": {"steps": steps}}, may_change={"seed": may_change})

    with pytest.raises(KeyboardInterrupt):
        stop(out, KeyboardInterrupt(), ["half"])
    with pytest.raises(UserError, match=r"started with train.steps = 5 \(now 6\)"):
        create(out, plan(0, steps=6), write)
    assert calls == []  # what is in the draft is not looked at under another plan
    with pytest.raises(UserError, match=r"started with seed = 0 \(now 7\)"):
        create(out, plan(7, allowed=False), write)
    assert calls == [(tmp_path / "codes.partial", 0)]
    assert create(out, plan(7), write).settings == {"seed": 7, "train": {"steps": 5}}
