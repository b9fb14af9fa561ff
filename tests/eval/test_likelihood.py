import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weft.errors import UserError
from weft.eval import likelihood
from weft.eval.likelihood import DIRECTIONS, Pair, choose_likelier, interval
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


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_accuracy_is_that_of_exact_likelihoods(bigrams, vocab, table, direction):
    pairs = [pair.in_direction(direction) for pair in random_pairs(60)]
    right = [known_score(vocab, table, p, p.right) > known_score(vocab, table, p, p.wrong) for p in pairs]
    found = choose_likelier(bigrams, vocab, pairs)
    assert found.num == 60
    assert found.accuracy == pytest.approx(np.mean(right))
    assert 0.2 < found.accuracy < 0.8


def test_swapped_endings_give_the_complement_and_ties_count_half(bigrams, vocab):
    pairs = random_pairs(40)
    swapped = [Pair(p.prompt, p.wrong, p.right) for p in pairs]
    equal = [Pair(p.prompt, p.right, p.right) for p in pairs]
    assert choose_likelier(bigrams, vocab, swapped).accuracy == pytest.approx(
        1 - choose_likelier(bigrams, vocab, pairs).accuracy
    )
    assert choose_likelier(bigrams, vocab, equal).accuracy == 0.5


def test_the_batch_size_does_not_change_the_result(bigrams, vocab, monkeypatch):
    pairs = random_pairs(30)
    whole = choose_likelier(bigrams, vocab, pairs)
    monkeypatch.setattr(likelihood, "_BATCH_TOKENS", 1)
    assert choose_likelier(bigrams, vocab, pairs) == whole


def test_a_direction_changes_only_the_modality():
    pair = random_pairs(1)[0]
    for direction, (prompt, ending) in DIRECTIONS.items():
        turned = pair.in_direction(direction)
        assert {s.type for s in turned.prompt} == {prompt}
        assert turned.right.type == turned.wrong.type == ending
        assert [s.text for s in (*turned.prompt, turned.right)] == [s.text for s in (*pair.prompt, pair.right)]
    assert pair.in_direction("S") == pair


def test_the_interval_is_that_of_wilson():
    # Wilson 1927; the values are those of statsmodels' proportion_confint(8, 10, method="wilson")
    assert (interval(8, 10).low, interval(8, 10).high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert interval(10, 10).high == pytest.approx(1.0)
    assert interval(10, 10).low > 0.7


def test_pairs_that_cannot_be_scored_are_rejected(bigrams, vocab):
    prompt, ending = (Segment.of_text("a"),), Segment.of_text(" b")
    with pytest.raises(UserError, match="no pairs"):
        choose_likelier(bigrams, vocab, [])
    with pytest.raises(UserError, match="pair 1 has an empty"):
        choose_likelier(bigrams, vocab, [Pair(prompt, ending, ending), Pair(prompt, ending, Segment.of_text(""))])
    with pytest.raises(UserError, match="have 81 ids, more than the model's 64 positions: shorten them"):
        choose_likelier(bigrams, vocab, [Pair(prompt, ending, Segment.of_text(" b" * 40))])
