"""The resume rule: when an artifact is created, resumed, returned as it is, or rejected, and what the messages say."""

import errno
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pytest
from safetensors import SafetensorError

from weft.artifacts import MANIFEST, Manifest, fingerprint, read
from weft.config import FLAT, NOT_IN_PLAN
from weft.data.job import JobConfig
from weft.data.speech import read_manifest, speech_id
from weft.errors import UserError
from weft.files import content_id
from weft.plan import Plan, amend_plan, create, is_created, open_draft, save

PARENTS = {"tokenizer": Manifest("tokenizer", "aaaa")}
PLAN = Plan("codes", {"seed": 0, "train": {"steps": 5}}, PARENTS)
OTHER_STEPS = replace(PLAN, settings={"seed": 0, "train": {"steps": 6}})


def write(draft):
    (draft.folder / "part").write_text("x")
    draft.counts["utterances"] = 1
    draft.notes["judge"] = "a person"


def stop(out, error, files=(), plan=PLAN):
    """Write `files` into the draft of `out` and raise `error`."""
    with open_draft(out, plan) as draft:
        for name in files:
            (draft.folder / name).write_text("done")
        raise error


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_manifest_describes_the_artifact(tmp_path):
    made = create(tmp_path / "a/codes/", PLAN, write)
    assert made == read(tmp_path / "a/codes")
    assert (made.kind, made.settings, made.parents) == ("codes", PLAN.settings, {"tokenizer": "aaaa"})
    assert (made.counts, made.notes) == ({"utterances": 1}, {"judge": "a person"})
    assert made.fingerprint == fingerprint(tmp_path / "a/codes")
    assert names_in(tmp_path) == ["a/codes/log/plan.json", f"a/codes/{MANIFEST}", "a/codes/part"]


def test_licences_are_inherited_once_each_and_are_not_part_of_the_plan(tmp_path):
    def of(name, parents, licence=None):
        return create(tmp_path / name, replace(PLAN, parents=parents), write, licence)

    speech, text = of("speech", {}, "CC BY 4.0"), of("text", {}, "CC0")
    both = of("both", {"a": speech, "b": text}, "CC BY 4.0")
    assert both.notes["licences"] == of("grandchild", {"both": both}).notes["licences"] == "CC BY 4.0; CC0"
    assert "licences" not in of("free", PARENTS).notes
    assert of("speech", {}, "another") == speech


def test_the_same_plan_returns_the_artifact_without_writing_it_again(tmp_path):
    assert not is_created(tmp_path / "codes", PLAN)
    made = create(tmp_path / "codes", PLAN, write)
    assert is_created(tmp_path / "codes", PLAN)

    def fail(draft):
        raise AssertionError("called again")

    assert create(tmp_path / "codes", PLAN, fail) == made


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (OTHER_STEPS, r"codes was created with train.steps = 5 \(now 6\): choose another --out, or delete"),
        (replace(PLAN, settings={"seed": 0}), r"was created with train = {'steps': 5} \(now None\)"),
        (replace(PLAN, parents={}), r"was created with tokenizer = aaaa \(now None\)"),
        (
            replace(PLAN, settings={"seed": "b", "train": 1}, parents={"tokenizer": Manifest("tokenizer", "b")}),
            r"with seed = 0 \(now b\), train = {'steps': 5} \(now 1\), tokenizer = aaaa \(now b\): choose",
        ),
        (replace(PLAN, kind="documents"), "codes is a codes dataset: choose another --out, or delete it"),
    ],
)
def test_another_plan_is_rejected_with_both_values(tmp_path, plan, message):
    create(tmp_path / "codes", PLAN, write)
    for function in (is_created, lambda out, plan: create(out, plan, write)):
        with pytest.raises(UserError, match=message) as error:
            function(tmp_path / "codes", plan)
        assert "\n" not in str(error.value)
    assert is_created(tmp_path / "codes", PLAN)


def test_all_differences_are_listed(tmp_path):
    create(tmp_path / "codes", Plan("codes", dict.fromkeys("abcdefg", 0)), write)
    with pytest.raises(UserError, match=r"a = 0 \(now 1\), b = .*f = 0 \(now 1\), g = 0 \(now 1\): choose"):
        is_created(tmp_path / "codes", Plan("codes", dict.fromkeys("abcdefg", 1)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_command_leaves_a_draft_that_is_resumed(tmp_path, error):
    with pytest.raises(type(error)):
        stop(tmp_path / "codes", error, ["half"])
    assert not (tmp_path / "codes").exists()

    def resume(draft):
        assert (draft.folder / "half").read_text() == "done"

    create(tmp_path / "codes", PLAN, resume)
    assert not (tmp_path / "codes.partial").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            replace(OTHER_STEPS, parents={"tokenizer": Manifest("tokenizer", "bbbb")}),
            r"codes.partial was started with train.steps = 5 \(now 6\), tokenizer = aaaa \(now bbbb\): "
            r"restore the settings to resume it, or delete .*codes.partial",
        ),
        (replace(PLAN, kind="documents"), "codes.partial is a partial codes dataset: choose another --out"),
    ],
)
def test_a_draft_is_not_resumed_by_another_plan(tmp_path, plan, message):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt(), ["half"])
    with pytest.raises(UserError, match=message):
        create(tmp_path / "codes", plan, write)
    assert (tmp_path / "codes.partial/half").read_text() == "done"


