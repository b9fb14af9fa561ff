"""The Python API: `import weft` is light, and the examples in docstrings run on a finished demo."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import weft
from weft.records import Document, Segment

pytestmark = pytest.mark.xdist_group("demo")

EXAMPLES = {
    "weft": weft,
    "SpeechTokenizer": weft.SpeechTokenizer.from_pretrained,
    "SpeechDecoder": weft.SpeechDecoder.from_pretrained,
    "Synthesizer": weft.Synthesizer.from_pretrained,
    "Bundle": weft.Bundle.from_pretrained,
    "ChatSession": weft.ChatSession,
    "read_documents": weft.read_documents,
    "write_documents": weft.write_documents,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_docstring_runs(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    (example,) = (e for e in doctest.DocTestFinder(recurse=False).find(EXAMPLES[name], name, globs={}) if e.examples)
    report: list[str] = []
    assert not doctest.DocTestRunner().run(example, out=report.append).failed, "".join(report)


def test_importing_weft_loads_nothing_heavy() -> None:
    code = "import sys, weft; print({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_every_export_exists() -> None:
    assert {"SpeechTokenizer", "Bundle", "read_documents"} <= set(dir(weft)) >= set(weft.__all__)
    assert all(getattr(weft, name).__doc__ for name in weft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        weft.Nothing  # noqa: B018


def test_documents_that_were_written_are_read(tmp_path: Path, bundle: Path) -> None:
    speech = Document("b", "speech", (Segment.of_speech([1, 2, 3], "a dog"),))
    documents = [Document("a", "text", (Segment.of_text("The cat sat."),)), speech]
    manifest = weft.write_documents(tmp_path / "mine", documents, tokenizer=bundle / "tokenizer", licence="CC0")
    assert list(weft.read_documents(tmp_path / "mine")) == documents
    assert manifest.counts == {"documents": 2}
    assert manifest.notes == {"licences": "CC0"}
    with pytest.raises(weft.UserError, match="already exists"):
        weft.write_documents(tmp_path / "mine", documents)
    with pytest.raises(weft.UserError, match=r"'b' has speech: give the tokenizer"):
        weft.write_documents(tmp_path / "other", documents)
    assert not (tmp_path / "other").exists()
