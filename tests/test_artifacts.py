"""Manifests of artifacts, and the messages about directories that are not the artifact that is needed."""

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from weft import artifacts
from weft.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    base_manifest,
    fingerprint,
    loading,
    read,
    read_manifest,
    read_parent,
)
from weft.errors import UserError
from weft.plan import Plan, open_draft

TOKENIZER = Manifest("tokenizer", "aaaa")


def make(out, settings=None, parents=None, content="x", kind="codes"):
    """Create an artifact of one file."""
    plan = Plan(kind, settings or {}, {"tokenizer": TOKENIZER} if parents is None else parents)
    with open_draft(out, plan) as draft:
        (draft.folder / "part").write_text(content)
    return read(out)


def test_the_fingerprint_is_of_files_settings_and_parents_without_the_log(tmp_path):
    made = make(tmp_path / "a")
    assert made.fingerprint == make(tmp_path / "same").fingerprint == fingerprint(made)
    others = [
        make(tmp_path / "b", {"seed": 9}),
        make(tmp_path / "c", content="y"),
        make(tmp_path / "d", parents={}),
        make(tmp_path / "e", kind="documents"),
    ]
    assert len({made.fingerprint, *(other.fingerprint for other in others)}) == 5
    (tmp_path / "a/log/more").write_text("written later")
    assert read(tmp_path / "a") == made


DAMAGE = {
    "other settings": (lambda folder: edit_manifest(folder, settings={"seed": 8}), f"settings.* in {MANIFEST} were"),
    "other parents": (lambda folder: edit_manifest(folder, parents={}), f"parents.* in {MANIFEST} were edited"),
    "an edited list": (lambda folder: edit_manifest(folder, files={}), f"files in {MANIFEST} were edited"),
    "a missing file": (lambda folder: (folder / "sub/part").unlink(), "sub/part is missing"),
    "a missing directory": (lambda folder: shutil.rmtree(folder / "sub"), "sub/part is missing"),
    "a truncated file": (lambda folder: os.truncate(folder / "part", 3), "part has 3 bytes, expected 5"),
    "a longer file": (lambda folder: (folder / "part").write_text("longer"), "part has 6 bytes, expected 5"),
    "another file": (lambda folder: (folder / "part-00009").touch(), "part-00009 is not part of it"),
    "a renamed file": (lambda folder: (folder / "part").rename(folder / "trap"), "part is missing; trap is not part"),
}


def edit_manifest(folder, **values):
    (folder / MANIFEST).write_text(json.dumps({**json.loads((folder / MANIFEST).read_text()), **values}))


def make_parts(out):
    """Create an artifact of two files, one in a subdirectory."""
    with open_draft(out, Plan("codes", {"seed": 7}, {"tokenizer": TOKENIZER})) as draft:
        (draft.folder / "sub").mkdir()
        (draft.folder / "part").write_text("first")
        (draft.folder / "sub/part").write_text("second")
    return out


@pytest.mark.parametrize("how", DAMAGE)
def test_a_changed_artifact_is_rejected_by_the_name_of_the_part(tmp_path, how):
    folder = make_parts(tmp_path / "codes")
    change, message = DAMAGE[how]
    change(folder)
    for check in (read, read_parent, base_manifest):
        with pytest.raises(UserError, match=rf"codes is not the codes dataset that was created: .*{message}.*restore"):
            check(folder)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "../" * 20 + "dev/zero", "a\0", "\udc80", "x" * 200 + "/y"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_can_list_names_that_are_no_files(tmp_path, name, verify):
    os.mkfifo(tmp_path / "pipe")
    manifest = Manifest("codes", "", files={name: {"bytes": 0, "sha256": ""}})
    found = artifacts.damage(tmp_path, replace(manifest, fingerprint=fingerprint(manifest)), verify)
    assert f"{name} is missing" in found


