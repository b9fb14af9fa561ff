"""Loading a model executes nothing that comes with it."""

import json
import pickle
import re
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import weft
from weft.artifacts import loading
from weft.errors import UserError
from weft.lm.model import load_causal_lm
from weft.pretrained import load_pretrained
from weft.vocab import train_text_tokenizer

CODE = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\nclass A: pass\n"


SNIPPETS = ("vocab.py", "model_card.py")  # calls for users, in a docstring and in the text of a card


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    ).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [AutoConfig, AutoModelForCausalLM, AutoTokenizer])
def test_code_in_the_directory_is_not_executed(folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "code.py").write_text(CODE)
    edit(folder, model_type="own", auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "code.A"))
    with pytest.raises((ValueError, OSError)):
        load_pretrained(kind, folder)
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_causal_lm(folder, "auto")
    assert not list(folder.rglob("executed"))


def test_a_damaged_text_tokenizer_is_an_error_of_its_file(folder: Path) -> None:
    train_text_tokenizer(["the cat sat"] * 9, 300).save_pretrained(folder)
    content = (folder / "tokenizer.json").read_text()
    for field in dict.fromkeys(re.findall(r'"([a-z_]+)":', content)):
        (folder / "tokenizer.json").write_text(content.replace(f'"{field}":', f'"{field}x":', 1))
        with suppress(UserError), loading(folder, "a text tokenizer"):
            load_pretrained(AutoTokenizer, folder)
    (folder / "tokenizer.json").write_text(content.replace('"rstrip":', '"rstrix":', 1))
    message = r"cannot be loaded as a text tokenizer \(missing field `rstrip`"
    with pytest.raises(UserError, match=message), loading(folder, "a text tokenizer"):
        load_pretrained(AutoTokenizer, folder)


@pytest.mark.parametrize("name", ["somebody/kernel", {"": "somebody/kernel"}])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_an_unknown_attention_implementation_is_rejected(folder: Path, key: str, name: object) -> None:
    edit(folder, text_config={key: name})
    with pytest.raises(ValueError, match="'somebody/kernel', which is not part of transformers"):
        load_pretrained(AutoConfig, folder)
    edit(folder, text_config={}, **{key: "eager"})
    assert load_pretrained(AutoConfig, folder).vocab_size == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hidden_size", value) for value in (0, -8, "wide", True)),
        *(("num_hidden_layers", value) for value in (10**9, 1.5)),
        ("vocab_size", 10**12),
        ("decoder_layers", -1),
    ],
)
def test_a_size_that_no_model_has_is_rejected_before_anything_is_allocated(
    folder: Path, name: str, value: object
) -> None:
    edit(folder, **{name: value})
    for kind in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=f"config.json has {name} {value!r}, expected a whole number"):
            load_pretrained(kind, folder)


def test_settings_that_do_not_fit_together_are_named(folder: Path) -> None:
    edit(folder, num_attention_heads=3)
    with pytest.raises(ValueError, match=r"config.json is not valid, .*attention heads"):
        load_pretrained(AutoConfig, folder)


@pytest.mark.parametrize("content", ["[]", "3", "{", "[" * 100_000, "\x00", "{\x00}\x00"])
def test_a_configuration_is_a_json_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_causal_lm(folder, "auto")


class Executed:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_weights_are_not_executed(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Executed(tmp_path / "executed"), protocol=2))
    with pytest.raises(ValueError, match="its pickled weights contain more than tensors"):
        load_pretrained(AutoModelForCausalLM, folder)
    assert not (tmp_path / "executed").exists()


def test_no_other_module_loads_models_of_transformers() -> None:
    call = re.compile(r"\b(?:Auto|Whisper|Llama|PreTrained)\w*\.from_pretrained\(")
    package = Path(weft.__file__).parent
    assert [p.name for p in package.rglob("*.py") if call.search(p.read_text()) and p.name not in SNIPPETS] == []
