from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.data.token_shards import TokenShards, write_tokens
from weft.lm.mixture import Mixture, Pieces, permuted


def pieces_of(folder, lengths, first_id=0, max_seq_len=64):
    """Return pieces of documents whose ids all differ."""
    ends = np.cumsum(lengths) + first_id
    documents = [(np.arange(end - n, end), np.ones(n, bool)) for n, end in zip(lengths, ends, strict=True)]
    for task in range(2):
        write_tokens(folder, task, 1 << 20, documents[task::2])
    return Pieces(TokenShards(folder), max_seq_len)


@settings(max_examples=50)
@given(size=st.integers(1, 300), seed=st.integers(0, 1000))
def test_permuted_is_a_permutation(size, seed):
    assert sorted(permuted(i, size, (seed, 0)) for i in range(size)) == list(range(size))


def test_permutations_depend_on_the_key_and_look_random():
    one, other = ([permuted(i, 1000, (0, 0, epoch)) for i in range(1000)] for epoch in range(2))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert abs(np.corrcoef(one, range(1000))[0, 1]) < 0.1


def test_pieces_predict_every_id_except_the_first_of_a_document_once(tmp_path):
    lengths = [1, 2, 63, 64, 65, 127, 128, 200]
    pieces = pieces_of(tmp_path, lengths)
    found = [pieces[i] for i in range(len(pieces))]
    assert all(len(ids) <= 64 and len(ids) == len(loss) for ids, loss in found)
    assert pieces.num_tokens == sum(len(ids) for ids, _ in found)
    predicted = Counter(int(i) for ids, _ in found for i in ids[1:])
    first = {int(end - n) for n, end in zip(lengths, np.cumsum(lengths), strict=True)}
    assert predicted == Counter(set(range(sum(lengths))) - first)


@pytest.fixture
def sources(tmp_path, rng):
    return {
        "a": pieces_of(tmp_path / "a", rng.integers(20, 150, 60)),
        "b": pieces_of(tmp_path / "b", rng.integers(5, 20, 90), first_id=100_000),
        "c": pieces_of(tmp_path / "c", rng.integers(100, 300, 10), first_id=200_000),
    }


