"""Micro-batches contain every document of a step once, within the limit, for any number of processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.lm.datasets import mixture_of, open_datasets
from weft.lm.micro_batches import MicroBatches
from weft.lm.packing import pack, token_losses
from weft.training import distributed
from weft.training.config import TrainConfig

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=40)


def all_parts(lengths, batch_tokens, num_ranks, grad_accum_steps):
    """Return the samples of each micro-batch, by rank, of a step with documents 100, 101, ... of these lengths."""
    by_rank, samples = [], range(100, 100 + len(lengths))
    for rank in range(num_ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: num_ranks)
            parts = MicroBatches(lambda step: samples, lambda j: lengths[j - 100], batch_tokens, grad_accum_steps)
            by_rank.append([parts.samples(3, part) for part in parts.parts_of(3)])
    return by_rank


@given(LENGTHS, st.integers(1, 1000), st.integers(1, 4), st.integers(1, 4))
def test_every_document_is_in_one_micro_batch_within_the_limit(lengths, batch_tokens, num_ranks, grad_accum_steps):
    by_rank = all_parts(lengths, batch_tokens, num_ranks, grad_accum_steps)
    parts = [part for found in by_rank for part in found]
    assert sorted(j for part in parts for j in part) == list(range(100, 100 + len(lengths)))
    num = num_ranks * grad_accum_steps
    if num > 1:
        assert all(len(part) == 1 or sum(lengths[j - 100] for j in part) <= batch_tokens // num for part in parts)
    numbers = [len(found) for found in by_rank]
    assert max(numbers) - min(numbers) <= 1


@given(LENGTHS)
def test_a_process_without_gradient_accumulation_has_the_whole_step_in_order(lengths):
    assert all_parts(lengths, 1, 1, 1) == [[list(range(100, 100 + len(lengths)))]]


def test_micro_batches_are_of_similar_length():
    lengths = [60, 3, 3, 3, 3, 30, 30, 14, 14]
    by_rank = all_parts(lengths, 4 * 60, 2, 2)
    totals = [[sum(lengths[j - 100] for j in part) for part in parts] for parts in by_rank]
    assert sorted(totals[0] + totals[1]) == [33, 33, 34, 60]
    assert [len(found) for found in totals] == [2, 2]


@pytest.fixture
def mixture(tokens):
    train = TrainConfig(steps=3, precision="fp32")
    return mixture_of({tokens: open_datasets(tokens, 32)}, {}, {}, train, 256)


def test_lengths_of_samples_are_those_of_their_ids(mixture):
    assert all(mixture.length(j) == len(mixture[j][0]) for step in range(3) for j in mixture.samples(step))


@pytest.mark.parametrize(("num_ranks", "grad_accum_steps"), [(1, 2), (1, 5), (2, 1), (3, 2), (4, 9)])
def test_the_gradient_of_a_step_depends_on_neither_ranks_nor_micro_batches(
    mixture, tiny_lm, num_ranks, grad_accum_steps
):
    def gradients(batches):
        total = sum(map(len, batches))
        tiny_lm.zero_grad()
        for batch in batches:
            (len(batch) / total * token_losses(tiny_lm, batch).mean()).backward()
        return [weight.grad.clone() for weight in tiny_lm.parameters()]

    samples = mixture.samples(1)
    lengths = [mixture.length(j) for j in samples]
    parts = [part for found in all_parts(lengths, 256, num_ranks, grad_accum_steps) for part in found]
    assert len(parts) > 1
    whole = gradients([pack([mixture[j] for j in samples])])
    for found, expected in zip(
        gradients([pack([mixture[samples[j - 100]] for j in part]) for part in parts]), whole, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
