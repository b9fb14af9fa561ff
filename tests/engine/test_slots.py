"""Slots: compiled on a CPU they draw what cohorts draw, and do nothing that a CUDA graph could not repeat."""

import copy

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.test_generate import CONFIGS, QUICK, new_model, prompts
from weft.engine import cohorts, slots
from weft.engine.generate import Engine, Request, Sampling
from weft.engine.slots import Slots
from weft.engine.steps import State, Step, read

NUM_SLOTS = 12
SAMPLING, STOPS, ALLOWED, REPEATS = Sampling(temperature=1.0, top_k=20), {3, 5}, range(2, 57), 6


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(slots, "_BACKEND", "aot_eager")  # inductor's first step, which takes a minute less
    monkeypatch.setattr(slots, "_LEAST_WIDTH", 32)


@pytest.fixture(scope="module")
def model():
    return new_model(CONFIGS["llama"])


@pytest.fixture(scope="module")
def shared(model):
    return Slots(Step(model, SAMPLING, STOPS, ALLOWED), REPEATS, NUM_SLOTS)


def some(num: int, most: int, seed: int = 1) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(p, int(rng.integers(0, most)), seed=i) for i, p in enumerate(prompts(num, seed))]


def in_cohorts(model, requests):
    return cohorts.generate(model, requests, SAMPLING, STOPS, ALLOWED, REPEATS, NUM_SLOTS)


def test_compiled_slots_draw_what_cohorts_draw(model, shared):
    counters.clear()
    requests = some(50, 50)
    found = shared.generate(requests)
    assert found == in_cohorts(model, requests)
    assert {g.stopped for g in found} == {True, False}
    assert max(len(g.ids) for g in found) > 32 > min(len(g.ids) for g in found)
    assert counters["stats"]["unique_graphs"] == 2  # one a width, each whole
    assert not counters["graph_break"]


def test_what_was_compiled_serves_other_requests_in_any_company(model, shared):
    expected = shared.generate(some(50, 50))
    counters.clear()
    addresses = [t.data_ptr() for table in shared._tables.values() for t in table._tensors()]
    assert shared.generate(some(50, 50)[::-1])[::-1] == expected
    assert shared.generate(some(50, 50)[7:9]) == expected[7:9]
    assert shared.generate([]) == []
    other = some(30, 20, seed=2)
    assert shared.generate(other) == in_cohorts(model, other)
    assert not counters["stats"]
    assert addresses == [t.data_ptr() for table in shared._tables.values() for t in table._tensors()]


def test_an_interrupted_call_leaves_nothing_behind(shared, monkeypatch):
    requests = some(50, 50)
    expected = shared.generate(requests)
    with monkeypatch.context() as patched:
        patched.setattr(State, "results", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.generate(requests)
    assert shared.generate(requests) == expected


def test_the_engine_goes_on_with_its_slots_while_the_same_is_asked(model, monkeypatch):
    model = copy.deepcopy(model)
    monkeypatch.setattr(slots, "suits", lambda device, num_requests, num_slots: num_requests >= num_slots)
    monkeypatch.setattr(slots, "_compiled", lambda step: step)
    engine, requests = Engine(model, NUM_SLOTS), some(20, 20)

    def generate(ids):
        return engine.generate(requests, SAMPLING, STOPS, ids, REPEATS)

    assert generate(ALLOWED) == in_cohorts(model, requests)
    first = engine._slots[1]
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    assert generate(ALLOWED) == in_cohorts(model, requests)
    assert engine._slots[1] is first
    assert {i for g in generate(range(9)) for i in g.ids} <= set(range(9))
    assert engine._slots[1] is not first


def test_where_nothing_compiles_steps_run_as_they_are(model, monkeypatch):
    def no_compiler(graph, inputs):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(slots, "_BACKEND", no_compiler)
    requests = some(20, 10)
    with pytest.warns(UserWarning, match="generation is not compiled, .* no C compiler"):
        found = Slots(Step(model, SAMPLING, STOPS, ALLOWED), REPEATS, NUM_SLOTS).generate(requests)
    assert found == in_cohorts(model, requests)


class _Calls(TorchDispatchMode):
    """Which operations run, and whether one of them has a shape that values decide."""

    def __init__(self):
        super().__init__()
        self.names, self.bool_indices = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("index", "index_put_", "index_put"):
            self.bool_indices += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=5), Sampling(top_p=0.9)])
def test_a_step_waits_for_nothing_that_was_drawn(name, sampling):
    model, requests = new_model(CONFIGS[name]), some(8, 20)
    rows = torch.arange(8)
    state = State.empty(8, 20, REPEATS, model.device)
    state.begin(rows, requests)
    with torch.inference_mode(), _Calls() as calls:
        cohort = read(model, [r.ids[:-1] for r in requests], rows)
        cohort.make_room()
        calls.names.clear()
        Step(model, sampling, STOPS, None)(state, rows, [cohort])
    assert "index_put_" in calls.names
    assert not calls.names & {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "unique"}
    assert not calls.bool_indices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
def test_recorded_steps_draw_what_cohorts_draw(model, monkeypatch):
    monkeypatch.setattr(slots, "_BACKEND", "inductor")
    on_gpu, requests = copy.deepcopy(model).to("cuda"), some(50, 50)
    found = Slots(Step(on_gpu, SAMPLING, STOPS, ALLOWED), REPEATS, NUM_SLOTS).generate(requests)
    expected = in_cohorts(model, requests)
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= 0.9 * len(requests)  # rounding of another device may move a draw
