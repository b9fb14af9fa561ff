from typing import Any

import pytest
import torch
from torch import nn

from weft.tokenizer import attention
from weft.tokenizer.attention import _attention_forward, steps_of
from weft.tokenizer.encoder import _bias, block_mask


def attend(
    inputs: list[torch.Tensor], mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output and the gradients of the inputs."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output, _ = _attention_forward(nn.Identity(), *inputs, mask, scaling=0.5, **kwargs)
    return output, list(torch.autograd.grad(output.square().sum(), inputs))


@pytest.mark.parametrize("is_masked", [False, True])
def test_long_and_short_sequences_have_the_same_attention(is_masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 12, 8, dtype=torch.float64) for _ in range(3)]
    valid = torch.arange(12) < torch.tensor([[12], [7]])
    mask = _bias(block_mask(12, 4, valid, torch.device("cpu"))).double() if is_masked else None
    short = attend(inputs, mask)
    monkeypatch.setattr(attention, "_MIN_KEYS", 12)
    long = attend(inputs, mask)
    assert short[0].shape == (2, 12, 3, 8)
    torch.testing.assert_close(long, short)


@pytest.mark.parametrize("min_queries", [1, 8, 100])
@pytest.mark.parametrize("block", [0, 4, 5])
def test_attention_by_blocks_is_that_with_their_mask(
    block: int, min_queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 22, 8, dtype=torch.float64) for _ in range(3)]
    valid = torch.arange(22) < torch.tensor([[22], [13]])
    mask = _bias(block_mask(22, block, valid, torch.device("cpu"))).double()
    monkeypatch.setattr(attention, "_MIN_QUERIES", min_queries)
    steps = steps_of(22, block, 13)
    by_blocks, whole = attend(inputs, mask, steps=steps), attend(inputs, mask)
    torch.testing.assert_close(by_blocks, whole)
    num_scores = sum((step.end - step.start) * step.num_keys for step in steps)
    assert num_scores < 22 * 22 or not block or min_queries == 100