@pytest.mark.parametrize("name", [".", "..", "tokenizer", "/"])
def test_a_bundle_cannot_contain_itself(tmp_path, name):
    (tmp_path / "b").mkdir()
    manifest = Manifest("bundle", "x", format_version=1, parents={name: "x"})
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(asdict(manifest)))
    if name == "tokenizer":
        (tmp_path / "b/tokenizer").symlink_to(tmp_path / "b")
    assert len(artifacts.damage(tmp_path / "b", read_manifest(tmp_path / "b"))) == 1


def test_other_contents_of_the_same_size_are_noticed_in_a_parent(tmp_path):
    folder = make_parts(tmp_path / "codes")
    times = os.stat(folder / "part").st_atime_ns, os.stat(folder / "part").st_mtime_ns
    (folder / "part").write_text("FIRST")
    os.utime(folder / "part", ns=times)
    assert read(folder).kind == "codes"
    assert artifacts.damage(folder, read(folder), verify=True) == ["part has other contents"]
    for check in (read_parent, base_manifest):
        with pytest.raises(UserError, match="codes is not the codes dataset that was created: part has other contents"):
            check(folder)


def test_of_large_parents_the_smallest_files_are_read(tmp_path, monkeypatch):
    folder = make_parts(tmp_path / "codes")
    monkeypatch.setattr(artifacts, "MAX_HASHED_BYTES", 5)
    (folder / "sub/part").write_text("SECOND")
    assert read_parent(folder) == read(folder)
    (folder / "part").write_text("FIRST")
    with pytest.raises(UserError, match="part has other contents"):
        read_parent(folder)


def test_hidden_files_are_not_part_of_an_artifact(tmp_path):
    folder = make_parts(tmp_path / "codes")
    made = read(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache/x").touch()
    (folder / "sub/.DS_Store").touch()
    assert read(folder) == made


def test_an_artifact_of_format_1_is_read(tmp_path):
    folder = make_parts(tmp_path / "codes")
    found = json.loads((folder / MANIFEST).read_text())
    del found["files"]
    old = {**found, "format_version": 1, "fingerprint": "3355a1163063e1ca"}
    (folder / MANIFEST).write_text(json.dumps(old))
    assert asdict(read(folder)) == {**old, "files": {}}
    assert read_parent(folder).fingerprint == "3355a1163063e1ca"
    assert artifacts.damage(folder, read(folder), verify=True) == []
    (folder / "part").write_text("FIRST")
    assert artifacts.damage(folder, read(folder)) == []
    assert artifacts.damage(folder, read(folder), verify=True) == ["its files have changed"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"has no {MANIFEST}: give the directory of a codes dataset"),
        ("", "is damaged"),
        ('{"kind": "codes"', "is damaged"),
        ("[]", "is damaged .*not a JSON object"),
        ("{}", "is damaged .*missing"),
        ({"fingerprint": 3}, "is damaged .*`fingerprint` is 3, expected str"),
        ({"parents": ["aaaa"]}, "is damaged .*`parents` is"),
        ({"colour": "red"}, "is damaged .*colour"),
        ({"files": {"part": 3}}, "is damaged .*`files` has 3 for part"),
        ({"files": {"part": {"bytes": "3", "sha256": ""}}}, "is damaged .*`files` has"),
        ({"format_version": FORMAT_VERSION + 1}, "written by a newer weft"),
        ({"kind": "text_to_token"}, "is a text-to-token model: give the directory of a codes dataset"),
    ],
)
def test_a_directory_that_is_not_an_artifact_of_the_kind_is_rejected(tmp_path, content, message):
    folder = tmp_path / "codes"
    made = make(folder)
    (folder / MANIFEST).unlink()
    if content is not None:
        changed = json.dumps({**asdict(made), **content}) if isinstance(content, dict) else content
        (folder / MANIFEST).write_text(changed)
    with pytest.raises(UserError, match=f"codes.* {message}"):
        read(folder, "codes")


def test_a_path_that_is_not_a_directory_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: give the directory of a text-to-token model"):
        read(tmp_path / "nowhere", "text_to_token")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a directory: give the directory of a decoder"):
        read(tmp_path / "file", "decoder")


