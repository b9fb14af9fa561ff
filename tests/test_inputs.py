"""Inputs are identified by content: a command never returns the result of an input that has changed since.

Every command that creates an artifact is run with a writer that does nothing, because only the check matters here.
"""

import importlib
import os
import shutil
from pathlib import Path

import pytest

from tests.chat.conftest import TEXTS, make_decoder
from tests.lm.test_model import small_llama
from tests.tokenizer.conftest import make_tokenizer, save_whisper, write_speech
from tests.tokenizer.test_glm import RELEASED, publish
from weft import plan
from weft.artifacts import read
from weft.cli import COMMANDS
from weft.data.datasets import write_codes_part
from weft.data.documents import write_documents
from weft.errors import UserError
from weft.lm.model import KIND, LanguageModel, LmConfig, new_lm, save
from weft.pages import view
from weft.plan import Plan, open_draft
from weft.records import CodedUtterance, Document, Segment
from weft.text_to_token.train import KIND as TEXT_TO_TOKEN
from weft.training import checkpoint, distributed
from weft.training.config import TrainConfig
from weft.training.guard import StepGuard
from weft.training.optimizers import Optimizers
from weft.vocab import extend_tokenizer, train_text_tokenizer

NUM_CODES = 32
SHAPE = LmConfig(hidden=32, layers=1, heads=2, ffn=32)
TRAIN = TrainConfig(steps=2)


def write_nothing(draft):
    (draft.folder / "file").touch()


