import json
from pathlib import Path

import pytest

from weft import cli
from weft.errors import UserError
from weft.eval.contamination import contamination, training_texts
from weft.eval.model import load_vocab
from weft.interleave.documents import DocumentsConfig
from weft.interleave.documents import run as make_documents
from weft.interleave.pack import PackConfig
from weft.interleave.pack import run as pack
from weft.lm.init import InitLmConfig
from weft.lm.init import run as init_lm

LONG = "the old man walked slowly down to the grey sea and looked at the boats"
ITEMS = {
    "exact": "He said: The OLD man walked slowly, down to the grey sea!"[9:],
    "near": "the old man walked slowly down to the grey sea and looked at the ships",
    "other": "a young woman ran up the hill to see the moon over the town",
    "short": "grey sea",
    "empty": "...",
    "missing": "grey seas",
}


def test_items_are_found_whole_or_nearly() -> None:
    found = contamination(ITEMS, ["Nothing here.", f"Once, {LONG}.", "the hill"])
    assert found.exact == ["exact", "short"]
    assert found.near == ["near"]
    assert (found.items, found.documents) == (6, 3)


def test_words_must_follow_one_another_in_one_document() -> None:
    assert contamination({"a": "one two"}, ["one", "two", "two one", "onetwo"]).exact == []
    assert contamination(
        {"a": "one two three four five six"}, ["one two three four five", "two three four five six"]
    ) == (contamination({"a": "one two three four five six"}, ["two three four five six", "one two three four five"]))


@pytest.mark.parametrize("kind", ["documents", "tokens"])
def test_training_data_are_documents_or_token_shards(kind: str, text_lm: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(f"Once upon a time {LONG}.")
    make_documents(DocumentsConfig("text", (tmp_path / "text.txt",), tmp_path / "documents"))
    init_lm(InitLmConfig(tmp_path / "lm", bundle / "tokenizer", base=text_lm))
    pack(PackConfig((tmp_path / "documents",), tmp_path / "lm", tmp_path / "tokens"))
    [text] = training_texts([tmp_path / kind], load_vocab(tmp_path / "lm"))
    assert LONG in text
    rows = [{"id": name, "question": text, "answers": ["x"]} for name, text in ITEMS.items()]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "eval",
        "qa",
        "--model",
        tmp_path / "lm",
        "--data",
        tmp_path / "questions.jsonl",
        "--max-text-tokens",
        "1",
    ]
    given = [str(a) for a in (*command, "--out", tmp_path / "out.json", "--training", tmp_path / kind)]
    assert cli.run(given) == 0
    found = json.loads((tmp_path / "out.json").read_text())["details"]["contamination"]
    assert (found["exact"], found["near"]) == (["exact", "short"], ["near"])


def test_other_directories_are_refused(bundle: Path, text_lm: Path) -> None:
    with pytest.raises(UserError, match="give documents, or tokens of weft pack"):
        list(training_texts([bundle / "codes"], load_vocab(text_lm)))
