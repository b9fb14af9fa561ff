"""The released GLM-4-Voice tokenizer as one of ours: `weft import-glm DIR --out DIR`.

    manifest = run(ImportConfig(folder=Path("glm-4-voice-tokenizer"), out=Path("runs/tokenizer")))
    codes = SpeechTokenizer.load("runs/tokenizer").encode([samples])[0]     # the codes that the released code gives

The published folder is a Whisper's (config.json, model*.safetensors, preprocessor_config.json) with a codebook and a
second position table. Only the half that makes codes is taken, whether the weights stand alone or as the encoder of a
whole ASR model: the result is an `encoder_only` tokenizer, which cannot transcribe. The released code cuts speech into
windows of 30 s, which is Whisper's 1500 frames.

Source: speech_tokenizer/{configuration_whisper,modeling_whisper,utils}.py of the GLM-4-Voice repository. What its
configuration leaves out has the defaults of its WhisperVQConfig. Its encoder_causal_attention and
quantize_causal_encoder do nothing when a mask is given, which it always is, and so they are not read here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft import artifacts
from weft.artifacts import Manifest, loading
from weft.audio import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from weft.config import settings_of
from weft.errors import UserError
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, kept_parameters
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer

_WHAT = "a GLM-4-Voice tokenizer"
_LICENCE = "imported weights: the licence of the released GLM-4-Voice tokenizer holds"
_WINDOW_FRAMES = 1500
_OWN_FIELDS = ("quantize_", "pooling_", "encoder_causal_", "skip_language_detection", "architectures")
_NAMES = {
    "codebook.weight": "quantizer.codebook",
    "embed_positions2.weight": "positions_after.weight",
}
_ENCODER, _OURS = "model.encoder.", "whisper.model.encoder."
_AFTER_CODES = ("layer_norm.", "decoder.", "model.decoder.", "proj_out.")


@dataclass(frozen=True)
class ImportConfig:
    """What to import, and where to."""

    folder: Path
    """Folder of the released GLM-4-Voice tokenizer."""
    out: Path
    """Folder of the tokenizer to make."""


def run(config: ImportConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already from the same files is left as it is.

    Its counts tell parameters and codes. Raises UserError for a folder that is no GLM-4-Voice tokenizer, and for
    weights that do not fit its configuration.
    """
    with loading(config.folder, _WHAT):
        bottleneck, whisper = read_config(config.folder)
    settings = {"source": artifacts.fingerprint(config.folder), "model": settings_of(bottleneck)}
    if artifacts.is_made(config.out, KIND, settings):
        return artifacts.read(config.out)
    with artifacts.build(config.out, KIND, settings, licence=_LICENCE) as draft:
        with torch.device("meta"):
            model = BottleneckWhisper(bottleneck, WhisperForConditionalGeneration(whisper))
        with loading(config.folder, _WHAT):
            model.load_state_dict(_weights(config.folder, model), assign=True)
        SpeechTokenizer(model.eval()).save(draft.folder)
        draft.counts["parameters"] = kept_parameters(bottleneck, whisper)
        draft.counts["codes"] = bottleneck.quantizer.num_codes
    return artifacts.read(config.out)