@pytest.fixture(scope="session")
def all_inputs(tmp_path_factory):
    """The directory of all inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_speech(folder / "speech", 2)
    (folder / "books").mkdir()
    (folder / "books/a.txt").write_text("The cat sat on the mat.\n\nA bird sang.\n")
    (folder / "words.jsonl").write_text('{"id": "speech-0", "words": [{"word": "the", "start": 0.1, "end": 0.2}]}\n')
    turns = '[{"role": "user", "text": "Hello there"}, {"role": "assistant", "text": "Hello"}]'
    (folder / "dialogues.jsonl").write_text(f'{{"id": "d", "turns": {turns}}}\n')
    save_whisper(folder / "whisper")
    publish(folder / "glm", RELEASED)
    text_tokenizer = train_text_tokenizer(TEXTS, vocab_size=320)
    small_llama(text_tokenizer, tied=True).save_pretrained(folder / "base")
    text_tokenizer.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    parents = {"tokenizer": read(folder / "tokenizer")}
    with open_draft(folder / "decoder", Plan("decoder", {}, parents)) as draft:
        make_decoder().write_files(draft.folder)
    with open_draft(folder / "text_to_token", Plan(TEXT_TO_TOKEN, {}, parents)) as draft:
        (draft.folder / "model.safetensors").write_text("weights")
    with open_draft(folder / "codes", Plan("codes", {}, parents)) as draft:
        write_codes_part(draft.folder, 0, [CodedUtterance(f"speech-{i}", [1, 2, 3], "the cat") for i in range(2)])
    for name in ("documents", "others"):
        documents = [Document(name, "speech", (Segment.of_speech([1, 2, 3], "the cat"),))]
        write_documents(folder / name, documents, folder / "tokenizer")
    with open_draft(folder / "lm", Plan(KIND, {}, parents)) as draft:
        extended = extend_tokenizer(train_text_tokenizer(TEXTS, vocab_size=320), NUM_CODES)
        save(new_lm(SHAPE, extended, 0), extended, draft.folder)
    model = LanguageModel.from_pretrained(folder / "lm").model
    checkpoint.save(
        folder / "run.partial/checkpoints", 2, model, Optimizers.of(model, TRAIN, None), StepGuard(TRAIN), keep=1
    )
    for name in ("documents", "others"):
        run("pack", dataset=(folder / name,), lm=folder / "lm", out=folder / f"tokens_of_{name}")
    return folder


def run(command, **settings):
    entry = COMMANDS[command]
    module = importlib.import_module(entry.module)
    return module.run(getattr(module, entry.config)(**settings))


@pytest.fixture
def inputs(all_inputs, tmp_path, monkeypatch):
    """A copy of the inputs. No command does its work."""
    create = plan.create

    def quick(out, the_plan, write, licence=None):
        return create(out, the_plan, write_nothing, licence)

    for entry in COMMANDS.values():
        module = importlib.import_module(entry.module)
        if getattr(module, "create", None) is create:
            monkeypatch.setattr(module, "create", quick)
    for name in ("weft.interleave.aligned", "weft.voices.speak"):
        monkeypatch.setattr(importlib.import_module(name), "create", quick)
    monkeypatch.setattr(distributed, "create", quick)
    return Path(shutil.copytree(all_inputs, tmp_path / "inputs"))


LAST_BYTE = None
SPEECH = {"speech/0.wav": LAST_BYTE, "speech/manifest.jsonl": (b"the cat", b"the hat")}
TOKENIZER = {"tokenizer/model.safetensors": LAST_BYTE, "tokenizer/bottleneck.json": (b"fixed", b"fixes")}
CODES = {"codes/part-00000.parquet": LAST_BYTE}
MODEL = {"text_to_token/model.safetensors": LAST_BYTE}

# command, settings (values that name inputs become paths), and the changes of inputs with what the message names
CASES = {
    "speak": ("speak", {"text": ("books/a.txt",)}, {"books/a.txt": (b"cat", b"hat")}, {"books": "lines"}),
    "train-tokenizer": (
        "train-tokenizer",
        {"speech": ("speech",), "base": "whisper", "language": "en", "train": TRAIN},
        {**SPEECH, "whisper/model.safetensors": LAST_BYTE, "whisper/config.json": (b"0.3", b"0.2")},
        {"speech": "speech", "whisper": "base"},
    ),
    "pseudo-label": (
        "pseudo-label",
        {"audio": ("speech",), "whisper": "whisper", "language": "en"},
        {**SPEECH, "whisper/model.safetensors": LAST_BYTE},
        {"speech": "audio"},
    ),
    "import-glm": (
        "import-glm", {"folder": "glm"}, {"glm/model.safetensors": LAST_BYTE}, {"glm": "source"},
    ),
    "export-encoder": ("export-encoder", {"tokenizer": "tokenizer"}, TOKENIZER, {}),
    "tokenize": (
        "tokenize", {"audio": ("speech",), "tokenizer": "tokenizer"}, {**SPEECH, **TOKENIZER}, {"speech": "audio"},
    ),
    "train-decoder": (
        "train-decoder",
        {"codes": ("codes",), "audio": ("speech",), "tokenizer": "tokenizer", "train": TRAIN},
        {**SPEECH, **TOKENIZER, **CODES},
        {"speech": "audio"},
    ),
    "train-vocoder": (
        "train-vocoder",
        {"audio": ("speech",), "train": TRAIN},
        {"speech/0.wav": LAST_BYTE},
        {"speech": "audio"},
    ),
    "train-decoder from another": (
        "train-decoder",
        {"codes": ("codes",), "audio": ("speech",), "tokenizer": "tokenizer", "init": "decoder", "train": TRAIN},
        {"decoder/model.safetensors": LAST_BYTE},
        {},
    ),
    "resynth": (
        "resynth",
        {"audio": ("speech",), "tokenizer": "tokenizer", "decoder": "decoder"},
        {**SPEECH, **TOKENIZER, "decoder/model.safetensors": LAST_BYTE},
        {"speech": "audio"},
    ),
    "train-text-to-token": (
        "train-text-to-token",
        {"codes": ("codes",), "tokenizer": "tokenizer", "base": "base", "train": TRAIN},
        {**TOKENIZER, **CODES, "base/model.safetensors": LAST_BYTE},
        {},
    ),
    "interleave of text": (
        "interleave",
        {"corpus": ("books",), "text_to_token": "text_to_token", "tokenizer": "tokenizer"},
        {"books/a.txt": (b"cat", b"hat"), **MODEL, **TOKENIZER},
        {"books": "corpus"},
    ),
    "interleave of recordings": (
        "interleave",
        {"corpus": ("speech",), "aligned": "words.jsonl", "tokenizer": "tokenizer"},
        {**SPEECH, "words.jsonl": (b"0.2", b"0.3"), **TOKENIZER},
        {"speech": "corpus", "words": "aligned"},
    ),
    "documents of text": (
        "documents", {"kind": "text", "source": ("books",)}, {"books/a.txt": (b"cat", b"hat")}, {"books": "corpus"},
    ),
    "documents of codes": ("documents", {"kind": "asr", "source": ("codes",)}, CODES, {}),
    "dialogues": (
        "dialogues",
        {"source": ("dialogues.jsonl",), "text_to_token": "text_to_token"},
        {"dialogues.jsonl": (b"there", b"where"), **MODEL},
        {"dialogues": "source"},
    ),
    "init-lm": (
        "init-lm",
        {"tokenizer": "tokenizer", "base": "base"},
        {**TOKENIZER, "base/model.safetensors": LAST_BYTE, "base/tokenizer.json": (b"cat", b"hat")},
        {},
    ),
    "init-lm of texts": (
        "init-lm",
        {"tokenizer": "tokenizer", "texts": ("books",)},
        {"books/a.txt": (b"cat", b"hat")},
        {"books": "texts"},
    ),
    "pack": (
        "pack",
        {"dataset": ("documents", "others"), "lm": "lm"},
        {"others/part-00000.parquet": LAST_BYTE, "lm/tokenizer.json": (b"cat", b"hat")},
        {},
    ),
    "export-checkpoint": (
        "export-checkpoint",
        {"checkpoint": "run.partial", "base": "lm"},
        {"lm/model.safetensors": LAST_BYTE},
        {},
    ),
    "pretrain": (
        "pretrain",
        {"base": "lm", "tokens": ("tokens_of_documents",), "held_out": ("tokens_of_others",), "train": TRAIN},
        {
            "lm/model.safetensors": LAST_BYTE,
            "tokens_of_documents/documents/00000.ds": LAST_BYTE,
            "tokens_of_others/others/00000.ds.loss": LAST_BYTE,
        },
        {},
    ),
}  # fmt: skip


def paths_in(value, folder):
    """Replace the names of inputs in a setting by their paths."""
    if isinstance(value, tuple):
        return tuple(paths_in(v, folder) for v in value)
    return folder / value if isinstance(value, str) and (folder / value).exists() else value


def change(path, how):
    """Change the contents of a file, and neither its size nor its modification time."""
    before, content = path.stat(), path.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1]) if how is LAST_BYTE else content.replace(*how)
    assert len(changed) == len(content)
    assert changed != content
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, (_, _, changes, _) in CASES.items() for file in changes]
)
def test_a_result_of_changed_inputs_is_not_returned(inputs, name, file):
    command, settings, changes, names = CASES[name]
    given = {**{n: paths_in(value, inputs) for n, value in settings.items()}, "out": inputs / "out"}
    made = run(command, **given)
    assert run(command, **given) == made
    change(inputs / file, changes[file])
    wanted = next((n for prefix, n in names.items() if file.startswith(prefix)), file.split("/")[0])
    with pytest.raises(UserError, match=wanted) as error:
        run(command, **given)
    assert "has other contents" in str(error.value) or "created with" in str(error.value)


def test_all_commands_with_an_artifact_are_covered():
    reports = {"demo", "say", "chat", "info", "view"}  # write no artifact of their own, or create it anew
    artifacts = {command for command in COMMANDS if not command.startswith("eval ")} - {"sft"}
    assert {command for command, *_ in CASES.values()} | reports == artifacts


def test_a_result_of_another_parent_at_the_same_path_is_not_returned(inputs):
    given = {"audio": (inputs / "speech",), "tokenizer": inputs / "tokenizer", "out": inputs / "out"}
    run("tokenize", **given)
    before = read(inputs / "tokenizer").fingerprint
    shutil.rmtree(inputs / "tokenizer")
    make_tokenizer(pooling=2).save_pretrained(inputs / "tokenizer")
    now = read(inputs / "tokenizer").fingerprint
    with pytest.raises(UserError, match=rf"created with tokenizer = {before} \(now {now}\)"):
        run("tokenize", **given)


def test_pack_names_the_flag_of_the_dataset_that_has_changed(inputs):
    given = {"dataset": (inputs / "documents", inputs / "others"), "lm": inputs / "lm", "out": inputs / "out"}
    run("pack", **given)
    shutil.rmtree(inputs / "others")
    write_documents(inputs / "others", [Document(str(i), "text", (Segment.of_text("a"),)) for i in range(20_001)])
    with pytest.raises(UserError, match=r"out was created with --dataset others = \w+ \(now \w+\): choose"):
        run("pack", **given)


def test_a_voice_whose_program_or_model_has_changed_is_another_voice(inputs):
    for name in ("program", "voice.onnx"):
        (inputs / name).write_text(name)
    voice = f"command:{inputs}/program --model={inputs}/voice.onnx {{text_file}} {{out}}"
    given = {"text": (inputs / "books/a.txt",), "voice": (voice,), "out": inputs / "out"}
    assert run("speak", **given) == run("speak", **given)
    for name in ("program", "voice.onnx"):
        change(inputs / name, LAST_BYTE)
        with pytest.raises(UserError, match="created with other contents of voice_files: choose"):
            run("speak", **given)
        change(inputs / name, LAST_BYTE)
        assert run("speak", **given)


def test_a_page_is_made_anew(inputs):
    config = view.ViewConfig((inputs / "documents",), inputs / "page.html")
    view.run(config)
    assert "the cat" in (inputs / "page.html").read_text()
    shutil.rmtree(inputs / "documents")
    write_documents(inputs / "documents", [Document("d", "text", (Segment.of_text("the hat"),))])
    view.run(config)
    assert "the cat" not in (inputs / "page.html").read_text()
