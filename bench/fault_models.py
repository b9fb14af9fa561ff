"""Bad model directories, manifests and bundles for bench/faults.py, and artifacts in place of others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fault_cases import Case
from fault_damage import Canary
from fault_runs import Check, any_of, makes, refused
from fault_settings import succeeds
from fault_world import World
from safetensors.torch import load_file, save_file

Change = Callable[[Path], Any]


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad models and artifacts."""
    for name, change, check in _changes():
        for model, command in _loaders(world).items():
            if not (model == "glm" and "tokenizer" in name):
                yield _model_case(world, model, command, name, change, check)
    yield from _other_kinds(world)
    yield from _other_tokenizers(world)
    yield from _manifests(world)


def _loaders(world: World) -> dict[str, list[str]]:
    """Return commands that load a model directory `model`."""
    whisper = world.jobs["pseudo-label"].command[1:]
    return {
        "whisper": ["pseudo-label", *(part.replace(world["whisper"], "model") for part in whisper)],
        "glm": ["import-glm", "model"],
        "llama": ["init-lm", "--base", "model", "--tokenizer", world["train-tokenizer"]],
    }


def _model_case(world: World, model: str, command: list[str], name: str, change: Change, check: Check) -> Case:
    def arguments(folder: Path) -> list[str | bytes]:
        shutil.copytree(world[model], folder / "model")
        (folder / "model/manifest.json").unlink(missing_ok=True)  # as a model from elsewhere
        change(folder / "model")
        return [*command, "--out", "out"]

    return Case(f"model, {command[0]}", name, arguments, check)


def _changes() -> Iterator[tuple[str, Change, Check]]:
    """Yield changes of a model directory."""
    named, either = refused("model"), any_of(succeeds, refused("model"))
    yield "safetensors truncated", lambda f: os.truncate(f / "model.safetensors", 5000), named
    yield "safetensors empty", lambda f: os.truncate(f / "model.safetensors", 0), named
    yield "safetensors of zeros", lambda f: (f / "model.safetensors").write_bytes(bytes(9000)), named
    header = struct.pack("<Q", 1 << 60) + b"{" * 100
    yield "safetensors with a header of 2^60 bytes", lambda f: (f / "model.safetensors").write_bytes(header), named
    yield "safetensors missing", lambda f: (f / "model.safetensors").unlink(), named
    yield "a tensor missing", lambda f: _tensors(f, lambda t: t.pop(max(t))), named
    yield "a tensor of another shape", lambda f: _tensors(f, lambda t: t.update({max(t): torch.zeros(3, 5)})), named
    yield (
        "NaN weights",
        lambda f: _tensors(f, lambda t: max(t.values(), key=torch.numel).view(-1)[:9].fill_(torch.nan)),
        refused(),
    )
    yield (
        "infinite weights",
        lambda f: _tensors(f, lambda t: max(t.values(), key=torch.numel).view(-1)[:9].fill_(torch.inf)),
        refused(),
    )
    yield "integer weights", lambda f: _tensors(f, lambda t: t.update({n: w.int() for n, w in t.items()})), either
    yield "pickled weights", _pickled, named
    yield "pickled weights beside", lambda f: (f / "pytorch_model.bin").write_bytes(_payload(f)), either
    yield "config missing", lambda f: (f / "config.json").unlink(), named
    yield "config not JSON", lambda f: (f / "config.json").write_text("{"), named
    yield "config a list", lambda f: (f / "config.json").write_text("[]"), named
    yield "config of 100,000 brackets", lambda f: (f / "config.json").write_text("[" * 100_000), named
    yield "config binary", lambda f: (f / "config.json").write_bytes(bytes(range(256))), named
    yield "config of an unknown model", _config(model_type="unknown"), named
    yield "config of another model", _config(model_type="bert"), named
    yield "config with NaN", _config(layer_norm_eps=float("nan"), rms_norm_eps=float("nan")), either
    yield "config of another width", _config(d_model=24, hidden_size=24), named
    yield "config with width 0", _config(d_model=0, hidden_size=0), named
    yield "config with a negative width", _config(d_model=-8, hidden_size=-8), named
    yield "config with a string for a width", _config(d_model="wide", hidden_size="wide"), named
    yield (
        "config with a billion layers",
        _config(encoder_layers=10**9, num_hidden_layers=10**9, decoder_layers=10**9),
        either,
    )
    yield "config with 10^12 ids", _config(vocab_size=10**12, quantize_vocab_size=10**12), refused()
    yield "config with other heads", _config(encoder_attention_heads=3, num_attention_heads=5), either
    yield "code of the model", _auto_map, any_of(named, succeeds)
    yield "unknown attention", _config(_attn_implementation="evil/kernel"), refused("_attn_implementation")
    yield "tokenizer missing", _without_tokenizer, named
    yield "tokenizer not JSON", lambda f: (f / "tokenizer.json").write_text("{"), named
    yield "tokenizer with code", _tokenizer_code, any_of(named, succeeds)
    yield "empty directory", _emptied, named
    yield "a file", _as_file, named
    yield "weights a directory", _weights_directory, named


