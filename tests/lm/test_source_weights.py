from dataclasses import dataclass

import numpy as np
import pytest

from weft.config import load_recipe
from weft.errors import UserError
from weft.lm.pretrain import PretrainConfig
from weft.lm.source_weights import cycle_of


@dataclass
class Tokens:
    """A source whose documents have equal lengths."""

    num: int
    num_tokens: int

    def __len__(self):
        return self.num


def cycle(weights, sources, steps=1000, batch_tokens=10_000, drawn=None):
    drawn = np.zeros(len(sources), np.int64) if drawn is None else np.array(drawn)
    return cycle_of(weights, sources, drawn, steps, batch_tokens)


def tokens_of(found, sources, steps):
    """Return the tokens that a run reads of each source."""
    per_sample = [sources[n].num_tokens / max(1, len(sources[n])) for n in sources]
    num_samples = steps * found.samples_per_step
    return dict(zip(sources, found.quotas / len(found) * num_samples * per_sample, strict=True))


def test_a_mixture_of_the_size_of_the_paper():
    """30 % text, a number of epochs of speech, ASR and TTS, the rest interleaved (section 6 of arXiv 2411.17607)."""
    sources = {
        "text": Tokens(10_000_000_000, 10_000_000_000_000),
        "interleaved": Tokens(800_000_000, 734_000_000_000),
        "speech": Tokens(30_000_000, 31_000_000_000),
        "asr": Tokens(50_000_000, 7_250_000_000),
        "tts": Tokens(50_000_000, 7_250_000_000),
    }
    weights = {"text": 0.3, "speech": "1 epoch", "asr": "1 epoch", "tts": "1 epoch", "interleaved": "rest"}
    steps, batch_tokens = 250_000, 4_000_000
    found = cycle(weights, sources, steps, batch_tokens)
    tokens = tokens_of(found, sources, steps)
    total = steps * batch_tokens
    assert sum(tokens.values()) == pytest.approx(total, rel=1e-3)
    assert tokens["text"] == pytest.approx(0.3 * total, rel=1e-3)
    for name in ("speech", "asr", "tts"):
        assert 0.9999 < tokens[name] / sources[name].num_tokens <= 1 + 1e-9
    assert tokens["interleaved"] == pytest.approx(total - 0.3 * total - 45.5e9, rel=1e-3)


SOURCES = {"a": Tokens(1000, 100_000), "b": Tokens(500, 50_000), "c": Tokens(0, 0)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.6, "b": 0.3, "c": 0}, "weights sum to 0.9 instead of 1"),
        ({"a": 3.0, "b": 0.3, "c": 0}, "weights.a is 3: give a fraction of the tokens, 0 to 1"),
        ({"a": -0.1, "b": "rest", "c": 0}, "weights.a is -0.1: give a fraction of the tokens, 0 to 1"),
        ({"a": float("nan"), "b": "rest", "c": 0}, "weights.a is nan: give a fraction of the tokens, 0 to 1"),
        ({"a": 0.9, "b": "rest", "c": 0.1}, "c has no document of two or more ids"),
        ({"a": "1 epoch", "b": 1.0, "c": 0}, 'weights contain epochs: give one source the "rest"'),
        ({"a": "rest", "b": "rest", "c": 0}, "weights give the rest 2 times"),
        (
            {"a": 1.0, "b": "rest", "c": 0},
            "weights leave no rest for b: of 10,000,000 tokens in 1,000 steps, they take 1 of a",
        ),
        ({"a": "95 epochs", "b": "rest", "c": 0}, None),
        ({"a": "101 epochs", "b": "rest", "c": 0}, "no rest for b: .* 1.01 of a, which is 1.01: increase the steps"),
        ({"a": "an epoch", "b": "rest", "c": 0}, "weights.a is 'an epoch': give a fraction of the tokens"),
        ({"a": "0 epochs", "b": "rest", "c": 0}, "weights.a is '0 epochs': give a fraction of the tokens"),
        ({"a": "rest", "b": 0.1}, "weights lacks c"),
        ({"a": "rest", "b": 0.1, "c": 0, "d": 0.1}, "weights lists 'd', which is not in tokens: a, b, c"),
    ],
)
def test_impossible_weights_are_rejected_with_the_arithmetic(weights, message):
    if message is None:
        cycle(weights, SOURCES)
        return
    with pytest.raises(UserError, match=message):
        cycle(weights, SOURCES)


@pytest.mark.parametrize("small", [0.1, 0.01, 0.0101, 0.003, 0.0002, 1e-5])
def test_small_fractions_are_accurate_to_a_tenth(small):
    sources = {"a": Tokens(1000, 100_000), "b": Tokens(500, 70_000), "c": Tokens(500, 50_000)}
    found = cycle({"a": small, "b": 1 - 3 * small, "c": 2 * small}, sources)
    tokens = tokens_of(found, sources, 1)
    assert tokens["a"] / sum(tokens.values()) == pytest.approx(small, rel=0.1)
    assert tokens["c"] / sum(tokens.values()) == pytest.approx(2 * small, rel=0.1)


def test_earlier_samples_count_towards_the_epochs():
    weights = {"a": "2 epochs", "b": "rest", "c": 0}
    assert cycle(weights, SOURCES).quotas[0] == 2000
    assert cycle(weights, SOURCES, drawn=[1500, 0, 0]).quotas[0] == 500
    assert cycle(weights, SOURCES, drawn=[2000, 0, 0]).quotas[0] == 0
    with pytest.raises(UserError, match="a has been read more than the 2 epochs of weights by then: give it 0"):
        cycle(weights, SOURCES, drawn=[2001, 0, 0])


def test_a_source_too_small_for_every_cycle_is_rejected():
    sources = {"a": Tokens(10**11, 10**13), "b": Tokens(5, 500)}
    with pytest.raises(UserError, match="b is too small for 10,000,000,000 samples"):
        cycle({"a": "rest", "b": "1 epoch"}, sources, 1_000_000, 1_000_000)


def test_flags_change_single_weights_of_a_recipe(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'base = "b"\ntokens = ["t"]\nout = "o"\nweights = {text = 0.3, speech = "1 epoch", interleaved = "rest"}\n'
        "[weights_from.500]\ntext = 0.5\nspeech = 0\ninterleaved = 0.5\n"
    )
    config = load_recipe(PretrainConfig, recipe)
    assert config.weights == {"text": 0.3, "speech": "1 epoch", "interleaved": "rest"}
    assert config.weights_from == {"500": {"text": 0.5, "speech": 0.0, "interleaved": 0.5}}
    flags = ["--weights.text", "1", "--weights-from.20.text", "1 epoch", "--weights-from.20.interleaved", "rest"]
    config = load_recipe(PretrainConfig, recipe, flags)
    assert config.weights == {"text": 1.0, "speech": "1 epoch", "interleaved": "rest"}
    assert config.weights_from == {
        "20": {"text": "1 epoch", "interleaved": "rest"},
        "500": {"text": 0.5, "speech": 0.0, "interleaved": 0.5},
    }
