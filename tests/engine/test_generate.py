"""The engine: the same ids as transformers' own generate, draws that belong to their request, sessions apart.

What is said of generation holds both for the quick way and for models that only transformers can run.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from weft.engine import steps
from weft.engine.generate import Engine, Request, Sampling
from weft.engine.sampling import draw, went_in_circles
from weft.errors import UserError

VOCAB = 61
_SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**_SMALL),
    "llama, scaled angles": LlamaConfig(**_SMALL, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}),
    "qwen2": Qwen2Config(**_SMALL),
    "qwen2, sliding window": Qwen2Config(**_SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": Qwen3Config(**_SMALL, head_dim=16),
    "mistral, sliding window": MistralConfig(**_SMALL, sliding_window=6),
    "gpt2, absolute positions": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "qwen3-next, linear attention": Qwen3NextConfig(
        **{**_SMALL, "num_experts": 0}, head_dim=8, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip
QUICK = {"llama", "llama, scaled angles", "qwen2", "qwen3"}
GREEDY = Sampling(temperature=0)


def new_model(config: PretrainedConfig) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for p in model.parameters():  # larger than the usual start, so that the likeliest id changes with the input
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(scope="module")
def llama():
    return new_model(CONFIGS["llama"])


@pytest.fixture(scope="module", params=["llama", "gpt2, absolute positions"])
def model(request):
    return new_model(CONFIGS[request.param])


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, rng.integers(1, 12)).tolist() for _ in range(num)]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_batches_equal_transformers_generate_one_by_one(name):
    model = new_model(CONFIGS[name])
    assert steps.suits(model) == (name in QUICK)
    caps = [3, 9, 20, 14, 1, 20]
    requests = [Request(p, cap) for p, cap in zip(prompts(len(caps)), caps, strict=True)]
    stop = _common_id(model, requests)
    found = Engine(model, batch_size=4).generate(requests, GREEDY, stop_ids={stop})
    for request, generated in zip(requests, found, strict=True):
        expected = _transformers_greedy(model, request, stop)
        assert generated.stopped == (stop in expected)
        assert generated.ids == [i for i in expected if i != stop]
    assert {g.stopped for g in found} == {True, False}


def _transformers_greedy(model, request: Request, stop: int | None) -> list[int]:
    ids = torch.tensor([request.ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(request.ids) :].tolist()


def _common_id(model, requests) -> int:
    """An id that some greedy answers contain and some do not, to serve as the stop id."""
    answers = [_transformers_greedy(model, r, None) for r in requests]
    in_some = [i for i in range(VOCAB) if 0 < sum(i in a for a in answers) < len(answers)]
    return max(in_some, key=lambda i: sum(i in a for a in answers))


def test_a_draw_depends_on_its_seed_and_not_on_its_neighbours(model):
    requests = [Request(p, 20, seed=i) for i, p in enumerate(prompts(12))]
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = Engine(model).generate(requests, sampling, stop_ids={3})
    reversed_in_threes = Engine(model, batch_size=3).generate(requests[::-1], sampling, stop_ids={3})[::-1]
    assert together == reversed_in_threes
    other_seed = Engine(model).generate([Request(r.ids, 20, seed=r.seed + 100) for r in requests], sampling, {3})
    assert all(a != b for a, b in zip(together, other_seed, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_depends_on_its_company_among_many(llama, dtype):
    rng = np.random.default_rng(0)
    model = copy.deepcopy(llama).to(dtype)
    requests = [Request(p, int(rng.integers(1, 40)), seed=i) for i, p in enumerate(prompts(1000, seed=1))]
    sampling = Sampling(temperature=1.0)
    alike = {"stop_ids": {3, 5}, "allowed": range(2, 57)}
    expected = Engine(model).generate(requests, sampling, **alike)
    assert Engine(model, batch_size=50).generate(requests[::-1], sampling, **alike)[::-1] == expected
    for i in range(0, 1000, 200):
        assert Engine(model).generate(requests[i : i + 1], sampling, **alike) == expected[i : i + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_on_one_thread_and_two(llama, dtype):
    model = copy.deepcopy(llama).to(dtype)
    requests = [Request(p, 12, seed=i) for i, p in enumerate(prompts(64, seed=1))]
    num_threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(Engine(model).generate(requests, Sampling()))
    finally:
        torch.set_num_threads(num_threads)
    assert found[0] == found[1]


def test_the_quick_way_draws_what_transformers_forward_draws(llama, monkeypatch):
    requests = [Request(p, 30, seed=i) for i, p in enumerate(prompts(100, seed=2))]
    quick = Engine(llama, batch_size=32).generate(requests, Sampling(top_k=20), {3}, range(2, 57), 5)
    monkeypatch.setattr(steps, "suits", lambda model: False)
    assert Engine(llama, batch_size=32).generate(requests, Sampling(top_k=20), {3}, range(2, 57), 5) == quick
    assert len({g.stopped for g in quick}) == 2


def test_a_row_that_goes_in_circles_is_left_there(model):
    requests = [Request(p, 60) for p in prompts(20, seed=3)]
    free = Engine(model).generate(requests, GREEDY)
    watched = Engine(model).generate(requests, GREEDY, max_repeats=6)
    assert went_in_circles([g.ids for g in watched], 6) == [len(g.ids) < 60 for g in watched]
    assert any(went_in_circles([g.ids for g in watched], 6))
    for whole, cut in zip(free, watched, strict=True):
        assert cut.ids == whole.ids[: len(cut.ids)]
        assert not cut.stopped
        assert not went_in_circles([cut.ids[:-1]], 6)[0]


@pytest.mark.parametrize(
    ("ids", "circles"),
    [
        ([7, 7, 7, 7, 7], True),  # four that equal the one before
        ([7, 7, 7, 7, 1, 7, 7, 7], False),
        ([9, 1, 2, 1, 2, 1, 2, 9], True),
        ([1, 2, 1, 2, 1], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], True),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3], False),  # a cycle of nine is a phrase
        ([], False),
    ],
)
def test_circles_are_cycles_of_up_to_eight(ids, circles):
    assert went_in_circles([ids, [1, 2, 3], ids], 4) == [circles, False, circles]
    assert went_in_circles([ids], None) == [False]


def test_only_allowed_ids_are_drawn(model):
    requests = [Request(p, 15, seed=i) for i, p in enumerate(prompts(9))]
    drawn = [i for g in Engine(model).generate(requests, Sampling(temperature=2.0), allowed=[50, 9, 60]) for i in g.ids]
    assert set(drawn) == {9, 50, 60}


def test_draws_follow_the_distribution_cut_by_top_k_and_top_p():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.0, 0.2]).log().expand(20_000, 5)
    uniform = torch.from_numpy(1 - np.random.default_rng(0).random(20_000)).float()

    def shares(sampling: Sampling, allowed: torch.Tensor | None = None) -> list[float]:
        return (torch.bincount(draw(logits, uniform, sampling, allowed), minlength=5) / 20_000).tolist()

    close = {"abs": 0.015}
    assert shares(Sampling()) == pytest.approx([0.4, 0.1, 0.3, 0, 0.2], **close)
    assert shares(Sampling(temperature=0.5)) == pytest.approx([16 / 30, 1 / 30, 9 / 30, 0, 4 / 30], **close)
    assert shares(Sampling(top_k=2)) == pytest.approx([4 / 7, 0, 3 / 7, 0, 0], **close)
    assert shares(Sampling(top_p=0.65)) == pytest.approx([4 / 7, 0, 3 / 7, 0, 0], **close)
    assert shares(Sampling(top_p=0.75)) == pytest.approx([4 / 9, 0, 3 / 9, 0, 2 / 9], **close)
    assert shares(Sampling(), torch.tensor([False, True, True, True, False])) == pytest.approx(
        [0, 0.25, 0.75, 0, 0], **close
    )
    edges = torch.tensor([2.0**-60, 1.0])
    assert set(draw(logits[:2], edges, Sampling()).tolist()) <= {0, 1, 2, 4}


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


def test_a_session_can_be_forced_and_masked(llama):
    session = Engine(llama).session()
    session.feed([5, 6])
    first = session.sample(GREEDY)
    session.feed([11, 12])
    second = session.sample(GREEDY, allowed=torch.arange(VOCAB) >= 40)
    logits = llama(torch.tensor([[5, 6, first, 11, 12]])).logits[0, -1]
    assert second == 40 + int(logits[40:].argmax())


def test_global_random_state_is_neither_read_nor_moved(llama):
    requests = [Request([1, 2, 3], 10, seed=1)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Engine(llama).generate(requests, Sampling())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert Engine(llama).generate(requests, Sampling()) == first


def test_what_cannot_be_generated_is_refused(llama):
    engine = Engine(llama)
    with pytest.raises(UserError, match="128 positions"):
        engine.generate([Request([1] * 100, 29)], GREEDY)
    with pytest.raises(ValueError, match="prompt"):
        engine.generate([Request([], 5)], GREEDY)
    with pytest.raises(ValueError, match="fed"):
        engine.session().sample(GREEDY)
    assert engine.generate([], GREEDY) == []
    assert engine.generate([Request([1], 0)], GREEDY)[0].ids == []
