"""The model card of a model artifact: README.md, with the metadata that the Hugging Face Hub reads.

    write_card(folder, manifest)        # of a model; other kinds have none

A card repeats the manifest for people: what the model is, what it was made from, what was measured, and how to load it.
It is a function of the manifest, without dates, paths and measured times, and is not part of the artifact
(`weft.listing`), so that it can be edited before a model is published.

Source: https://github.com/huggingface/hub-docs/blob/main/modelcard.md (keys of the metadata).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.artifacts import Manifest
from weft.errors import printable
from weft.listing import CARD

# Licences that data and models often have, of https://huggingface.co/docs/hub/repositories-licenses.
_HUB_LICENCES = re.compile(
    r"(?:a?gpl|lgpl)-3\.0|apache-2\.0|bsd-[23]-clause|cc0-1\.0|cc-by(?:-nc)?(?:-sa|-nd)?-[34]\.0|gemma|"
    r"llama(?:2|3|3\.1|3\.2|3\.3)|mit|mpl-2\.0|odbl|odc-by|openrail|pddl|unlicense"
)
_METRICS = ("wer", "cer")  # counts that are metrics of the Hub
_PARENTS = {
    "base": "model that it started from",
    "init": "tokenizer that it started from",
    "encoder": "tokenizer with the same codes",
    "source": "released model that was converted",
    "tokenizer": "speech tokenizer",
    "vocoder": "vocoder",
    "codes": "codes, for training",
    "tokens": "token shards, for training",
    "held_out": "token shards, for evaluation",
}


@dataclass(frozen=True)
class _Kind:
    """What the cards of a kind of model say."""

    name: str
    library: str
    tags: tuple[str, ...]
    about: str
    snippet: str
    limits: str


_KINDS = {
    "tokenizer": _Kind(
        name="Speech tokenizer",
        library="weft",
        tags=("speech", "speech-tokenizer"),
        about="It converts speech to codes, integers of one codebook. It is a Whisper with a quantized bottleneck in "
        "its encoder.",
        snippet="""
import numpy as np
import weft

tokenizer = weft.SpeechTokenizer.from_pretrained(".")  # the directory of this file
samples = np.zeros(16_000, np.float32)  # one second of mono audio at 16 kHz
codes = tokenizer.encode([samples])[0]
""",
        limits="Codes represent what is said more than the voice that says it. Speech that differs from the training "
        "data (language, noise, recording) has less accurate codes.",
    ),
    "decoder": _Kind(
        name="Speech decoder",
        library="weft",
        tags=("speech", "audio-generation", "flow-matching"),
        about="It converts codes of the speech tokenizer below to audio, by flow matching and a vocoder.",
        snippet="""
import weft

decoder = weft.SpeechDecoder.from_pretrained(".")  # the directory of this file
samples = decoder.synthesize([1, 2, 3], seed=0)  # codes of the speech tokenizer
""",
        limits="It converts codes of no other tokenizer. Its voices are those of its training data.",
    ),
    "vocoder": _Kind(
        name="Vocoder",
        library="weft",
        tags=("speech", "vocoder"),
        about="It converts mel spectrograms to audio, as a part of speech decoders.",
        snippet="""
import torch
from weft.decoder.load import load_vocoder

vocoder = load_vocoder(".")  # the directory of this file
samples = torch.zeros(1, 100 * vocoder.hop_samples)
samples = vocoder(vocoder.spectrogram(samples))
""",
        limits="Voices and sounds that differ from its training data are less accurate.",
    ),
    "text_to_token": _Kind(
        name="Text-to-token model",
        library="transformers",
        tags=("speech", "text-to-speech"),
        about="It converts text to codes of the speech tokenizer below, for training data or for a speech decoder. It "
        "is a causal language model with speech tokens in its vocabulary.",
        snippet="""
import weft

synthesizer = weft.Synthesizer.from_pretrained(".")  # the directory of this file
codes = synthesizer.synthesize(["a short sentence"], seeds=[0])[0]  # None: no speech was sampled
""",
        limits="Samples can leave out or repeat words. Text that differs from the training data is spoken less "
        "accurately.",
    ),
    "language_model": _Kind(
        name="Speech-text language model",
        library="transformers",
        tags=("speech", "speech-language-model"),
        about="It is a causal language model of text and of speech, which is codes of the speech tokenizer below: "
        "`<|begin_of_audio|>`, one token `<|audio_N|>` per code, `<|end_of_audio|>`.",
        snippet="""
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the directory of this file, or the name of its repository
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("A short text", return_tensors="pt")
outputs = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=20)
print(tokenizer.decode(outputs[0]))
""",
        limits="Engines other than transformers must exclude the `suppress_tokens` in `generation_config.json` from "
        "sampling. Like all language models, it can state what is false or offensive.",
    ),
}


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card of a model into its directory. Artifacts of other kinds get none."""
    if manifest.kind in _KINDS:
        (folder / CARD).write_text(card_of(manifest), "utf-8")


