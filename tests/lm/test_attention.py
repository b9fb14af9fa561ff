import pytest
import torch
from torch import Tensor, nn

from weft.lm import attention
from weft.lm.attention import segments

LENGTHS = [3, 1, 40, 300, 17, 256]


def by_masks(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """All products of the row in float64, those of other segments and of later ids left out by a mask."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    owner, place = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)), torch.arange(q.shape[2])
    back = place[:, None] - place
    seen = (owner[:, None] == owner) & (back >= 0) & (back < (window or q.shape[2]))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(
    ("given", "heads"),
    [({}, 4), ({}, 2), ({"scaling": 0.5}, 4), ({"sliding_window": 7}, 2), ({"softcap": 0.7}, 4)],
    ids=["plain", "grouped", "scaled", "windowed", "capped"],
)
def test_a_row_attends_as_its_segments_do_alone(given, heads):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, sum(LENGTHS), 8, generator=g).requires_grad_() for n in (4, heads, heads))
    heard, _ = attention._attend(nn.Identity(), q, k, v, None, **segments(LENGTHS), **given)
    scale = given.get("scaling", 8**-0.5)
    expected = by_masks(q, k, v, scale, given.get("sliding_window"), given.get("softcap"))
    torch.testing.assert_close(heard, expected.float(), rtol=1e-4, atol=1e-5)
    weights = torch.randn(heard.shape, generator=g)
    found = torch.autograd.grad((heard * weights).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_products_take_the_dtype_of_values():
    """Under autocast, queries and keys come in float32 from their rotation."""
    q, k, v = (torch.randn(1, 2, sum(LENGTHS), 8) for _ in range(3))
    heard, _ = attention._attend(nn.Identity(), q, k, v.bfloat16(), None, **segments(LENGTHS))
    assert heard.dtype == torch.bfloat16
