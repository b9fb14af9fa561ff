from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.data.shards import TokenShards, write_tokens
from weft.errors import UserError
from weft.lm.mixture import Mixture, Pieces, Source, permuted


def pieces_of(folder, lengths, first_id=0, row_tokens=64):
    """Pieces of documents whose ids are all different, so that each can be told apart."""
    ends = np.cumsum(lengths) + first_id
    documents = [(np.arange(end - n, end), np.ones(n, bool)) for n, end in zip(lengths, ends, strict=True)]
    for task in range(2):
        write_tokens(folder, task, 1 << 20, documents[task::2])
    return Pieces(TokenShards(folder), row_tokens)


@settings(max_examples=50)
@given(size=st.integers(1, 300), seed=st.integers(0, 1000))
def test_permuted_is_a_permutation(size, seed):
    assert sorted(permuted(i, size, (seed, 0)) for i in range(size)) == list(range(size))


def test_permutations_of_different_keys_differ_and_mix():
    one, other = ([permuted(i, 1000, (0, 0, epoch)) for i in range(1000)] for epoch in range(2))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert abs(np.corrcoef(one, range(1000))[0, 1]) < 0.1


def test_pieces_predict_every_id_but_a_documents_first_once(tmp_path):
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
    return [
        Source("a", pieces_of(tmp_path / "a", rng.integers(20, 150, 60)), weight=6),
        Source("b", pieces_of(tmp_path / "b", rng.integers(5, 20, 90), first_id=100_000), weight=3),
        Source("c", pieces_of(tmp_path / "c", rng.integers(100, 300, 10), first_id=200_000), weight=1),
    ]


def test_every_source_gives_its_share_of_tokens(sources):
    mixture = Mixture(sources, seed=1)
    tokens, num_samples = Counter(), 20_000
    for j in range(num_samples):
        ids = mixture[j][0]
        tokens["abc"[ids[0] // 100_000]] += len(ids)
    total = sum(tokens.values())
    assert total / num_samples == pytest.approx(mixture.mean_tokens, rel=0.01)
    assert {name: n / total for name, n in tokens.items()} == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.01)


def test_nothing_is_lost_or_doubled_within_an_epoch(tmp_path, rng):
    pieces = pieces_of(tmp_path / "only", rng.integers(2, 200, 300))
    mixture = Mixture([Source("only", pieces, 1.0)], seed=3)
    for epoch in range(3):
        samples = range(epoch * len(pieces), (epoch + 1) * len(pieces))
        seen = Counter(tuple(mixture[j][0].tolist()) for j in samples)
        assert seen == Counter(tuple(pieces[i][0].tolist()) for i in range(len(pieces)))
    assert mixture.epochs(3 * len(pieces)) == {"only": pytest.approx(3.0)}


def test_a_sample_is_a_pure_function_of_seed_weights_and_number(sources):
    numbers = [5000, 3, 1023, 1024, 3, 0]
    mixture = Mixture(sources, seed=1)
    for j in reversed(range(50)):
        mixture[j]
    for j in numbers:
        assert np.array_equal(mixture[j][0], Mixture(sources, seed=1)[j][0])
    same = [np.array_equal(mixture[j][0], Mixture(sources, seed=2)[j][0]) for j in range(100)]
    assert np.mean(same) < 0.2


def test_a_source_that_can_give_nothing_is_refused(tmp_path):
    empty = pieces_of(tmp_path, [1, 1, 1])
    with pytest.raises(UserError, match="no document"):
        Mixture([Source("empty", empty, 1.0)], seed=0)
    with pytest.raises(UserError, match="positive"):
        Mixture([Source("negative", empty, -1.0)], seed=0)
