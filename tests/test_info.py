"""The printed description of artifacts, bundles, drafts and other directories."""

import json
import os

import fsspec
import pytest

from weft import cli
from weft.artifacts import Manifest, bundle_manifest, read
from weft.errors import UserError
from weft.files import write_json
from weft.info import InfoConfig, run
from weft.plan import Plan, create


def write(draft):
    (draft.folder / "part").write_text("x")
    draft.counts["utterances"] = 3


@pytest.fixture
def codes(tmp_path):
    plan = Plan("codes", {"speed": [1, 2], "name": "a"}, {"tokenizer": Manifest("tokenizer", "aaaa")})
    create(tmp_path / "codes", plan, write, licence="CC0")
    return tmp_path / "codes"


@pytest.fixture
def show(capsys):
    """show(path, verify=False) -> what is printed."""

    def shown(path, verify=False):
        run(InfoConfig(path, verify))
        return capsys.readouterr().out

    return shown


def make_bundle(folder):
    """Create the parts of a bundle; the decoder is a link."""
    create(folder / "tokenizer", Plan("tokenizer", {}), write)
    parents = {"tokenizer": read(folder / "tokenizer")}
    create(folder / "elsewhere/decoder", Plan("decoder", {}, parents), write)
    (folder / "decoder").symlink_to(folder / "elsewhere/decoder")
    create(folder / "lm", Plan("language_model", {}, parents), write)
    (folder / "report.html").touch()
    return folder


def test_the_manifest_is_printed(codes, show):
    shown = show(codes)
    assert f"{codes}: a codes dataset, format 2\nfingerprint {read(codes).fingerprint}\n1 files, 1 bytes\n" in shown
    found = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  "))
    assert found == {"tokenizer": "aaaa", "utterances": "3", "speed": "1, 2", "name": "a", "licences": "CC0"}
    assert "names and sizes of files are unchanged" in shown
    assert "contents are unchanged" in show(codes, verify=True)


def test_changed_files_are_named_with_exit_status_2(codes, capsys):
    (codes / "part").write_text("y")
    assert cli.run(["info", str(codes)]) == 0
    assert cli.run(["info", str(codes), "--verify"]) == 2
    shown = capsys.readouterr()
    assert "CHANGED part has other contents\n" in shown.out
    assert "codes is not the codes dataset that was created: part has other contents: restore it" in shown.err
    (codes / "part").write_text("longer")
    assert cli.run(["info", str(codes)]) == 2
    assert "CHANGED part has 6 bytes, expected 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_bundle_is_described_by_its_parts(tmp_path, show, capsys, has_manifest):
    folder = make_bundle(tmp_path)
    if has_manifest:
        write_json(folder / "manifest.json", vars(bundle_manifest(folder)))
    for verify in (False, True):
        shown = show(folder, verify)
        assert "a bundle, format 2" in shown
        assert all(read(folder / name).fingerprint in shown for name in ("tokenizer", "decoder", "lm"))
        assert "unchanged" in shown
    (folder / "elsewhere/decoder/part").write_text("y")
    assert "unchanged" in show(folder)
    with pytest.raises(UserError, match="is not the bundle that was created: decoder/part has other contents"):
        run(InfoConfig(folder, verify=True))
    assert "CHANGED decoder/part has other contents\n" in capsys.readouterr().out


@pytest.fixture
def upload():
    """A function that copies a directory to a store in memory, at a URL with credentials, which it returns."""
    files, root = fsspec.filesystem("memory"), "/me:key@bucket"

    def copy(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe(f"{root}/{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory:/{root}/{folder.name}"

    yield copy
    files.rm(root, recursive=True)


@pytest.mark.parametrize("verify", [False, True])
def test_an_artifact_at_a_url_is_described_as_a_local_one(codes, show, upload, verify):
    assert show(upload(codes), verify) == show(codes, verify).replace(str(codes), "memory://bucket/codes")


@pytest.mark.parametrize(
    ("name", "content", "verify", "problem"),
    [
        ("part", "y", True, "part has other contents"),
        ("part", "longer", False, "part has 6 bytes, expected 1"),
        ("more", "x", False, "more is not part of it"),
    ],
)
def test_changed_files_at_a_url_are_named(codes, upload, capsys, name, content, verify, problem):
    (codes / name).write_text(content)
    assert cli.run(["info", upload(codes), *(["--verify"] if verify else [])]) == 2
    shown = capsys.readouterr()
    assert f"CHANGED {problem}\n" in shown.out
    assert shown.err.startswith(f"weft: memory://bucket/codes is not the codes dataset that was created: {problem}: ")
    assert "key" not in shown.out + shown.err


def test_other_urls_are_rejected(codes, upload):
    found = json.loads((codes / "manifest.json").read_text())
    del found["files"]
    write_json(codes / "manifest.json", found | {"format_version": 1})
    with pytest.raises(UserError, match=r"^memory://bucket/codes has format 1, which lists no files: copy it to a"):
        run(InfoConfig(upload(codes), verify=True))
    with pytest.raises(
        UserError, match=r"^memory://bucket/codes/no has no manifest\.json: give the URL of an artifact"
    ):
        run(InfoConfig(f"{upload(codes)}/no"))


def test_a_bundle_with_another_part_has_changed(tmp_path, capsys):
    folder = make_bundle(tmp_path)
    write_json(folder / "manifest.json", vars(bundle_manifest(folder)))
    (folder / "lm").rename(folder / "old")
    with pytest.raises(UserError):
        run(InfoConfig(folder))
    assert "lm does not exist" in capsys.readouterr().out
    create(folder / "lm", Plan("language_model", {"seed": 1}, {"tokenizer": read(folder / "tokenizer")}), write)
    with pytest.raises(UserError):
        run(InfoConfig(folder))
    assert "CHANGED lm is " in capsys.readouterr().out


def test_a_draft_is_described_with_the_process_that_writes_it(tmp_path, show):
    def interrupted(draft):
        assert f"being written by process {os.getpid()} on " in show(draft.folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "codes", Plan("codes", {"seed": 4}), interrupted)
    shown = show(tmp_path / "codes.partial")
    assert "codes.partial: a partial codes dataset; run the same command again to resume it\n" in shown
    assert ["seed", "4"] in [line.split() for line in shown.splitlines()]
    assert "being written" not in shown


def test_an_artifact_without_its_manifest_is_not_a_draft(codes):
    (codes / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"codes has no manifest.json"):
        run(InfoConfig(codes))


def test_a_hugging_face_model_is_described_in_one_line(tmp_path, show):
    (tmp_path / "config.json").write_text("{}")
    assert show(tmp_path) == f"{tmp_path}: a Hugging Face model that weft did not create; it has no manifest\n"
    with pytest.raises(UserError, match=r"has no manifest.json"):
        run(InfoConfig(tmp_path, verify=True))


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_other_paths_are_rejected(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        run(InfoConfig(tmp_path / name))


def test_format_1_is_verified_as_a_whole(codes, show, capsys):
    found = json.loads((codes / "manifest.json").read_text())
    del found["files"]
    found |= {"format_version": 1, "fingerprint": "0" * 16}
    write_json(codes / "manifest.json", found)
    assert "format 1 lists no files: use --verify" in show(codes)
    assert cli.run(["info", str(codes), "--verify"]) == 2
    assert "CHANGED its files have changed\n" in capsys.readouterr().out
