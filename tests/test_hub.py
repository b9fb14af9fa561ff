"""Names of models on the Hub: which settings are names, what is downloaded, and what each failure says."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import weft
from weft import cli
from weft.config import MODEL
from weft.errors import UserError
from weft.hub import local, with_local_models


@dataclass(frozen=True)
class Config:
    data: Path
    base: Annotated[Path | None, MODEL] = None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with openai/tiny (safetensors) and me/old (only pickled weights); `hub.requests` has what was asked for."""
    files = {"openai/tiny": ["config.json", "model.safetensors"], "me/old": ["config.json", "pytorch_model.bin"]}
    hub = SimpleNamespace(requests=[], error=None)

    def snapshot_download(name, revision, allow_patterns, tqdm_class):
        hub.requests.append((name, revision, allow_patterns))
        if hub.error:
            raise hub.error
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files[name]:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (folder / file).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


def test_a_name_becomes_the_directory_of_its_copy(tmp_path, hub):
    config = with_local_models(Config(data=Path("openai/tiny"), base=Path("openai/tiny@v1.0")))
    assert config.base == tmp_path / "cache/openai/tiny"
    assert sorted(path.name for path in config.base.iterdir()) == ["config.json", "model.safetensors"]
    assert config.data == Path("openai/tiny")  # not a model
    assert [request[:2] for request in hub.requests] == [("openai/tiny", "v1.0")]


def test_code_is_never_downloaded_and_pickled_weights_only_without_others(hub):
    local(Path("me/old"))
    patterns = [patterns for _, _, patterns in hub.requests]
    assert "*.bin" not in patterns[0]
    assert "*.bin" in patterns[1]
    assert not any(Path("modeling.py").match(pattern) for pattern in [*patterns[0], *patterns[1]])


def test_a_dry_run_downloads_no_weights(hub):
    folder = local(Path("openai/tiny"), only_configurations=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("path", ["tiny", "a/b/c", "/models/tiny", "models/tiny", "../models/tiny", "a b/c", "é/c"])
def test_a_path_is_not_looked_up(path, tmp_path, hub):
    (tmp_path / "models").mkdir()
    assert local(Path(path)) == Path(path)
    assert with_local_models(Config(Path())).base is None
    assert hub.requests == []


def http_error(kind, status=404):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("a\nb", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(RepositoryNotFoundError), "openai/tiny is neither a directory nor a model on the Hugging Face Hub"),
        (http_error(GatedRepoError, 403), "openai/tiny .* needs a permission: accept .*hf auth login"),
        (http_error(RevisionNotFoundError), "has no revision 'v1'"),
        (http_error(HfHubHTTPError, 500), r"cannot be downloaded .*\(a\)"),
        (LocalEntryNotFoundError("no\nnetwork"), "not a directory, and the Hugging Face Hub cannot be reached"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_each_failure_is_one_line(error, words, hub, capsys):
    hub.error = error
    with pytest.raises(UserError, match=words):
        local(Path("openai/tiny@v1"))
    assert cli.run(["pseudo-label", "speech", "--whisper", "openai/tiny@v1", "--out", "out"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("weft: openai/tiny")


def test_local_models_are_loaded_without_the_network(tmp_path):
    code = """
import socket, sys
uses = []
def connect(*arguments): uses.append(arguments); raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = connect
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, AutoConfig
from weft.pretrained import load_pretrained
folder = sys.argv[1]
LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    vocab_size=9)).save_pretrained(folder)
load_pretrained(AutoConfig, folder)
load_pretrained(AutoModelForCausalLM, folder)
print("USES", uses)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(weft.__file__).parents[1])}
    environment.pop("HF_HUB_OFFLINE")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, stdout=subprocess.PIPE
    )
    assert b"USES []" in done.stdout
