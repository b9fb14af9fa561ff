import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weft.errors import UserError
from weft.eval import scoring
from weft.eval.likelihood import DIRECTIONS, Pair, PairScores, score_pairs
from weft.eval.results import Result
from weft.records import Segment
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer

NUM_CODES = 8


@pytest.fixture(scope="module")
def vocab():
    return SpeechVocab.of(extend_tokenizer(train_text_tokenizer(["abcd"], 258), NUM_CODES))


@pytest.fixture(scope="module")
def table(vocab):
    """Log-probabilities (V, V) of every id after every id."""
    return torch.randn(vocab.size, vocab.size, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)


@pytest.fixture(scope="module")
def bigrams(table):
    """A language model with exactly the probabilities of `table`: one-hot embeddings, no layers, the table as head."""
    size = len(table)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        num_hidden_layers=0,
        num_attention_heads=1,
        head_dim=2,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        model.get_output_embeddings().weight.copy_(table.T / size**0.5)
    return model


@pytest.fixture(scope="module")
def llama(vocab):
    """A model with attention and random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab.size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def random_pairs(num, seed=0):
    rng = np.random.default_rng(seed)

    def segment():
        codes = rng.integers(0, NUM_CODES, rng.integers(1, 9)).tolist()
        return Segment.of_speech(codes, " " + "".join(rng.choice(list("abcd"), rng.integers(1, 9))))

    return [Pair((segment(), segment()), segment(), segment()) for _ in range(num)]


def known_score(vocab, table, pair, ending):
    """Return the mean log-probability of the ending's text ids or codes, from single entries of the table."""
    ids = np.concatenate([vocab.segment_ids(s) for s in (*pair.prompt, ending)])
    first = len(ids) - len(vocab.segment_ids(ending))
    steps = [(ids[i - 1], ids[i]) for i in range(first, len(ids)) if not vocab.is_control(ids[i])]
    assert len(steps) == (len(ending.codes) if ending.type == "speech" else len(ending.text))
    return np.mean([float(table[a, b]) for a, b in steps])


def reversed_pairs(pairs):
    return [Pair(p.prompt, p.wrong, p.right) for p in pairs]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_choices_are_those_of_exact_likelihoods(bigrams, vocab, table, direction):
    pairs = [pair.in_direction(direction) for pair in random_pairs(60)]
    known = np.array([[known_score(vocab, table, p, ending) for ending in (p.right, p.wrong)] for p in pairs])
    found = score_pairs(bigrams, vocab, pairs)
    assert np.allclose(found.values("mean"), known, rtol=1e-3)
    assert np.allclose(found.values("total"), known * found.num_ids, rtol=1e-3)
    assert found.scores("mean") == (known[:, 0] > known[:, 1]).tolist()
    assert 0.2 < np.mean(found.scores("mean")) < 0.8


def test_the_rules_differ_by_what_a_sum_is_divided_by(bigrams, vocab):
    """The formula of slamkit is the mean; a small table is computed by hand."""
    found = PairScores(
        totals=np.array([[-6.0, -8.0], [-6.0, -6.0]]),
        alone=np.array([[-1.0, -7.0], [-2.0, -3.0]]),
        num_ids=np.array([[3, 4], [2, 3]]),
        num_bytes=np.array([[12, 4], [6, 0]]),
    )
    assert found.values("mean").tolist() == [[-2, -2], [-3, -2]]
    assert found.scores("mean") == [0.5, 0]
    assert found.values("per_byte").tolist() == [[-0.5, -2], [-1, -6]]
    assert found.scores("total") == [1, 0.5]
    assert np.allclose(found.values("mutual_information"), [[-5 / 3, -1 / 4], [-2, -1]])


def test_swapped_endings_give_the_complement_and_ties_count_half(bigrams, vocab):
    pairs = random_pairs(40)
    scores = np.array(score_pairs(bigrams, vocab, pairs).scores("mean"))
    assert np.array_equal(score_pairs(bigrams, vocab, reversed_pairs(pairs)).scores("mean"), 1 - scores)
    equal = [Pair(p.prompt, p.right, p.right) for p in pairs]
    assert set(score_pairs(bigrams, vocab, equal).scores("mean")) == {0.5}


