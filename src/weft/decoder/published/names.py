"""Names of the weights of the released decoder, and the convolutions that it stores as direction and length.

    weights = renamed(folded(torch.load("flow.pt", weights_only=True)), FLOW)

Source: the released GLM-4-Voice decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weft.errors import UserError

Rules = Sequence[tuple[str, str]]

_LAYER = [
    (r"\.self_attn\.linear_q\.", ".query."),
    (r"\.self_attn\.linear_k\.", ".key."),
    (r"\.self_attn\.linear_v\.", ".value."),
    (r"\.self_attn\.linear_out\.", ".attention_out."),
    (r"\.self_attn\.linear_pos\.", ".position."),
    (r"\.self_attn\.pos_bias_u$", ".content_bias"),
    (r"\.self_attn\.pos_bias_v$", ".position_bias"),
    (r"\.norm_mha\.", ".attention_norm."),
    (r"\.norm_ff\.", ".ffn_norm."),
    (r"\.feed_forward\.w_1\.", ".expand."),
    (r"\.feed_forward\.w_2\.", ".contract."),
]
_BLOCK = [
    (r"\.0\.mlp\.1\.", ".time."),
    (r"\.0\.block1\.block\.0\.", ".first.conv."),
    (r"\.0\.block1\.block\.1\.", ".first.norm."),
    (r"\.0\.block2\.block\.0\.", ".second.conv."),
    (r"\.0\.block2\.block\.1\.", ".second.norm."),
    (r"\.0\.res_conv\.", ".skip."),
    (r"\.1\.(\d+)\.norm1\.", r".layers.\1.attention_norm."),
    (r"\.1\.(\d+)\.norm3\.", r".layers.\1.ffn_norm."),
    (r"\.1\.(\d+)\.attn1\.to_q\.", r".layers.\1.query."),
    (r"\.1\.(\d+)\.attn1\.to_k\.", r".layers.\1.key."),
    (r"\.1\.(\d+)\.attn1\.to_v\.", r".layers.\1.value."),
    (r"\.1\.(\d+)\.attn1\.to_out\.0\.", r".layers.\1.attention_out."),
    (r"\.1\.(\d+)\.ff\.net\.0\.proj\.", r".layers.\1.expand."),
    (r"\.1\.(\d+)\.ff\.net\.2\.", r".layers.\1.contract."),
]
FLOW: Rules = [
    (r"^input_embedding\.", "embed."),
    (r"^spk_embed_affine_layer\.", "speaker."),
    (r"^encoder_proj\.", "to_mel."),
    (r"^encoder\.embed\.out\.0\.", "encoder.input."),
    (r"^encoder\.embed\.out\.1\.", "encoder.input_norm."),
    (r"^encoder\.after_norm\.", "encoder.norm."),
    (r"^encoder\.encoders\.", "encoder.layers."),
    *_LAYER,
    (r"^length_regulator\.model\.12\.", "conv_out."),
    *((rf"^length_regulator\.model\.{3 * i}\.", f"convs.{i}.") for i in range(4)),
    *((rf"^length_regulator\.model\.{3 * i + 1}\.", f"conv_norms.{i}.") for i in range(4)),
    (r"^decoder\.estimator\.", "estimator."),
    (r"\.time_mlp\.linear_1\.", ".time_in."),
    (r"\.time_mlp\.linear_2\.", ".time_out."),
    (r"\.down_blocks\.0\.2\.conv\.", ".downsample."),
    (r"\.down_blocks\.1\.2\.", ".after_down."),
    (r"\.up_blocks\.0\.2\.conv\.", ".upsample."),
    (r"\.up_blocks\.1\.2\.", ".after_up."),
    (r"\.final_block\.block\.0\.", ".last.conv."),
    (r"\.final_block\.block\.1\.", ".last.norm."),
    (r"\.final_proj\.", ".output."),
    (r"\.down_blocks\.0\.", ".down_whole."),
    (r"\.down_blocks\.1\.", ".down_half."),
    (r"\.mid_blocks\.", ".middle."),
    (r"\.up_blocks\.0\.", ".up_half."),
    (r"\.up_blocks\.1\.", ".up_whole."),
    *_BLOCK,
]
HIFT: Rules = [
    (r"^m_source\.l_linear\.", "source_mix."),
    (r"^conv_pre\.", "input."),
    (r"^conv_post\.", "output."),
    (r"^source_resblocks\.", "source_filters."),
    (r"^resblocks\.", "filters."),
    (r"\.convs1\.", ".dilated."),
    (r"\.convs2\.", ".plain."),
    (r"\.activations1\.(\d+)\.alpha$", r".dilated_snakes.\1.frequency"),
    (r"\.activations2\.(\d+)\.alpha$", r".plain_snakes.\1.frequency"),
    (r"^f0_predictor\.classifier\.", "f0_out."),
    *((rf"^f0_predictor\.condnet\.{2 * i}\.", f"f0_layers.{i}.") for i in range(5)),
]


def renamed(weights: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return weights under our names. Raises UserError if two of them get the same name."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        new = name
        for old, replacement in rules:
            new = re.sub(old, replacement, new)
        if new in found:
            raise UserError(f"{name} is not a weight of the released decoder: download it again")
        found[new] = weight
    return found


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with those that are stored as length and direction (weight normalization) as one tensor."""
    found = dict(weights)
    for length_name, direction_name in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        for name in [n for n in found if n.endswith(length_name)]:
            stem = name.removesuffix(length_name)
            length, direction = found.pop(name), found.pop(stem + direction_name)
            norm = torch.linalg.vector_norm(direction.flatten(1), dim=1).view(length.shape)
            found[stem + "weight"] = length * direction / norm
    return found
