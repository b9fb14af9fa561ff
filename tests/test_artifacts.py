"""Artifacts: whole or absent, never over what is there, known by their files, and refused where they are not whole."""

import errno
import json
import os
import shutil
from dataclasses import asdict, replace

import pytest
from safetensors import SafetensorError

from weft import artifacts
from weft.artifacts import FORMAT_VERSION, MANIFEST, Manifest, build, fingerprint, is_made, loading, read
from weft.errors import UserError

PARENTS = {"tokenizer": Manifest("tokenizer", "aaaa")}
SETTINGS = {"seed": 0, "train": {"steps": 5}}


def make(out, settings=SETTINGS, parents=PARENTS, content="x", kind="codes"):
    with build(out, kind, settings, parents) as draft:
        (draft.folder / "part").write_text(content)
        draft.counts["utterances"] = 1
        draft.notes["judge"] = "a person"
    return read(out)


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_an_artifact_knows_what_it_is_and_what_it_was_made_from(tmp_path):
    made = make(tmp_path / "a/codes/")
    assert (made.kind, made.settings, made.parents) == ("codes", SETTINGS, {"tokenizer": "aaaa"})
    assert (made.counts, made.notes) == ({"utterances": 1}, {"judge": "a person"})
    assert made.fingerprint == fingerprint(tmp_path / "a/codes")
    assert tree(tmp_path) == ["a/codes/log/plan.json", f"a/codes/{MANIFEST}", "a/codes/part"]


def test_licences_are_handed_down_each_once_and_are_no_part_of_the_plan(tmp_path):
    def of(name, parents, licence=None):
        with build(tmp_path / name, "codes", SETTINGS, parents, licence):
            pass
        return read(tmp_path / name)

    speech, text = of("speech", {}, "CC BY 4.0"), of("text", {}, "CC0")
    both = of("both", {"a": speech, "b": text}, "CC BY 4.0")
    assert both.notes["licences"] == of("grandchild", {"both": both}).notes["licences"] == "CC BY 4.0; CC0"
    assert "licences" not in of("free", PARENTS).notes
    assert is_made(tmp_path / "speech", "codes", SETTINGS, {})


def test_it_is_made_by_its_own_plan_alone(tmp_path):
    make(tmp_path / "codes")
    assert is_made(tmp_path / "codes", "codes", SETTINGS, PARENTS)
    assert not is_made(tmp_path / "nothing", "codes", SETTINGS, PARENTS)
    assert not is_made(tmp_path / "codes", "documents", SETTINGS, PARENTS)
    assert not is_made(tmp_path / "codes", "codes", {**SETTINGS, "seed": 1}, PARENTS)
    assert not is_made(tmp_path / "codes", "codes", SETTINGS)


def test_the_fingerprint_is_of_names_and_contents_without_the_log(tmp_path):
    prints = [make(tmp_path / "a").fingerprint, make(tmp_path / "b", {"seed": 9}).fingerprint]
    prints.append(make(tmp_path / "c", content="y").fingerprint)
    assert prints[0] == prints[1] != prints[2]
    (tmp_path / "a/log/more").write_text("told later")
    assert fingerprint(tmp_path / "a") == prints[0]
    (tmp_path / "a/part").rename(tmp_path / "a/trap")
    assert fingerprint(tmp_path / "a") != prints[0]


def stop(out, error, files=(), settings=SETTINGS):
    """A job that ends with `error`, having written `files`."""
    with build(out, "codes", settings, PARENTS) as draft:
        for name in files:
            (draft.folder / name).write_text("done")
        raise error


@pytest.mark.parametrize(
    ("error", "message"), [(OSError(errno.ENOSPC, "full"), "full"), (SafetensorError("os error 28"), "os error 28")]
)
def test_a_disk_that_fills_up_names_the_folder(tmp_path, error, message):
    with pytest.raises(
        (OSError, UserError), match=rf"{message}.*codes.partial|codes.partial .*{message}.*free some space"
    ):
        stop(tmp_path / "codes", error, ["half"])
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_job_leaves_no_artifact_and_finds_its_files_again(tmp_path, error):
    with pytest.raises(type(error)):
        stop(tmp_path / "codes", error, ["half"])
    assert not (tmp_path / "codes").exists()
    with build(tmp_path / "codes", "codes", SETTINGS, PARENTS) as draft:
        assert (draft.folder / "half").read_text() == "done"
    assert not (tmp_path / "codes.partial").exists()


def test_another_plan_does_not_go_on_with_the_files_of_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "codes", KeyboardInterrupt())
    message = (
        r"codes was begun with another parents.tokenizer, train.steps: run it as before, or delete .*codes.partial"
    )
    with pytest.raises(UserError, match=message):
        make(tmp_path / "codes", {"seed": 0, "train": {"steps": 6}}, {"tokenizer": Manifest("tokenizer", "bbbb")})


@pytest.mark.parametrize("files", [[], ["half"]])
def test_a_refusal_leaves_a_folder_only_where_work_was_done(tmp_path, files):
    with pytest.raises(UserError, match="no speech"):
        stop(tmp_path / "codes", UserError("no speech"), files)
    assert (tmp_path / "codes.partial").exists() == bool(files)


