"""The printed description of an artifact."""

from weft.artifacts import Manifest
from weft.info import InfoConfig, run
from weft.plan import Plan, create


def test_the_manifest_is_printed_with_whether_files_have_changed(tmp_path, capsys):
    def write(draft):
        (draft.folder / "part").write_text("x")
        draft.counts["utterances"] = 3

    plan = Plan("codes", {"speed": [1, 2], "name": "a"}, {"tokenizer": Manifest("tokenizer", "aaaa")})
    made = create(tmp_path / "codes", plan, write, licence="CC0")
    run(InfoConfig(tmp_path / "codes"))
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'codes'}: a codes dataset, format 1\n" in shown
    assert f"fingerprint {made.fingerprint} (files are unchanged)" in shown
    found = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  "))
    assert found == {"tokenizer": "aaaa", "utterances": "3", "speed": "1, 2", "name": "a", "licences": "CC0"}
    (tmp_path / "codes/part").write_text("y")
    run(InfoConfig(tmp_path / "codes"))
    assert "FILES HAVE CHANGED" in capsys.readouterr().out