def _config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        known = {
            name: value for name, value in values.items() if name in config or name.startswith(("_", "model_type"))
        }
        path.write_text(json.dumps({**config, **known}))

    return change


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def _payload(folder: Path) -> bytes:
    return pickle.dumps(Canary(folder.parent / "canary"))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(_payload(folder))


def _code(folder: Path) -> str:
    return f"import os\nos.mkdir({str(folder.parent / 'canary')!r})\n"


def _auto_map(folder: Path) -> None:
    (folder / "evil.py").write_text(_code(folder))
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSpeechSeq2Seq")
    _config(_x=0)(folder)
    path = folder / "config.json"
    auto_map = dict.fromkeys(names, "evil.Evil")
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "evil", "auto_map": auto_map}))


def _tokenizer_code(folder: Path) -> None:
    (folder / "evil.py").write_text(_code(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(config | {"tokenizer_class": "Evil"}))


def _without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a directory")


def _weights_directory(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


# Artifacts in place of others


def _other_kinds(world: World) -> Iterator[Case]:
    """Yield every command with each other kind of artifact in place of the one that it needs."""
    speech, tokenizer = world["speak"], world["train-tokenizer"]
    commands: dict[str, tuple[str, list[str]]] = {
        "tokenize --tokenizer": ("tokenizer", ["tokenize", speech, "--tokenizer"]),
        "resynth --decoder": ("decoder", ["resynth", speech, "--tokenizer", tokenizer, "--decoder"]),
        "interleave --text-to-token": ("text_to_token", ["interleave", world["corpus.jsonl"], "--text-to-token"]),
        "dialogues --text-to-token": ("text_to_token", ["dialogues", world["dialogues.jsonl"], "--text-to-token"]),
        "documents speech": ("codes", ["documents", "speech", "--source"]),
        "pack": ("documents", ["pack", "--lm", world["init-lm"], "--dataset"]),
        "init-lm --tokenizer": ("tokenizer", ["init-lm", "--base", world["train-text-to-token"], "--tokenizer"]),
        "pretrain --tokens": ("tokens", ["pretrain", world["pretrain.toml"], "--tokens"]),
        "train-decoder --codes": ("codes", ["train-decoder", world["decoder.toml"], "--codes"]),
        "view": ("documents", ["view"]),
    }
    kinds = {
        "tokenizer": "train-tokenizer",
        "decoder": "train-decoder",
        "text_to_token": "train-text-to-token",
        "codes": "tokenize",
        "documents": "documents-text",
        "tokens": "pack",
        "language_model": "init-lm",
        "audio": "speak",
        "resynthesis": "resynth",
    }
    for name, (needed, command) in commands.items():
        for kind, artifact in kinds.items():
            if kind != needed:
                arguments = [*command, world[artifact], "--out", "out.html" if name == "view" else "out"]
                check = refused(artifact)
                yield Case("artifact of another kind", f"{name}: {kind}", lambda _, a=arguments: a, check)  # type: ignore[misc]


def _other_tokenizers(world: World) -> Iterator[Case]:
    """Yield artifacts that were made with another tokenizer."""
    other, speech = world["import-glm"], world["speak/audio/lines-1.flac"]
    commands: dict[str, list[str]] = {
        "resynth": ["resynth", speech, "--tokenizer", other, "--decoder", world["train-decoder"]],
        "train-decoder": ["train-decoder", world["decoder.toml"], "--tokenizer", other],
        "train-text-to-token": ["train-text-to-token", world["text_to_token.toml"], "--tokenizer", other],
        "init-lm": ["init-lm", "--base", world["train-text-to-token"], "--tokenizer", other],
        "pretrain": ["pretrain", world["pretrain.toml"], "--base", world["whisper"]],
        "interleave --tokenizer": [
            *("interleave", world["corpus.jsonl"], "--text-to-token", world["train-text-to-token"]),
            *("--tokenizer", other),
        ],
    }
    for name, arguments in commands.items():
        allowed = any_of(refused(), makes()) if name == "init-lm" else refused()
        yield Case("other tokenizer", name, lambda _, a=arguments: [*a, "--out", "out"], allowed)  # type: ignore[misc]


def _manifests(world: World) -> Iterator[Case]:
    """Yield manifests that are not valid, read by `weft info` and by `weft documents`."""
    good = json.loads((world.folder / "tokenize/manifest.json").read_text())
    manifests: dict[str, str | bytes] = {
        "empty": "",
        "not JSON": "{",
        "a list": "[]",
        "null": "null",
        "binary": bytes(range(256)),
        "UTF-16": json.dumps(good).encode("utf-16"),
        "100,000 brackets": "[" * 100_000,
        "no kind": json.dumps({k: v for k, v in good.items() if k != "kind"}),
        "kind null": json.dumps({**good, "kind": None}),
        "fingerprint a number": json.dumps({**good, "fingerprint": 5}),
        "counts a list": json.dumps({**good, "counts": []}),
        "parents a string": json.dumps({**good, "parents": "x"}),
        "parents of numbers": json.dumps({**good, "parents": {"tokenizer": 5}}),
        "unknown key": json.dumps({**good, "other": 1}),
        "newer format": json.dumps({**good, "format_version": 999}),
        "format a string": json.dumps({**good, "format_version": "1"}),
    }
    checks: dict[str, Check] = {
        "unknown key": any_of(succeeds, refused("codes")),
        "parents of numbers": any_of(succeeds, refused()),
    }
    for name, content in manifests.items():
        for command in (["info", "codes"], ["documents", "speech", "--source", "codes", "--out", "out"]):

            def arguments(
                folder: Path, content: str | bytes = content, command: list[str] = command
            ) -> list[str | bytes]:
                shutil.copytree(world["tokenize"], folder / "codes")
                content = content if isinstance(content, bytes) else content.encode()
                (folder / "codes/manifest.json").write_bytes(content)
                return list(command)

            yield Case(f"manifest.json, {command[0]}", name, arguments, checks.get(name, refused("codes")))
    hostile = {**good, "notes": {"licences": "\x1b[31mred\x07"}, "settings": {"\x1b]0;title\x07": "\x9b"}}

    def shown(folder: Path) -> list[str | bytes]:
        shutil.copytree(world["tokenize"], folder / "codes")
        (folder / "codes/manifest.json").write_text(json.dumps(hostile, ensure_ascii=False))
        return ["info", "codes"]

    yield Case("manifest.json, info", "control characters", shown, any_of(succeeds, refused("codes")))
