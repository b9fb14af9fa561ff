import numpy as np
import pytest
import torch

from weft.engine.sampling import Sampling, draw, is_looping


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([7, 7, 7, 7, 7], True),  # four ids that equal the one before
        ([7, 7, 7, 7, 1, 7, 7, 7], False),
        ([9, 1, 2, 1, 2, 1, 2, 9], True),
        ([1, 2, 1, 2, 1], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], True),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3], False),  # a cycle of nine ids
        ([], False),
    ],
)
def test_a_loop_is_a_repeated_cycle_of_up_to_eight_ids(ids, loops):
    assert is_looping([ids, [1, 2, 3], ids], 4) == [loops, False, loops]
    assert is_looping([ids], None) == [False]


def test_draws_follow_the_distribution_truncated_by_top_k_and_top_p():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.0, 0.2]).log().expand(20_000, 5)
    uniform = torch.from_numpy(1 - np.random.default_rng(0).random(20_000)).float()

    def frequencies(sampling: Sampling, allowed: torch.Tensor | None = None) -> list[float]:
        return (torch.bincount(draw(logits, uniform, sampling, allowed), minlength=5) / 20_000).tolist()

    close = {"abs": 0.015}
    assert frequencies(Sampling()) == pytest.approx([0.4, 0.1, 0.3, 0, 0.2], **close)
    assert frequencies(Sampling(temperature=0.5)) == pytest.approx([16 / 30, 1 / 30, 9 / 30, 0, 4 / 30], **close)
    assert frequencies(Sampling(top_k=2)) == pytest.approx([4 / 7, 0, 3 / 7, 0, 0], **close)
    assert frequencies(Sampling(top_p=0.65)) == pytest.approx([4 / 7, 0, 3 / 7, 0, 0], **close)
    assert frequencies(Sampling(top_p=0.75)) == pytest.approx([4 / 9, 0, 3 / 9, 0, 2 / 9], **close)
    assert frequencies(Sampling(), torch.tensor([False, True, True, True, False])) == pytest.approx(
        [0, 0.25, 0.75, 0, 0], **close
    )
    edges = torch.tensor([2.0**-60, 1.0])
    assert set(draw(logits[:2], edges, Sampling()).tolist()) <= {0, 1, 2, 4}
