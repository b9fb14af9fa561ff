"""Manifests of artifacts, and the messages about directories that are not the artifact that is needed."""

import errno
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from weft import artifacts
from weft.artifacts import FORMAT_VERSION, MANIFEST, Manifest, base_manifest, fingerprint, loading, read
from weft.errors import UserError
from weft.plan import Plan, open_draft

TOKENIZER = Manifest("tokenizer", "aaaa")


def make(out, settings=None, parents=None, content="x", kind="codes"):
    """Create an artifact of one file."""
    plan = Plan(kind, settings or {}, {"tokenizer": TOKENIZER} if parents is None else parents)
    with open_draft(out, plan) as draft:
        (draft.folder / "part").write_text(content)
    return read(out)


def test_the_fingerprint_is_of_names_and_contents_without_the_log(tmp_path):
    first, other_settings, other_content = (
        make(tmp_path / "a").fingerprint,
        make(tmp_path / "b", {"seed": 9}).fingerprint,
        make(tmp_path / "c", content="y").fingerprint,
    )
    assert first == other_settings != other_content
    (tmp_path / "a/log/more").write_text("written later")
    assert fingerprint(tmp_path / "a") == first
    (tmp_path / "a/part").rename(tmp_path / "a/trap")
    assert fingerprint(tmp_path / "a") != first


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
        (ValueError("line one.\nline two"), "line one"),
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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_an_error_of_the_machine_passes_through_loading(tmp_path, error):
    with pytest.raises(type(error)) as found, loading(tmp_path, "a tokenizer"):
        raise error
    assert found.value is error


def test_a_user_error_passes_through_loading(tmp_path):
    with pytest.raises(UserError, match=r"^fix this$"), loading(tmp_path, "a tokenizer"):
        raise UserError("fix this")
