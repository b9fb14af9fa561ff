"""Continuous batching returns for each request the ids that it gets alone."""

import copy

import numpy as np
import pytest
import torch

from weft.engine import continuous
from weft.engine.sampling import Request, Sampling

from .models import prompts

SAMPLING, STOP_IDS, ALLOWED = Sampling(temperature=1.0), {3, 5}, range(2, 57)


def generate(model, requests, batch_size=256):
    return continuous.generate(model, requests, SAMPLING, STOP_IDS, ALLOWED, None, batch_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_does_not_depend_on_the_other_requests(llama, dtype):
    rng = np.random.default_rng(0)
    model = copy.deepcopy(llama).to(dtype)
    requests = [Request(p, int(rng.integers(1, 40)), seed=i) for i, p in enumerate(prompts(300, seed=1))]
    expected = generate(model, requests)
    assert generate(model, requests[::-1], batch_size=50)[::-1] == expected
    for i in range(0, 300, 75):
        assert generate(model, requests[i : i + 1]) == expected[i : i + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_equal_with_one_thread_and_two(llama, dtype):
    model = copy.deepcopy(llama).to(dtype)
    requests = [Request(p, 6, seed=i) for i, p in enumerate(prompts(64, seed=1))]
    num_threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(generate(model, requests))
    finally:
        torch.set_num_threads(num_threads)
    assert found[0] == found[1]
