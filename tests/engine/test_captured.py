"""Compiled on a CPU, the captured step gives the results of continuous batching."""

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from weft.engine import captured, continuous
from weft.engine.captured import CapturedStep
from weft.engine.sampling import Sampling
from weft.engine.step import State, Step

from .models import random_requests

NUM_ROWS, WIDTH = 12, 64
SAMPLING, STOP_IDS, ALLOWED, REPEATS = Sampling(temperature=1.0, top_k=20), {3, 5}, range(2, 57), 6
REQUESTS = random_requests(30, 50)


@pytest.fixture(autouse=True, scope="module")
def _backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "_BACKEND", "aot_eager")  # the first stage of inductor, which takes a minute less
        yield


def captured_step(model):
    return CapturedStep(Step(model, SAMPLING, STOP_IDS, ALLOWED), REPEATS, NUM_ROWS, WIDTH)


@pytest.fixture(scope="module")
def shared(llama):
    counters.clear()
    return captured_step(llama)


def by_continuous_batching(model, requests):
    return continuous.generate(model, requests, SAMPLING, STOP_IDS, ALLOWED, REPEATS, NUM_ROWS)


def test_the_results_are_those_of_continuous_batching(llama, shared):
    found = shared.generate(REQUESTS)
    assert found == by_continuous_batching(llama, REQUESTS)
    assert {g.stopped for g in found} == {True, False}
    assert max(len(g.ids) for g in found) > 32 > min(len(g.ids) for g in found)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def addresses(shared):
    """Return the addresses of the tensors that a CUDA graph would contain."""
    state, batch = shared._state, shared._batch
    tensors = [t for t in vars(state).values() if isinstance(t, Tensor)]
    return [t.data_ptr() for t in (*tensors, state.history.ids, *batch.keys, *batch.values)]


def test_a_compiled_step_serves_any_requests_without_another_compilation(llama, shared):
    expected = shared.generate(REQUESTS)
    counters.clear()
    before = addresses(shared)
    assert shared.generate(REQUESTS[::-1])[::-1] == expected
    assert shared.generate(REQUESTS[7:9]) == expected[7:9]
    assert shared.generate([]) == []
    other = random_requests(30, 20, seed=2)
    assert shared.generate(other) == by_continuous_batching(llama, other)
    assert not counters["stats"]
    assert addresses(shared) == before


def test_an_interrupted_call_does_not_affect_the_next(shared, monkeypatch):
    expected = shared.generate(REQUESTS)
    with monkeypatch.context() as patched:
        patched.setattr(State, "results", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.generate(REQUESTS)
    assert shared.generate(REQUESTS) == expected


def test_a_call_uses_the_current_output_head(llama, monkeypatch):
    monkeypatch.setattr(captured, "_compile", lambda step: step)
    model = copy.deepcopy(llama)
    step = captured_step(model)
    before = step.generate(REQUESTS[:20])
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    assert step.generate(REQUESTS[:20]) == by_continuous_batching(model, REQUESTS[:20]) != before


def test_without_a_compiler_the_step_runs_as_it_is(llama, monkeypatch):
    def no_compiler(graph, inputs):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(captured, "_BACKEND", no_compiler)
    with pytest.warns(UserWarning, match="generation is not compiled, .* no C compiler"):
        found = captured_step(llama).generate(REQUESTS[:20])
    assert found == by_continuous_batching(llama, REQUESTS[:20])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_on_a_gpu_gives_the_results_of_a_cpu(llama, monkeypatch):
    monkeypatch.setattr(captured, "_BACKEND", "inductor")
    found = captured_step(copy.deepcopy(llama).to("cuda")).generate(REQUESTS)
    expected = by_continuous_batching(llama, REQUESTS)
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= 0.9 * len(REQUESTS)  # the rounding of another device may change a sampled id
