"""The resume rule: when an artifact is created, resumed, returned as it is, or rejected, and what the messages say."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plans import PARENTS, PLAN, stop, write
from weft.artifacts import MANIFEST, Manifest, fingerprint, read, read_parent
from weft.digests import file_digests, sha256_of
from weft.errors import UserError
from weft.files import content_id
from weft.plan import Plan, create, is_created, save

OTHER_STEPS = replace(PLAN, settings={"seed": 0, "train": {"steps": 6}})


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_manifest_describes_the_artifact(tmp_path):
    made = create(tmp_path / "a/codes/", PLAN, write)
    assert made == read(tmp_path / "a/codes")
    assert (made.kind, made.settings, made.parents) == ("codes", PLAN.settings, {"tokenizer": "aaaa"})
    assert (made.counts, made.notes) == ({"utterances": 1}, {"judge": "a person"})
    assert made.fingerprint == fingerprint(made)
    assert made.files == {"part": {"bytes": 1, "sha256": sha256_of(tmp_path / "a/codes/part")}}
    assert names_in(tmp_path) == ["a/codes/log/plan.json", f"a/codes/{MANIFEST}", "a/codes/part"]


def test_files_whose_digests_are_known_are_not_read_again(tmp_path):
    def write_known(draft):
        write(draft)
        draft.digests["part"] = "known"

    assert create(tmp_path / "codes", PLAN, write_known).files["part"]["sha256"] == "known"


def test_licences_are_inherited_once_each_and_are_not_part_of_the_plan(tmp_path):
    def of(name, parents, licence=None):
        return create(tmp_path / name, replace(PLAN, parents=parents), write, licence)

    speech, text = of("speech", {}, "CC BY 4.0"), of("text", {}, "CC0")
    both = of("both", {"a": speech, "b": text}, "CC BY 4.0")
    assert both.notes["licences"] == of("grandchild", {"both": both}).notes["licences"] == "CC BY 4.0; CC0"
    assert "licences" not in of("free", PARENTS).notes
    assert of("speech", {}, "CC BY 4.0") == speech
    with pytest.raises(UserError, match=r"speech was created with licence = CC BY 4.0 \(now another\): choose another"):
        of("speech", {}, "another")


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
    ("error", "message"), [(OSError(errno.ENOSPC, "full"), "full"), (Exception("full (os error 28)"), "No space")]
)
def test_an_error_of_a_full_disk_names_the_directory(tmp_path, error, message):
    with pytest.raises(OSError, match=rf"{message}.*codes.partial"):
        stop(tmp_path / "codes", error, ["half"])
    assert not (tmp_path / "codes").exists()


def test_an_error_of_a_full_disk_at_the_end_names_the_directory(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("weft.plan.write_json", full)
    (tmp_path / "codes.partial/log").mkdir(parents=True)
    (tmp_path / "codes.partial/log/plan.json").write_text(json.dumps(PLAN.to_json()))
    with pytest.raises(OSError, match=r"full.*codes.partial"):
        create(tmp_path / "codes", PLAN, write)


def test_a_finished_artifact_has_no_temporary_files_of_killed_processes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt(), ["log/plot.png.host-1.tmp", "half.host-1.tmp"])
    create(tmp_path / "codes", PLAN, write)
    assert not list((tmp_path / "codes").rglob("*.tmp"))


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


def test_a_draft_with_a_linked_plan_is_not_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt(), ["half"])
    plan_file = tmp_path / "codes.partial/log/plan.json"
    plan_file.rename(tmp_path / "plan.json")
    plan_file.symlink_to(tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"plan.json is needed for .*was not created by weft \(it is a symbolic link\)"):
        create(tmp_path / "codes", PLAN, write)


@pytest.mark.parametrize("name", ["codes.partial", "codes.partial/log", "codes.partial/log/plan.json"])
def test_a_draft_of_another_user_is_not_read(tmp_path, name, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt(), ["half"])
    (tmp_path / "codes.partial/log/plan.json").write_text("not read")
    own, inode = os.geteuid(), (tmp_path / name).stat().st_ino
    stat = Path.stat

    def owned_by_another(path, **flags):
        found = list(stat(path, **flags))
        found[4] = own + (found[1] == inode)
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned_by_another)
    with pytest.raises(UserError, match=rf"{name} belongs to another user \(uid {own + 1}\): choose another --out"):
        create(tmp_path / "codes", PLAN, write)


def test_an_input_that_changes_meanwhile_stops_the_command_and_spoils_the_draft(tmp_path):
    (tmp_path / "a").write_text("one")

    def plan():
        digests = file_digests([tmp_path / "a"])
        return replace(PLAN, settings={"audio": content_id(list(digests.values()), digests)})

    def change(draft):
        write(draft)
        (tmp_path / "a").write_text("two")

    with pytest.raises(UserError, match=r"a has changed while it was read: delete .*codes.partial, and run the same"):
        create(tmp_path / "codes", plan(), change)
    (tmp_path / "a").write_text("one")  # what was written may be of either content
    with pytest.raises(UserError, match="started with audio = contents that changed while they were read"):
        create(tmp_path / "codes", plan(), write)
    shutil.rmtree(tmp_path / "codes.partial")
    create(tmp_path / "codes", plan(), write)


def test_a_parent_that_changes_meanwhile_stops_the_command(tmp_path):
    create(tmp_path / "tokenizer", Plan("tokenizer", {}), write)
    plan = replace(PLAN, parents={"tokenizer": read_parent(tmp_path / "tokenizer")})
    with pytest.raises(UserError, match=r"tokenizer/part has changed while it was read"):
        create(tmp_path / "codes", plan, lambda draft: (tmp_path / "tokenizer/part").write_text("y"))
    with pytest.raises(UserError, match=r"started with tokenizer = contents that changed while they were read"):
        create(tmp_path / "codes", plan, write)


def test_the_number_of_tasks_is_reported_only_if_it_is_the_difference(tmp_path):
    def plan(tasks, size):
        return Plan("codes", {"tasks": tasks, "size": size}, flags={"size": "--size of the data"})

    create(tmp_path / "codes", plan(1, 10), write)
    with pytest.raises(UserError, match=r"with tasks = 1 \(now 2\): choose"):
        is_created(tmp_path / "codes", plan(2, 10))
    with pytest.raises(UserError, match=r"with --size of the data = 10 \(now 20\): choose"):
        is_created(tmp_path / "codes", plan(2, 20))


def test_an_artifact_is_not_created_at_a_url():
    with pytest.raises(UserError, match=r"s3://bucket/codes is a URL: create it in a local or shared directory"):
        create(Path("s3://bucket/codes"), PLAN, write)


def test_a_saved_object_keeps_its_manifest_but_the_fingerprint(tmp_path):
    made = create(tmp_path / "codes", PLAN, write, licence="CC0")
    saved = save(tmp_path / "copy", "codes", lambda folder: (folder / "part").write_text("y"), made)
    assert replace(saved, fingerprint="", files={}) == replace(made, fingerprint="", files={})
    assert saved.fingerprint == fingerprint(saved) != made.fingerprint
    with pytest.raises(UserError, match="copy already exists: choose another directory, or delete it"):
        save(tmp_path / "copy", "codes", lambda folder: None, made)
    assert save(tmp_path / "new", "codes", lambda folder: None, None).settings == {}


@pytest.mark.parametrize("everything", [True, False])
def test_an_artifact_is_not_finished_without_a_file_that_was_removed_meanwhile(tmp_path, everything):
    def write_and_lose(draft):
        for name in ("a", "b"):
            (draft.folder / name).write_text("done")
            draft.digests[name] = sha256_of(draft.folder / name)
        if everything:
            shutil.rmtree(draft.folder)
            draft.folder.mkdir()
        else:
            (draft.folder / "a").unlink()

    with pytest.raises(UserError, match="a was removed before the codes dataset was complete: run the same command"):
        create(tmp_path / "codes", PLAN, write_and_lose)
    assert not (tmp_path / "codes").exists()


def test_a_path_through_a_link_is_the_one_that_the_system_finds(tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/deep")
    out = tmp_path / "link/../codes"
    assert create(out, PLAN, write) == create(out, PLAN, write) == read(tmp_path / "elsewhere/codes")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda out: (out / "mine").mkdir(parents=True)])
def test_what_others_create_at_the_path_meanwhile_is_not_replaced(tmp_path, make):
    def write_and_make(draft):
        write(draft)
        make(tmp_path / "codes")

    with pytest.raises(UserError, match="codes was created by another program: move it, and run the same command"):
        create(tmp_path / "codes", PLAN, write_and_make)
    (tmp_path / "codes").rename(tmp_path / "moved")
    assert create(tmp_path / "codes", PLAN, write).counts == {"utterances": 1}
