"""Conversion of the released GLM-4-Voice models: `weft import-glm DIR --out DIR`.

    run(ImportConfig(folder=Path("glm-4-voice-tokenizer"), out=Path("tokenizer")))
    run(ImportConfig(folder=Path("glm-4-voice-decoder"), tokenizer=Path("tokenizer"), out=Path("decoder")))

The directory of the decoder has `config.yaml`, `flow.pt` and `hift.pt`. The first is read as data, and the others as
tensors, so that nothing in them is executed. `weft.tokenizer.glm` converts the tokenizer.

Source: flow_inference.py of the GLM-4-Voice repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from torch import Tensor

from weft.artifacts import Manifest, base_manifest, loading, read_parent
from weft.config import MODEL
from weft.decoder.decoder import KIND, PublishedDecoder
from weft.decoder.mel import MelConfig
from weft.decoder.published.conformer import EncoderShape
from weft.decoder.published.flow import PUBLISHED_MEL, PublishedConfig, PublishedFlow
from weft.decoder.published.hift import HiFT, HiFTShape
from weft.decoder.published.names import FLOW, HIFT, Rules, folded, renamed
from weft.decoder.published.unet import UNetShape
from weft.errors import UserError
from weft.plan import Draft, Plan, create
from weft.tokenizer import glm
from weft.tokenizer.artifact import KIND as TOKENIZER
from weft.weights import require_finite, require_fit

_WHAT = "a GLM-4-Voice decoder"
_LICENCE = "imported weights under the licence of the released GLM-4-Voice decoder"
_CONFIG, _FLOW, _HIFT = "config.yaml", "flow.pt", "hift.pt"
# Names in config.yaml that say what its values belong to. No other name is accepted.
_KNOWN = re.compile(
    r"!(?:new|name):(?:cosyvoice|matcha|omegaconf)\.[\w.]+|!apply:(?:random\.seed|numpy\.random\.seed|torch[\w.]*seed\w*)"
)


@dataclass(frozen=True)
class ImportConfig:
    """Import of a GLM-4-Voice tokenizer or decoder."""

    folder: Annotated[Path, MODEL]
    """The released GLM-4-Voice tokenizer or decoder, a directory or a name on the Hub."""
    out: Path
    """Output directory."""
    tokenizer: Path | None = None
    """For a decoder: the imported tokenizer, whose codes it converts to audio."""


def run(config: ImportConfig) -> Manifest:
    """Create the artifact `config.out`. Raises UserError for anything but a complete released model."""
    if not (config.folder / _FLOW).exists() and not (config.folder / _HIFT).exists():
        return glm.run(glm.ImportConfig(config.folder, config.out))
    if config.tokenizer is None:
        raise UserError(
            f"{config.folder} has a decoder, which belongs to a tokenizer: give --tokenizer, the imported one"
        )
    parents = {"tokenizer": read_parent(config.tokenizer, TOKENIZER), "source": base_manifest(config.folder)}
    with loading(config.folder, _WHAT):
        released = read_config(config.folder / _CONFIG)
    plan = Plan(KIND, asdict(released), parents)

    def write(draft: Draft) -> None:
        with loading(config.folder, _WHAT):
            models = released.models()
            for model, name, rules in zip(models, (_FLOW, _HIFT), (FLOW, HIFT), strict=True):
                weights = _weights(config.folder / name, rules)
                require_fit(model, weights, config.folder / name)
                model.load_state_dict(weights)
        decoder = PublishedDecoder(models[0].eval(), models[1].eval())
        decoder.write_files(draft.folder)
        draft.counts["parameters"] = sum(p.numel() for model in models for p in model.parameters())

    return create(config.out, plan, write, _LICENCE)


def _weights(path: Path, rules: Rules) -> dict[str, Tensor]:
    weights = renamed(folded(torch.load(path, map_location="cpu", weights_only=True)), rules)
    require_finite(weights, path)
    return {name: weight.float() for name, weight in weights.items()}


@dataclass(frozen=True)
class Released:
    """The configuration of a released decoder."""

    published: PublishedConfig
    hift: HiFTShape
    mel: MelConfig
    num_codes: int
    code_rate_hz: float

    def models(self) -> tuple[PublishedFlow, HiFT]:
        """Return the models with random weights."""
        return PublishedFlow(self.published, self.num_codes, self.code_rate_hz, self.mel), HiFT(self.hift, self.mel)


def read_config(path: Path) -> Released:
    """Convert the configuration of a released decoder to ours.

    Raises UserError for names that would construct other objects than those of the release, with their line.
    """
    values = _read_yaml(path)
    flow, hift = values["flow"], values["hift"]
    encoder, estimator, flow_matching = flow["encoder"], flow["decoder"]["estimator"], flow["decoder"]["cfm_params"]
    channels = set(estimator["channels"])
    if len(channels) != 1 or flow["length_regulator"]["sampling_ratios"] != [1, 1, 1, 1]:
        raise UserError(f"{path} is of a decoder with another structure than the released one")
    shape = HiFTShape(
        channels=hift["base_channels"],
        f0_channels=hift["f0_predictor"]["cond_channels"],
        harmonics=hift["nb_harmonics"],
        upsampling=hift["upsample_rates"][0],
        fft_samples=hift["istft_params"]["n_fft"],
        hop_samples=hift["istft_params"]["hop_len"],
    )
    published = PublishedConfig(
        speaker_width=flow["spk_embed_dim"],
        encoder=EncoderShape(
            encoder["output_size"],
            encoder["attention_heads"],
            encoder["num_blocks"],
            encoder["linear_units"],
            encoder["block_size"],
        ),
        estimator=UNetShape(
            channels.pop(),
            estimator["num_mid_blocks"],
            estimator["n_blocks"],
            estimator["num_heads"],
            estimator["attention_head_dim"],
        ),
        sigma_min=flow_matching["sigma_min"],
        guidance=flow_matching["inference_cfg_rate"],
    )
    mel = replace(
        PUBLISHED_MEL,
        sample_rate_hz=hift["sampling_rate"],
        hop_samples=shape.frame_samples,
        num_mels=flow["output_size"],
    )
    return Released(published, shape, mel, flow["vocab_size"], flow["input_frame_rate"])


class _Loader(yaml.SafeLoader):
    """Reads names of objects as what they are, and their arguments as data."""


def _arguments(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    tag = node.tag
    if not _KNOWN.fullmatch(tag):
        line = node.start_mark.line + 1
        raise UserError(f"line {line} has {tag}, which would construct an object: give the released {_CONFIG}")
    if isinstance(node, yaml.MappingNode):
        values = loader.construct_mapping(node, deep=True)
        return values.get("content", values) if "DictConfig" in tag else values
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None


def _reference(loader: _Loader, node: yaml.Node) -> str:
    return f"!ref {loader.construct_scalar(node)}"  # type: ignore[arg-type]


_Loader.add_constructor("!ref", _reference)
_Loader.add_multi_constructor("", _arguments)


def _read_yaml(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        values = yaml.load(file, _Loader)
    if not isinstance(values, dict):
        raise UserError(f"{path} has no settings")
    return {name: _resolved(value, values) for name, value in values.items()}


def _resolved(value: Any, top: Mapping[str, Any]) -> Any:
    """Replace references to other settings by their values."""
    if isinstance(value, dict):
        return {name: _resolved(v, top) for name, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, top) for v in value]
    if isinstance(value, str) and (found := re.fullmatch(r"!ref <(\w+)>", value)):
        return top[found[1]]
    return value
