"""Conversion of a released GLM-4-Voice tokenizer: `weft import-glm DIR --out DIR`.

    manifest = run(ImportConfig(folder=Path("glm-4-voice-tokenizer"), out=Path("runs/tokenizer")))
    codes = SpeechTokenizer.from_pretrained("runs/tokenizer").encode([samples])[0]   # the codes of the released code

The released directory is that of a Whisper (config.json, model*.safetensors, preprocessor_config.json) with a codebook
and a second position table. Only the part that computes codes is read, whether its weights stand alone or as the
encoder of a whole ASR model. The result is an `encoder_only` tokenizer, which cannot transcribe. The released code
splits speech into windows of 30 s, Whisper's 1500 frames.

Source: speech_tokenizer/{configuration_whisper,modeling_whisper,utils}.py of the GLM-4-Voice repository. Settings that
config.json lacks have the defaults of its WhisperVQConfig. Its encoder_causal_attention and quantize_causal_encoder
have no effect when a mask is given, which is always the case, and are ignored.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft import pretrained
from weft.artifacts import Manifest, base_manifest, loading
from weft.asr.whisper import first_few
from weft.audio import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from weft.config import MODEL
from weft.errors import UserError
from weft.files import read_json_object
from weft.plan import Draft, Plan, create
from weft.tokenizer.artifact import KIND
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper, encoder_parameters
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.weights import require_finite

_WHAT = "a GLM-4-Voice tokenizer"
_LICENCE = "imported weights under the licence of the released GLM-4-Voice tokenizer"
_WINDOW_FRAMES = 1500
_OWN_FIELDS = ("quantize_", "pooling_", "encoder_causal_", "skip_language_detection", "architectures")
_RELEASED_NAMES = {"quantizer.codebook": "codebook.weight", "positions_after.weight": "embed_positions2.weight"}
_ENCODER, _OURS = "model.encoder.", "whisper.model.encoder."
_AFTER_CODES = ("layer_norm.", "decoder.", "model.decoder.", "proj_out.")


@dataclass(frozen=True)
class ImportConfig:
    """Import of a GLM-4-Voice tokenizer."""

    folder: Annotated[Path, MODEL]
    """The released GLM-4-Voice tokenizer, a directory or a name on the Hub."""
    out: Path
    """Output directory of the tokenizer."""


def run(config: ImportConfig) -> Manifest:
    """Create the artifact `config.out`. Raises UserError for anything but a complete GLM-4-Voice tokenizer."""
    with loading(config.folder, _WHAT):
        bottleneck, whisper = read_config(config.folder)
        with torch.device("meta"):
            model = BottleneckWhisper(bottleneck, WhisperForConditionalGeneration(whisper))
    plan = Plan(KIND, {"model": asdict(bottleneck)}, {"source": base_manifest(config.folder)})

    def write(draft: Draft) -> None:
        with loading(config.folder, _WHAT):
            model.load_state_dict(_weights(config.folder, model), assign=True)
        SpeechTokenizer(model.eval()).write_files(draft.folder)
        draft.counts["parameters"] = encoder_parameters(bottleneck, whisper)
        draft.counts["codes"] = bottleneck.quantizer.num_codes

    return create(config.out, plan, write, _LICENCE)


def read_config(folder: Path) -> tuple[BottleneckConfig, WhisperConfig]:
    """Convert the configuration of a released tokenizer to ours and to that of a Whisper with the kept layers.

    Raises UserError for another directory, and for settings with which the released code gives no codes.
    """
    given = pretrained.read_config(folder)
    if given.get("model_type") != "whisper":
        raise UserError(f"{folder} is not {_WHAT}: its model type is {given.get('model_type')!r}, not 'whisper'")
    if not given.get("quantize_vocab_size"):
        raise UserError(
            f"{folder} is not {_WHAT}: its config.json has no quantize_vocab_size; use a Whisper as `base` of weft "
            "train-tokenizer"
        )
    layer, pooling = given.get("quantize_position", 16), given.get("pooling_kernel_size") or 1
    pooling_layer = given.get("pooling_position", 0) if pooling > 1 else layer
    if not 0 < pooling_layer <= layer:
        raise UserError(f"{folder}: pooling_position is {pooling_layer}, expected 1 to {layer}, the layer of the codes")
    pooling_type = given.get("pooling_type", "max")
    if pooling_type not in ("avg", "max"):
        raise UserError(f"{folder}: pooling_type is {pooling_type!r}, expected 'avg' or 'max'")
    known = {name: value for name, value in given.items() if not name.startswith(_OWN_FIELDS)}
    whisper = pretrained.config_of(WhisperConfig, known)
    whisper.encoder_layers = layer
    if whisper.max_source_positions != _WINDOW_FRAMES:
        raise UserError(f"{folder}: max_source_positions is {whisper.max_source_positions}, expected {_WINDOW_FRAMES}")
    _check_features(folder, whisper.num_mel_bins)
    bottleneck = BottleneckConfig(
        layer=layer,
        pooling=pooling,
        pooling_type=pooling_type,
        pooling_layer=pooling_layer,
        block_frames=given.get("quantize_causal_block_size") or 0,
        causal_convolution=given.get("encoder_causal_convolution", False),
        encoder_only=True,
        quantizer=QuantizerConfig(
            num_codes=given["quantize_vocab_size"],
            decay=given.get("quantize_ema_decay") or QuantizerConfig.decay,
            commitment=given.get("quantize_commit_coefficient", 0.25) * given.get("quantize_loss_scale", 1.0),
            restart_every_steps=given.get("quantize_restart_interval") or 0,
        ),
    )
    return bottleneck, whisper


def _check_features(folder: Path, num_mels: int) -> None:
    """Raise UserError unless the released features are those of `weft.audio`."""
    ours = {
        "feature_size": num_mels,
        "hop_length": HOP_SAMPLES,
        "n_fft": WINDOW_SAMPLES,
        "sampling_rate": SAMPLE_RATE_HZ,
        "chunk_length": 30,
        "padding_value": 0.0,
        "dither": 0.0,
    }
    defaults = {**ours, "feature_size": 80}  # of Whisper
    given = defaults | read_json_object(folder / "preprocessor_config.json")
    for name, value in ours.items():
        if given[name] != value:
            raise UserError(f"{folder}/preprocessor_config.json: {name} is {given[name]}, expected {value}")


def _weights(folder: Path, model: BottleneckWhisper) -> dict[str, Tensor]:
    """Read the released weights that `model` has, in fp32 and under its names.

    Raises UserError, naming them, for weights that are missing, unknown or of another shape.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{folder} is not {_WHAT}: it has no model.safetensors")
    expected = model.state_dict()
    released_name = {ours: _RELEASED_NAMES.get(ours, ours.removeprefix(_OURS)) for ours in expected}
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for file in files:
        with safe_open(file, "pt") as weights:
            for full_name in list(weights.keys()):
                name = full_name.removeprefix(_ENCODER)
                if name in released_name.values():
                    found[name] = weights.get_tensor(full_name).float()
                elif not _is_left_out(name, model.config.layer):
                    unknown.append(full_name)
    missing = [name for name in released_name.values() if name not in found]
    problems = [f"lacks {first_few(missing)}"] if missing else []
    problems += [f"has {first_few(unknown)}, which are not part of a GLM-4-Voice tokenizer"] if unknown else []
    if problems:
        raise UserError(
            f"{folder}: model.safetensors {' and '.join(problems)}: check that it is complete and fits config.json"
        )
    for ours, name in released_name.items():
        shape, needed = list(found[name].shape), list(expected[ours].shape)
        if shape != needed:
            raise UserError(f"{folder}: {name} has shape {shape}, but config.json needs {needed}")
    require_finite(found, folder / "model.safetensors")
    return {ours: found[name] for ours, name in released_name.items()}


def _is_left_out(name: str, num_layers: int) -> bool:
    """Whether a released weight is for training only, or of the layers and norm after the codebook or the decoder."""
    if later := re.match(r"layers\.(\d+)\.", name):
        return int(later[1]) >= num_layers
    return name in ("ema_count", "ema_weight") or name.startswith(_AFTER_CODES)
