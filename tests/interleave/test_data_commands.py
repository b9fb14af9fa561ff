"""Every command that writes documents or tokens takes workers and an executor, which do not change the result."""

import json

import pytest

from tests.interleave.fakes import NUM_CODES, load, load_for_dialogues
from weft.artifacts import MANIFEST
from weft.chat import dialogues
from weft.chat.dialogues import DialoguesConfig
from weft.config import load_recipe
from weft.data.cluster import Executor
from weft.data.corpus import read_texts
from weft.data.job import JobConfig
from weft.interleave import documents, interleave, pack
from weft.interleave.config import InterleaveConfig
from weft.interleave.documents import DocumentsConfig
from weft.interleave.pack import PackConfig
from weft.vocab import extend_tokenizer, train_text_tokenizer

COMMANDS = ("interleave", "documents", "dialogues", "pack")


@pytest.fixture
def create(tmp_path, corpus, text_to_token, monkeypatch):
    """create(command, name, job) -> the manifest of TMP/name, which the command creates in at least two tasks."""
    texts = [document.text for document in read_texts(corpus)]
    turns = [{"role": "user", "text": texts[0]}, {"role": "assistant", "text": texts[1]}]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps({"turns": turns}) for _ in range(20)))
    monkeypatch.setattr(pack, "_ROWS_PER_TASK", 60)

    def packed(out, job):
        extend_tokenizer(train_text_tokenizer(texts, 300), NUM_CODES).save_pretrained(tmp_path / "lm")
        documents.run(DocumentsConfig("text", (corpus,), tmp_path / "text"))
        return pack.run(PackConfig((tmp_path / "text",), tmp_path / "lm", out, job=job))

    commands = {
        "interleave": lambda out, job: interleave.run(
            InterleaveConfig((corpus,), out, text_to_token, tasks=3, job=job), load
        ),
        "documents": lambda out, job: documents.run(DocumentsConfig("text", (corpus,), out, tasks=3, job=job)),
        "dialogues": lambda out, job: dialogues.run(
            DialoguesConfig((tmp_path / "dialogues.jsonl",), text_to_token, out, tasks=3, job=job), load_for_dialogues
        ),
        "pack": packed,
    }
    return lambda command, name, job: commands[command](tmp_path / name, job)


def files_of(folder):
    """Return the files of an artifact without its manifest and logs."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if str(name) != MANIFEST and name.parts[0] != "log"}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_and_two_workers_write_the_same_bytes(create, tmp_path, command):
    one = create(command, "one", JobConfig())
    two = create(command, "two", JobConfig(workers=2))
    assert one.fingerprint == two.fingerprint
    assert len(files_of(tmp_path / "one")) >= 2
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    other = JobConfig(workers=3, executor=Executor("slurm", partition="gpu"), max_bad_fraction=0.5)
    assert create(command, "one", other) == one


@pytest.mark.parametrize("kind", [InterleaveConfig, DocumentsConfig, DialoguesConfig, PackConfig])
def test_workers_and_executor_are_recipe_keys_and_flags_of_every_command(tmp_path, kind):
    required = {
        InterleaveConfig: 'corpus = ["books"]\ntext_to_token = "t2t"',
        DocumentsConfig: 'kind = "text"\nsource = ["books"]',
        DialoguesConfig: 'source = ["dialogues.jsonl"]\ntext_to_token = "t2t"',
        PackConfig: 'dataset = ["documents"]\nlm = "lm"',
    }
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'out = "out"\nworkers = 3\n{required[kind]}\n[executor]\nkind = "slurm"\npartition = "gpu"\n')
    executor = Executor("slurm", partition="gpu")
    assert load_recipe(kind, recipe).job == JobConfig(workers=3, executor=executor)
    flags = ["--workers", "5", "--executor.kind", "ray", "--max-bad-fraction", "0.1"]
    assert load_recipe(kind, recipe, flags).job == JobConfig(5, Executor("ray", partition="gpu"), 0.1)
