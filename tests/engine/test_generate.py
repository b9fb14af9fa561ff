"""The engine gives the ids of transformers' own `generate`. Most tests run with a model of each schedule."""

import copy

import pytest
import torch

from weft.engine import captured, step
from weft.engine.generate import Engine, Request, Sampling
from weft.engine.sampling import is_looping
from weft.errors import UserError

from .models import CONFIGS, VOCAB, new_model, prompts, random_requests

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["llama", "gpt2, absolute positions"])
def model(request):
    return new_model(CONFIGS[request.param])


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_batches_equal_the_generate_of_transformers(name):
    model = new_model(CONFIGS[name])
    lengths = [3, 9, 20, 14, 1, 20]
    requests = [Request(p, length) for p, length in zip(prompts(len(lengths)), lengths, strict=True)]
    answers = [_transformers_greedy(model, request) for request in requests]
    in_some = [i for i in range(VOCAB) if 0 < sum(i in a for a in answers) < len(answers)]
    stop = max(in_some, key=lambda i: sum(i in a for a in answers))
    found = Engine(model, batch_size=4).generate(requests, GREEDY, stop_ids={stop})
    for answer, generated in zip(answers, found, strict=True):
        assert generated.stopped == (stop in answer)
        assert generated.ids == answer[: answer.index(stop) if stop in answer else None]
    assert {g.stopped for g in found} == {True, False}


def _transformers_greedy(model, request: Request) -> list[int]:
    ids = torch.tensor([request.ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(request.ids) :].tolist()


def test_a_result_depends_on_its_seed_and_not_on_other_requests(model):
    requests = [Request(p, 20, seed=i) for i, p in enumerate(prompts(12))]
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = Engine(model).generate(requests, sampling, stop_ids={3})
    reversed_in_threes = Engine(model, batch_size=3).generate(requests[::-1], sampling, stop_ids={3})[::-1]
    assert together == reversed_in_threes
    other_seed = Engine(model).generate([Request(r.ids, 20, seed=r.seed + 100) for r in requests], sampling, {3})
    assert all(a != b for a, b in zip(together, other_seed, strict=True))


def test_continuous_batching_samples_the_ids_of_transformers_forward_pass(llama, monkeypatch):
    requests = [Request(p, 30, seed=i) for i, p in enumerate(prompts(60, seed=2))]
    continuous = Engine(llama, batch_size=20).generate(requests, Sampling(top_k=20), {3}, range(2, 57), 5)
    monkeypatch.setattr(step, "is_supported", lambda model: False)
    assert Engine(llama, batch_size=20).generate(requests, Sampling(top_k=20), {3}, range(2, 57), 5) == continuous
    assert len({g.stopped for g in continuous}) == 2


def test_a_captured_step_serves_later_calls_with_the_same_settings(llama, monkeypatch):
    monkeypatch.setattr(captured, "_compile", lambda step: step)
    engine, requests = Engine(llama, batch_size=12), random_requests(12, 20)
    settings = Sampling(top_k=20), {3, 5}, list(range(2, 57)), 6
    first = engine._captured_for(requests, *settings)
    assert first.width == 128
    assert engine._captured_for(requests[:3], *settings) is first
    assert engine._captured_for(random_requests(12, 100), *settings) is first
    wider = engine._captured_for([Request([1] * 100, 100)], *settings)
    assert wider.width == 256
    assert engine._captured_for(requests, *settings) is wider
    assert engine._captured_for(requests, *settings[:2], [5, 6], 6) is not wider


def test_a_row_ends_when_it_gets_into_a_loop(model):
    requests = [Request(p, 60) for p in prompts(20, seed=3)]
    free = Engine(model).generate(requests, GREEDY)
    checked = Engine(model).generate(requests, GREEDY, max_repeats=6)
    assert is_looping([g.ids for g in checked], 6) == [len(g.ids) < 60 for g in checked]
    assert any(is_looping([g.ids for g in checked], 6))
    for whole, ended in zip(free, checked, strict=True):
        assert ended.ids == whole.ids[: len(ended.ids)]
        assert not ended.stopped
        assert not is_looping([ended.ids[:-1]], 6)[0]


def test_only_allowed_ids_are_sampled(model):
    requests = [Request(p, 15, seed=i) for i, p in enumerate(prompts(9))]
    found = Engine(model).generate(requests, Sampling(temperature=2.0), allowed=[50, 9, 60])
    assert {i for g in found for i in g.ids} == {9, 50, 60}


def test_suppressed_ids_are_not_sampled_unless_they_are_allowed(model):
    model = copy.deepcopy(model)
    model.generation_config.suppress_tokens = list(range(2, VOCAB))
    engine = Engine(model)
    requests = [Request(p, 15, seed=i) for i, p in enumerate(prompts(9))]
    assert {i for g in engine.generate(requests, Sampling()) for i in g.ids} == {0, 1}
    assert {i for g in engine.generate(requests, Sampling(), allowed=[50]) for i in g.ids} == {50}
    session = engine.session()
    session.feed([5])
    assert {session.sample(Sampling()) for _ in range(15)} == {0, 1}


def test_a_session_fed_in_pieces_gives_the_ids_of_a_batch(llama):
    prompt = prompts(1, seed=5)[0] + [7, 8, 9]
    expected = Engine(llama).generate([Request(prompt, 12, seed=4)], Sampling(top_k=8))[0].ids
    engine = Engine(llama)
    session, other = engine.session(seed=4), engine.session(seed=9)
    session.feed(prompt[:2])
    other.feed([1, 2, 3, 4, 5])
    session.feed(prompt[2:])
    found = []
    for _ in range(12):
        found.append(session.sample(Sampling(top_k=8)))
        other.sample(Sampling())
    assert found == expected
    assert session.ids == prompt + expected


def test_ids_can_be_fed_between_samples_and_samples_masked(llama):
    session = Engine(llama).session()
    session.feed([5, 6])
    first = session.sample(GREEDY)
    session.feed([11, 12])
    second = session.sample(GREEDY, allowed=torch.arange(VOCAB) >= 40)
    logits = llama(torch.tensor([[5, 6, first, 11, 12]])).logits[0, -1]
    assert second == 40 + int(logits[40:].argmax())


def test_the_global_random_state_is_neither_used_nor_changed(llama):
    requests = [Request([1, 2, 3], 10, seed=1)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Engine(llama).generate(requests, Sampling())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert Engine(llama).generate(requests, Sampling()) == first


def test_impossible_requests_are_rejected(llama):
    engine = Engine(llama)
    with pytest.raises(UserError, match="129 tokens is longer than the model's 128 positions"):
        engine.generate([Request([1] * 100, 29)], GREEDY)
    with pytest.raises(ValueError, match="prompt"):
        engine.generate([Request([], 5)], GREEDY)
    with pytest.raises(ValueError, match="fed"):
        engine.session().sample(GREEDY)
    assert engine.generate([], GREEDY) == []
    assert engine.generate([Request([1], 0)], GREEDY)[0].ids == []
