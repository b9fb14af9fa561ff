import numpy as np
import pytest
import torch
from torch import Tensor, nn

from weft.lm import attention
from weft.lm.attention import flash_attention_kwargs

LENGTHS = [3, 1, 40, 300, 17, 256]


def masked_attention(q, k, v, scale, window, softcap) -> Tensor:
    """Compute attention over the whole row in float64, with a mask for other segments and later ids."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    segment, offset = np.repeat(range(len(LENGTHS)), LENGTHS), torch.arange(q.shape[2])
    distance = offset[:, None] - offset
    visible = torch.from_numpy(segment[:, None] == segment) & (distance >= 0) & (distance < (window or q.shape[2]))
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(
    ("given", "heads"),
    [({}, 4), ({}, 2), ({"scaling": 0.5}, 4), ({"sliding_window": 7}, 2), ({"softcap": 0.7}, 4)],
    ids=["plain", "grouped", "scaled", "windowed", "capped"],
)
def test_segments_of_a_row_attend_only_to_themselves(given, heads):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, sum(LENGTHS), 8, generator=g).requires_grad_() for n in (4, heads, heads))
    output, _ = attention._attention_forward(nn.Identity(), q, k, v, None, **flash_attention_kwargs(LENGTHS), **given)
    scale = given.get("scaling", 8**-0.5)
    expected = masked_attention(q, k, v, scale, given.get("sliding_window"), given.get("softcap"))
    torch.testing.assert_close(output, expected.float(), rtol=1e-4, atol=1e-5)
    weights = torch.randn(output.shape, generator=g)
    found = torch.autograd.grad((output * weights).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_products_have_the_dtype_of_the_values():
    """Under autocast, rotated queries and keys are float32."""
    q, k, v = (torch.randn(1, 2, sum(LENGTHS), 8) for _ in range(3))
    output, _ = attention._attention_forward(nn.Identity(), q, k, v.bfloat16(), None, **flash_attention_kwargs(LENGTHS))
    assert output.dtype == torch.bfloat16