def drawn_from(mixture, steps):
    """Return every sample of some steps, by source."""
    found = {name: [] for name in "abc"}
    for step in steps:
        for j in mixture.samples(step):
            ids = mixture[j][0]
            found["abc"[ids[0] // 100_000]].append(tuple(ids.tolist()))
    return found


def tokens_of(found):
    return {name: sum(map(len, drawn)) for name, drawn in found.items()}


def assert_all_used_before_repeats(drawn, pieces):
    """Assert that each epoch contains no piece twice."""
    for start in range(0, len(drawn), len(pieces)):
        once = drawn[start : start + len(pieces)]
        assert len(set(once)) == len(once)


WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


def test_every_source_has_its_fraction_of_the_tokens(sources):
    mixture = Mixture(sources, {0: WEIGHTS}, steps=300, batch_tokens=1000, seed=1)
    found = drawn_from(mixture, range(300))
    tokens = tokens_of(found)
    assert sum(tokens.values()) == pytest.approx(300_000, rel=0.02)
    assert {n: t / sum(tokens.values()) for n, t in tokens.items()} == pytest.approx(WEIGHTS, abs=0.01)
    for name, use in mixture.uses().items():
        assert use.epochs == len(found[name]) / len(sources[name])
        assert use.tokens_drawn == tokens[name]
        assert use.shares[0] == tokens[name] / sum(tokens.values())
        assert_all_used_before_repeats(found[name], sources[name])


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_use_of_short_runs_is_that_of_their_samples(sources, steps, monkeypatch):
    mixture = Mixture(sources, {0: WEIGHTS}, steps, batch_tokens=300, seed=3)
    tokens = tokens_of(drawn_from(mixture, range(steps)))
    assert {name: use.tokens_drawn for name, use in mixture.uses().items()} == tokens
    assert {name: use.weights for name, use in mixture.uses().items()} == {n: {0: w} for n, w in WEIGHTS.items()}
    monkeypatch.setattr("weft.lm.mixture._MAX_SUMMED", 0)
    expected = {n: u.tokens_drawn for n, u in Mixture(sources, {0: WEIGHTS}, steps, 300, seed=3).uses().items()}
    assert expected == pytest.approx(tokens, rel=0.5, abs=300)


def test_a_source_with_a_thousandth_of_the_tokens_is_drawn_accurately(sources):
    mixture = Mixture(sources, {0: {"a": 0.999, "b": 0.001, "c": 0}}, steps=500, batch_tokens=10_000, seed=1)
    assert mixture.uses()["b"].tokens_drawn == pytest.approx(5000, rel=0.1)


def test_epochs_are_exact_and_the_rest_fills_the_run(sources):
    weights = {"a": "rest", "b": "1 epoch", "c": "2.5 epochs"}
    mixture = Mixture(sources, {0: weights}, steps=40, batch_tokens=1000, seed=1)
    found = drawn_from(mixture, range(40))
    assert set(Counter(found["b"]).values()) == {1}
    assert len(found["b"]) == len(sources["b"])
    assert len(found["c"]) == int(2.5 * len(sources["c"]))
    assert sum(tokens_of(found).values()) == pytest.approx(40_000, rel=0.05)
    assert_all_used_before_repeats(found["a"], sources["a"])


def test_a_sample_is_a_pure_function_of_seed_weights_and_index(sources):
    def make(seed):
        return Mixture(sources, {0: WEIGHTS, 30: {"a": "rest", "b": 0.1, "c": "9 epochs"}}, 200, 1000, seed)

    mixture = make(1)
    samples = [3000, 3, 1023, 1024, 3, 0]
    for j in reversed(range(50)):
        mixture[j]
    for j in samples:
        assert np.array_equal(mixture[j][0], make(1)[j][0])
    same = [np.array_equal(mixture[j][0], make(2)[j][0]) for j in range(100)]
    assert np.mean(same) < 0.2


def test_the_order_of_samples_is_fixed(sources):
    """A change would change the results of published recipes."""
    mixture = Mixture(sources, {0: WEIGHTS}, steps=1000, batch_tokens=1000, seed=1)
    first = [int(mixture[j][0][0]) for j in (0, 1, 2, 1023, 1024, 20_000)]
    assert first == [100_289, 100_261, 100_852, 2075, 100_032, 4627]
    assert mixture.samples(10) == range(390, 429)


def test_weights_can_change_during_a_run(sources):
    """Each phase has its weights, epochs continue across phases, and earlier samples do not change."""
    later = {"a": 0.1, "b": 0.1, "c": 0.8}
    steady = Mixture(sources, {0: WEIGHTS}, 90, 1000, seed=1)
    changed = Mixture(sources, {0: WEIGHTS, 30: later, 61: {**later, "a": 0, "b": 0.2}}, 90, 1000, seed=1)
    phases = [drawn_from(changed, steps) for steps in (range(30), range(30, 61), range(61, 90))]
    assert phases[0] == drawn_from(steady, range(30))
    for found, weights in zip(phases, (WEIGHTS, later, {"a": 0, "b": 0.2, "c": 0.8}), strict=True):
        tokens = tokens_of(found)
        assert {n: t / sum(tokens.values()) for n, t in tokens.items()} == pytest.approx(weights, abs=0.07)
    for name, use in changed.uses().items():
        drawn = [ids for found in phases for ids in found[name]]
        assert_all_used_before_repeats(drawn, sources[name])
        assert use.epochs == len(drawn) / len(sources[name])
        tokens = [tokens_of(found) for found in phases]
        assert list(use.shares.values()) == [t[name] / sum(t.values()) for t in tokens]
        assert list(use.shares) == [0, 30, 61]
    samples = [j for step in range(90) for j in changed.samples(step)]
    assert samples == list(range(len(samples)))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.integers(1, 39), epochs=st.sampled_from([1, 1.5, 3]), fraction=st.sampled_from([0.0, 0.2, 0.5]))
def test_epochs_apply_to_the_whole_run_across_a_change(sources, change, epochs, fraction):
    weights = {0: {"a": "rest", "b": f"{epochs} epochs", "c": fraction}}
    steady = Mixture(sources, weights, 40, 1000, seed=1)
    weights[change] = {"a": 0.1, "b": f"{epochs} epochs", "c": "rest"}
    changed = Mixture(sources, weights, 40, 1000, seed=1)
    assert drawn_from(changed, range(change)) == drawn_from(steady, range(change))
    drawn = drawn_from(changed, range(40))["b"]
    assert len(drawn) == int(epochs * len(sources["b"]))
    assert_all_used_before_repeats(drawn, sources["b"])