def card_of(manifest: Manifest) -> str:
    """Return the text of the card of a model: metadata in YAML, then Markdown. All values of data are quoted."""
    kind = _KINDS[manifest.kind]
    metadata = [f"{key}: {json.dumps(value)}" for key, value in _metadata(manifest).items()]  # JSON is also YAML
    settings = [f"{name} = {value}" for name, value in _flat(manifest.settings)]
    warnings = manifest.notes.get("warnings")
    sections = {
        "Made from": [f"- {_parent(name)} {_code(name)}: {_code(value)}" for name, value in manifest.parents.items()],
        "Settings": ["```text", *settings, "```"] if settings else [],
        "Counts and measurements": [f"- {_code(name)}: {value}" for name, value in _measured(manifest.counts)],
        "Use": ["```python", kind.snippet.strip(), "```"],
        "Limits": [kind.limits, *([f"\nWarnings: {_code(warnings)}"] if warnings else [])],
        "Licence": _licence_section(manifest),
    }
    made = f"{kind.about} {_stage(manifest)}It was created by weft; its fingerprint is {_code(manifest.fingerprint)}."
    text = [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items() if lines]
    return "\n".join(["---", *metadata, "---", "", f"# {kind.name}", "", made, "", "\n\n".join(text), ""])


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the metadata of a card. The name of a base model is not known: its contents identify it."""
    kind = _KINDS[manifest.kind]
    found: dict[str, Any] = {"library_name": kind.library, "tags": ["weft", *kind.tags]}
    language = manifest.settings.get("language")
    if isinstance(language, str) and re.fullmatch("[a-z]{2,3}", language):
        found["language"] = language
    found |= _licence(manifest.notes.get("licences", ""))
    if metrics := [name for name in _METRICS if name in manifest.counts]:
        found["metrics"] = metrics
    return found


def _licence(licences: str) -> dict[str, str]:
    """Return the metadata of licences: an identifier of the Hub, or `other` with a name of the characters it allows."""
    names = [re.sub("[^a-z0-9.]+", "-", licence.lower()).strip("-.") for licence in licences.split("; ")]
    names = list(dict.fromkeys("cc0-1.0" if name == "cc0" else name for name in names if name))
    if len(names) == 1 and _HUB_LICENCES.fullmatch(names[0]):
        return {"license": names[0]}
    named = {"license_name": "-and-".join(names)[:96].strip("-.")} if names else {}
    return {"license": "other", **named} if licences else {}


def _licence_section(manifest: Manifest) -> list[str]:
    licences = manifest.notes.get("licences")
    if not licences:
        return ["No licence was given for the data and models that it was made from."]
    return [f"Given for the data and models that it was made from: {_code(licences)}."]


def _stage(manifest: Manifest) -> str:
    """Return a sentence about the training of a language model, or nothing for other models."""
    if manifest.kind != "language_model":
        return ""
    if not any(name.split()[0] == "tokens" for name in manifest.parents):
        return "It is the starting point of pre-training. "
    lora = manifest.settings.get("lora")
    is_lora = isinstance(lora, dict) and lora.get("rank")
    return "It was trained with low-rank adapters (LoRA), which are merged into its weights. " if is_lora else ""


def _parent(name: str) -> str:
    return _PARENTS.get(name.split()[0] if name.strip() else "", "artifact")


def _measured(counts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values of numbers, without the speed of training and without lists, which have names of data."""
    for name, value in counts.items():
        if isinstance(value, int | float) and name != "tokens_per_sec":
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _flat(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    """Yield names, those of nested values joined by dots, and values as JSON, all in one line each.

    Settings of format 1 have paths, which are left out.
    """
    for key, value in values.items():
        full = f"{name}.{key}".strip(".")
        if isinstance(value, dict) and value:
            yield from _flat(value, full)
        elif not any(str(item).startswith("/") for item in (value if isinstance(value, list) else [value])):
            yield printable(full), printable(json.dumps(value, ensure_ascii=False))


def _code(text: object) -> str:
    """Return text as a code span of Markdown, in which nothing has a meaning."""
    shown = printable(str(text))
    if "`" not in shown:
        return f"`{shown}`"
    marks = "`" * (1 + max(map(len, re.findall("`+", shown))))
    return f"{marks} {shown} {marks}"
