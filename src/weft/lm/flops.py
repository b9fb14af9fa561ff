"""How much of what a machine can compute goes into a model: model FLOP utilisation.

    flops = ModelFlops.of(model)
    flops.of_batch(batch) / (seconds * peak_flops(device, half=True))

Counted is what the model needs, as in appendix B of PaLM (arXiv 2204.02311): 6 for each parameter and token, forward
and backward, and 12 for each layer, unit of attention's width and pair of tokens. What was done again to save memory is
not counted, nor is padding: attention goes over the tokens of a document, and the head over the ids that are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weft.lm.packing import Batch
from weft.training.cost import product_speed

# Dense products of bf16 with sums of fp32, by the name that torch tells; from NVIDIA's data sheets, whose figures with
# sparsity are twice as high, and for the RTX 4090 from the paper on its architecture.
_BF16_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


@dataclass(frozen=True)
class ModelFlops:
    """What a step of training costs, of a dense model: of a mixture of experts all would be counted, used or not."""

    body: int
    """Operations for each token: all parameters but the head's, and but embeddings, which are only looked up."""
    head: int
    """Operations for each trained id."""
    attention: int
    """Operations for each pair of tokens of one document."""

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """The costs of a transformers model. Of weights that are not trained there is no gradient, which is a third."""
        head = list(model.get_output_embeddings().parameters())
        looked_up = [model.get_input_embeddings(), *(m for m in model.modules() if isinstance(m, nn.Embedding))]
        not_body = {id(p) for p in head} | {id(p) for m in looked_up for p in m.parameters()}
        body = [p for p in model.parameters() if id(p) not in not_body]
        config = model.config.get_text_config()
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(map(_flops, body)),
            head=sum(map(_flops, head)),
            attention=12 * config.num_hidden_layers * config.num_attention_heads * head_width,
        )

    def of_batch(self, batch: Batch) -> int:
        """Operations of the forward and the backward pass over a batch."""
        pairs = 2 * int(batch.positions.sum()) + batch.num_tokens  # 1 + 3 + 5 + ... are the squares of the lengths
        return self.body * batch.num_tokens + self.head * len(batch) + self.attention * pairs


def _flops(parameter: torch.Tensor) -> int:
    return (6 if parameter.requires_grad else 4) * parameter.numel()


def peak_flops(device: torch.device, half: bool) -> float:
    """Operations a second that `device` can do, in bf16 if `half`, else in fp32: as its maker says where that is known
    here, else as products of large matrices take."""
    if half and device.type == "cuda" and (known := _BF16_FLOPS.get(torch.cuda.get_device_name(device))):
        return known
    return product_speed(device.type, torch.bfloat16 if half else torch.float32)