def test_an_oracle_a_coin_and_its_opposite(bigrams, vocab):
    """Endings of the likeliest ids are chosen against others (100 %), and random endings half of the time."""
    pairs = random_pairs(400)
    scores = score_pairs(bigrams, vocab, pairs).scores("mean")
    best = [p if score == 1 else Pair(p.prompt, p.wrong, p.right) for p, score in zip(pairs, scores, strict=True)]
    assert np.mean(score_pairs(bigrams, vocab, best).scores("mean")) == 1
    assert np.mean(score_pairs(bigrams, vocab, reversed_pairs(best)).scores("mean")) == 0
    coin = Result.of_scores(score_pairs(bigrams, vocab, random_pairs(400, seed=1)).scores("mean"), {}, None)
    assert coin.low < 0.5 < coin.high


def test_the_batch_size_does_not_change_the_result(llama, vocab, monkeypatch):
    pairs = random_pairs(30)
    whole = score_pairs(llama, vocab, pairs)
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 1)
    alone = score_pairs(llama, vocab, pairs)
    assert np.allclose(whole.totals, alone.totals, atol=1e-4)
    assert np.allclose(whole.alone, alone.alone, atol=1e-4)


@pytest.mark.parametrize("one_modality", [False, True])
def test_scores_equal_those_of_whole_documents(llama, vocab, one_modality):
    """A model with attention, each prompt and ending alone and without a cache."""
    pairs = [pair.in_direction("TS") for pair in random_pairs(6)]
    found = score_pairs(llama, vocab, pairs, one_modality)
    codes = vocab.codes_to_ids(range(NUM_CODES))
    for i, pair in enumerate(pairs):
        for j, ending in enumerate((pair.right, pair.wrong)):
            ids = np.concatenate([vocab.segment_ids(s) for s in (*pair.prompt, ending)])
            with torch.no_grad():
                logits = llama(torch.from_numpy(ids)[None]).logits[0]
            if one_modality:
                logits = torch.full_like(logits, -torch.inf).index_copy(1, torch.from_numpy(codes), logits[:, codes])
            losses = logits.log_softmax(-1)[:-1].gather(1, torch.from_numpy(ids[1:])[:, None])[:, 0].numpy()
            first = len(ids) - len(vocab.segment_ids(ending)) - 1
            kept = [losses[k] for k in range(first, len(losses)) if not vocab.is_control(ids[k + 1])]
            assert found.totals[i, j] == pytest.approx(sum(kept), abs=1e-4)


def test_a_direction_changes_only_the_modality():
    pair = random_pairs(1)[0]
    for direction, (prompt, ending) in DIRECTIONS.items():
        turned = pair.in_direction(direction)
        assert {s.type for s in turned.prompt} == {prompt}
        assert turned.right.type == turned.wrong.type == ending
        assert [s.text for s in (*turned.prompt, turned.right)] == [s.text for s in (*pair.prompt, pair.right)]
    assert pair.in_direction("SS") == pair


def test_pairs_that_cannot_be_scored_are_rejected(bigrams, vocab):
    prompt, ending = (Segment.of_text("a"),), Segment.of_text(" b")
    with pytest.raises(UserError, match="no pairs"):
        score_pairs(bigrams, vocab, [])
    with pytest.raises(UserError, match="pair 1 has an empty"):
        score_pairs(bigrams, vocab, [Pair(prompt, ending, ending), Pair(prompt, ending, Segment.of_text(""))])
    with pytest.raises(UserError, match="have 81 ids, more than the model's 64 positions: shorten them"):
        score_pairs(bigrams, vocab, [Pair(prompt, ending, Segment.of_text(" b" * 40))])


def test_a_pair_may_have_no_beginning(bigrams, vocab, table):
    pair = Pair((), Segment.of_text("ab"), Segment.of_text("cd"))
    found = score_pairs(bigrams, vocab, [pair])
    assert np.allclose(found.totals, found.alone)