def test_an_artifact_of_another_parent_is_rejected():
    child = Manifest("decoder", "cccc", parents={"tokenizer": "aaaa"})
    artifacts.require_parent(child, "tokenizer", TOKENIZER)
    with pytest.raises(UserError, match="this decoder was made with tokenizer aaaa, not with bbbb: use that tokenizer"):
        artifacts.require_parent(child, "tokenizer", replace(TOKENIZER, fingerprint="bbbb"))


def test_the_parts_of_a_bundle_have_one_tokenizer(tmp_path):
    tokenizer = make(tmp_path / "tokenizer", parents={}, kind="tokenizer")
    parts = {"decoder": "decoder", "text_to_token": "text_to_token", "lm": "language_model"}
    made = {n: make(tmp_path / n, parents={"tokenizer": tokenizer}, kind=kind) for n, kind in parts.items()}
    assert artifacts.read_bundle(tmp_path, needed=parts) == {"tokenizer": tokenizer, **made}
    shutil.rmtree(tmp_path / "decoder")
    assert artifacts.read_bundle(tmp_path, needed=("tokenizer",)).keys() == {"tokenizer", "text_to_token", "lm"}
    with pytest.raises(UserError, match="decoder does not exist: give the directory of a decoder"):
        artifacts.read_bundle(tmp_path, needed=("tokenizer", "decoder"))
    make(tmp_path / "decoder", kind="decoder")
    with pytest.raises(UserError, match="decoder was made with tokenizer aaaa, not"):
        artifacts.read_bundle(tmp_path, needed=("tokenizer",))
    make(tmp_path / "codes", kind="codes")
    with pytest.raises(UserError, match="codes is a codes dataset: give the directory of a bundle"):
        artifacts.read_bundle(tmp_path / "codes", needed=("tokenizer",))
    with pytest.raises(UserError, match="nowhere does not exist: give a bundle, a directory with tokenizer, decoder"):
        artifacts.read_bundle(tmp_path / "nowhere", needed=())


def test_a_model_that_weft_did_not_create_has_a_manifest_of_its_contents(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / ".cache").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / ".cache/x").write_text(name)
    here, there = base_manifest(tmp_path / "here"), base_manifest(tmp_path / "there")
    assert here == there
    assert (here.kind, here.settings) == ("model", {})
    (tmp_path / "there/config.json").write_text("{ }")
    assert base_manifest(tmp_path / "there").fingerprint != here.fingerprint
    made = make(tmp_path / "ours", kind="language_model")
    assert base_manifest(tmp_path / "ours") == made


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("model"), "missing 'model'"),
        (OSError("no file named model.safetensors"), "no file named model.safetensors"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "No such file"),
        (ValueError("line one.\nline two"), "line one"),
        (TypeError("Config.__init__() got an unexpected keyword argument 'x'"), "unexpected keyword argument 'x'"),
        (RuntimeError("Error(s) in loading state_dict:"), "in loading state_dict"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_exception_of_a_library_becomes_one_line(tmp_path, error, reason):
    with (
        pytest.raises(UserError, match=rf"x cannot be loaded as a tokenizer \(.*{reason}\): copy it again") as found,
        loading(tmp_path / "x", "a tokenizer"),
    ):
        raise error
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error


def test_type_errors_of_a_library_are_those_of_its_files(tmp_path):
    with pytest.raises(UserError, match="expected string or bytes-like object"), loading(tmp_path, "a tokenizer"):
        re.match("x", None)  # raised in a module of a library
    with pytest.raises(TypeError), loading(tmp_path, "a tokenizer"):
        artifacts.with_article(3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: no kernel image is available"),
        NotImplementedError("a subclass of RuntimeError"),
    ],
)
def test_an_error_that_no_file_has_caused_passes_through_loading(tmp_path, error):
    with pytest.raises(type(error)) as found, loading(tmp_path, "a tokenizer"):
        raise error
    assert found.value is error


def test_a_user_error_passes_through_loading(tmp_path):
    with pytest.raises(UserError, match=r"^fix this$"), loading(tmp_path, "a tokenizer"):
        raise UserError("fix this")