def read_config(folder: Path) -> tuple[BottleneckConfig, WhisperConfig]:
    """The configuration of a published tokenizer as ours, and as that of a Whisper with the kept layers.

    Raises UserError for a folder that is no GLM-4-Voice tokenizer, and for settings with which the released code gives
    no codes.
    """
    given = _read_json(folder, "config.json")
    what = f"{folder} is not {_WHAT}"
    if given.get("model_type") != "whisper":
        raise UserError(f"{what}: config.json tells of model type {given.get('model_type')!r}, not 'whisper'")
    if not given.get("quantize_vocab_size"):
        raise UserError(f"{what}: config.json has no quantize_vocab_size; a plain Whisper is a base to train from")
    layer, pooling = given.get("quantize_position", 16), given.get("pooling_kernel_size") or 1
    pooling_layer = given.get("pooling_position", 0) if pooling > 1 else layer
    if not 0 < pooling_layer <= layer:
        raise UserError(f"{folder}: pooling_position is {pooling_layer}, and the codes are made after layer {layer}")
    pooling_type = given.get("pooling_type", "max")
    if pooling_type not in ("avg", "max"):
        raise UserError(f"{folder}: pooling_type is {pooling_type!r}, and 'avg' and 'max' are known")
    whisper = WhisperConfig.from_dict({k: v for k, v in given.items() if not k.startswith(_OWN_FIELDS)})
    whisper.encoder_layers = layer
    if whisper.max_source_positions != _WINDOW_FRAMES:
        raise UserError(f"{folder}: max_source_positions is {whisper.max_source_positions}, and 30 s are 1500 frames")
    _check_features(folder, whisper.num_mel_bins)
    quantizer = QuantizerConfig(
        num_codes=given["quantize_vocab_size"],
        decay=given.get("quantize_ema_decay") or QuantizerConfig.decay,
        commitment=given.get("quantize_commit_coefficient", 0.25) * given.get("quantize_loss_scale", 1.0),
        restart_every_steps=given.get("quantize_restart_interval") or 0,
    )
    bottleneck = BottleneckConfig(
        layer=layer,
        pooling=pooling,
        pooling_type=pooling_type,
        pooling_layer=pooling_layer,
        block_frames=given.get("quantize_causal_block_size") or 0,
        causal_convolution=given.get("encoder_causal_convolution", False),
        encoder_only=True,
        quantizer=quantizer,
    )
    return bottleneck, whisper


def _check_features(folder: Path, num_mels: int) -> None:
    """Raise UserError unless the published features are those that we compute."""
    given = _read_json(folder, "preprocessor_config.json")
    ours = {
        "feature_size": num_mels,
        "hop_length": HOP_SAMPLES,
        "n_fft": WINDOW_SAMPLES,
        "sampling_rate": SAMPLE_RATE_HZ,
        "chunk_length": 30,
        "padding_value": 0.0,
        "dither": 0.0,
    }
    whispers = {**ours, "feature_size": 80}  # what Whisper's own features are when nothing is said
    for name, value in ours.items():
        if given.get(name, whispers[name]) != value:
            raise UserError(
                f"{folder}/preprocessor_config.json: {name} is {given.get(name, whispers[name])}, and {value} is needed"
            )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    value = json.loads((folder / name).read_text())
    if not isinstance(value, dict):
        raise UserError(f"{folder / name} is not a JSON object: download it again")
    return value


def _weights(folder: Path, model: BottleneckWhisper) -> dict[str, Tensor]:
    """The published weights that `model` has, in fp32 and under its names; the others are not read.

    Raises UserError that names what is missing, what nobody knows, and what has another shape.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{folder} is not {_WHAT}: it has no model.safetensors")
    wanted = model.state_dict()
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for file in files:
        with safe_open(file, "pt") as weights:
            for name in list(weights.keys()):
                bare = name.removeprefix(_ENCODER)
                ours = _NAMES.get(bare, _OURS + bare)
                if ours in wanted:
                    found[ours] = weights.get_tensor(name).float()
                elif not _is_left_out(bare, model.config.layer):
                    unknown.append(name)
    _check_weights(folder, wanted, found, unknown)
    return found


def _is_left_out(name: str, num_layers: int) -> bool:
    """Whether a published weight only trained the codebook, or follows it: later layers, their norm, the decoder."""
    later = re.match(r"layers\.(\d+)\.", name)
    if later:
        return int(later[1]) >= num_layers
    return name in ("ema_count", "ema_weight") or name.startswith(_AFTER_CODES)


def _check_weights(folder: Path, wanted: dict[str, Tensor], found: dict[str, Tensor], unknown: list[str]) -> None:
    published = {ours: bare for bare, ours in _NAMES.items()}
    bare = {ours: published.get(ours, ours.removeprefix(_OURS)) for ours in wanted}
    missing = [bare[name] for name in wanted if name not in found]
    problems = []
    if missing:
        problems.append(f"misses {_listed(missing)}")
    if unknown:
        problems.append(f"has {_listed(unknown)}, which a GLM-4-Voice tokenizer has not")
    if problems:
        raise UserError(f"{folder}: model.safetensors {' and '.join(problems)}: is it whole, and does config.json fit?")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            asked = list(wanted[name].shape)
            raise UserError(f"{folder}: {bare[name]} is {list(tensor.shape)}, and config.json asks for {asked}")


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