@pytest.mark.parametrize("name", ["codes", "codes.partial"])
@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_not_ours_is_neither_used_nor_touched(tmp_path, name, what):
    there = tmp_path / name
    if what == "file":
        there.write_text("mine")
    elif what == "folder":
        there.mkdir()
        (there / "thesis.tex").write_text("mine")
    elif name == "codes":
        there.symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/thesis.tex").write_text("mine")
        there.symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"already exists: choose another --out|is not weft's: move it away"):
        make(tmp_path / "codes")
    assert tree(tmp_path) == before


def test_over_an_artifact_of_another_plan_it_tells_what_differs(tmp_path):
    make(tmp_path / "codes")
    with pytest.raises(UserError, match=r"codes was made with another train.steps: choose another --out, or delete"):
        make(tmp_path / "codes", {"seed": 0, "train": {"steps": 6}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"has no {MANIFEST}: it is not a codes dataset"),
        ("", "is damaged"),
        ('{"kind": "codes"', "is damaged"),
        ("[]", "is damaged .*no JSON object"),
        ("{}", "is damaged .*missing"),
        ({"fingerprint": 3}, "is damaged .*`fingerprint` is 3, and no str"),
        ({"parents": ["aaaa"]}, "is damaged .*`parents` is"),
        ({"colour": "red"}, "is damaged .*colour"),
        ({"format_version": FORMAT_VERSION + 1}, "written by a newer weft"),
        ({"kind": "text_to_token"}, "is a text-to-token model, and a codes dataset is needed here"),
    ],
)
def test_what_is_no_artifact_of_the_kind_is_refused(tmp_path, content, message):
    folder = tmp_path / "codes"
    made = make(folder)
    (folder / MANIFEST).unlink()
    if content is not None:
        changed = json.dumps({**asdict(made), **content}) if isinstance(content, dict) else content
        (folder / MANIFEST).write_text(changed)
    with pytest.raises(UserError, match=f"codes.* {message}"):
        read(folder, "codes")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: give the folder of a text-to-token model"):
        read(tmp_path / "nowhere", "text_to_token")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is no folder: give the folder of a decoder"):
        read(tmp_path / "file", "decoder")


def test_a_child_of_another_parent_is_refused():
    child = Manifest("decoder", "cccc", parents={"tokenizer": "aaaa"})
    artifacts.require_parent(child, "tokenizer", PARENTS["tokenizer"])
    with pytest.raises(UserError, match="decoder was made with tokenizer aaaa, not bbbb: use the tokenizer"):
        artifacts.require_parent(child, "tokenizer", replace(PARENTS["tokenizer"], fingerprint="bbbb"))


def test_a_bundle_is_the_parts_of_one_tokenizer(tmp_path):
    tokenizer = make(tmp_path / "tokenizer", parents={}, kind="tokenizer")
    parts = {"decoder": "decoder", "text_to_token": "text_to_token", "lm": "language_model"}
    made = {n: make(tmp_path / n, parents={"tokenizer": tokenizer}, kind=kind) for n, kind in parts.items()}
    assert artifacts.read_bundle(tmp_path, needed=parts) == {"tokenizer": tokenizer, **made}
    shutil.rmtree(tmp_path / "decoder")
    assert artifacts.read_bundle(tmp_path, needed=("tokenizer",)).keys() == {"tokenizer", "text_to_token", "lm"}
    with pytest.raises(UserError, match="decoder does not exist: give the folder of a decoder"):
        artifacts.read_bundle(tmp_path, needed=("tokenizer", "decoder"))
    make(tmp_path / "decoder", kind="decoder")
    with pytest.raises(UserError, match="decoder was made with tokenizer aaaa, not"):
        artifacts.read_bundle(tmp_path, needed=("tokenizer",))
    with pytest.raises(UserError, match="nowhere does not exist: give a bundle, a folder with tokenizer, decoder"):
        artifacts.read_bundle(tmp_path / "nowhere", needed=())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("model"), "it lacks 'model'"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ValueError("line one.\nline two"), "line one"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_libraries_raise_over_a_folder_becomes_one_line(tmp_path, error, reason):
    with (
        pytest.raises(UserError, match=rf"x does not load as a tokenizer \(.*{reason}\): copy it again") as refusal,
        loading(tmp_path / "x", "a tokenizer"),
    ):
        raise error
    assert "\n" not in str(refusal.value)


def test_a_refusal_inside_loading_stays_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^mend this$"), loading(tmp_path, "a tokenizer"):
        raise UserError("mend this")


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "new/x.json"
    artifacts.write_json(path, {"a": "ü"})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        artifacts.write_json(path, {"a": "much longer than before"})
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert tree(tmp_path) == ["new/x.json"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    artifacts.check_writable(tmp_path / "new/x.WAV", ".wav")
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        artifacts.check_writable(tmp_path)
    with pytest.raises(UserError, match=r"x.mp3 is to become a .wav file"):
        artifacts.check_writable(tmp_path / "x.mp3", ".wav")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        artifacts.check_writable(tmp_path / "file/x.json")
    with pytest.raises(OSError, match="too long"):
        artifacts.check_writable(tmp_path / ("x" * 250 + ".json"))
    assert tree(tmp_path) == ["file"]