def test_a_draft_with_a_damaged_plan_is_rejected(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt())
    (tmp_path / "codes.partial/log/plan.json").write_text("{")
    with pytest.raises(UserError, match=r"codes.partial cannot be loaded as a partial artifact"):
        create(tmp_path / "codes", PLAN, write)


@pytest.mark.parametrize(
    ("error", "message"), [(OSError(errno.ENOSPC, "full"), "full"), (SafetensorError("os error 28"), "os error 28")]
)
def test_an_error_of_a_full_disk_names_the_directory(tmp_path, error, message):
    with pytest.raises(
        (OSError, UserError), match=rf"{message}.*codes.partial|codes.partial .*{message}.*free some space"
    ):
        stop(tmp_path / "codes", error, ["half"])
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("files", [[], ["half"]])
def test_a_user_error_leaves_a_draft_only_if_files_were_written(tmp_path, files):
    with pytest.raises(UserError, match="no speech"):
        stop(tmp_path / "codes", UserError("no speech"), files)
    assert (tmp_path / "codes.partial").exists() == bool(files)


@pytest.mark.parametrize("name", ["codes", "codes.partial"])
@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_other_files_are_neither_used_nor_changed(tmp_path, name, what):
    there = tmp_path / name
    if what == "file":
        there.write_text("mine")
    elif what == "directory":
        there.mkdir()
        (there / "thesis.tex").write_text("mine")
    elif name == "codes":
        there.symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/thesis.tex").write_text("mine")
        there.symlink_to(tmp_path / "elsewhere")
    before = names_in(tmp_path)
    message = (
        "codes already exists: choose another --out|codes.partial is needed for .*codes and was not created by weft"
    )
    with pytest.raises(UserError, match=message):
        create(tmp_path / "codes", PLAN, write)
    assert names_in(tmp_path) == before


def test_an_artifact_is_not_created_at_a_url():
    with pytest.raises(UserError, match=r"s3:/+bucket/codes is a URL: create it in a local or shared directory"):
        create(Path("s3://bucket/codes"), PLAN, write)


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
    shutil.move(here, there)
    assert accepts(before, input_plan(there), "moved")
    (there / "a.wav").write_bytes(b"SOUND")
    with pytest.raises(UserError, match=r"(created|started) with other contents of audio: "):
        accepts(before, input_plan(there), "edited")


def test_the_message_about_new_input_has_both_values(accepts):
    with pytest.raises(UserError, match=r"with text = None \(now sha256:\w{16}\): "):
        accepts(plan_of(CONFIG), plan_of(CONFIG, text=content_id("a")))


def test_a_setting_of_a_draft_is_amended_if_allowed(tmp_path):
    out, now = tmp_path / "codes", replace(PLAN, settings={"seed": 7, "train": {"steps": 5}})
    amend_plan(out, "seed", 7, lambda *_: True)
    assert names_in(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        stop(out, KeyboardInterrupt(), ["half"])
    calls = []
    amend_plan(out, "seed", 7, lambda folder, old: calls.append((folder, old)))
    with pytest.raises(UserError, match=r"started with seed = 0 \(now 7\)"):
        create(out, now, write)
    assert calls == [(tmp_path / "codes.partial", 0)]
    amend_plan(out, "seed", 0, calls.append)  # not called, because nothing changes
    amend_plan(out, "seed", 7, lambda *_: True)
    assert create(out, now, write).settings == now.settings


def test_a_saved_object_keeps_its_manifest_but_the_fingerprint(tmp_path):
    made = create(tmp_path / "codes", PLAN, write, licence="CC0")
    saved = save(tmp_path / "copy", "codes", lambda folder: (folder / "part").write_text("y"), made)
    assert replace(saved, fingerprint="") == replace(made, fingerprint="")
    assert saved.fingerprint == fingerprint(tmp_path / "copy") != made.fingerprint
    with pytest.raises(UserError, match="copy already exists: choose another directory, or delete it"):
        save(tmp_path / "copy", "codes", lambda folder: None, made)
    assert save(tmp_path / "new", "codes", lambda folder: None, None).settings == {}
